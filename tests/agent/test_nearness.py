"""VRAM near its limit: the whole agent over the driver's stand-in and a limiter's real file, in simulated time.

The worker allocates as under TensorFusion's limiter: it is let through while what the limiter was told, and what it asks
for, are within the limit.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pynvml
import pytest

from agent.enforce.actuator import HeedsToldUse, Surroundings
from agent.enforce.live import LastUse
from agent.enforce.nearness import BUDGET_RATIO, Nearness, is_near
from agent.enforce.registry import ACTUATORS, chosen_backend
from agent.enforce.tfshm_layout import MEM_LIMIT, POD_MEMORY_USED, Slot, open_state, slots_of
from agent.enforce.transition import Enforcer
from agent.export.exporter import Exporter
from agent.gpus import load_gpu_table
from agent.loop import Agent, Parts
from agent.model.applied import Applied
from agent.model.samples import Worker, WorkerKey
from agent.nvml.source import NvmlSource
from agent.quotas.store import QuotaStore
from agent.run import tick_until
from agent.settings import AgentSettings
from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import DeviceQuota, Observed, QuotaDocument
from tests.agent.nvml_standin import GIB, Device, NvmlStandIn, Process, State

GPU = "GPU-a"
PID = 41
LIMIT = 8 * GIB
T0 = 1_700_000_000.0
STEP_SECONDS = 0.01
STEPS = {"tick": 50, "watch": 15}
CHUNK = 64 * 2**20
"""One allocation each step: 6.4 GiB a second."""
WORKER = Worker("uid-a", "ns", "a", "main", "load", born=DeviceQuota("", 10.0, 20.0, GIB, LIMIT), devices=(GPU,))
KEY: WorkerKey = ("uid-a", "main", GPU)


class Node:
    """One GPU with one worker under the limiter, and the agent; the worker's memory is moved by `hold`."""

    def __init__(self, root: Path, standin: NvmlStandIn) -> None:
        self._standin, self._steps = standin, 0
        self.held = 0
        folder = root / "shm" / "ns" / "a"
        folder.mkdir(parents=True)
        self.source, live_use, gpus = NvmlSource(), LastUse(), load_gpu_table()
        self.backend = chosen_backend(
            Surroundings(live_use, live_use.tflops_of, live_use.index_of, root, tfshm_root=root / "shm"),
            ("tfshm",),
            ("tfshm",),
        )
        nearness = Nearness(self.source, self, self.backend, live_use, timer=lambda: self._steps * STEP_SECONDS)
        store, enforcer = QuotaStore(root), Enforcer(self.backend)
        parts = Parts(self.source, self, enforcer, live_use, store, Exporter(gpus, 60.0), gpus, nearness=nearness)
        self.agent = Agent("n1", parts)
        self.hold(GIB)
        self.agent.tick(T0)
        # What the driver calls the device is known from now on, so the limiter's file is made.
        self.agent.tick(T0 + 6)
        self._mapped = open_state(folder / "shm")
        self.slot: Slot = slots_of(self._mapped)[GPU.lower()]
        self._start = T0 + 12

    def hold(self, used_bytes: int) -> None:
        """Have the worker hold this much."""
        self.held = used_bytes
        device = Device(GPU, "NVIDIA A100-SXM4-80GB", 80 * GIB, used_bytes)
        self._standin.write(State((device,), (Process(0, PID, used_bytes),)))

    def play(self, seconds: float, *, is_watched: bool, is_allocating: bool) -> None:
        """Tick, watch and allocate in simulated time, from right after a tick on."""
        for _ in range(round(seconds / STEP_SECONDS)):
            if self._steps % STEPS["tick"] == 0:
                self.agent.tick(self._start + self._steps * STEP_SECONDS)
            elif is_watched and self._steps % STEPS["tick"] % STEPS["watch"] == 0:
                self.agent.watch()
            self._steps += 1
            if is_allocating and self.slot.u64(POD_MEMORY_USED) + CHUNK <= self.slot.u64(MEM_LIMIT):
                self.hold(self.held + CHUNK)

    def calls(self, name: str) -> int:
        """Return how often the driver was asked."""
        return sum(self.source.stats().calls[name].counts) if name in self.source.stats().calls else 0

    def worker_of(self, pid: int) -> Worker | None:
        return WORKER if pid == PID else None

    def workers(self) -> tuple[Worker, ...]:
        return (WORKER,)

    def close(self) -> None:
        del self.slot
        self._mapped.close()
        self.agent.close()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    standin = NvmlStandIn(tmp_path)
    standin.take_place(monkeypatch)
    made = Node(tmp_path, standin)
    yield made
    made.close()


