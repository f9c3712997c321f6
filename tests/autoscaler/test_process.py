"""A controller's terms: it makes passes only while it leads, and says so; with the fake of leadership in the package."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from autoscaler.contract.quota import DevicesStatus, QuotaDocument, QuotaStatus
from autoscaler.controller import World
from autoscaler.errors import ConfigError, LeadershipLostError
from autoscaler.gateways.agents_memory import MemoryAgents
from autoscaler.gateways.fence import FencedCluster, FencedEnforcement
from autoscaler.gateways.folder import FolderCluster
from autoscaler.gateways.leadership_memory import MemoryLeadership
from autoscaler.model.steps import Emit
from autoscaler.model.workload import ClusterView, ObjectRef
from autoscaler.process import Duty
from autoscaler.read.memory import MemoryHistory
from autoscaler.report.metrics import ControllerMetrics
from autoscaler.settings import Settings, settings_of
from tests.autoscaler.test_controller import Town

DEADLINE_SECONDS = 60.0


@dataclass
class HandClock:
    at: float = 1_800_000_000.0

    def now(self) -> float:
        return self.at


class PausingCluster(FolderCluster):
    """A folder whose readings can be held, and are counted."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, HandClock())
        self.go = asyncio.Event()
        self.go.set()
        self.reading = asyncio.Event()
        self.cancelled = 0

    async def read(self) -> ClusterView:
        self.reading.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return await super().read()


@dataclass
class Stage:
    duty: Duty
    cluster: PausingCluster
    agents: MemoryAgents
    leadership: MemoryLeadership = field(default_factory=MemoryLeadership)
    task: asyncio.Task[None] | None = None

    @property
    def leads(self) -> float | None:
        return self.duty.metrics.registry.get_sample_value("tensor_fusion_autoscaler_leader")


async def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < end, "never came true"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def staged(folder: Path, agents: MemoryAgents | None = None) -> AsyncIterator[Stage]:
    cluster = PausingCluster(folder)
    agents = agents or MemoryAgents([DevicesStatus("node-a", ())])
    world = World(HandClock(), MemoryHistory(60.0, 3600.0), cluster, agents)
    duty = Duty(world, Settings(interval_seconds=0.05, history_seconds=3600), ControllerMetrics())
    yield Stage(duty, cluster, agents)


@asynccontextmanager
async def in_turn(stage: Stage) -> AsyncIterator[None]:
    stage.task = asyncio.create_task(stage.duty.in_turn(stage.leadership))
    try:
        yield
    finally:
        stage.duty.stop.set()
        await asyncio.wait_for(stage.task, DEADLINE_SECONDS)


async def test_standing_by_reads_nothing_and_is_alive_and_ready_and_no_leader(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage, in_turn(stage):
        await until(lambda: stage.duty.health.role)
        assert stage.duty.health.role == "standing by, another leads"
        assert (stage.duty.health.stuck(), stage.duty.health.unready(), stage.leads) == ("", "", 0)
        assert not stage.cluster.reading.is_set()


async def test_who_is_granted_the_lead_is_ready_with_its_first_pass(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage, in_turn(stage):
        stage.cluster.go.clear()
        stage.leadership.grant()
        await until(stage.cluster.reading.is_set)
        assert stage.leads == 1
        assert "no pass" in stage.duty.health.unready()
        stage.cluster.go.set()
        await until(lambda: not stage.duty.health.unready())
        assert stage.duty.health.role == ""


async def test_who_is_deposed_stops_in_the_middle_of_a_pass_and_stands_by_again(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage, in_turn(stage):
        stage.cluster.go.clear()
        stage.leadership.grant()
        await until(stage.cluster.reading.is_set)
        stage.leadership.depose()
        await until(lambda: stage.cluster.cancelled == 1)
        await until(lambda: stage.leads == 0)
        stage.cluster.go.set()
        stage.leadership.grant()
        await until(lambda: stage.leadership.terms == 2 and not stage.duty.health.unready() and stage.leads == 1)


async def test_a_stop_while_standing_by_ends_at_once(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage, in_turn(stage):
        await until(lambda: stage.duty.health.role)
    assert stage.leadership.terms == 0


async def test_a_stop_while_leading_finishes_the_pass_under_way(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        async with in_turn(stage):
            stage.cluster.go.clear()
            stage.leadership.grant()
            await until(stage.cluster.reading.is_set)
            stage.duty.stop.set()
            stage.cluster.go.set()
        assert stage.cluster.cancelled == 0
        assert stage.duty.health.unready() == ""
        assert stage.leads == 0


async def test_a_leader_that_finds_a_later_epoch_on_a_node_applies_for_a_new_term_above_it(tmp_path: Path) -> None:
    """As after one pass by hand: the term is over, and in the next one this node is met anew."""
    town = Town(tmp_path)
    town.deploy("llm")
    async with staged(tmp_path, town.agents) as stage, in_turn(stage):
        await stage.agents.push(QuotaDocument(5, 1, "node-a", ()))
        stage.leadership.grant()
        seen: list[int] = []
        first = await epoch_of(stage, seen, lambda: bool(seen))
        assert first == 6
        await stage.agents.push(QuotaDocument(9, 2, "node-a", ()))
        assert await epoch_of(stage, seen, lambda: seen[-1] > 9) == 10
        assert stage.leadership.terms == 2


async def epoch_of(stage: Stage, seen: list[int], condition: Callable[[], bool]) -> int:
    """Wait until the epochs of the controllers so far fulfil a condition, and return the last one."""

    def look() -> bool:
        controller = stage.duty.controller
        if controller is not None and controller.epoch not in seen and not stage.duty.health.unready():
            seen.append(controller.epoch)
        return condition()

    await until(look)
    return seen[-1]


async def test_a_dry_run_and_a_single_controller_lead_without_asking(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        task = asyncio.create_task(stage.duty.alone())
        await until(lambda: not stage.duty.health.unready())
        assert (stage.leads, stage.leadership.terms) == (1, 0)
        stage.duty.stop.set()
        await asyncio.wait_for(task, DEADLINE_SECONDS)


async def test_who_does_not_lead_writes_nothing_and_tells_no_node(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        cluster, agents = (
            FencedCluster(stage.cluster, stage.leadership),
            FencedEnforcement(stage.agents, stage.leadership),
        )
        document = QuotaDocument(1, 1, "node-a", ())
        event = Emit(ObjectRef("v1", "Pod", "lab", "chat-0", "uid"), "Scaled", "1")
        for attempt in (lambda: cluster.write(event), lambda: agents.push(document)):
            with pytest.raises(LeadershipLostError):
                await attempt()
        assert not (tmp_path / "events.yaml").exists()
        assert stage.agents.pushed == []
        stage.leadership.grant()
        await cluster.write(event)
        assert isinstance(await agents.push(document), QuotaStatus)
        assert (tmp_path / "events.yaml").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"leader_elect": True, "cluster_dir": Path("manifests")}, "a folder has no Leases"),
        ({"lease_duration_seconds": 10, "lease_renew_deadline_seconds": 10.0}, "lease_duration_seconds >"),
        ({"lease_retry_seconds": 12.0}, "lease_retry_seconds"),
        ({"kube_qps": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_could_leave_two_leaders_or_none_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settings_of(given)
