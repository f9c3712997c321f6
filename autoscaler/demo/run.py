"""The demo: real agents on loopback, the real controller on a folder of manifests, a day in less than a minute.

Two runs with the same demand go side by side: one in which the owners' figures hold, one that is scaled. Neighbours:
`services` says who lives here, `processes` runs the agents, `view` shows it, `summary` adds it up.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from autoscaler.controller import Controller, World
from autoscaler.demo.manifests import manifests
from autoscaler.demo.processes import Agents, Truth, agents
from autoscaler.demo.scenario import scenario
from autoscaler.demo.services import MINUTE, Town, town
from autoscaler.demo.summary import DemoResult, shown, totals
from autoscaler.demo.surge import Surge, demand_tflops, limit_in_force_tflops
from autoscaler.errors import ConfigError, Problem
from autoscaler.gateways.agents import AgentAccess, HttpAgents
from autoscaler.gateways.folder import FolderCluster
from autoscaler.model.decision import Decision
from autoscaler.model.workload import Manifest
from autoscaler.read.memory import MemoryHistory
from autoscaler.report.metrics import ControllerMetrics
from autoscaler.report.writer import Passed
from autoscaler.settings import Settings

START: Final = 1_767_571_200.0
"""Midnight of Monday, 5 January 2026, UTC: a fixed day, so that equal seeds give equal folders."""
SHORTEST_SECONDS: Final = 3600.0
"""Before that the evidence for a first decision is missing."""
STATIC_STEP_SECONDS: Final = 3600.0
STATIC: Final = "static-"
SETTINGS: Final = Settings(
    interval_seconds=MINUTE,
    bin_seconds=MINUTE,
    scrape_interval_seconds=MINUTE,
    settle_seconds=0.0,  # each pass follows the scrape that completes its bin
    history_seconds=10 * MINUTE,
)


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """`keep` is the folder that the manifests are left in; None: they are removed."""

    duration_seconds: float = 86_400.0
    seed: int = 1
    keep: Path | None = None


@dataclass(frozen=True, slots=True)
class Minute:
    """One simulated minute: when it ended, the truth so far, the pass at its end, and the cluster after it."""

    at_seconds: float
    truth: tuple[Truth, ...]
    passed: Passed
    cluster: FolderCluster

    def changes(self) -> Iterator[Decision]:
        """Yield the decisions that were written."""
        allowed = self.passed.allowed
        for row in np.flatnonzero(allowed.changed):
            if allowed.fleet.keys[row] not in self.passed.errors:
                yield allowed.decision(int(row))

    async def workloads(self) -> tuple[Manifest, ...]:
        """Return the TensorFusionWorkloads as they stand in the folder."""
        return (await self.cluster.read()).workloads


Watch = Callable[[Minute], Awaitable[None]]


@dataclass(slots=True)
class SimulatedClock:
    """The Clock port; it stands still between minutes."""

    at: float = START

    def now(self) -> float:
        """Return seconds since the epoch."""
        return self.at


@dataclass(slots=True)
class _Play:
    """A run under way: its parts, and what was noted so far."""

    clock: SimulatedClock
    agents: Agents
    history: MemoryHistory
    cluster: FolderCluster
    controller: Controller
    surge: Surge
    truth: tuple[Truth, ...] = ()
    changes: Counter[str] = field(default_factory=Counter)

    async def minute(self) -> Minute:
        """Let a minute pass at all nodes, scrape them, run the pass."""
        self.clock.at += MINUTE
        before, self.truth = self.truth, await self.agents.advance(self.clock.at)
        for exposition in await self.agents.scrape():
            self.history.ingest(self.clock.at, exposition)
        passed = await self.controller.run_pass()
        minute = Minute(self.clock.at - START, self.truth, passed, self.cluster)
        self.changes.update(decision.key.name for decision in minute.changes())
        name = self.surge.workload
        demand, limit = demand_tflops(name, before, self.truth), limit_in_force_tflops(name, passed.nodes)
        self.surge = self.surge.seen(minute.at_seconds, demand, limit)
        return minute


async def demo(options: DemoOptions, watch: Watch) -> DemoResult:
    """Run the demo; `watch` is shown every simulated minute.

    Raises:
        ConfigError: an option can't be used.
        NodeError: an agent did not start, or went away.

    """
    check(options)
    place = town(options.seed, options.duration_seconds)
    scenarios = {node: scenario(place, node, START) for node in place.nodes}
    both = {**scenarios, **{STATIC + node: text for node, text in scenarios.items()}}
    with _folders(options.keep) as (cluster_dir, agents_dir):
        for name, text in manifests(place, START).items():
            (cluster_dir / name).write_text(text, encoding="utf-8")
        async with agents(both, agents_dir) as running, _play(place, running.only(scenarios), cluster_dir) as play:
            try:
                async with asyncio.TaskGroup() as group:
                    static = group.create_task(_stand_still(running.only(both.keys() - scenarios), options))
                    group.create_task(_scale(play, options, watch))
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None
            view = await play.cluster.read()
    return DemoResult(
        seed=options.seed,
        duration_seconds=options.duration_seconds,
        static=totals(static.result()),
        autoscaled=totals(play.truth),
        workloads=shown(view.workloads),
        changes=dict(sorted(play.changes.items())),
        surge=play.surge,
    )


async def _stand_still(nodes: Agents, options: DemoOptions) -> tuple[Truth, ...]:
    """Let the whole time pass under the figures that the owners chose; return the truth."""
    truth: tuple[Truth, ...] = ()
    at, end = START, START + options.duration_seconds
    while at < end:
        at = min(at + STATIC_STEP_SECONDS, end)
        truth = await nodes.advance(at)
    return truth


async def _scale(play: _Play, options: DemoOptions, watch: Watch) -> None:
    while play.clock.at < START + options.duration_seconds:
        await watch(await play.minute())


@asynccontextmanager
async def _play(place: Town, nodes: Agents, cluster_dir: Path) -> AsyncIterator[_Play]:
    clock = SimulatedClock()
    history = MemoryHistory(SETTINGS.scrape_interval_seconds, 2 * SETTINGS.history_seconds)
    cluster = FolderCluster(cluster_dir, clock)
    world = World(clock, history, cluster, HttpAgents(AgentAccess(urls=nodes.urls), clock))
    surging = next(service for service in place.services if service.name == place.surging)
    surge = Surge(surging.name, surging.amounts.compute.limit, place.surge_at, SETTINGS.interval_seconds)
    try:
        yield _Play(clock, nodes, history, cluster, Controller(world, SETTINGS, ControllerMetrics()), surge)
    finally:
        await world.close()


@contextmanager
def _folders(keep: Path | None) -> Iterator[tuple[Path, Path]]:
    """Yield the folder of manifests and one for the agents; what is not to be kept is removed."""
    with tempfile.TemporaryDirectory(prefix="tf-autoscaler-demo-") as temporary:
        cluster = Path(temporary) / "cluster" if keep is None else keep
        processes = Path(temporary) / "agents"
        for folder in (cluster, processes):
            folder.mkdir(parents=True, exist_ok=True)
        yield cluster, processes


def check(options: DemoOptions) -> None:
    """Refuse options that can't be used.

    Raises:
        ConfigError: each of them, and what is allowed.

    """
    problems = []
    if options.duration_seconds < SHORTEST_SECONDS or options.duration_seconds % MINUTE:
        problems.append(Problem("--duration", f"{options.duration_seconds:g}s", "whole minutes, at least 1h"))
    if (
        options.keep is not None
        and options.keep.exists()
        and (not options.keep.is_dir() or any(options.keep.iterdir()))
    ):
        problems.append(Problem("--keep", str(options.keep), "a folder that is empty, or not there yet"))
    if problems:
        raise ConfigError(problems)
