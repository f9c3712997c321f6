"""What the agent does not do: start a process, render for a scrape, count backwards when the clock is set."""

from __future__ import annotations

import asyncio
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import aiohttp
import pytest
import structlog
from aiohttp.test_utils import TestServer

from agent.enforce.heartbeat import STRANGER_SECONDS, Ownership
from agent.export import exposition, series
from agent.export.exporter import Exporter
from agent.gpus import load_gpu_table
from agent.serve.server import AgentApi
from autoscaler.contract.keys import QoS
from autoscaler.contract.quota import QuotaStatus
from tests.agent.compiled import compiled
from tests.agent.faulty import GIB, GPU, TOTAL, Asked, Node, document
from tests.agent.kernel import Kernel
from tests.agent.nvml_standin import Device, NvmlStandIn, State

SPAWNING = (
    "subprocess.Popen",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.exec",
    "os.system",
    "pty.spawn",
)
REGIONS = Path(__file__).with_name("hamicore_region.c")


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield


class Witnessed:
    """Sees every process that is started from here; an audit hook can't be taken away, so there is one."""

    def __init__(self) -> None:
        self.is_on, self.events = False, list[str]()
        sys.addaudithook(self._see)

    def _see(self, event: str, _arguments: tuple[Any, ...]) -> None:
        if self.is_on and event in SPAWNING:
            self.events.append(event)


@pytest.fixture(scope="module")
def witness() -> Witnessed:
    return Witnessed()


