"""What agents tell and what controllers make of it: who goes around a limit earns nothing, who reaches it does.

The agent ticks by the second, is scraped each 15 s, and the controller learns and decides each minute, from history and
from live use; only devices, time and the cluster are played.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.enforce.live import LastUse
from agent.enforce.simulated import SimulatedBackend
from agent.enforce.transition import Enforcer
from agent.export.exporter import Exporter
from agent.gpus import load_gpu_table
from agent.loop import Agent, Parts
from agent.model.samples import DeviceSample, NodeSample, ProcessUse
from agent.model.samples import Worker as Running
from agent.quotas.store import QuotaStore
from autoscaler.contract.keys import QoS
from autoscaler.contract.quota import DeviceInfo, DeviceQuota, QuotaDocument, WorkerQuota
from autoscaler.guard import guard, note
from autoscaler.model.config import Configuration, LimitsPolicy, Mode, RequestsPolicy
from autoscaler.model.decision import Field
from autoscaler.model.fleet import to_fleet
from autoscaler.model.resources import GIB, Amount, Amounts
from autoscaler.model.snapshot import NodeState, Snapshot
from autoscaler.model.usage import Window
from autoscaler.model.workload import Discovered
from autoscaler.read.memory import MemoryHistory
from autoscaler.recommend import learn, recommend, watch
from tests.autoscaler.stage import KEY, LIMITS, START, Stage

MODEL, TFLOPS = "NVIDIA A10", 125.0
SCRAPE, PASS, SETTLE = 15, 60, 20
BORN = Amounts(Amount(15, 25), Amount(4 * GIB, 8 * GIB))
CONFIG = Configuration(
    amounts=BORN, requests=RequestsPolicy(mode=Mode.ON), limits=LimitsPolicy(mode=Mode.ON), qos=QoS.HIGH
)
RUNNING = Running("pod-0", KEY.namespace, "llm-0", "main", KEY.name, QoS.HIGH)
Use = tuple[float, float]
"""TFLOPs and bytes."""


@dataclass
class Node:
    """A device with one worker: both a source of samples and a directory of processes."""

    use: Use = (0.0, 0.0)

    def sample(self, now: float) -> NodeSample:
        ratio, held = min(self.use[0] / TFLOPS, 1.0), int(self.use[1])
        process = ProcessUse(1, ratio, held)
        return NodeSample(now, (DeviceSample(0, "GPU-0", MODEL, now, 24 * GIB, held, ratio, processes=(process,)),))

    def worker_of(self, _pid: int) -> Running:
        return RUNNING

    def workers(self) -> tuple[Running, ...]:
        return (RUNNING,)

    def close(self) -> None:
        """Hold nothing."""


@dataclass
class Play:
    """`figures` has what was in force after each pass: request and limit of compute, then of VRAM."""

    folder: Path
    node: Node = field(default_factory=Node)
    figures: list[tuple[float, ...]] = field(default_factory=list)
    seconds: int = 0

    def __post_init__(self) -> None:
        self.stage = Stage(CONFIG, DeviceInfo("GPU-0", MODEL, 24 * GIB, TFLOPS))
        self.history = MemoryHistory(SCRAPE, 7200)
        self.generation = 0
        self.start_agent()
        self.push()

    def start_agent(self) -> None:
        live_use, gpus = LastUse(), load_gpu_table()
        enforcer = Enforcer(SimulatedBackend(live_use, self.folder / "limits"))
        store, exporter = QuotaStore(self.folder), Exporter(gpus, render_every_seconds=5, clock=lambda: self.now)
        self.agent = Agent("node-a", Parts(self.node, self.node, enforcer, live_use, store, exporter, gpus))

    @property
    def now(self) -> float:
        return START + self.seconds

    @property
    def limits(self) -> Use:
        """What is in force on the worker."""
        observed = self.agent.state().workers[0].devices[0].observed
        assert observed.tflops_limit is not None
        assert observed.vram_limit_bytes is not None
        return observed.tflops_limit, observed.vram_limit_bytes

    def push(self) -> None:
        self.generation += 1
        one, figures = self.generation, self.stage.figures
        compute, vram = figures.compute, figures.vram
        quota = DeviceQuota("GPU-0", compute.request, compute.limit, int(vram.request), int(vram.limit))
        worker = WorkerQuota("pod-0", KEY.namespace, "llm-0", KEY.name, QoS.HIGH, (quota,), "main")
        self.agent.put(QuotaDocument(1, one, "node-a", (worker,)), self.now)

    def run(self, seconds: int, use: Callable[[int], Use] | Use) -> None:
        """Let the worker use something for a while; a function is asked each second, with those since now."""
        for since in range(seconds):
            self.node.use = use(since) if callable(use) else use
            self.seconds += 1
            self.agent.tick(self.now)
            if self.seconds % SCRAPE == 0:
                self.history.ingest(self.now, self.agent.exposition(openmetrics=False).decode())
            if self.seconds % PASS == SETTLE and self.seconds > PASS:
                self.decide()

    def decide(self) -> None:
        """Learn the newest whole minute, decide, and put into force what came of it."""
        stage, end = self.stage, self.now - SETTLE
        usage = asyncio.run(self.history.read(Window(end - PASS, end, PASS)))
        state = NodeState("node-a", (stage.device,), self.agent.state())
        stage.now = self.now
        fleet = to_fleet(Snapshot(self.now, Discovered((stage.workload,)), {"node-a": state}))
        for memory in (stage.learnt, stage.guarded):
            memory.align(fleet.keys, fleet.uids)
        learn(stage.learnt, usage, fleet)
        watch(stage.learnt, usage, fleet)
        allowed = guard(fleet, recommend(fleet, stage.learnt), stage.guarded, LIMITS)
        note(stage.guarded, fleet, allowed.figure)
        figures = [float(one) for one in allowed.figure[0]]
        stage.figures = Amounts(Amount(*figures[:2]), Amount(*figures[2:4]))
        self.figures.append(tuple(figures[: Field.REPLICAS]))
        self.push()


QUIET: Use = (14.0, 3.6 * GIB)


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    """A worker that for twenty minutes used a bit less than what it is granted."""
    made = Play(tmp_path)
    made.run(1200, QUIET)
    yield made
    made.agent.close()


def risen(play: Play, before: int) -> list[Field]:
    """Return the figures that are higher, after one of the passes since, than in the pass before them."""
    known = play.figures[before - 1]
    return [one for one in list(Field)[: len(known)] if any(now[one] > known[one] for now in play.figures[before:])]


@pytest.mark.parametrize("phase", [0, 15, 30, 44, 49, 52, 55, 58, 59])
def test_five_times_the_limit_raises_nothing_wherever_in_a_minute_it_begins(play, phase):
    play.run(phase, QUIET)
    before, limit = len(play.figures), play.limits[0]
    play.run(300, (5 * limit, QUIET[1]))
    assert play.agent.state().workers[0].devices[0].reason.startswith("LimitBypassed")
    play.run(120, QUIET)
    assert len(play.figures) >= before + 6
    assert risen(play, before) == []


@pytest.mark.parametrize("phase", [0, 44, 50, 58])
def test_memory_beyond_its_limit_raises_nothing_wherever_in_a_minute_it_is_taken(play, phase):
    play.run(phase, QUIET)
    before, limit = len(play.figures), play.limits[1]
    play.run(300, (QUIET[0], 2.5 * limit))
    assert play.agent.state().workers[0].devices[0].reason.startswith("LimitBypassed")
    assert risen(play, before) == []


def test_nine_seconds_on_and_one_off_raises_nothing_either(play):
    before, limit = len(play.figures), play.limits[0]
    play.run(300, lambda since: QUIET if since % 10 == 9 else (5 * limit, QUIET[1]))
    assert risen(play, before) == []


def test_memory_beyond_its_limit_never_becomes_the_limit(play):
    """Neither does the agent take it for granted, nor does a new agent on the same node."""
    limit = play.limits[1]
    play.run(30, (QUIET[0], 2 * limit))
    assert play.limits[1] == limit
    play.agent.close()
    play.start_agent()
    play.run(30, (QUIET[0], 2 * limit))
    assert play.limits[1] == limit
    state = play.agent.state().workers[0].devices[0]
    assert (state.applied, state.reason[:13]) == (True, "LimitBypassed")


def test_an_agent_that_starts_anew_amid_a_bypass_changes_nothing(play):
    before, (limit, limit_bytes) = len(play.figures), play.limits
    play.run(40, (5 * limit, 2 * limit_bytes))
    play.agent.close()
    play.start_agent()
    play.run(300, (5 * limit, 2 * limit_bytes))
    assert risen(play, before) == []


def test_nothing_that_was_measured_is_taken_back(play):
    play.run(101, (5 * play.limits[0], QUIET[1]))
    text = play.agent.exposition(openmetrics=False).decode()
    told = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if "{" in line}
    whole, beyond = (told[f"tensor_fusion_worker_compute_{name}_total"] for name in ("seconds", "beyond_limit_seconds"))
    measured = (1199 * QUIET[0] + 101 * min(5 * play.limits[0], TFLOPS)) / TFLOPS
    assert whole == pytest.approx(measured, rel=0.01)
    assert 0 < beyond < whole
    share, rest, device = (
        told[f"tensor_fusion_{name}"]
        for name in (
            "worker_compute_utilization_ratio",
            "device_unattributed_compute_ratio",
            "device_compute_utilization_ratio",
        )
    )
    assert share + rest == pytest.approx(device)


def test_who_stays_at_the_limit_is_probed_upward_as_ever(play):
    before = len(play.figures)
    limit = play.limits[0]
    play.run(240, lambda _: (play.limits[0], QUIET[1]))
    assert Field.COMPUTE_LIMIT in risen(play, before)
    assert play.limits[0] >= 2 * limit


def test_a_limiter_that_holds_the_mean_in_gusts_is_probed_upward_too(play):
    before = len(play.figures)
    play.run(240, lambda since: ((2.8 if since % 3 == 0 else 0.1) * play.limits[0], QUIET[1]))
    assert Field.COMPUTE_LIMIT in risen(play, before)


def test_memory_within_its_limit_raises_it_as_ever(play):
    before, limit = len(play.figures), play.limits[1]
    play.run(240, lambda _: (QUIET[0], play.limits[1]))
    assert Field.VRAM_LIMIT in risen(play, before)
    assert play.limits[1] > limit
