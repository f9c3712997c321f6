"""Requests to the Kubernetes API on the official client's transport: JSON in, JSON out, errors by who must act.

The client's typed methods are left aside: they deserialise whole lists into models, and raise half of their errors as
something else. Retried are what the server asks to retry (429 with its Retry-After, 5xx) and what never arrived; every
request made here may safely be made twice. Neighbours: `kinds` has the paths, `cluster` what is asked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

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

_T = TypeVar("_T")
_RETRIED: Final = frozenset({429, 500, 502, 503, 504})


class StatusError(ClusterError):
    """The API server answered with an error; `status` is the HTTP status, `retry_after_seconds` None when not told."""

    def __init__(self, status: int, message: str, retry_after_seconds: float | None = None) -> None:
        self.status = status
        self.retry_after_seconds = retry_after_seconds
        super().__init__(f"the API server answered {status}: {message}")


class UnreachableError(ClusterError):
    """No answer came from the API server."""


class KubeClient:
    """One API server. `timeout_seconds` bounds each attempt of a request, `page` is a list's items per request."""

    def __init__(self, api: client.ApiClient, timeout_seconds: float = TIMEOUT_SECONDS, page: int = PAGE) -> None:
        self._api = api
        self._timeout_seconds = timeout_seconds
        self.page = page

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
        with _named_errors(f"watch of {path}", silence_seconds):
            response = await self._call("GET", path, query, (None, JSON), timeout)
            try:
                if response.status >= 400:
                    raise _status_error(response.status, await response.read(), response.headers.get("Retry-After"))
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
                text = await self._once(method, path, query, content)
                try:
                    answer = decode(text)
                except msgspec.DecodeError as error:
                    raise UnreachableError(f"{method} {path}: the answer can't be read: {error}") from error
        return answer

    async def _once(
        self, method: str, path: str, query: Mapping[str, str], content: tuple[Mapping[str, Any] | None, str]
    ) -> bytes:
        with _named_errors(f"{method} {path}", self._timeout_seconds):
            response = await self._call(method, path, query, content, self._timeout_seconds)
            text = await response.read()
        if response.status >= 400:
            raise _status_error(response.status, text, response.headers.get("Retry-After"))
        return bytes(text)

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


@contextmanager
def _named_errors(what: str, seconds: float) -> Iterator[None]:
    """Turn the transport's ways to fail into one, which says what failed."""
    try:
        yield
    except TimeoutError:
        raise UnreachableError(f"{what}: no answer within {seconds:g} s") from None
    except (aiohttp.ClientError, OSError) as error:
        raise UnreachableError(f"{what}: {type(error).__name__}: {error}") from error


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


def _decoded(text: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
    return answer
