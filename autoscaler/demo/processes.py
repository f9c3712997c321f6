"""Node agents as processes on loopback, in simulated time: started, moved, scraped and ended."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

from autoscaler.errors import NodeError

START_SECONDS: Final = 60.0
"""A slow machine needs seconds to start Python; beyond this the agent is stuck."""
END_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 120.0
TICK_SECONDS: Final = 30
"""Simulated time between an agent's samples: two per scrape show what a minute hides."""
_POLL_SECONDS: Final = 0.02


class Truth(msgspec.Struct, frozen=True):
    """What the simulation knows about one worker since its start; integrals over seconds of TFLOPs and bytes."""

    workload: str
    pod: str
    seconds: float
    demand_tflops_seconds: float
    used_tflops_seconds: float
    request_tflops_seconds: float
    request_vram_byte_seconds: float
    throttled_seconds: float
    down_seconds: float
    ooms: int


class Advanced(msgspec.Struct, frozen=True):
    """An agent's answer to being moved: where its clock stands (seconds since the epoch), and the truth so far."""

    at: float
    workers: tuple[Truth, ...]


@dataclass(frozen=True, slots=True)
class Agents:
    """Running agents by node: their base URLs, and the session that speaks to them."""

    urls: Mapping[str, str]
    session: aiohttp.ClientSession

    def only(self, nodes: Collection[str]) -> Agents:
        """Return these agents alone."""
        return Agents({node: url for node, url in self.urls.items() if node in nodes}, self.session)

    async def advance(self, to: float) -> tuple[Truth, ...]:
        """Move all agents to a moment (seconds since the epoch) side by side; return the truth about all workers.

        Raises:
            NodeError: an agent is gone, or did not follow.

        """
        answers = await asyncio.gather(*(self._advance(node, to) for node in self.urls))
        return tuple(truth for answer in answers for truth in answer.workers)

    async def scrape(self) -> tuple[str, ...]:
        """Return the expositions of all agents.

        Raises:
            NodeError: an agent is gone.

        """
        bodies = await asyncio.gather(*(self._ask("GET", node, "/metrics") for node in self.urls))
        return tuple(body.decode() for body in bodies)

    async def _advance(self, node: str, to: float) -> Advanced:
        body = await self._ask("POST", node, "/simulate/advance", msgspec.json.encode({"to": to}))
        answer = msgspec.json.decode(body, type=Advanced)
        if answer.at != to:
            raise NodeError(f"{node}: its clock stands at {answer.at:.0f}, not at {to:.0f}")
        return answer

    async def _ask(self, method: str, node: str, path: str, body: bytes | None = None) -> bytes:
        try:
            async with self.session.request(method, self.urls[node] + path, data=body) as response:
                content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NodeError(f"{node}: {type(error).__name__}: {error}") from error
        if response.status != 200:
            raise NodeError(f"{node}: HTTP {response.status}: {content[:200].decode(errors='replace')}")
        return content


@asynccontextmanager
async def agents(scenarios: Mapping[str, str], folder: Path) -> AsyncIterator[Agents]:
    """Run one agent per node, each playing its scenario; all have ended when the context ends, however it ends.

    Raises:
        NodeError: an agent did not start; says what it said.

    """
    async with AsyncExitStack() as cleanup:
        started = [await cleanup.enter_async_context(_process(node, text, folder)) for node, text in scenarios.items()]
        urls = {one.node: await one.url() for one in started}
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        yield Agents(urls, await cleanup.enter_async_context(aiohttp.ClientSession(timeout=timeout)))


@dataclass(frozen=True, slots=True)
class _Started:
    """A process that will write its port."""

    node: str
    process: asyncio.subprocess.Process
    port_file: Path
    log_file: Path

    async def url(self) -> str:
        """Wait until the agent serves, and return where."""
        loop = asyncio.get_running_loop()
        end = loop.time() + START_SECONDS
        while not self.port_file.exists():
            if self.process.returncode is not None or loop.time() > end:
                said = self.log_file.read_text(encoding="utf-8").strip().splitlines()[-1:]
                raise NodeError(f"{self.node}: the agent did not start: {said[0] if said else 'it said nothing'}")
            await asyncio.sleep(_POLL_SECONDS)
        return f"http://127.0.0.1:{int(self.port_file.read_text(encoding='utf-8'))}"


@asynccontextmanager
async def _process(node: str, scenario: str, folder: Path) -> AsyncIterator[_Started]:
    scenario_file, port_file, log_file = (folder / f"{node}.{what}" for what in ("json", "port", "log"))
    scenario_file.write_text(scenario, encoding="utf-8")
    options = {
        "--simulate": scenario_file,
        "--listen": "127.0.0.1:0",
        "--port-file": port_file,
        "--state-dir": folder / f"{node}.state",
        "--tick": TICK_SECONDS,
    }
    words = [str(word) for pair in options.items() for word in pair]
    with log_file.open("wb") as log:
        # A session of its own: Ctrl-C reaches the demo alone, which ends its agents in order.
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "agent", "run", "--lockstep", *words,
            stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        yield _Started(node, process, port_file, log_file)
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), END_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
