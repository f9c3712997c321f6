"""The node agents' quota API over HTTP: what each node has and enforces, and documents to be put into force.

An agent that is away leaves the last that it told in its NodeState, with the reason; it is then asked again only after
a pause that doubles up to a minute, so that a hundred dead nodes don't slow every pass. An answer that is cut off,
too long, not what the contract says or from another node counts as away: it is never half believed. Certificates that
are renewed on disk are in use from the next read on.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

import aiohttp
import msgspec
import structlog

from autoscaler.contract.quota import DEVICES_PATH, QUOTAS_PATH, DevicesStatus, QuotaDocument, QuotaStatus, Refusal
from autoscaler.errors import ClusterError, NodeError, RefusedError
from autoscaler.model.snapshot import NodeState
from autoscaler.ports import Clock

MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
FIRST_PAUSE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 60.0
_SHOWN_CHARACTERS: Final = 200

log = structlog.get_logger(__name__)

Locate = Callable[[], Awaitable[Mapping[str, str]]]
"""Returns the address of each node's agent, or raises ClusterError."""

Answer = TypeVar("Answer", DevicesStatus, QuotaStatus)


@dataclass(frozen=True, slots=True)
class AgentAccess:
    """How agents are reached: `urls` by node, else the template; a token is read anew for each request.

    `{node}` in the template is the node's name, `{ip}` its agent's address. With `client_cert` and `client_key` the
    controller proves who it is; `tls_name` is the name that the agents' certificates bear, empty for the URL's host.
    """

    template: str = "http://{node}:9400"
    urls: Mapping[str, str] = field(default_factory=dict)
    token_file: Path | None = None
    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    tls_name: str = ""
    timeout_seconds: float = 10.0
    concurrent_nodes: int = 64

    def url(self, node: str, path: str, addresses: Mapping[str, str] = MappingProxyType({})) -> str:
        """Return the URL of a path at a node's agent.

        Raises:
            NodeError: the template needs the agent's address, and no agent runs on that node.

        """
        base = self.urls.get(node) or self.template.replace("{node}", node)
        if "{ip}" in base:
            address = addresses.get(node)
            if not address:
                raise NodeError(f"{node}: no agent runs there")
            base = base.replace("{ip}", f"[{address}]" if ":" in address else address)
        return base.rstrip("/") + path

    def certificate_times(self) -> tuple[int, ...]:
        """Return when each certificate file was changed (ns since the epoch), 0 for one that is not there."""
        files = (self.ca_file, self.client_cert, self.client_key)
        return tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in files if path is not None)

    def tls(self) -> ssl.SSLContext:
        """Return how to judge an agent's certificate, and what to show it.

        Raises:
            OSError: a file cannot be read, or is no certificate or key.

        """
        context = ssl.create_default_context(cafile=None if self.ca_file is None else str(self.ca_file))
        if self.client_cert is not None:
            context.load_cert_chain(self.client_cert, self.client_key)
        return context


@dataclass(frozen=True, slots=True)
class _Absence:
    """Why a node is not asked before a moment (seconds since the epoch), and the pause that led to it."""

    reason: str
    until: float
    pause_seconds: float


