"""Each guard by worked numbers: what it holds, caps or floors, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.contract.quota import DeviceInfo
from autoscaler.guard import GUARDS, Limits, guard, new_memory, note
from autoscaler.model.config import (
    Bounds,
    Configuration,
    LimitsPolicy,
    Mode,
    Pause,
    ReplicasPolicy,
    RequestsPolicy,
    Step,
)
from autoscaler.model.decision import Field
from autoscaler.model.fleet import Fleet, to_fleet
from autoscaler.model.proposal import Allowed, Wanted
from autoscaler.model.reasons import CAUSE_CODE, VERDICTS, Cause, Verdict
from autoscaler.model.resources import GIB, Amount, Amounts
from autoscaler.model.rows import Rows
from autoscaler.model.snapshot import NodeState, Snapshot
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import Discovered, ObjectRef, Worker, Workload
from tests.autoscaler.stage import ON, with_config

NOW = 1_700_000_000.0
AMOUNTS = ON.amounts
ALL_ON = with_config(replicas_policy=ReplicasPolicy(mode=Mode.ON))


def workload(name: str = "a", config: Configuration = ALL_ON, device: str = "GPU-0", **facts: object) -> Workload:
    worker = Worker(
        ObjectRef("v1", "Pod", "ns", f"{name}-0", uid=f"pod-{name}"), "node-a", AMOUNTS, ready=True, devices=(device,)
    )
    made = Workload(
        key=WorkloadKey("ns", name),
        ref=ObjectRef("tensor-fusion.ai/v1", "TensorFusionWorkload", "ns", name, uid=f"uid-{name}"),
        config=config,
        original=config.amounts,
        current=AMOUNTS,
        workers=(worker,),
        replicas=2,
        created_at=NOW - 86400,
    )
    return replace(made, **facts)  # type: ignore[arg-type]


def fleet_of(*workloads: Workload, vram_gib: float = 80, now: float = NOW) -> Fleet:
    devices = (DeviceInfo("GPU-0", "NVIDIA H100 80GB HBM3", int(vram_gib * GIB), 989.0),)
    return to_fleet(Snapshot(now, Discovered(workloads), {"node-a": NodeState("node-a", devices)}))


def wants(fleet: Fleet, cause: Cause = Cause.RAISED, *, urgent: bool = False, **figures: float) -> Wanted:
    """Every workload wants these figures (by lower-case field name), the rest as it is; a day of samples is known."""
    figure = fleet.current.copy()
    codes = np.full(figure.shape, CAUSE_CODE[Cause.UNCHANGED], dtype=np.int8)
    for name, value in figures.items():
        figure[:, Field[name.upper()]] = value
        codes[:, Field[name.upper()]] = CAUSE_CODE[cause]
    rows = len(fleet)
    return Wanted(
        figure=figure,
        lower=figure,
        upper=figure,
        cause=codes,
        urgent=np.full(figure.shape, urgent),
        inputs={field: {} for field in Field},
        samples=np.full(rows, 1440.0),
        first_at=np.full(rows, fleet.now - 86400),
        last_at=np.full(rows, fleet.now - 30),
        trouble_at=np.full((rows, 2), -np.inf),
        trouble_samples=np.zeros((rows, 2)),
    )


class Run:
    """Guards with their memory over several passes."""

    limits = Limits(fresh_seconds=120.0, changes_per_pass=100, min_samples=10)

    def __init__(self) -> None:
        self.memory: Rows = new_memory()

    def __call__(self, fleet: Fleet, wanted: Wanted, limits: Limits | None = None) -> Allowed:
        self.memory.align(fleet.keys, fleet.uids)
        allowed = guard(fleet, wanted, self.memory, limits or self.limits)
        note(self.memory, fleet, allowed.figure)
        return allowed


def outcome(allowed: Allowed, field: Field, row: int = 0) -> tuple[float, Verdict]:
    return float(allowed.figure[row, field]), VERDICTS[int(allowed.verdict[row, field])]


def test_a_plain_raise_passes():
    fleet = fleet_of(workload())
    assert outcome(Run()(fleet, wants(fleet, compute_request=15)), Field.COMPUTE_REQUEST) == (15, Verdict.PASSED)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda w: replace(w, last_at=np.full(1, NOW - 121)), Verdict.STALE),
        (lambda w: replace(w, samples=np.full(1, 9.0)), Verdict.LOW_CONFIDENCE),
        (lambda w: replace(w, first_at=np.full(1, NOW - 29 * 60)), Verdict.INITIAL_DELAY),
    ],
)
def test_thin_or_old_evidence_moves_nothing(change: Callable[[Wanted], Wanted], verdict: Verdict):
    fleet = fleet_of(workload())
    for request in (8.0, 15.0):
        allowed = Run()(fleet, change(wants(fleet, compute_request=request)))
        assert outcome(allowed, Field.COMPUTE_REQUEST) == (10, verdict)


def test_a_shortage_does_not_wait_for_confidence_but_for_fresh_samples():
    fleet = fleet_of(workload())
    wanted = wants(fleet, Cause.SATURATED, urgent=True, compute_limit=40)
    early = replace(wanted, samples=np.full(1, 1.0), first_at=np.full(1, NOW - 60))
    assert outcome(Run()(fleet, early), Field.COMPUTE_LIMIT) == (40, Verdict.PASSED)
    stale = replace(wanted, last_at=np.full(1, NOW - 600))
    assert outcome(Run()(fleet, stale), Field.COMPUTE_LIMIT) == (20, Verdict.STALE)


@pytest.mark.parametrize(("pause", "down", "up"), [
    (Pause(up=True, down=True), 20, 20), (Pause(up=True), 16, 20), (Pause(down=True), 20, 40),
    (Pause(up=True, down=True, until=NOW - 1), 16, 40),
])  # fmt: skip
def test_the_owners_pause_holds_the_directions_it_names(pause: Pause, down: float, up: float):
    fleet = fleet_of(
        workload(config=replace(ALL_ON, pause=pause, limits=LimitsPolicy(Mode.ON, stabilization_seconds=0)))
    )
    assert Run()(fleet, wants(fleet, compute_limit=16)).figure[0, Field.COMPUTE_LIMIT] == down
    assert Run()(fleet, wants(fleet, compute_limit=40)).figure[0, Field.COMPUTE_LIMIT] == up


def test_replicas_are_left_to_whoever_manages_them_and_wait_for_pods_and_rollouts():
    pending = replace(workload().workers[0], pending=True)
    for facts, verdict in (
        ({"managed_elsewhere": "hpa/web"}, Verdict.REPLICAS_MANAGED_ELSEWHERE),
        ({"rollout_in_progress": True}, Verdict.ROLLOUT_IN_PROGRESS),
        ({"workers": (pending,)}, Verdict.PODS_PENDING),
    ):
        fleet = fleet_of(workload(**facts))
        allowed = Run()(fleet, wants(fleet, replicas=4, compute_request=15))
        assert outcome(allowed, Field.REPLICAS) == (2, verdict)
        assert outcome(allowed, Field.COMPUTE_REQUEST) == (15, Verdict.PASSED)


def test_whole_and_hard_partitioned_gpus_have_no_quota_to_move():
    for change, verdict in (
        ({"dedicated_gpu": True}, Verdict.DEDICATED_GPU),
        ({"isolation": "hard"}, Verdict.UNSUPPORTED_ISOLATION),
    ):
        fleet = fleet_of(workload(config=replace(ALL_ON, **change)))
        assert outcome(Run()(fleet, wants(fleet, compute_request=15)), Field.COMPUTE_REQUEST) == (10, verdict)


def test_a_change_inside_the_dead_band_is_noise_unless_it_is_a_shortage():
    fleet = fleet_of(workload())
    assert outcome(Run()(fleet, wants(fleet, compute_limit=20.9)), Field.COMPUTE_LIMIT) == (
        20,
        Verdict.WITHIN_TOLERANCE,
    )
    urgent = wants(fleet, Cause.SATURATED, urgent=True, compute_limit=20.9)
    assert outcome(Run()(fleet, urgent), Field.COMPUTE_LIMIT) == (20.9, Verdict.PASSED)


def test_a_limit_shrinks_after_the_whole_window_to_the_most_it_wanted_in_it():
    run = Run()
    for minute, wanted in enumerate((12.0, 15.0, 10.0, 11.0, 10.0)):
        fleet = fleet_of(workload(), now=NOW + 60 * minute)
        allowed = run(fleet, wants(fleet, Cause.SURPLUS, compute_limit=wanted))
        assert outcome(allowed, Field.COMPUTE_LIMIT) == (20, Verdict.STABILIZING)
    fleet = fleet_of(workload(), now=NOW + 300)
    assert run(fleet, wants(fleet, Cause.SURPLUS, compute_limit=10)).figure[0, Field.COMPUTE_LIMIT] == 15


def test_one_moment_without_the_wish_to_shrink_starts_the_window_anew():
    run = Run()
    for minute in range(9):
        fleet = fleet_of(workload(), now=NOW + 60 * minute)
        wanted = 20.0 if minute == 4 else 12.0
        assert run(fleet, wants(fleet, Cause.SURPLUS, compute_limit=wanted)).figure[0, Field.COMPUTE_LIMIT] == 20


def test_replicas_move_by_steps_and_rest_in_between_but_a_surge_does_not():
    policy = ReplicasPolicy(
        mode=Mode.ON, scale_up_step=Step(1), scale_up_cool_down_seconds=180, max_replicas=10, scale_down_step=Step(1)
    )
    config = replace(ALL_ON, replicas_policy=policy)
    run, fleet = Run(), fleet_of(workload(config=config))
    assert run(fleet, wants(fleet, Cause.LOAD, replicas=9)).figure[0, Field.REPLICAS] == 3
    later = fleet_of(workload(config=config, replicas=3), now=NOW + 60)
    assert outcome(run(later, wants(later, Cause.LOAD, replicas=4)), Field.REPLICAS) == (3, Verdict.COOLING_DOWN)
    surge = run(
        fleet_of(workload(config=config, replicas=3), now=NOW + 120), wants(later, Cause.LOAD, urgent=True, replicas=9)
    )
    assert surge.figure[0, Field.REPLICAS] == 4


def test_after_a_raise_the_opposite_waits_for_the_cool_down():
    config = replace(ALL_ON, limits=LimitsPolicy(Mode.ON, stabilization_seconds=0, cool_down_seconds=600))
    run, fleet = Run(), fleet_of(workload(config=config))
    run(fleet, wants(fleet, compute_limit=40))
    raised = Amounts(Amount(10, 40), AMOUNTS.vram)
    for seconds, expected in ((300, (40, Verdict.COOLING_DOWN)), (660, (20, Verdict.PASSED))):
        later = fleet_of(workload(config=config, current=raised), now=NOW + seconds)
        assert outcome(run(later, wants(later, Cause.SURPLUS, compute_limit=20)), Field.COMPUTE_LIMIT) == expected


def test_vram_never_shrinks_below_live_use_and_headroom():
    config = replace(
        ALL_ON,
        limits=LimitsPolicy(Mode.ON, stabilization_seconds=0),
        requests=RequestsPolicy(Mode.ON, stabilization_seconds=0),
    )
    fleet = replace(fleet_of(workload(config=config)), live=np.array([[5.0, 3.0 * GIB]]))
    allowed = Run()(fleet, wants(fleet, Cause.SURPLUS, vram_limit=1 * GIB, vram_request=1 * GIB))
    assert allowed.figure[0, Field.VRAM_LIMIT] == pytest.approx(3.15 * GIB, abs=2**20)
    assert outcome(allowed, Field.VRAM_REQUEST)[1] is Verdict.LIVE_USE


def test_vram_does_not_shrink_where_nobody_can_tell_what_is_in_use():
    config = replace(ALL_ON, limits=LimitsPolicy(Mode.ON, stabilization_seconds=0))
    fleet = fleet_of(workload(config=config))
    shrunk = Run()(fleet, wants(fleet, Cause.SURPLUS, vram_limit=5 * GIB))
    assert outcome(shrunk, Field.VRAM_LIMIT) == (8 * GIB, Verdict.LIVE_USE)
    grown = Run()(fleet, wants(fleet, vram_limit=12 * GIB))
    assert outcome(grown, Field.VRAM_LIMIT) == (12 * GIB, Verdict.PASSED)


def test_bounds_cap_and_floor_and_a_capped_probe_says_so():
    bounds = Bounds(max_allowed=(30, None), min_ratio=(0.5, None))
    config = replace(ALL_ON, bounds=bounds, limits=LimitsPolicy(Mode.ON, max_ratio_to_requests=2.5))
    fleet = fleet_of(workload(config=config))
    probe = wants(fleet, Cause.SATURATED, urgent=True, compute_limit=80)
    assert outcome(Run()(fleet, probe), Field.COMPUTE_LIMIT) == (25, Verdict.BOUND_LIMITED)
    lower = wants(fleet, Cause.SURPLUS, compute_request=1)
    assert outcome(Run()(fleet, lower), Field.COMPUTE_REQUEST) == (5, Verdict.BOUND_LIMITED)


def test_a_request_pulls_its_limit_up_where_that_may_move_and_yields_where_not():
    fleet = fleet_of(workload())
    both = Run()(fleet, wants(fleet, compute_request=30))
    assert (both.figure[0, Field.COMPUTE_REQUEST], both.figure[0, Field.COMPUTE_LIMIT]) == (30, 30)
    fleet = fleet_of(workload(config=replace(ALL_ON, limits=LimitsPolicy(Mode.RECOMMEND))))
    capped = Run()(fleet, wants(fleet, compute_request=30, compute_limit=60))
    assert outcome(capped, Field.COMPUTE_REQUEST) == (20, Verdict.BOUND_LIMITED)
    assert outcome(capped, Field.COMPUTE_LIMIT) == (20, Verdict.RECOMMEND_ONLY)


def test_what_is_shown_for_a_layer_that_is_on_does_not_follow_one_that_only_recommends():
    fleet = fleet_of(workload(config=replace(ALL_ON, requests=RequestsPolicy(Mode.RECOMMEND))))
    allowed = Run()(fleet, wants(fleet, compute_request=68, compute_limit=26))
    assert allowed.target[0, Field.COMPUTE_LIMIT] == 26
    assert allowed.target[0, Field.COMPUTE_REQUEST] == 26  # a recommendation is in order, too
    assert allowed.decision(0)[Field.COMPUTE_REQUEST].uncapped == 68


def test_growth_shares_what_is_free_on_the_device_higher_levels_first():
    from autoscaler.contract.keys import QoS

    low, high = (workload(name, replace(ALL_ON, qos=qos)) for name, qos in (("low", QoS.LOW), ("top", QoS.CRITICAL)))
    fleet = fleet_of(low, high, vram_gib=14)  # 4 + 4 requested, 6 free
    allowed = Run()(fleet, wants(fleet, vram_request=8 * GIB, vram_limit=8 * GIB))
    assert allowed.figure[1, Field.VRAM_REQUEST] == 8 * GIB
    assert allowed.figure[0, Field.VRAM_REQUEST] == 6 * GIB
    assert VERDICTS[int(allowed.verdict[0, Field.VRAM_REQUEST])] is Verdict.CAPACITY_LIMITED


def test_growth_into_the_last_room_is_rounded_down_never_past_the_device():
    fleet = fleet_of(workload("a"), workload("b"), vram_gib=10 + 0.3 / 1024)  # 4 + 4 requested
    allowed = Run()(fleet, wants(fleet, vram_request=8 * GIB, vram_limit=8 * GIB))
    assert allowed.figure[:, Field.VRAM_REQUEST].tolist() == [6 * GIB, 4 * GIB]


def test_rounding_a_request_up_does_not_pass_a_limit_with_more_digits():
    amounts = Amounts(Amount(10, 119.55), AMOUNTS.vram)
    fleet = fleet_of(workload(current=amounts, config=replace(ALL_ON, limits=LimitsPolicy(Mode.RECOMMEND))))
    allowed = Run()(fleet, wants(fleet, compute_request=119.51))
    assert allowed.figure[0, Field.COMPUTE_REQUEST] <= 119.55
    assert allowed.figure[0, Field.COMPUTE_LIMIT] == 119.55


def test_a_thousand_off_target_are_spread_shortage_first():
    fleet = fleet_of(*(workload(f"w{i:02}") for i in range(30)), vram_gib=8000)
    wanted = wants(fleet, compute_limit=25)
    wanted.urgent[7] = True
    allowed = Run()(fleet, wanted, replace(Run.limits, changes_per_pass=5))
    moved = np.flatnonzero(allowed.changed)
    assert len(moved) == 5
    assert 7 in moved
    assert Verdict.RATE_LIMITED in {VERDICTS[int(code)] for code in allowed.verdict[:, Field.COMPUTE_LIMIT]}


def test_a_layer_acts_once_per_evaluation_period_and_keeps_its_verdict_in_between():
    config = replace(ALL_ON, limits=LimitsPolicy(Mode.ON, evaluation_seconds=300))
    run, fleet = Run(), fleet_of(workload(config=config))
    assert run(fleet, wants(fleet, compute_limit=25)).figure[0, Field.COMPUTE_LIMIT] == 25
    now = Amounts(Amount(10, 25), AMOUNTS.vram)
    soon = fleet_of(workload(config=config, current=now), now=NOW + 60)
    assert outcome(run(soon, wants(soon, compute_limit=30)), Field.COMPUTE_LIMIT) == (25, Verdict.PASSED)
    later = fleet_of(workload(config=config, current=now), now=NOW + 300)
    assert run(later, wants(later, compute_limit=30)).figure[0, Field.COMPUTE_LIMIT] == 30


figures = st.floats(min_value=0.05, max_value=3000, allow_nan=False)
sizes = st.floats(min_value=1e6, max_value=3e11, allow_nan=False)
modes = st.sampled_from([Mode.ON, Mode.ON, Mode.RECOMMEND, Mode.OFF])


@settings(max_examples=200, deadline=None)
@given(
    wanted_figures=st.tuples(figures, figures, sizes, sizes),
    most=figures,
    live=sizes,
    cause=st.sampled_from(list(Cause)),
    layers=st.tuples(modes, modes),
)
def test_bounds_and_order_hold_whatever_was_wanted_and_guarding_again_changes_nothing(
    wanted_figures: tuple[float, ...], most: float, live: float, cause: Cause, layers: tuple[Mode, Mode]
):
    bounds = Bounds(max_allowed=(max(most, 20.0), None))  # what is in force is inside
    config = replace(
        ALL_ON,
        bounds=bounds,
        requests=RequestsPolicy(layers[0], stabilization_seconds=0),
        limits=LimitsPolicy(layers[1], stabilization_seconds=0),
    )
    fleet = replace(fleet_of(workload(config=config)), live=np.array([[np.nan, min(live, 8.0 * GIB)]]))
    names = ("compute_request", "compute_limit", "vram_request", "vram_limit")
    wanted = wants(fleet, cause, **dict(zip(names, wanted_figures, strict=True)))
    allowed = Run()(fleet, wanted)
    for request, limit, least, device in ((0, 1, 0.1, 989), (2, 3, 250 * 2**20, 80 * GIB)):
        for shown in (allowed.figure[0], allowed.target[0]):
            assert least <= shown[request] <= shown[limit] <= device
    assert allowed.figure[0, Field.COMPUTE_LIMIT] <= max(most, 20.0)
    assert allowed.figure[0, Field.VRAM_LIMIT] >= min(1.05 * fleet.live[0, 1], 8 * GIB) * (1 - 1e-9)
    for field in (0, 1, 2, 3):
        if layers[field % 2] is not Mode.ON:
            assert allowed.figure[0, field] == fleet.current[0, field]
    again = replace(fleet, current=allowed.figure)
    wanted_again = replace(wanted, figure=allowed.figure.copy())
    assert np.array_equal(Run()(again, wanted_again).figure, allowed.figure)


def test_the_order_of_the_guards_is_the_documented_one():
    assert [one.__name__ for one in GUARDS] == [
        "enough", "fresh", "valid", "unpaused", "supported", "not_managed_elsewhere", "adopted",
        "dead_band", "stabilization", "step", "rollback", "cool_down",
        "live_use", "bounds", "order", "published", "order", "undisrupted", "quota", "capacity", "room", "one_answer",
        "rate", "order",
    ]  # fmt: skip
    assert all(one.__doc__ for one in GUARDS)