def children() -> set[str]:
    return {pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


def test_no_tick_starts_a_process_with_every_actuator_but_mps_at_work(
    tmp_path: Path, witness: Witnessed, monkeypatch: pytest.MonkeyPatch
) -> None:
    standin = NvmlStandIn(tmp_path)
    standin.write(State((Device(GPU, total_bytes=TOTAL),)))
    standin.take_place(monkeypatch)
    node = Kernel(
        tmp_path, ("a", "b", "c", "d"), with_freezer=True,
        compute=("tfshm", "hamicore"), vram=("dmem", "tfshm", "hamicore"),
    )  # fmt: skip
    for name in ("b", "c", "d"):
        node.file(name).parent.rmdir()
    folder = node.root / "containers" / "uid-b_main"
    folder.mkdir(parents=True)
    subprocess.run([compiled(REGIONS), "make", folder / "9c1d.cache", GPU], check=True)
    agent = node.start()
    node.tick(agent)
    node.uses = {"a": (0.02, GIB), "b": (0.1, GIB), "c": (0.5, GIB), "d": (0.38, GIB)}
    crew = [
        Asked("a", 5, 20, 200.0), Asked("b", 5, 20), Asked("c", 5, 15, 20.0, QoS.LOW), Asked("d", 5, 15, 20.0, QoS.LOW),
    ]  # fmt: skip
    before, stopped = children(), 0
    witness.is_on = True
    for generation in range(1, 41):
        crew[0] = replace(crew[0], limit_gib=20 + generation % 5)
        assert isinstance(agent.put(document(generation, *crew), node.at), QuotaStatus)
        node.tick(agent)
        stopped += any((leaf / "cgroup.freeze").read_text() == "1" for leaf in node.leaves.values())
    witness.is_on = False
    assert (witness.events, children()) == ([], before)
    served = {worker.pod: agent._parts.enforcer.backend.serves((worker.pod_uid, "main", GPU)) for worker in node.crew}
    assert served == {"a": "tfshm+dmem", "b": "hamicore+dmem", "c": "dmem", "d": "dmem"}
    assert stopped > 3
    # What sees nothing must be able to see.
    witness.is_on = True
    subprocess.run(["true"], check=True)
    witness.is_on = False
    assert witness.events
    witness.events.clear()
    agent.close()


RENDERING = {
    one.__code__
    for module in (exposition, series)
    for one in vars(module).values()
    if inspect.isfunction(one) and one.__module__ == module.__name__
}


class Renderings:
    """Counts the calls of what renders, in the thread that it watches."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, frame: FrameType, event: str, _called: Any) -> None:
        self.count += event == "call" and frame.f_code in RENDERING


async def test_a_scrape_renders_nothing_while_four_hundred_workers_tick(tmp_path: Path) -> None:
    node = Node(tmp_path, tuple(f"w{number}" for number in range(400)))
    node.uses = dict.fromkeys(node.names, (0.002, GIB // 8))
    agent = node.start()
    exporter = Exporter(load_gpu_table(), 0.0)
    agent._parts = replace(agent._parts, exporter=exporter)
    node.tick(agent)
    kinds = ("text/plain", "application/openmetrics-text")
    seen = Renderings()
    async with (
        TestServer(AgentApi(agent, lambda: node.at).app()) as server,
        aiohttp.ClientSession(server.make_url("/")) as http,
    ):

        async def scraped(kind: str) -> int:
            async with http.get("/metrics", headers={"Accept": kind}) as answer:
                return (await answer.read()).count(b"tensor_fusion_worker_vram_used_bytes{")

        # The first of each kind is rendered when it is asked for.
        sys.setprofile(seen)
        try:
            assert [await scraped(kind) for kind in kinds] == [400, 400]
            at_first, seen.count = seen.count, 0
            for _ in range(3):
                ticking = asyncio.create_task(asyncio.to_thread(node.tick, agent))
                while not ticking.done():
                    assert {await scraped(kind) for kind in kinds} == {400}
                await ticking
        finally:
            sys.setprofile(None)
    agent.close()
    assert at_first > 0
    assert seen.count == 0


def counters(page: str) -> dict[str, float]:
    found = re.findall(r"^(tensor_fusion_\w+(?:_total|_count|_sum)\{.*\}) (\S+)$", page, re.MULTILINE)
    return {series: float(value) for series, value in found}


@pytest.mark.parametrize("jump", [3600.0, -3600.0, -86_400.0])
def test_when_the_clock_is_set_no_counter_goes_back_and_no_age_is_below_nothing(tmp_path: Path, jump: float) -> None:
    node = Node(tmp_path, ("a", "b"))
    agent = node.start()
    agent._parts = replace(agent._parts, exporter=Exporter(load_gpu_table(), 0.0))
    node.tick(agent)
    assert isinstance(agent.put(document(1, Asked("a", 20, 40), Asked("b", 5, 25)), node.at), QuotaStatus)
    node.uses = {"a": (0.5, 10 * GIB), "b": (0.3, 5 * GIB)}
    before: dict[str, float] = {}
    for number in range(12):
        node.tick(agent, jump if number == 5 else 1.0)
        page = agent.exposition(openmetrics=False).decode()
        after = counters(page)
        assert before.keys() <= after.keys()
        assert all(after[series] >= value for series, value in before.items())
        ages = re.findall(r"_(?:age_seconds|contact_seconds)\{.*\} (\S+)$", page, re.MULTILINE)
        assert len(ages) == 3
        assert min(map(float, ages)) >= 0
        before = after
    used = [value for series, value in after.items() if "worker_compute_seconds" in series and 'pod="a"' in series]
    # Eleven ticks were measured, and of the one in which the clock was set nothing is known.
    assert used == [pytest.approx(0.5 * 10, abs=0.6)]
    assert all(one.devices[0].applied for one in agent.state().workers)
    agent.close()


@pytest.mark.parametrize("jump", [3600.0, -3600.0, -86_400.0])
def test_when_the_clock_is_set_a_file_that_somebody_else_keeps_stays_theirs_and_a_silent_one_is_taken(
    tmp_path: Path, jump: float
) -> None:
    theirs, silent = tmp_path / "theirs", tmp_path / "silent"
    now = {"clock": 1000.0, "wall": 1_700_000_000.0}
    ownership = Ownership(tmp_path, lambda: now["clock"], lambda: now["wall"])
    beat = last = int(now["wall"])
    taken_at = None
    for step in range(40):
        now = {name: value + 0.25 for name, value in now.items()}
        if step == 8:
            now["wall"] += jump
        assert ownership.stranger(theirs, beat), step
        if step > 8 and taken_at is None and not ownership.stranger(silent, last):
            taken_at = step
        # Its keeper tells the time a moment later.
        if step % 2:
            beat = int(now["wall"])
    assert taken_at is not None
    assert (taken_at - 8) * 0.25 <= 2 * STRANGER_SECONDS
