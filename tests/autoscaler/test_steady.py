"""What a fleet at rest costs the cluster: nothing, not after a restart either; counted at the Cluster port."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoscaler.controller import Controller, World
from autoscaler.gateways.folder import FolderCluster
from autoscaler.model.steps import ClusterWrite
from autoscaler.model.workload import ClusterView
from autoscaler.ports import Cluster
from autoscaler.report.metrics import ControllerMetrics
from autoscaler.report.writer import SWEEP_PASSES
from autoscaler.settings import Settings
from tests.autoscaler.test_controller import Town

LOADS = {"llm": 8.0}
SETTLING_MINUTES = 90
QUIET_MINUTES = 20
"""Short of the next decision: with two hours of evidence the margin of VRAM shrinks, which is news."""


@dataclass
class CountingCluster:
    """Another cluster with a record of what was written to it."""

    inner: Cluster
    written: list[ClusterWrite] = field(default_factory=list)

    async def read(self) -> ClusterView:
        return await self.inner.read()

    async def write(self, write: ClusterWrite) -> None:
        self.written.append(write)
        await self.inner.write(write)

    async def close(self) -> None:
        await self.inner.close()


class CountedTown(Town):
    """A town whose controllers write through one counter."""

    counter: CountingCluster

    def start(self, **changes: Any) -> Controller:
        settings = Settings(
            scrape_interval_seconds=60, settle_seconds=0, history_seconds=86400, **(self.options | changes)
        )
        self.counter = CountingCluster(FolderCluster(self.folder, self.clock))
        return Controller(World(self.clock, self.history, self.counter, self.agents), settings, ControllerMetrics())


async def test_at_constant_load_nothing_is_written_not_after_a_restart_either(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    folder.mkdir()
    town = CountedTown(folder, state_dir=tmp_path / "state")
    town.deploy("llm")
    await town.controller.run_pass()
    for _ in range(SETTLING_MINUTES):
        await town.minute(LOADS)
    assert town.counter.written

    town.counter.written.clear()
    for _ in range(QUIET_MINUTES):
        await town.minute(LOADS)
    assert town.counter.written == []

    town.controller.close()
    town.controller = town.start()
    for _ in range(SWEEP_PASSES + 1):  # the first pass renders everything, and the sweep everything once more
        await town.minute(LOADS)
    assert town.counter.written == []
