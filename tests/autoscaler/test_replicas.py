"""The replica count by worked numbers: the Kubernetes HPA's published ones first, then what comes on top of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.model.config import LimitsPolicy, Mode, ReplicasPolicy, RequestsPolicy, Step
from autoscaler.model.decision import Field
from autoscaler.model.fleet import Fleet
from autoscaler.model.proposal import Allowed
from autoscaler.model.reasons import CAUSES, Cause, Verdict
from autoscaler.model.resources import GIB, Amount, Amounts
from autoscaler.model.rows import Rows
from autoscaler.recommend import new_memory
from autoscaler.recommend.estimate import Estimate
from autoscaler.recommend.replicas import Workers, balance, hpa_count, replicas
from tests.autoscaler.stage import ON
from tests.autoscaler.test_guards import NOW, Run, fleet_of, outcome, wants, workload

OFF_LIMITS = LimitsPolicy(Mode.OFF)
"""Limits that can't grow, so that replicas answer every shortage."""
POLICY = ReplicasPolicy(mode=Mode.ON, max_replicas=1000, target_tflops_ratio=0.5)


def service(policy: ReplicasPolicy = POLICY, now: float = NOW, **columns: float | bool) -> Fleet:
    """One workload with a limit of 20 TFLOPs that can't grow; `replicas`, `ready`, or what holds it by name."""
    config = replace(ON, requests=RequestsPolicy(Mode.OFF), limits=OFF_LIMITS, replicas_policy=policy)
    count = int(columns.get("replicas", 2))
    fleet = replace(fleet_of(workload(config=config, replicas=count), now=now), ready=np.array([float(count)]))
    if "ready" in columns:
        fleet = replace(fleet, ready=np.array([float(columns["ready"])]))
    flags = {name: np.array([value]) for name, value in columns.items() if isinstance(value, bool)}
    return replace(fleet, holding=replace(fleet.holding, **flags))


def learnt(fleet: Fleet, tflops: float, reporting: float | None = None) -> Rows:
    """What was learnt of a service whose workers use so much together, evenly."""
    memory = new_memory()
    memory.align(fleet.keys, fleet.uids)
    memory["load"][0] = tflops, 2 * GIB * fleet.ready[0]
    memory["use"][0] = tflops / max(fleet.ready[0], 1), 2 * GIB
    memory["reporting"][0] = fleet.ready[0] if reporting is None else reporting
    return memory


def estimated(
    fleet: Fleet, memory: Rows, forecast: float = np.nan, limits: tuple[float, float] | None = None
) -> Estimate:
    wanted = fleet.current[0, [Field.COMPUTE_LIMIT, Field.VRAM_LIMIT]] if limits is None else np.array(limits)
    weighed = balance(fleet, memory, np.array([[forecast, np.nan]]))
    return replicas(fleet, memory, weighed, (wanted[:1], wanted[1:]))


def answer(estimate: Estimate) -> tuple[float, Cause]:
    return float(estimate.figure[0]), CAUSES[int(estimate.cause[0])]


@pytest.mark.parametrize(
    ("count", "measured", "missing", "unready", "worth", "expected"),
    [
        # desired = ceil(current x value / target): twice the target doubles, half of it halves
        (1, 1, 0, 0, 2.0, 2),
        (3, 3, 0, 0, 6.0, 6),
        (4, 4, 0, 0, 2.0, 2),
        # replica_calculator's own cases: workers at 30, 50 and 70 % for a target of 30 %
        (3, 3, 0, 0, 1.5 / 0.3, 5),
        (3, 2, 0, 1, 1.2 / 0.3, 4),  # the first is not ready: it counts as idle, which dampens the step
        (3, 1, 0, 2, 0.4 / 0.3, 3),  # two are not ready: corrected, the direction would turn round
        (3, 3, 0, 0, 60.0 / 15, 4),
        (5, 5, 0, 0, 1.4 / 0.5, 3),  # at 28 % for a target of 50 %
        (5, 5, 0, 0, 60.0 / 20, 3),
        (5, 3, 0, 2, 0.9 / 0.5, 2),  # workers that are not ready don't count inward
        # inside the tolerance of a tenth
        (3, 3, 0, 0, 3.03, 3),
        (3, 3, 0, 0, 3.29, 3),
        (3, 3, 0, 0, 3.31, 4),
        (3, 3, 0, 0, 2.71, 3),
        (10, 10, 0, 0, 8.9, 9),
        # one of two without samples
        (2, 1, 1, 0, 1.0, 2),
        (2, 1, 1, 0, 1.9, 2),  # as idle outward, it is .95: turned round
        (2, 1, 1, 0, 0.6, 2),  # at its target inward, it is .8 of two
        (2, 1, 1, 0, 3.0, 3),
        (5, 2, 3, 0, 0.2, 4),
        (4, 2, 1, 1, 0.4, 2),
        (3, 0, 3, 0, 0.0, np.nan),  # no ready worker was measured
    ],
)
def test_the_kubernetes_tables_hold(
    count: float, measured: float, missing: float, unready: float, worth: float, expected: float
):
    workers = Workers(*(np.array([[float(value)]]) for value in (count, measured, missing, unready)))
    desired = hpa_count(workers, np.array([[worth]]), np.array([[0.1]]))
    assert np.array_equal(desired, [[float(expected)]], equal_nan=True)