class HttpAgents:
    """The Enforcement port over HTTP(S)."""

    def __init__(self, access: AgentAccess, clock: Clock, locate: Locate | None = None) -> None:
        """`locate` tells where agents are, once per read; needed where the template has `{ip}`."""
        self._access = access
        self._clock = clock
        self._locate = locate
        self._addresses: Mapping[str, str] = {}
        self._certificate_times: tuple[int, ...] = ()
        self._known: dict[str, NodeState] = {}
        self._absent: dict[str, _Absence] = {}
        self._slots = asyncio.Semaphore(access.concurrent_nodes)
        self._session: aiohttp.ClientSession | None = None

    async def read(self, nodes: tuple[str, ...]) -> Mapping[str, NodeState]:
        """Ask the agents of these nodes, all at once; one that is away has its error in its NodeState.

        Where agents are looked up, those of other nodes are asked, too: an empty one is where another worker may go.
        """
        await self._look_around()
        nodes = (*nodes, *sorted(self._addresses.keys() - {*nodes}))
        states = await asyncio.gather(*(self._read_node(node) for node in nodes))
        return dict(zip(nodes, states, strict=True))

    async def push(self, document: QuotaDocument) -> QuotaStatus:
        """Put a document into force on its node and return what the node acknowledged.

        Raises:
            RefusedError: the agent changed nothing and says why.
            NodeError: the agent is away, or failed.

        """
        node = document.node
        try:
            self._check_pause(node)
            body = msgspec.json.encode(document)
            status = await self._ask("PUT", node, QUOTAS_PATH, QuotaStatus, body)
        except RefusedError:
            self._absent.pop(node, None)
            raise
        except NodeError as error:
            self._miss(node, str(error))
            raise
        self._absent.pop(node, None)
        self._known[node] = replace(self._known.get(node, NodeState(node)), quotas=status, error="")
        return status

    async def close(self) -> None:
        """Release connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _look_around(self) -> None:
        """Learn where the agents are now, and drop connections made with certificates that were replaced."""
        if self._locate is not None:
            try:
                self._addresses = await self._locate()
            except ClusterError as error:
                log.warning("agents_not_located", error=str(error), effect="their last known addresses are used")
        if self._session is not None and self._access.certificate_times() != self._certificate_times:
            await self.close()

    async def _read_node(self, node: str) -> NodeState:
        try:
            self._check_pause(node)
            devices, quotas = await asyncio.gather(
                self._ask("GET", node, DEVICES_PATH, DevicesStatus), self._ask("GET", node, QUOTAS_PATH, QuotaStatus)
            )
        except NodeError as error:
            self._miss(node, str(error))
            return replace(self._known.get(node, NodeState(node)), error=str(error))
        self._absent.pop(node, None)
        state = NodeState(node, devices.devices, quotas)
        self._known[node] = state
        return state

    def _check_pause(self, node: str) -> None:
        absence = self._absent.get(node)
        if absence is not None and self._clock.now() < absence.until:
            raise NodeError(absence.reason)

    def _miss(self, node: str, reason: str) -> None:
        now, before = self._clock.now(), self._absent.get(node)
        if before is not None and now < before.until:
            return
        pause = FIRST_PAUSE_SECONDS if before is None else min(2 * before.pause_seconds, LONGEST_PAUSE_SECONDS)
        self._absent[node] = _Absence(reason, now + pause, pause)

    async def _ask(self, method: str, node: str, path: str, kind: type[Answer], body: bytes | None = None) -> Answer:
        """Return an agent's answer, or raise NodeError with what went wrong at which node."""
        try:
            async with self._slots, self._open().request(method, **self._request(node, path, body)) as response:
                content = await _read_all(response)
                if response.status != 200:
                    raise _refusal(node, response.status, content)
            answer = msgspec.json.decode(content, type=kind)
        except TimeoutError:
            raise NodeError(f"{node}: no answer within {self._access.timeout_seconds:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise NodeError(f"{node}: {_told(error)}") from error
        if answer.node != node:
            raise NodeError(f"{node}: the agent there is that of {answer.node!r}")
        return answer

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._certificate_times = self._access.certificate_times()
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._access.tls(), limit=2 * self._access.concurrent_nodes),
                timeout=aiohttp.ClientTimeout(total=self._access.timeout_seconds),
            )
        return self._session

    def _request(self, node: str, path: str, body: bytes | None) -> dict[str, Any]:
        url = self._access.url(node, path, self._addresses)
        name = {"server_hostname": self._access.tls_name} if self._access.tls_name else {}
        return {"url": url, "data": body, "headers": self._headers(), "allow_redirects": False, **name}

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if self._access.token_file is not None:
            headers["Authorization"] = f"Bearer {self._access.token_file.read_text(encoding='utf-8').strip()}"
        return headers


async def _read_all(response: aiohttp.ClientResponse) -> bytes:
    chunks, size = [], 0
    async for chunk in response.content.iter_chunked(64 * 1024):
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise ValueError(f"the answer is over {MAX_ANSWER_BYTES} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _refusal(node: str, status: int, content: bytes) -> NodeError:
    """Return the error of an answer that is not 200; only a 4xx with the contract's body is a refusal."""
    try:
        refusal = msgspec.json.decode(content, type=Refusal)
    except msgspec.DecodeError:
        said: Any = content[:_SHOWN_CHARACTERS].decode(errors="replace").strip()
        return NodeError(f"{node}: HTTP {status}: {said}")
    told = f"{node}: {refusal.error}: {refusal.message}"
    return RefusedError(told) if 400 <= status < 500 else NodeError(told)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_SHOWN_CHARACTERS]
