"""A snapshot as columns: what was laid out before is kept, and nothing else."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.contract.keys import Effect, QoS
from autoscaler.contract.quota import DeviceInfo, DeviceStatus, Observed, QuotaStatus, WorkerStatus
from autoscaler.model.config import Configuration, LimitsPolicy, Mode, RequestsPolicy
from autoscaler.model.fleet import Fleet, to_fleet
from autoscaler.model.knobs import Knobs
from autoscaler.model.resources import GIB, Amount, Amounts, Resource
from autoscaler.model.snapshot import NodeState, Snapshot
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import Discovered, ObjectRef, Worker, Workload

AMOUNTS = Amounts(Amount(10, 20), Amount(4 * GIB, 8 * GIB))
CONFIGS = tuple(
    Configuration(amounts=AMOUNTS, qos=qos, requests=RequestsPolicy(Mode.ON, percentile=p), limits=LimitsPolicy(mode))
    for qos, p, mode in ((QoS.LOW, None, Mode.ON), (QoS.HIGH, 0.9, Mode.OFF), (QoS.CRITICAL, 0.5, Mode.RECOMMEND))
)


def workload(name: str, config: Configuration, *devices: tuple[str, ...], original: Amounts = AMOUNTS) -> Workload:
    workers = tuple(
        Worker(ObjectRef("v1", "Pod", "ns", f"{name}-{i}", uid=f"{name}-{i}"), "n", AMOUNTS, ready=True, devices=own)
        for i, own in enumerate(devices)
    )
    ref = ObjectRef("tensor-fusion.ai/v1", "TensorFusionWorkload", "ns", name, uid=name)
    return Workload(WorkloadKey("ns", name), ref, config, original, AMOUNTS, workers, len(workers), 0.0)


def snapshot(*workloads: Workload, statuses: tuple[WorkerStatus, ...] = ()) -> Snapshot:
    devices = (DeviceInfo("GPU-0", "NVIDIA L4", 24 * GIB, 121.0), DeviceInfo("GPU-1", "mystery", 80 * GIB))
    node = NodeState("n", devices, QuotaStatus("n", 1, 1, statuses))
    return Snapshot(0.0, Discovered(workloads), {"n": node})


def knobs_of(fleet: Fleet) -> dict[str, list[object]]:
    return {knob.name: getattr(fleet.knobs, knob.name).tolist() for knob in fields(Knobs)}


CAST = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(CONFIGS), st.sampled_from([1.0, 2.0])),
    max_size=5,
    unique_by=lambda one: one[0],
)


@given(st.lists(CAST, min_size=1, max_size=4))
def test_knobs_are_the_same_whether_the_fleet_before_is_known_or_not(casts):
    before = None
    for cast in casts:
        loads = [
            workload(f"w{number}", config, original=Amounts(Amount(10 * scale, 20 * scale), AMOUNTS.vram))
            for number, config, scale in cast
        ]
        fleet = to_fleet(snapshot(*loads), before)
        np.testing.assert_equal(knobs_of(fleet), knobs_of(to_fleet(snapshot(*loads))))
        before = fleet


def test_a_new_configuration_of_a_known_workload_is_worked_out():
    low, high = CONFIGS[0], replace(CONFIGS[0], qos=QoS.HIGH)
    before = to_fleet(snapshot(workload("a", low), workload("b", low)))
    after = to_fleet(snapshot(workload("a", low), workload("b", high)), before)
    assert after.knobs.rank.tolist() == [0, 2]
    assert before.knobs.rank.tolist() == [0, 0]


def test_live_use_is_the_largest_of_any_worker_and_device_and_unknown_where_nobody_tells():
    def status(uid: str, *uses: tuple[float | None, int | None]) -> WorkerStatus:
        seen = tuple(
            DeviceStatus(f"GPU-{number}", True, Effect.IMMEDIATE, Observed(tflops_used=compute, vram_used_bytes=vram))
            for number, (compute, vram) in enumerate(uses)
        )
        return WorkerStatus(uid, "ns", uid, "any", seen)

    a, b, c = (
        workload("a", CONFIGS[0], ("GPU-0",), ("GPU-0",)),
        workload("b", CONFIGS[0], ("GPU-0",)),
        workload("c", CONFIGS[0]),
    )
    told = (
        status("a-0", (3.0, 5), (4.0, 2)),
        status("a-1", (None, 9)),
        status("b-0", (None, None)),
        status("x", (99.0, 99)),
    )
    live = to_fleet(snapshot(a, b, c, statuses=told)).live
    np.testing.assert_equal(live, [[4.0, 9.0], [np.nan, np.nan], [np.nan, np.nan]])


def test_a_device_carries_the_requests_of_all_its_workers_and_a_workload_the_least_of_its_devices():
    a, b = workload("a", CONFIGS[0], ("GPU-0",), ("GPU-1", "GPU-9")), workload("b", CONFIGS[0], ("GPU-1",))
    fleet = to_fleet(snapshot(a, b))
    assert fleet.placement.requested.tolist() == [[10.0, 20.0], [4.0 * GIB, 8.0 * GIB]]
    assert fleet.placement.workload.tolist() == [0, 0, 1]
    assert fleet.placement.device.tolist() == [0, 1, 1]
    assert fleet.device.tolist() == [[121.0, 24.0 * GIB], [np.inf, 80.0 * GIB]]
    assert fleet.device[0, Resource.COMPUTE] == 121.0


@pytest.mark.parametrize(
    ("limit_gib", "used_gib", "tells"),
    [
        (8.0, 7.9, True),
        (8.0, 8.39, True),  # enforcement is no finer than 5 % of the limit,
        (2.0, 2.2, True),  # or 1 % of the device
        (8.0, 8.5, False),
        (8.0, 20.0, False),
        (None, 20.0, True),  # nothing holds it, so all it takes is what it needs
    ],
)
def test_live_use_above_the_limit_in_force_is_seen_and_tells_nothing_of_demand(limit_gib, used_gib, tells):
    limit, used = limit_gib and round(limit_gib * GIB), round(used_gib * GIB)

    def status(pod: str, observed: Observed) -> WorkerStatus:
        return WorkerStatus(pod, "ns", pod, "w", (DeviceStatus("GPU-0", True, Effect.NEXT_ALLOC, observed),))

    greedy = status("w-0", Observed(vram_limit_bytes=limit, vram_used_bytes=used))
    one = to_fleet(snapshot(workload("w", CONFIGS[0], ("GPU-0",)), statuses=(greedy,)))
    assert one.live[0, Resource.VRAM] == used
    assert one.placement.used[Resource.VRAM, 0] == used
    assert one.demand[0, Resource.VRAM] == (used if tells else pytest.approx(np.nan, nan_ok=True))
    modest = status("w-1", Observed(vram_limit_bytes=limit, vram_used_bytes=GIB))
    both = to_fleet(snapshot(workload("w", CONFIGS[0], ("GPU-0",), ("GPU-0",)), statuses=(greedy, modest)))
    assert both.demand[0, Resource.VRAM] == (used if tells else GIB)