@pytest.mark.parametrize(
    ("step", "path"),
    [
        (Step(4), [80, 76, 72, 68]),
        (Step(0.1, is_ratio=True), [80, 72, 64, 57, 51]),  # 8, 8 (7.2 rounds up), 7 (6.4), 6 (5.7)
        (Step(1.0, is_ratio=True), [80, 1]),
        (Step(5), [10, 5, 1]),
    ],
)
def test_downward_policies_take_the_documented_path(step: Step, path: list[int]):
    policy = replace(
        POLICY, scale_down_step=step, scale_down_cool_down_seconds=60, stabilization_seconds=0, min_replicas=1
    )
    run, counts = Run(), [path[0]]
    for minute in range(len(path) - 1):
        fleet = service(policy, NOW + 60 * minute, replicas=counts[-1])
        counts.append(int(run(fleet, wants(fleet, Cause.LOAD, replicas=1)).figure[0, Field.REPLICAS]))
    assert counts == path


@pytest.mark.parametrize(
    ("step", "path"),
    [
        (Step(1.0, is_ratio=True), [1, 2, 4, 8, 15]),  # 100 %: doubles per period, up to maxReplicas
        (Step(9.0, is_ratio=True), [1, 10, 15]),  # 900 %: the documentation's fastest
        (Step(4), [1, 5, 9, 13, 15]),
    ],
)
def test_upward_policies_take_the_documented_path(step: Step, path: list[int]):
    policy = replace(POLICY, scale_up_step=step, scale_up_cool_down_seconds=60, max_replicas=15)
    run, counts = Run(), [path[0]]
    for minute in range(len(path) - 1):
        fleet = service(policy, NOW + 60 * minute, replicas=counts[-1])
        counts.append(int(run(fleet, wants(fleet, Cause.LOAD, replicas=100)).figure[0, Field.REPLICAS]))
    assert counts == path


def test_inward_takes_the_highest_recommendation_of_the_window_and_waits_until_it_is_full():
    policy = replace(POLICY, scale_down_step=Step(100), scale_down_cool_down_seconds=0, stabilization_seconds=300)
    run, seen = Run(), []
    for minute, wanted in enumerate((7, 4, 3, 6, 2, 2, 2, 2, 2, 2)):
        fleet = service(policy, NOW + 60 * minute, replicas=10 if not seen else int(seen[-1][0]))
        seen.append(outcome(run(fleet, wants(fleet, Cause.LOAD, replicas=wanted)), Field.REPLICAS))
    # minute 0 to 4: the window fills; 5: 7 has just left it, 6 is the most; 8: 6 has left it
    assert [count for count, _ in seen] == [10, 10, 10, 10, 10, 6, 6, 6, 2, 2]
    assert seen[0][1] is seen[5][1] is Verdict.STABILIZING


def test_outward_waits_for_a_limit_that_can_grow_and_for_nothing_else():
    fleet = service()
    growing = replace(ON, replicas_policy=POLICY)
    able = replace(fleet_of(workload(config=growing, replicas=2)), ready=np.array([2.0]))
    assert answer(estimated(able, learnt(able, 30.0))) == (2, Cause.VERTICAL_FIRST)
    assert answer(estimated(fleet, learnt(fleet, 30.0))) == (3, Cause.LOAD)  # layer off
    at_device = replace(able, device=np.array([[20.5, np.inf]]))
    assert answer(estimated(at_device, learnt(at_device, 30.0))) == (3, Cause.LOAD)
    ratio = replace(growing, limits=LimitsPolicy(Mode.ON, max_ratio_to_requests=2.0))
    at_ratio = replace(fleet_of(workload(config=ratio, replicas=2)), ready=np.array([2.0]))
    assert answer(estimated(at_ratio, learnt(at_ratio, 30.0))) == (3, Cause.LOAD)


