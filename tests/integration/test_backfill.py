"""One workload's history out of a real Prometheus: the same figures as in the fleet's, of nobody else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from autoscaler.model.resources import GIB
from autoscaler.model.usage import Usage, Window, WorkloadKey
from autoscaler.read.backfill import Backfill
from autoscaler.read.catchup import Reach
from autoscaler.read.prometheus import PrometheusHistory, PrometheusSettings
from tests.autoscaler.seeded import SCRAPE, Service, openmetrics
from tests.integration.prometheus_server import backfill, prometheus_server, require_prometheus

pytestmark = pytest.mark.integration

HOURS = 30
SERVICES = (
    Service("llm", use=7.0, vram=5 * GIB, minutes=HOURS * 60),
    Service("llm", use=2.0, minutes=HOURS * 60, namespace="team-b"),
    Service("other", use=3.0, minutes=HOURS * 60),
)
LLM = WorkloadKey("team-a", "llm")
FIGURES = ("peak", "total", "ceiling", "clipped", "ooms", "workers")


@dataclass(frozen=True)
class World:
    url: str
    end: float


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    require_prometheus()
    folder = tmp_path_factory.mktemp("prometheus")
    end = float(time.time() // 60 * 60)
    (folder / "history.om").write_text(openmetrics(SERVICES, end))
    backfill(folder, folder / "history.om")
    with prometheus_server(folder) as server:
        yield World(server.url, end)


def history_of(world: World) -> PrometheusHistory:
    return PrometheusHistory(PrometheusSettings(world.url, scrape_interval_seconds=SCRAPE))


def figures(usage: Usage, key: WorkloadKey) -> dict[str, np.ndarray]:
    row = usage.keys.index(key)
    return {name: getattr(usage, name)[..., row, :] for name in FIGURES}


@pytest.mark.parametrize("hours", [1, 24])
async def test_a_workloads_own_history_has_the_figures_that_the_fleets_has(world: World, hours: int):
    history = history_of(world)
    window = Window(world.end - hours * 3600, world.end, 60.0)
    try:
        fleet, alone = await history.read(window), await history.only(LLM).read(window)
        again = await history.read(window)
    finally:
        await history.close()
    assert set(alone.keys) == {LLM, WorkloadKey("team-b", "llm")}
    assert set(fleet.keys) == set(again.keys) == {*alone.keys, WorkloadKey("team-a", "other")}
    assert not np.isnan(figures(alone, LLM)["peak"]).any()
    for name, values in figures(alone, LLM).items():
        np.testing.assert_array_equal(values, figures(fleet, LLM)[name], err_msg=name)


async def test_a_workload_that_appears_gets_all_of_its_days(world: World):
    history = history_of(world)
    older = None
    try:
        reader = Backfill(history, Reach(60.0, 0.0, 8 * 86_400.0))
        reader.notice([(LLM, "w-0")], world.end - 600)
        for _ in range(10):
            older = older or await reader.read(world.end)
    finally:
        await history.close()
    assert older is not None
    ends = [usage.window.end for usage in older.usages]
    assert (ends, ends[-1]) == (sorted(ends), world.end)
    known = sum(int((~np.isnan(figures(usage, LLM)["peak"][0])).sum()) for usage in older.usages)
    assert HOURS * 60 - 2 <= known <= HOURS * 60 + 1
