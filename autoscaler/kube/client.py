"""Requests to the Kubernetes API on the official client's transport: JSON in, JSON out, errors by who must act.

The client's typed methods are left aside: they deserialise whole lists into models, and raise half of their errors as
something else. Retried are what the server asks to retry (429 with its Retry-After, 5xx) and what never arrived; every
request made here may safely be made twice. Each attempt waits for its turn; one that a busy server sent away lets the
others wait, too. Neighbours: `access` has address and credentials, `pacing` the turns, `kinds` the paths.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp
import msgspec
import stamina
from kubernetes.aio import client

from autoscaler.kube.access import Access, Credentials
from autoscaler.kube.errors import (
    LONGEST_RETRY_AFTER_SECONDS,
    StatusError,
    UnreachableError,
    again,
    named_errors,
    status_error,
)
from autoscaler.kube.pacing import UNPACED, Pace
from autoscaler.model.plain import plain

__all__ = ["KubeClient", "StatusError", "UnreachableError", "again"]

MERGE_PATCH: Final = "application/merge-patch+json"
APPLY_PATCH: Final = "application/apply-patch+yaml"
JSON: Final = "application/json"

PAGE: Final = 500
TIMEOUT_SECONDS: Final = 30.0
ATTEMPTS: Final = 4
UNREACHABLE: Final = "unreachable"
"""Stands for the HTTP code where no answer came."""

_T = TypeVar("_T")
_BUSY: Final = frozenset({429, 503})
_BUSY_SECONDS: Final = 1.0
_VERBS: Final = {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}
Observe = Callable[[str, str], None]
"""Is told of each attempt to write: the verb, and the HTTP code or `unreachable`."""


class KubeClient:
    """One API server. `timeout_seconds` bounds each attempt of a request, `page` is a list's items per request.

    `credentials` are read again when the server does not know those shown; `observe` may be set and is told of writes.
    """

    def __init__(
        self,
        api: client.ApiClient,
        timeout_seconds: float = TIMEOUT_SECONDS,
        page: int = PAGE,
        pace: Pace = UNPACED,
        credentials: Credentials | None = None,
    ) -> None:
        self._api, self._credentials = api, credentials
        self._timeout_seconds = timeout_seconds
        self._pace = pace
        self.page = page
        self.observe: Observe = _unobserved

    @classmethod
    async def connect(
        cls,
        place: Path | Access | None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        page: int = PAGE,
        pace: Pace = UNPACED,
    ) -> KubeClient:
        """Return a client for a kubeconfig; without one, for the pod's service account, else the default kubeconfig.

        Raises:
            ClusterError: none of them can be used.

        """
        settings = client.Configuration()
        access = place if isinstance(place, Access) else Access(place)
        await access.load(settings)
        return cls(client.ApiClient(settings), timeout_seconds, page, pace, Credentials(access, settings))

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
        return await self._asked(method, path, query or {}, (plain(body), content_type), _decoded)

    async def request_once(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, content_type: str = JSON
    ) -> dict[str, Any]:
        """As `request`, but asked once: for whom a late answer is worth nothing.

        Raises:
            StatusError: the server answered with an error.
            UnreachableError: it did not answer, or nothing that can be read.

        """
        text = await self._once(method, path, {}, (plain(body), content_type))
        return _read(text, _decoded, f"{method} {path}")

    async def get(self, path: str, query: Mapping[str, str], decode: Callable[[bytes], _T]) -> _T:
        """Return what `decode` makes of an answer's body; a body that it refuses (DecodeError) is asked for again.

        Raises:
            StatusError: the server answered with an error.
            UnreachableError: it did not answer, or nothing that can be read.

        """
        return await self._asked("GET", path, query, (None, JSON), decode)

    @asynccontextmanager
    async def stream(
        self, path: str, query: Mapping[str, str], silence_seconds: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open an answer that goes on, and give its lines as they come; asked once, whoever follows it asks again.

        Raises:
            StatusError: the server answered with an error.
            UnreachableError: it did not answer, was silent for `silence_seconds`, or broke off; within it, too.

        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout_seconds, sock_read=silence_seconds)
        await self._pace.turn()
        shown = self._shown
        with named_errors(f"watch of {path}", silence_seconds):
            response = await self._call("GET", path, query, (None, JSON), timeout)
            try:
                if response.status >= 400:
                    if response.status == 401:  # whoever asks again shows the new ones
                        await self._renewed(shown)
                    text = await response.read()
                    raise self._refused(response.status, text, response.headers.get("Retry-After"))
                yield _lines(response.response.content)
            finally:
                response.response.close()

    async def close(self) -> None:
        """Release connections."""
        await self._api.close()

    async def _asked(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        content: tuple[Mapping[str, Any] | None, str],
        decode: Callable[[bytes], _T],
    ) -> _T:
        async for attempt in stamina.retry_context(on=again, attempts=ATTEMPTS, timeout=2 * self._timeout_seconds):
            with attempt:
                answer = _read(await self._once(method, path, query, content), decode, f"{method} {path}")
        return answer

    async def _once(
        self, method: str, path: str, query: Mapping[str, str], content: tuple[Mapping[str, Any] | None, str]
    ) -> bytes:
        shown = self._shown
        status, text, retry_after = await self._attempt(method, path, query, content)
        if status == 401 and await self._renewed(shown):
            status, text, retry_after = await self._attempt(method, path, query, content)
        if status < 400:
            return text
        raise self._refused(status, text, retry_after)

    def _refused(self, status: int, text: bytes, retry_after: str | None) -> StatusError:
        """Return the error of an answer; when it is that the server is busy, everybody waits."""
        error = status_error(status, text, retry_after)
        if status == 429 or (status in _BUSY and error.retry_after_seconds is not None):
            pause = _BUSY_SECONDS if error.retry_after_seconds is None else error.retry_after_seconds
            self._pace.pause(min(pause, LONGEST_RETRY_AFTER_SECONDS))
        return error

    async def _attempt(
        self, method: str, path: str, query: Mapping[str, str], content: tuple[Mapping[str, Any] | None, str]
    ) -> tuple[int, bytes, str | None]:
        """Return status, body and Retry-After."""
        await self._pace.turn()
        code = UNREACHABLE
        try:
            with named_errors(f"{method} {path}", self._timeout_seconds):
                response = await self._call(method, path, query, content, self._timeout_seconds)
                text = bytes(await response.read())
            code = str(response.status)
        finally:
            if method in _VERBS:
                self.observe(_VERBS[method], code)
        return response.status, text, response.headers.get("Retry-After")

    @property
    def _shown(self) -> str:
        return "" if self._credentials is None else self._credentials.shown

    async def _renewed(self, refused: str) -> bool:
        return self._credentials is not None and await self._credentials.renewed(refused)

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        content: tuple[Mapping[str, Any] | None, str],
        timeout: float | aiohttp.ClientTimeout,  # noqa: ASYNC109  the transport's own
    ) -> Any:
        body, content_type = content
        headers = {"Accept": JSON, **({"Content-Type": content_type} if body is not None else {})}
        request = await self._api.param_serialize(
            method=method,
            resource_path=path,
            query_params=list(query.items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        return await self._api.call_api(*request, _request_timeout=timeout)


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield whole lines, however long; half a line at the end is a stream that broke off."""
    begun: list[bytes] = []
    async for chunk in content.iter_any():
        *ended, rest = chunk.split(b"\n")
        for line in ended:
            yield b"".join((*begun, line))
            begun.clear()
        if rest:
            begun.append(rest)
    if begun:
        raise aiohttp.ClientPayloadError("the stream ended within a line")


def _read(text: bytes, decode: Callable[[bytes], _T], what: str) -> _T:
    try:
        return decode(text)
    except msgspec.DecodeError as error:
        raise UnreachableError(f"{what}: the answer can't be read: {error}") from error


def _unobserved(_verb: str, _code: str) -> None:
    """Nobody counts."""


def _decoded(text: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
    return answer