def test_a_limit_that_wants_to_grow_for_five_minutes_and_does_not_is_exhausted_whatever_holds_it():
    config = replace(ON, replicas_policy=POLICY)
    start = replace(fleet_of(workload(config=config, replicas=2)), ready=np.array([2.0]))
    memory = learnt(start, 30.0)
    for minute in range(7):
        fleet = replace(start, now=NOW + 60 * minute)
        figure, cause = answer(estimated(fleet, memory, limits=(40.0, 8 * GIB)))
        assert (figure, cause) == ((2, Cause.VERTICAL_FIRST) if minute < 5 else (3, Cause.LOAD))


def test_a_limit_and_the_replicas_never_both_grow_in_one_pass_and_the_request_waits_for_the_replicas():
    fleet = fleet_of(workload(config=replace(ON, replicas_policy=POLICY)))
    both = Run()(fleet, wants(fleet, Cause.LOAD, replicas=4, compute_limit=40))
    assert outcome(both, Field.COMPUTE_LIMIT) == (40, Verdict.PASSED)
    assert outcome(both, Field.REPLICAS) == (2, Verdict.VERTICAL_FIRST)
    beside = Run()(fleet, wants(fleet, Cause.LOAD, replicas=4, compute_request=15))
    assert outcome(beside, Field.REPLICAS) == (4, Verdict.PASSED)
    assert outcome(beside, Field.COMPUTE_REQUEST) == (10, Verdict.REPLICAS_FIRST)
    memory = Run()(fleet, wants(fleet, Cause.OOM_SEEN, replicas=4, vram_request=5 * GIB, vram_limit=9 * GIB))
    assert memory.figure[0, Field.VRAM_LIMIT] == 9 * GIB  # no shortage that replicas answer
    assert memory.figure[0, Field.REPLICAS] == 4


def test_inward_goes_as_far_as_the_load_stays_under_the_target_less_the_tolerance():
    fleet = service(replicas=4)  # one worker is worth 10 TFLOPs, and at most 9 of them inward
    assert answer(estimated(fleet, learnt(fleet, 20.0))) == (3, Cause.LOAD)  # the HPA alone would say 2
    assert answer(estimated(fleet, learnt(fleet, 18.0))) == (2, Cause.LOAD)
    assert answer(estimated(fleet, learnt(fleet, 27.5))) == (4, Cause.UNCHANGED)


def test_inward_waits_until_requests_and_limits_in_force_cover_what_the_others_take_over():
    config = replace(ON, replicas_policy=replace(POLICY, scale_down_step=Step(1)))
    figures = Amounts(Amount(7, 20), ON.amounts.vram)
    fleet = replace(fleet_of(workload(config=config, replicas=4, current=figures)), ready=np.array([4.0]))
    memory = learnt(fleet, 24.0)
    estimate = estimated(fleet, memory)
    assert answer(estimate) == (4, Cause.COVER_FIRST)
    assert estimate.inputs["cover_request_tflops"][0] == 8.0  # 24 TFLOPs on three
    covered = replace(fleet, current=fleet.current + np.array([[1, 0, 0, 0, 0]]))
    assert answer(estimated(covered, memory)) == (3, Cause.LOAD)
    memory["use"][0, 0] = 15.0  # one worker has more than its share: a third more would be clipped at 20
    assert answer(estimated(covered, memory)) == (4, Cause.COVER_FIRST)


def test_a_forecast_counts_where_it_is_more_than_the_load_now():
    fleet = service(replicas=4)
    memory = learnt(fleet, 20.0)
    assert answer(estimated(fleet, memory, forecast=55.0)) == (6, Cause.LOAD)
    assert answer(estimated(fleet, memory, forecast=36.5)) == (4, Cause.UNCHANGED)  # no step inward before a rise
    assert answer(estimated(fleet, memory, forecast=5.0)) == answer(estimated(fleet, memory)) == (3, Cause.LOAD)


