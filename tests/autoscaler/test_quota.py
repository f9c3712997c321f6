"""GPUResourceQuotas: read from manifests, and what growth they leave."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.contract.keys import QoS
from autoscaler.gateways.agents_memory import MemoryAgents
from autoscaler.gateways.folder import FolderCluster
from autoscaler.model.config import Mode, ReplicasPolicy, Step
from autoscaler.model.decision import Field
from autoscaler.model.fleet import to_fleet
from autoscaler.model.reasons import Cause, Verdict
from autoscaler.model.resource_quota import UNLIMITED, ResourceQuota, read_quota, tighter
from autoscaler.model.resources import GIB
from autoscaler.read.world import read_world
from tests.autoscaler.shared_devices import NOW, SCALE, Load, Town, unexplained

FREE = (UNLIMITED,) * 5
COMPUTE, LIMIT, REPLICAS = Field.COMPUTE_REQUEST, Field.COMPUTE_LIMIT, Field.REPLICAS
MANIFEST = """
apiVersion: tensor-fusion.ai/v1
kind: GPUResourceQuota
metadata: {name: team, namespace: lab}
spec:
  total:
    requests: {tflops: "100", vram: 40Gi}
    limits: {tflops: 200}
    maxWorkers: 8
  single: {maxLimits: {vram: 24Gi}}
