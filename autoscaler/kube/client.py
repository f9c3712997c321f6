"""Requests to the Kubernetes API on the official client's transport: JSON in, JSON out, errors by who must act.

The client's typed methods are left aside: they deserialise whole lists into models, and raise half of their errors as
something else. Retried are what the server asks to retry (429 with its Retry-After, 5xx) and what never arrived; every
request made here may safely be made twice. Neighbours: `kinds` has the paths, `cluster` what is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import stamina
from kubernetes.aio import client, config

from autoscaler.errors import ClusterError
from autoscaler.model.plain import plain

MERGE_PATCH: Final = "application/merge-patch+json"
APPLY_PATCH: Final = "application/apply-patch+yaml"
JSON: Final = "application/json"

PAGE: Final = 500
TIMEOUT_SECONDS: Final = 30.0
ATTEMPTS: Final = 4
LONGEST_RETRY_AFTER_SECONDS: Final = 30.0
"""Told to wait longer, the pass is given up; the next one tries again."""

_RESTARTS: Final = 3
_RETRIED: Final = frozenset({429, 500, 502, 503, 504})
_EXPIRED: Final = 410


class StatusError(ClusterError):
    """The API server answered with an error; `status` is the HTTP status, `retry_after_seconds` None when not told."""

    def __init__(self, status: int, message: str, retry_after_seconds: float | None = None) -> None:
        self.status = status
        self.retry_after_seconds = retry_after_seconds
        super().__init__(f"the API server answered {status}: {message}")


class UnreachableError(ClusterError):
    """No answer came from the API server."""


class KubeClient:
    """One API server. `timeout_seconds` bounds each attempt of a request; `page` is a list's items per request."""

    def __init__(self, api: client.ApiClient, timeout_seconds: float = TIMEOUT_SECONDS, page: int = PAGE) -> None:
        self._api = api
        self._timeout_seconds = timeout_seconds
        self._page = page

    @classmethod
    async def connect(
        cls, kubeconfig: Path | None, timeout_seconds: float = TIMEOUT_SECONDS, page: int = PAGE
    ) -> KubeClient:
        """Return a client for a kubeconfig; without one, for the pod's service account, else the default kubeconfig.

        Raises:
            ClusterError: none of them can be used.

        """
        settings = client.Configuration()
        if kubeconfig is not None and not kubeconfig.is_file():  # noqa: ASYNC240  one look, before anything runs
            raise ClusterError(f"no way to an API server: {kubeconfig} is not a file")
        try:
            if kubeconfig is None:
                try:
                    config.load_incluster_config(client_configuration=settings)
                except config.ConfigException:
                    await config.load_kube_config(client_configuration=settings)
            else:
                await config.load_kube_config(str(kubeconfig), client_configuration=settings)
        except (config.ConfigException, OSError, ValueError) as error:
            raise ClusterError(f"no way to an API server: {error}") from error
        return cls(client.ApiClient(settings), timeout_seconds, page)

    async def list_all(self, path: str, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return all items of a collection, page by page; a list that expires half way is started over.

        Raises:
            ClusterError: it could not be read whole.

        """
        for _ in range(_RESTARTS):
            try:
                return await self._pages(path, query)
            except StatusError as error:
                if error.status != _EXPIRED:
                    raise
                expired = error
        raise expired

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = JSON,
    ) -> dict[str, Any]:
        """Return the object that the server answers with.

        Raises:
            StatusError: it answered with an error.
            UnreachableError: it did not answer.

        """
        async for attempt in stamina.retry_context(on=again, attempts=ATTEMPTS, timeout=2 * self._timeout_seconds):
            with attempt:
                answer = await self._once(method, path, query or {}, (plain(body), content_type))
        return answer

    async def close(self) -> None:
        """Release connections."""
        await self._api.close()

    async def _pages(self, path: str, query: Mapping[str, str]) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        following = ""
        while True:
            place = {"continue": following} if following else {}
            answer = await self.request("GET", path, {**query, "limit": str(self._page), **place})
            found = answer.get("items")
            if not isinstance(found, list):
                raise ClusterError(f"the API server's answer to a list of {path} has no items")
            items += found
            following = (answer.get("metadata") or {}).get("continue") or ""
            if not following:
                return items

    async def _once(
        self, method: str, path: str, query: Mapping[str, str], content: tuple[Mapping[str, Any] | None, str]
    ) -> dict[str, Any]:
        body, content_type = content
        headers = {"Accept": JSON, **({"Content-Type": content_type} if body is not None else {})}
        try:
            request = await self._api.param_serialize(
                method=method,
                resource_path=path,
                query_params=list(query.items()),
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
            )
            response = await self._api.call_api(*request, _request_timeout=self._timeout_seconds)
            text = await response.read()
        except TimeoutError:
            raise UnreachableError(f"{method} {path}: no answer within {self._timeout_seconds:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise UnreachableError(f"{method} {path}: {type(error).__name__}: {error}") from error
        if response.status >= 400:
            raise _status_error(response.status, text, response.headers.get("Retry-After"))
        return _decoded(text, f"{method} {path}")


def again(error: Exception) -> bool | float:
    """Tell whether to ask again, or after how many seconds."""
    if isinstance(error, UnreachableError):
        return True
    if not isinstance(error, StatusError) or error.status not in _RETRIED:
        return False
    if error.retry_after_seconds is None:
        return True
    return error.retry_after_seconds if error.retry_after_seconds <= LONGEST_RETRY_AFTER_SECONDS else False


def _status_error(status: int, text: bytes, retry_after: str | None) -> StatusError:
    try:
        answer = msgspec.json.decode(text)
    except msgspec.DecodeError:
        answer = None
    message = answer.get("message") if isinstance(answer, dict) else None
    seconds = (
        float(retry_after) if retry_after is not None and retry_after.isascii() and retry_after.isdecimal() else None
    )
    return StatusError(status, str(message or text[:200].decode(errors="replace").strip()), seconds)


def _decoded(text: bytes, what: str) -> dict[str, Any]:
    try:
        answer = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise UnreachableError(f"{what}: the answer can't be read: {error}") from error
    if not isinstance(answer, dict):
        raise UnreachableError(f"{what}: the answer is no object")
    return answer