def test_the_larger_of_two_resources_counts_and_an_unknown_one_holds():
    policy = replace(POLICY, target_vram_ratio=0.5)  # one worker is worth 10 TFLOPs and 4 GiB
    fleet = service(policy, replicas=4)
    memory = learnt(fleet, 18.0)
    memory["load"][0, 1] = 22 * GIB
    assert answer(estimated(fleet, memory)) == (6, Cause.LOAD)
    memory["load"][0, 1] = np.nan
    assert answer(estimated(fleet, memory)) == (4, Cause.NO_DATA)


def test_the_inputs_alone_give_the_count():
    rng = np.random.default_rng(1)
    for _ in range(200):
        count = int(rng.integers(1, 30))
        ready = int(rng.integers(1, count + 1))
        fleet = service(replicas=count, ready=ready)
        memory = learnt(fleet, float(rng.uniform(0, 25 * count)), reporting=float(rng.integers(1, ready + 1)))
        estimate = estimated(fleet, memory)
        given = {name: float(column[0]) for name, column in estimate.inputs.items()}
        assert recomputed(given, count) == estimate.figure[0]


def recomputed(given: dict[str, float], count: int) -> float:
    """The count from a decision's inputs, by the description in the manual."""
    worth = given["load_tflops"] / (given["target_ratio"] * given["limit_tflops"])
    missing, measured = given["missing_workers"], given["ready_workers"] - given["missing_workers"]
    tolerance = given["tolerance_ratio"]
    outward = worth > measured
    counted = measured + missing + (given["unready_workers"] if outward else 0)
    assumed = worth if outward else worth + missing
    if abs(assumed / counted - 1) <= tolerance or (assumed > counted) != outward:
        return count
    desired = float(np.ceil(assumed))
    if outward:
        return max(desired, count)
    return min(max(float(np.ceil(assumed / (1 - tolerance))), 1.0), count)


loads = st.floats(min_value=0.0, max_value=2e4, allow_nan=False)
counts = st.integers(min_value=1, max_value=200)
tolerances = st.floats(min_value=0.0, max_value=0.5)


@settings(max_examples=300, deadline=None)
@given(load=loads, count=counts, tolerance=tolerances)
def test_a_constant_load_never_makes_the_count_go_to_and_fro(load: float, count: int, tolerance: float):
    policy = replace(POLICY, tolerance_ratio=tolerance)
    path = [count]
    for _ in range(6):
        fleet = service(policy, replicas=path[-1])
        path.append(int(estimated(fleet, learnt(fleet, load)).figure[0]))
    steps = np.diff(path)
    assert not (steps > 0).any() or not (steps < 0).any()
    assert path[-1] == path[-2]


@settings(max_examples=300, deadline=None)
@given(load=loads, more=loads, count=counts, reporting=counts, ready=counts)
def test_more_load_never_asks_for_fewer_workers(load: float, more: float, count: int, reporting: int, ready: int):
    fleet = service(replicas=count, ready=min(ready, count))
    memories = (learnt(fleet, tflops, min(reporting, count)) for tflops in (load, load + more))
    less, larger = (float(estimated(fleet, memory).figure[0]) for memory in memories)
    assert less <= larger


bounds = st.tuples(st.integers(1, 20), st.integers(0, 20)).map(lambda pair: (pair[0], pair[0] + pair[1]))
steps = st.one_of(
    st.integers(1, 8).map(Step), st.sampled_from([0.1, 0.5, 1.0, 2.0]).map(lambda ratio: Step(ratio, is_ratio=True))
)


@settings(max_examples=100, deadline=None)
@given(
    wishes=st.lists(st.tuples(st.integers(0, 60), st.booleans()), min_size=5, max_size=25),
    between=bounds,
    out=steps,
    inward=steps,
)
def test_bounds_steps_and_cool_downs_hold_for_every_path(
    wishes: list[tuple[int, bool]], between: tuple[int, int], out: Step, inward: Step
):
    policy = replace(
        POLICY, min_replicas=between[0], max_replicas=between[1], scale_up_step=out, scale_down_step=inward,
        scale_up_cool_down_seconds=180, scale_down_cool_down_seconds=300, stabilization_seconds=120,
    )  # fmt: skip
    run, count, moves, surged_at = Run(), between[0], [], -np.inf
    for minute, (wish, at_once) in enumerate(wishes):
        fleet = service(policy, NOW + 60 * minute, replicas=count)
        urgent = at_once and wish >= 2 * count
        allowed = run(fleet, wants(fleet, Cause.LOAD, urgent=urgent, replicas=wish))
        now, largest = (
            int(allowed.figure[0, Field.REPLICAS]),
            fleet.knobs.largest_step(fleet.current[:, Field.REPLICAS]),
        )
        assert between[0] <= now <= between[1]
        assert -largest[0, 1] <= now - count <= largest[0, 0]
        surged_at = minute if urgent else surged_at
        if now != count:
            wait = 3 if now > count else 5
            assert urgent or not moves or minute - moves[-1] >= wait  # one step per cool-down
            assert now > count or minute - surged_at >= 5  # a surge is followed by none inward
            moves.append(minute)
        count = now


