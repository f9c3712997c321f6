"""The API server's ways to fail, and which of them are worth asking again. Neighbour: `client` raises them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import aiohttp
import msgspec

from autoscaler.errors import ClusterError

LONGEST_RETRY_AFTER_SECONDS: Final = 30.0
"""Told to wait longer, the pass is given up; the next one tries again."""

_RETRIED: Final = frozenset({429, 500, 502, 503, 504})
_REFUSED: Final = frozenset({400, 413, 415, 422})
_MISTYPED: Final = ("failed to create typed patch object", "failed to create typed live object")
"""What a server-side apply says, as a 500, of fields that the installed definition has otherwise or not at all: in what
it was sent, or in what is stored since another definition was installed."""

_FIELD: Final = re.compile(r"\): \.status(?P<path>(?:\.[\w-]+|\[[^]]*\])+): (?:field not declared|expected )")


class StatusError(ClusterError):
    """The API server answered with an error; `status` is the HTTP status, `retry_after_seconds` None when not told."""

    def __init__(self, status: int, message: str, retry_after_seconds: float | None = None) -> None:
        self.status = status
        self.retry_after_seconds = retry_after_seconds
        self.is_refusal = status in _REFUSED or (status == 500 and message.startswith(_MISTYPED))
        """The server read what it was sent and will never take it; nobody else changed anything."""
        super().__init__(f"the API server answered {status}: {message}")


class UnreachableError(ClusterError):
    """No answer came from the API server."""


def again(error: Exception) -> bool | float:
    """Tell whether to ask again, or after how many seconds."""
    if isinstance(error, UnreachableError):
        return True
    if not isinstance(error, StatusError) or error.status not in _RETRIED or error.is_refusal:
        return False
    if error.retry_after_seconds is None:
        return True
    return error.retry_after_seconds if error.retry_after_seconds <= LONGEST_RETRY_AFTER_SECONDS else False


@dataclass(frozen=True, slots=True)
class Mistyped:
    """A status field that the installed definition has otherwise or not at all; the server names one at a time.

    `path`: keys from the top of the status, the entries of a list share their place. `is_stored`: what is wrong is the
    value that the object has, not the one that was sent.
    """

    path: tuple[str, ...]
    is_stored: bool


def mistyped(error: StatusError) -> Mistyped | None:
    """Return which field an apply failed on, None: it failed on something else."""
    found = _FIELD.search(str(error)) if error.status == 500 else None
    if found is None:
        return None
    path = re.sub(r"\[[^]]*\]", "", found["path"]).strip(".").split(".")
    return Mistyped(tuple(path), is_stored=_MISTYPED[1] in str(error))


def status_error(status: int, text: bytes, retry_after: str | None) -> StatusError:
    """Return the error of an answer: its status, its body and its Retry-After header."""
    try:
        answer = msgspec.json.decode(text)
    except msgspec.DecodeError:
        answer = None
    message = answer.get("message") if isinstance(answer, dict) else None
    seconds = (
        float(retry_after) if retry_after is not None and retry_after.isascii() and retry_after.isdecimal() else None
    )
    return StatusError(status, str(message or text[:200].decode(errors="replace").strip()), seconds)


@contextmanager
def named_errors(what: str, seconds: float) -> Iterator[None]:
    """Turn the transport's ways to fail into one, which says what failed."""
    try:
        yield
    except TimeoutError:
        raise UnreachableError(f"{what}: no answer within {seconds:g} s") from None
    except (aiohttp.ClientError, OSError) as error:
        raise UnreachableError(f"{what}: {type(error).__name__}: {error}") from error