LISTS = ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetMPSComputeRunningProcesses_v3")
MEMORY = "nvmlDeviceGetMemoryInfo"


def test_with_the_watch_a_burst_passes_the_limit_by_what_is_allocated_between_two_looks(node: Node) -> None:
    node.hold(7 * GIB)
    node.play(0.5, is_watched=True, is_allocating=False)
    node.play(2.0, is_watched=True, is_allocating=True)
    assert 0 < node.held - LIMIT + CHUNK <= STEPS["watch"] * CHUNK
    assert node.slot.u64(POD_MEMORY_USED) == node.held


def test_without_it_the_same_burst_passes_the_limit_by_what_is_allocated_in_a_tick(node: Node) -> None:
    node.hold(7 * GIB)
    node.play(0.5, is_watched=False, is_allocating=False)
    node.play(2.0, is_watched=False, is_allocating=True)
    assert node.held - LIMIT > 2 * STEPS["watch"] * CHUNK


def test_a_burst_that_begins_far_below_is_told_with_the_tick_that_sees_the_device_grow(node: Node) -> None:
    node.hold(2 * GIB)
    node.play(0.5, is_watched=True, is_allocating=False)
    node.play(2.5, is_watched=True, is_allocating=True)
    # The tick before the limit sees it near, and from then on it is watched.
    assert node.held - LIMIT <= STEPS["tick"] * CHUNK
    assert node.slot.u64(POD_MEMORY_USED) == node.held


def test_nothing_is_read_between_ticks_while_nobody_is_near(node: Node) -> None:
    node.hold(3 * GIB)
    node.play(0.5, is_watched=True, is_allocating=False)
    assert not node.agent.is_watching
    before = node.source.stats()
    node.hold(4 * GIB)
    for _ in range(10):
        node.agent.watch()
    assert node.source.stats() == before