def test_a_surge_does_not_wait_for_the_upward_cool_down_and_forbids_inward_for_its_length():
    policy = replace(POLICY, scale_up_cool_down_seconds=600, stabilization_seconds=0, scale_down_cool_down_seconds=300)
    run = Run()

    def at(minute: int, count: int, wish: int, *, urgent: bool = False) -> Allowed:
        fleet = service(policy, NOW + 60 * minute, replicas=count)
        return run(fleet, wants(fleet, Cause.LOAD, urgent=urgent, replicas=wish))

    assert outcome(at(0, 4, 5), Field.REPLICAS) == (5, Verdict.PASSED)
    assert outcome(at(1, 5, 6), Field.REPLICAS) == (5, Verdict.COOLING_DOWN)
    assert outcome(at(2, 5, 10, urgent=True), Field.REPLICAS) == (10, Verdict.PASSED)
    assert outcome(at(6, 10, 5), Field.REPLICAS) == (10, Verdict.COOLING_DOWN)
    assert outcome(at(7, 10, 5), Field.REPLICAS)[0] == 9


def test_a_surge_that_can_not_move_forbids_inward_too():
    policy = replace(POLICY, max_replicas=4, stabilization_seconds=0, scale_down_cool_down_seconds=300)
    run = Run()
    for minute, (wish, expected) in enumerate(((8, 4), (2, 4), (2, 4), (2, 4), (2, 4), (2, 3))):
        fleet = service(policy, NOW + 60 * minute, replicas=4)
        allowed = run(fleet, wants(fleet, Cause.LOAD, urgent=wish == 8, replicas=wish))
        assert allowed.figure[0, Field.REPLICAS] == expected


@pytest.mark.parametrize(
    ("flag", "verdict"), [("starting", Verdict.PODS_PENDING), ("rolling", Verdict.ROLLOUT_IN_PROGRESS)]
)
def test_nothing_moves_while_pods_are_pending_or_a_rollout_runs_not_even_in_a_surge(flag: str, verdict: Verdict):
    for wish in (1, 40):
        fleet = service(replace(POLICY, stabilization_seconds=0), replicas=4, **{flag: True})
        allowed = Run()(fleet, wants(fleet, Cause.LOAD, urgent=wish == 40, replicas=wish))
        assert outcome(allowed, Field.REPLICAS) == (4, verdict)


def test_workloads_are_weighed_together_as_each_would_be_alone():
    rows, tflops = 50, np.linspace(0, 100, 50)
    fleet = fleet_of(*(workload(f"w{row}", replicas=3) for row in range(rows)))
    memory = new_memory()
    memory.align(fleet.keys, fleet.uids)
    memory["load"][:, 0], memory["reporting"][:] = tflops, 1.0
    alone = fleet_of(workload(replicas=3))
    together = balance(fleet, memory).desired[:, 0]
    assert [balance(alone, learnt(alone, load)).desired[0, 0] for load in tflops] == together.tolist()


@pytest.mark.parametrize("ours", [True, False])
def test_limits_shrink_only_after_the_workers_that_were_added_are_gone_but_not_for_those_of_the_owner(ours: bool):
    config = replace(ON, replicas_policy=POLICY, limits=LimitsPolicy(Mode.ON, stabilization_seconds=0))
    run, first = Run(), fleet_of(workload(config=config, replicas=2))
    run(first, wants(first, Cause.LOAD, replicas=4) if ours else wants(first))
    limits = []
    for minute, count in ((1, 4.0), (2, 2.0)):
        fleet = fleet_of(workload(config=config, replicas=int(count)), now=NOW + 60 * minute)
        ready = replace(fleet, ready=np.array([count]))
        limits.append(outcome(run(ready, wants(ready, Cause.SURPLUS, compute_limit=12)), Field.COMPUTE_LIMIT))
    assert limits[0] == ((20, Verdict.REPLICAS_FIRST) if ours else (12, Verdict.PASSED))
    assert not ours or limits[1] == (12, Verdict.PASSED)
