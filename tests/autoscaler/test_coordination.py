"""Limits, requests and replicas of one service in a closed loop: one shortage, one answer."""

from __future__ import annotations

from itertools import pairwise

import pytest

from autoscaler.model.config import LimitsPolicy, Mode, ReplicasPolicy, RequestsPolicy
from autoscaler.model.decision import Field
from autoscaler.model.reasons import Cause, Verdict
from autoscaler.model.resources import GIB, Amount, Amounts
from tests.autoscaler.stage import with_config
from tests.autoscaler.town_load import Pass, Service

REPLICAS = ReplicasPolicy(mode=Mode.ON, max_replicas=20)
VRAM = Amount(4 * GIB, 8 * GIB)
SMALL = with_config(amounts=Amounts(Amount(10, 20), VRAM), replicas_policy=REPLICAS)
"""Limits of 20 TFLOPs on devices of 100: five times as much is to be had before a worker more is."""
LARGE = with_config(amounts=Amounts(Amount(40, 100), VRAM), replicas_policy=REPLICAS)
"""Limits that are the whole device."""


def grew(one: Pass, field: Field) -> bool:
    return one.decision[field].allowed > one.decision[field].current


def grown_together(passes: list[Pass]) -> list[Pass]:
    """Passes in which the replicas and an amount of compute grow for the same shortage."""
    amounts = (Field.COMPUTE_REQUEST, Field.COMPUTE_LIMIT)
    return [one for one in passes if grew(one, Field.REPLICAS) and any(grew(one, field) for field in amounts)]


def turns(passes: list[Pass]) -> int:
    """How often the replicas change direction."""
    steps = [after - before for before, after in pairwise(one.replicas for one in passes) if after != before]
    return sum(one * other < 0 for one, other in pairwise(steps))


def ramped(service: Service) -> list[Pass]:
    """Half an hour of calm, then a demand that grows from 14 to 314 TFLOPs in two hours."""
    return service.run(40, 14.0) + service.run(120, lambda minute: 14 + 2.5 * (minute - 40))


def test_a_growing_demand_raises_limits_to_the_device_and_only_then_adds_workers():
    passes = ramped(Service(SMALL))
    first_out = next(index for index, one in enumerate(passes) if grew(one, Field.REPLICAS))
    assert passes[first_out].amounts.compute.limit == 100.0
    assert all(one.replicas == 2 for one in passes[:first_out])
    assert any(one.decision[Field.REPLICAS].cause is Cause.VERTICAL_FIRST for one in passes[:first_out])
    assert passes[-1].replicas >= 5
    assert grown_together(passes) == []
    assert turns(passes) == 0
    assert sum(one.used < one.demand for one in passes) <= 1  # what a limit clipped, once, until it had grown


def test_where_the_ratio_to_requests_holds_the_limit_workers_are_added_without_waiting_for_the_device():
    config = with_config(
        amounts=Amounts(Amount(10, 20), VRAM),
        replicas_policy=REPLICAS,
        limits=LimitsPolicy(mode=Mode.ON, max_ratio_to_requests=2.0),
        requests=RequestsPolicy(mode=Mode.OFF),
    )
    passes = ramped(Service(config))
    assert max(one.amounts.compute.limit for one in passes) == 20.0
    assert passes[-1].replicas == 20
    assert passes[-1].decision[Field.REPLICAS].inputs["exhausted_limit_count"] == 1.0
    assert grown_together(passes) == []


def test_a_surge_to_six_times_the_load_is_carried_after_three_generations_of_workers_and_not_overshot():
    service = Service(LARGE)
    service.run(60, 100.0)
    passes = service.run(60, 600.0)
    counts = sorted({one.replicas for one in passes})
    assert counts[0] <= 4 < 9 == counts[-1]  # ceil(600 / 70)
    carried = next(minute for minute, one in enumerate(passes) if one.used >= one.demand)
    assert carried <= 12  # twice five minutes until new workers share the load, and two clipped samples before
    assert all(after.replicas >= before.replicas for before, after in pairwise(passes))
    assert grown_together(passes) == []


@pytest.mark.parametrize("demand", [139.0, 155.0, 251.0])
def test_a_constant_demand_is_never_answered_to_and_fro(demand: float):
    service = Service(LARGE)
    service.run(60, 60.0)
    passes = service.run(120, demand)
    assert turns(passes) == 0
    assert passes[-1].replicas == passes[-40].replicas
    assert passes[-1].used == pytest.approx(demand)