def test_near_and_at_rest_costs_looks_at_the_device_and_no_lists(node: Node) -> None:
    node.hold(15 * GIB // 2)
    node.play(0.5, is_watched=True, is_allocating=False)
    assert node.agent.is_watching
    before, lists = node.calls(MEMORY), [node.calls(name) for name in LISTS]
    node.play(0.5, is_watched=True, is_allocating=False)
    assert node.calls(MEMORY) - before == 1 + 3  # a tick and three looks
    assert [node.calls(name) for name in LISTS] == lists


def test_the_list_of_graphics_processes_is_never_read_between_ticks(node: Node) -> None:
    node.hold(7 * GIB)
    node.play(0.5, is_watched=True, is_allocating=False)
    graphics = node.calls("nvmlDeviceGetGraphicsRunningProcesses_v3")
    node.play(0.45, is_watched=True, is_allocating=True)
    assert node.calls("nvmlDeviceGetGraphicsRunningProcesses_v3") == graphics


def test_a_document_between_two_ticks_does_not_bring_back_what_the_tick_knew(node: Node) -> None:
    node.hold(7 * GIB)
    node.play(0.5, is_watched=True, is_allocating=False)
    node.agent.tick(T0 + 20)
    node.hold(15 * GIB // 2)
    node.agent.watch()
    node.agent.put(QuotaDocument(1, 1, "n1", ()), T0 + 20.2)
    assert node.slot.u64(POD_MEMORY_USED) == 15 * GIB // 2


def test_a_file_that_was_replaced_is_not_written(node: Node, tmp_path: Path) -> None:
    node.hold(7 * GIB)
    node.play(0.5, is_watched=True, is_allocating=False)
    path = tmp_path / "shm" / "ns" / "a" / "shm"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    node.hold(15 * GIB // 2)
    node.agent.watch()
    with open_state(path) as fresh:
        assert slots_of(fresh)[GPU.lower()].u64(POD_MEMORY_USED) == 7 * GIB


def test_a_device_that_fails_is_left_to_the_next_tick(node: Node) -> None:
    node.hold(7 * GIB)
    node.play(0.5, is_watched=True, is_allocating=False)
    pynvml.nvmlShutdown()
    node.agent.watch()
    assert node.slot.u64(POD_MEMORY_USED) == 7 * GIB


@pytest.mark.parametrize(
    ("used", "limit", "near"),
    [
        (85 * GIB, 100 * GIB, True),
        (84 * GIB, 100 * GIB, False),
        (7 * GIB, 8 * GIB, True),
        (3 * GIB, 4 * GIB, True),
        (2 * GIB, 4 * GIB, False),
        (GIB // 2, GIB, True),
        (GIB // 4, GIB, False),
        (9 * GIB, 8 * GIB, True),
        (0, GIB, False),
        (None, GIB, False),
        (GIB, None, False),
    ],
)
def test_near_is_the_last_seventh_of_a_limit_or_its_last_gibibyte(used, limit, near) -> None:
    assert is_near(used, limit) is near


def test_only_a_limiter_that_goes_by_what_it_is_told_is_watched_for(tmp_path: Path) -> None:
    around = Surroundings(lambda _worker, _uuid: Observed(), lambda _: None, lambda _: None, tmp_path)
    assert [name for name, make in ACTUATORS.items() if isinstance(make(around), HeedsToldUse)] == ["tfshm"]


class Costly:
    """Memory that always moved, and takes its time to say so; also a backend that hears, and the timer."""

    def __init__(self, cost: float) -> None:
        self.now, self.looks, self.told, self._cost = 0.0, Counter[str](), Counter[WorkerKey](), cost

    def moved_memory(self, uuid: str) -> Mapping[int, int | None]:
        self.now += self._cost
        self.looks[uuid] += 1
        return {PID: GIB, PID + 1: GIB}

    def worker_of(self, pid: int) -> Worker | None:
        return WORKER if pid == PID else None

    def workers(self) -> tuple[Worker, ...]:
        return (WORKER,)

    def heeds(self, _key: WorkerKey) -> bool:
        return True

    def tell_use(self, key: WorkerKey, _vram_bytes: int) -> None:
        self.told[key] += 1


def near(*uuids: str) -> dict[WorkerKey, Applied]:
    seen = Observed(vram_limit_bytes=LIMIT, vram_used_bytes=LIMIT)
    return {("uid-a", "main", uuid): Applied(Effect.NEXT_ALLOC, seen) for uuid in uuids}


@pytest.mark.parametrize("cost", [0.0001, 0.0045, 0.03])
def test_looks_take_no_more_than_their_share_of_the_time_and_come_round_to_every_device(cost: float) -> None:
    costly, seconds = Costly(cost), 60.0
    nearness = Nearness(costly, costly, costly, LastUse(), timer=lambda: costly.now)
    nearness.note(near("GPU-1", "GPU-2", "GPU-3", "GPU-4"))
    while costly.now < seconds:
        for uuid in nearness.devices:
            if not nearness.is_resting:
                nearness.look(uuid)
        costly.now += 0.15
    assert sum(costly.looks.values()) * cost <= BUDGET_RATIO * costly.now + cost
    assert max(costly.looks.values()) - min(costly.looks.values()) <= 1
    assert min(costly.looks.values()) > 10


def test_who_is_gone_from_the_last_tick_is_told_nothing() -> None:
    costly = Costly(0.001)
    nearness = Nearness(costly, costly, costly, LastUse(), timer=lambda: costly.now)
    nearness.note(near("GPU-1"))
    nearness.look("GPU-1")
    nearness.note({})
    nearness.look("GPU-1")
    assert costly.told == {("uid-a", "main", "GPU-1"): 1}


class Paced:
    """An agent that notes when it was called."""

    def __init__(self, *, is_watching: bool) -> None:
        self.is_watching, self.seen = is_watching, list[str]()

    def tick(self, _now: float) -> None:
        self.seen.append("tick")

    def watch(self) -> None:
        self.seen.append("watch")

    def overran(self) -> None:
        self.seen.append("overran")


@pytest.mark.parametrize("is_watching", [False, True])
async def test_between_two_ticks_there_are_looks_only_while_somebody_is_near(is_watching: bool) -> None:
    agent, stop = Paced(is_watching=is_watching), asyncio.Event()
    running = asyncio.create_task(tick_until(stop, agent, 0.4, 0.1))
    deadline = time.monotonic() + 20.0
    while agent.seen.count("tick") < 3 and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    stop.set()
    await running
    assert agent.seen.count("tick") >= 3
    assert ("watch" in agent.seen) is is_watching


def test_the_watch_looks_each_tenth_to_fifth_of_a_second_unless_told_otherwise() -> None:
    assert 0.1 <= AgentSettings(node="n1").watch_seconds <= 0.2
