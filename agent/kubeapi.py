"""The agent's few requests to the Kubernetes API, on plain aiohttp: a typed client would double the agent's memory.

The token is read anew for each request, as the kubelet renews the file. Neighbours: `access` asks who a caller is,
`pods` which pods run here.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT_SECONDS: Final = 10.0


class ApiError(Exception):
    """The API server can't be asked, or refused; `status` is the HTTP status, 0 where no answer came."""

    def __init__(self, message: str, status: int = 0) -> None:
        self.status = status
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class ApiAddress:
    """Where the API server is and what is shown to it."""

    url: str
    token_file: Path = ACCOUNT / "token"
    ca_file: Path | None = ACCOUNT / "ca.crt"


def in_cluster(environment: Mapping[str, str] = os.environ) -> str:
    """Return the API server's URL as the kubelet tells it to every pod, "" outside of a cluster."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST", ""), environment.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        return ""
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


class KubeApi:
    """Requests to one API server; connections are kept between them."""

    def __init__(self, address: ApiAddress) -> None:
        self._address = address
        self._session: aiohttp.ClientSession | None = None

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object and return it as the server completed it.

        Raises:
            ApiError: no answer, or a refusal, in words.
        """
        async with self._asked("POST", path, body=body) as response:
            return _object(await response.read(), path)

    async def get(self, path: str, query: Mapping[str, str]) -> dict[str, Any]:
        """Return an object or a list.

        Raises:
            ApiError: no answer, or a refusal, in words.
        """
        async with self._asked("GET", path, query) as response:
            return _object(await response.read(), path)

    async def lines(self, path: str, query: Mapping[str, str], idle_seconds: float) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of a watch until the server ends it.

        Raises:
            ApiError: it can't be begun, broke off, or said nothing for `idle_seconds`.
        """
        async with self._asked("GET", path, query, idle_seconds) as response:
            try:
                async for line in response.content:
                    if line.strip():
                        yield _object(line, path)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                raise ApiError(f"{path}: the watch broke off: {error or type(error).__name__}") from error

    async def close(self) -> None:
        """Release connections."""
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def _asked(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        idle_seconds: float | None = None,
        *,
        body: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        total = TIMEOUT_SECONDS if idle_seconds is None else None
        timeout = aiohttp.ClientTimeout(total=total, sock_connect=TIMEOUT_SECONDS, sock_read=idle_seconds)
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        try:
            headers["Authorization"] = f"Bearer {self._address.token_file.read_text(encoding='utf-8').strip()}"
            content = None if body is None else msgspec.json.encode(body)
            response = await self._open().request(
                method, self._address.url + path, params=query, data=content, headers=headers, timeout=timeout
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(f"{method} {path}: {error or type(error).__name__}") from error
        async with response:
            if response.status >= 400:
                text = (await response.read())[:500].decode(errors="replace")
                raise ApiError(f"{method} {path} was answered {response.status}: {text}", response.status)
            yield response

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            trust: ssl.SSLContext | bool = True
            if self._address.ca_file is not None and self._address.url.startswith("https"):
                trust = ssl.create_default_context(cafile=str(self._address.ca_file))
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust))
        return self._session


def _object(content: bytes, path: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(f"{path}: the answer can't be read: {error}") from error