def test_a_calm_service_goes_inward_step_by_step_and_never_past_what_the_others_can_carry():
    service = Service(LARGE)
    service.run(60, 100.0)
    service.run(90, 400.0)
    passes = service.run(240, 110.0)
    inward = [minute for minute, one in enumerate(passes) if one.replicas < one.decision[Field.REPLICAS].current]
    assert inward[0] >= 4  # the whole window wanted it
    assert all(after - before >= 10 for before, after in pairwise(inward))  # one worker per downward cool-down
    assert passes[-1].replicas == 2  # 110 on one worker would be more than its limit
    assert all(one.used == one.demand for one in passes)
    for one in (passes[minute] for minute in inward):
        left, amounts = one.replicas, one.amounts.compute
        assert one.demand / left <= amounts.request  # in force before the worker went
        assert one.demand / left <= 0.7 * 0.9 * amounts.limit


def test_no_worker_goes_before_the_request_of_the_others_has_grown_to_what_they_take_over():
    service = Service(LARGE, replicas=4)
    service.run(300, 100.0)  # requests came down to a quarter of the load each, replicas to two
    service.run(90, 250.0)
    passes = service.run(120, 60.0)
    covering = [one for one in passes if one.decision[Field.REPLICAS].cause is Cause.COVER_FIRST]
    moved = [one for one in passes if one.replicas < one.decision[Field.REPLICAS].current]
    assert moved
    assert all(one.demand / one.replicas <= one.amounts.compute.request for one in moved)
    assert all(one.replicas == one.decision[Field.REPLICAS].current for one in covering)


def test_while_new_workers_start_nothing_shrinks_and_nothing_else_answers_the_shortage():
    service = Service(LARGE, starting_minutes=8)
    service.run(60, 100.0)
    passes = service.run(11, 170.0)
    out = next(index for index, one in enumerate(passes) if grew(one, Field.REPLICAS))
    for one in passes[out + 1 :]:
        if one.ready == 2:
            assert one.replicas == passes[out].replicas
            assert one.decision[Field.COMPUTE_REQUEST].allowed == one.decision[Field.COMPUTE_REQUEST].current
            assert one.decision[Field.COMPUTE_LIMIT].allowed >= one.decision[Field.COMPUTE_LIMIT].current


def test_pods_that_stay_pending_get_no_companions_and_the_request_of_the_others_may_rise_after_a_while():
    service = Service(LARGE, places=2)
    service.run(60, 100.0)
    passes = service.run(60, 190.0)
    out = next(index for index, one in enumerate(passes) if grew(one, Field.REPLICAS))
    after = passes[out + 1 :]
    assert {one.replicas for one in after} == {passes[out].replicas}
    assert {one.decision[Field.REPLICAS].verdict for one in after} == {Verdict.PODS_PENDING}
    held = [one for one in after[:13] if one.decision[Field.COMPUTE_REQUEST].verdict is Verdict.LOAD_SPREADING]
    assert held
    assert all(one.amounts.compute.request == after[0].amounts.compute.request for one in after[:13])
    assert after[-1].amounts.compute.request > after[0].amounts.compute.request


def test_after_new_workers_are_ready_the_request_is_read_anew_from_the_load_that_has_spread():
    """One worker needs 90 TFLOPs for two hours; then there may be a second one, and each needs 45."""
    alone = ReplicasPolicy(mode=Mode.ON, max_replicas=1)
    service = Service(with_config(amounts=LARGE.amounts, replicas_policy=alone), replicas=1)
    before = service.run(120, 90.0)[-1]
    service.config = LARGE
    passes = service.run(90, 90.0)
    settled = next(index for index, one in enumerate(passes) if one.ready >= 2)
    lowered = next(
        index for index, one in enumerate(passes) if one.amounts.compute.request < before.amounts.compute.request
    )
    assert passes[settled].decision[Field.REPLICAS].current == 2
    assert settled < lowered <= settled + 20  # not the two hours after which history would have forgotten
    assert 45.0 <= passes[-1].amounts.compute.request <= 45.0 * 1.15 * 1.05 * 1.15  # buffer, bucket, tenth of a surplus
    assert all(one.used == one.demand for one in passes)