status: {used: {requests: {tflops: "30"}, workers: 3}}
"""


def quota(
    total: tuple[float, ...] = FREE, single: tuple[float, ...] = FREE, used: tuple[float, ...] = (0,) * 5
) -> dict[str, ResourceQuota]:
    return {"ns": ResourceQuota(total, single, used)}  # type: ignore[arg-type]


def manifest(text: str = MANIFEST) -> dict[str, Any]:
    return yaml.safe_load(text)


def test_a_quota_is_read_with_what_is_not_set_as_unlimited():
    read, problems = read_quota(manifest())
    assert read.total == (100, 200, 40 * GIB, UNLIMITED, 8)
    assert read.single == (UNLIMITED, UNLIMITED, UNLIMITED, 24 * GIB, UNLIMITED)
    assert read.used == (30, 0, 0, 0, 3)
    assert not problems


def test_a_figure_that_cannot_be_read_leaves_nothing_and_is_named():
    read, problems = read_quota(manifest(MANIFEST.replace("40Gi", "lots")))
    assert read.total[Field.VRAM_REQUEST] == 0
    assert [(one.path, one.value, one.source) for one in problems] == [
        ("spec.total.requests.vram", "lots", "GPUResourceQuota lab/team")
    ]


def test_of_two_quotas_the_tighter_figures_hold():
    read, _ = read_quota(manifest())
    other = ResourceQuota((50, 300, UNLIMITED, 10, 20), FREE, (40, 0, 0, 0, 1))  # type: ignore[arg-type]
    assert tighter(read, other) == ResourceQuota((50, 200, 40 * GIB, 10, 8), read.single, (40, 0, 0, 0, 3))


async def test_quotas_come_with_the_snapshot_of_a_folder_and_reach_the_fleet(tmp_path: Path):
    class Clock:
        def now(self) -> float:
            return NOW

    (tmp_path / "quota.yaml").write_text(MANIFEST.replace("40Gi", "lots"))
    snapshot = await read_world(FolderCluster(tmp_path, Clock()), MemoryAgents([]), NOW, None)
    assert snapshot.quotas["lab"].total[COMPUTE] == 100
    assert any("lots" in str(problem) for problem in snapshot.discovered.problems)
    assert to_fleet(snapshot).quotas is not None


def test_growth_is_cut_to_what_is_left_over_all_workers_and_devices():
    places = (("GPU-0", "GPU-1"), ("GPU-2", "GPU-3"))
    town = Town([Load("a", places=places)], quotas=quota((60, *FREE[1:])))  # 10 x 2 GPUs x 2 workers are used
    allowed = town.decide(town.wants(a={COMPUTE: 19}))
    assert town.told(allowed, "a", COMPUTE) == (15, Verdict.QUOTA_LIMITED)
    assert allowed.decision(0)[COMPUTE].inputs["quota_left"] == 20


def test_a_limit_that_is_cut_takes_its_request_along():
    town = Town([Load("a")], quotas=quota((UNLIMITED, 25, *FREE[2:])))
    allowed = town.decide(town.wants(a={COMPUTE: 30, LIMIT: 40}))
    assert town.told(allowed, "a", LIMIT) == (25, Verdict.QUOTA_LIMITED)
    assert town.told(allowed, "a", COMPUTE) == (25, Verdict.QUOTA_LIMITED)


def test_higher_levels_come_first_and_shrinking_always_may():
    loads = [Load("low", QoS.LOW), Load("high", QoS.HIGH), Load("down", QoS.LOW)]
    town = Town(loads, quotas=quota((36, *FREE[1:])))
    allowed = town.decide(town.wants(low={COMPUTE: 20}, high={COMPUTE: 14}, down={COMPUTE: 5}))
    assert town.told(allowed, "high", COMPUTE) == (14, Verdict.PASSED)
    assert town.told(allowed, "low", COMPUTE) == (12, Verdict.QUOTA_LIMITED)
    assert town.told(allowed, "down", COMPUTE)[0] == 5


def test_a_quota_that_is_overdrawn_already_forbids_growth_and_takes_nothing_away():
    town = Town([Load("a")], quotas=quota((5, *FREE[1:])))
    assert town.told(town.decide(town.wants(a={COMPUTE: 12})), "a", COMPUTE) == (10, Verdict.QUOTA_LIMITED)


def test_what_the_quota_counts_itself_holds_where_that_is_more():
    town = Town([Load("a")], quotas=quota((30, *FREE[1:]), used=(28, 0, 0, 0, 0)))
    assert town.told(town.decide(town.wants(a={COMPUTE: 19})), "a", COMPUTE)[0] == 12


def test_one_workers_figures_stay_under_the_single_maximum_and_one_above_it_is_left():
    town = Town([Load("a"), Load("b", compute=(10, 50))], quotas=quota(single=(UNLIMITED, 30, *FREE[2:])))
    allowed = town.decide(town.wants(a={LIMIT: 80}, b={LIMIT: 60}))
    assert town.told(allowed, "a", LIMIT) == (30, Verdict.QUOTA_LIMITED)
    assert town.told(allowed, "b", LIMIT) == (50, Verdict.QUOTA_LIMITED)


@pytest.mark.parametrize(
    ("total", "expected"), [((UNLIMITED,) * 4 + (2,), 2), ((35, *FREE[1:]), 3), (FREE, 4)], ids=["workers", "sum", ""]
)
def test_new_workers_need_room_for_all_that_they_hold(total: tuple[float, ...], expected: float):
    town = Town([Load("a")], quotas=quota(total))
    policy = ReplicasPolicy(Mode.ON, scale_up_step=Step(5))
    town.loads[0].config = replace(town.loads[0].config, replicas_policy=policy)
    allowed = town.decide(town.wants(Cause.LOAD, a={REPLICAS: 4}))
    assert town.told(allowed, "a", REPLICAS)[0] == expected


def test_nobody_gives_for_growth_that_the_quota_refuses():
    loads = [Load("low", QoS.LOW, vram=(6, 6)), Load("high", QoS.HIGH, vram=(4, 4))]
    town = Town(loads, vram=10, quotas=quota((UNLIMITED, UNLIMITED, 10 * GIB, *FREE[3:])))
    allowed = town.decide(town.wants(high={Field.VRAM_REQUEST: 6, Field.VRAM_LIMIT: 6}))
    assert not (allowed.figure[:, Field.VRAM_REQUEST] != allowed.fleet.current[:, Field.VRAM_REQUEST]).any()


figures = st.floats(min_value=1, max_value=400, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(
    wanted=st.lists(st.tuples(figures, figures, st.integers(1, 6)), min_size=1, max_size=4),
    left=st.tuples(figures, figures, st.integers(0, 6)),
    levels=st.lists(st.sampled_from(list(QoS)), min_size=4, max_size=4),
)
def test_no_namespace_grows_past_its_quota(
    wanted: list[tuple[float, float, int]], left: tuple[float, float, int], levels: list[QoS]
):
    loads = [Load(f"w{n}", levels[n], places=((f"GPU-{n}",),)) for n in range(len(wanted))]
    rows = len(loads)
    total = (10 * rows + left[0], 20 * rows + left[1], UNLIMITED, UNLIMITED, rows + left[2])
    town = Town(loads, quotas=quota(total))
    asked = {f"w{n}": dict(zip((COMPUTE, LIMIT, REPLICAS), one, strict=True)) for n, one in enumerate(wanted)}
    allowed = town.decide(town.wants(**asked))
    figure = allowed.figure / SCALE
    assert (figure[:, COMPUTE] * figure[:, REPLICAS]).sum() <= total[0] * (1 + 1e-9)
    assert (figure[:, LIMIT] * figure[:, REPLICAS]).sum() <= total[1] * (1 + 1e-9)
    assert figure[:, REPLICAS].sum() <= total[4]
    assert (figure[:, COMPUTE] <= figure[:, LIMIT]).all()
    assert not unexplained(allowed)
