"""A running controller, asked over HTTP what it decided about one workload."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import aiohttp

from autoscaler.errors import NodeError
from autoscaler.model.usage import WorkloadKey

TIMEOUT_SECONDS = 30.0


class ControllerError(NodeError):
    """A controller is away, or has nothing to tell; the text says which."""


async def ask_controller(url: str, key: WorkloadKey) -> dict[str, Any]:
    """Return a workload's account as the controller at `url` (its --listen address) tells it.

    Raises:
        ControllerError: it does not answer, or says why it can't.

    """
    path = f"{url.rstrip('/')}/v1/decisions/{quote(key.namespace, safe='')}/{quote(key.name, safe='')}"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)) as session,
            session.get(path) as response,
        ):
            content = await response.json(content_type=None)
            status = response.status
    except TimeoutError as error:
        raise ControllerError(f"{url}: no answer within {TIMEOUT_SECONDS:g} s") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise ControllerError(f"{url}: {type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise ControllerError(f"{url}: the answer is no JSON object; is this a controller's --listen address?")
    if status != 200:
        raise ControllerError(str(content.get("error") or f"{url}: HTTP {status}"))
    return content
