"""The closed loop and its measures, worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from autoscaler.model.resources import GIB
from autoscaler.model.usage import WorkloadKey
from autoscaler.replay.demand import Demand, steady
from autoscaler.replay.loop import Figures, Held, Run, replay
from autoscaler.replay.measure import Measures, measured, saved_share, total, warm_up_seconds
from autoscaler.replay.strip import demand_strip, run_strip

KEY = WorkloadKey("default", "llm")
DEVICE = (100.0, 80 * GIB)
STEP = 60.0
NAN = math.nan


def demand(compute: list[float], vram_gib: list[float] | None = None, step: float = STEP) -> Demand:
    vram = None if vram_gib is None else np.array(vram_gib) * GIB
    return steady(KEY, 0.0, step, np.array(compute, dtype=float), vram)


def figures(request: float, limit: float, vram_request: float = 4, vram_limit: float = 8) -> Figures:
    return request, limit, vram_request * GIB, vram_limit * GIB


@dataclass
class Scripted:
    """Answers by the moment it is asked at, and keeps everything it was shown."""

    answers: Mapping[float, Figures] = field(default_factory=dict)
    interval: float = STEP
    seen: list[tuple[float, float, float | None, bool]] = field(default_factory=list)
    asked: list[float] = field(default_factory=list)
    began: Mapping[str, Any] = field(default_factory=dict)

    def reset(self, ctx: Mapping[str, Any]) -> None:
        self.began = ctx

    def observe(self, t: float, c: float, v: float | None, oom: bool) -> None:
        self.seen.append((t, c, v, oom))

    def recommend(self, t: float) -> Figures | None:
        self.asked.append(t)
        return self.answers.get(t)


@dataclass
class Probing(Scripted):
    """Doubles its limit whenever its use was at it."""

    limit: float = 10.0

    def recommend(self, t: float) -> Figures | None:
        if self.seen[-1][1] >= self.limit:
            self.limit *= 2
        return figures(self.limit, self.limit)


def test_a_policy_sees_its_demand_only_up_to_its_own_limit():
    policy = Scripted()
    run = replay(demand([5, 30, 12]), policy, figures(10, 20))
    assert [c for _, c, _, _ in policy.seen] == [5, 20, 12]
    assert run.lost.tolist() == [0, 10, 0]
    assert [v for _, _, v, _ in policy.seen] == [None, None, None]


def test_what_is_recommended_at_a_moment_is_in_force_from_the_step_that_begins_then():
    policy = Scripted(answers={STEP: figures(7, 9)})
    run = replay(demand([5, 30, 12]), policy, figures(10, 20))
    assert policy.began == {"step": STEP, "init": figures(10, 20), "has_vram": False}
    assert policy.asked == [STEP, 2 * STEP]
    assert run.figures[0].tolist() == [10, 7, 7]
    assert run.lost.tolist() == [0, 21, 3]


def test_a_policy_is_asked_at_its_own_interval():
    policy = Scripted(interval=3 * STEP)
    replay(demand([1] * 8), policy, figures(10, 20))
    assert policy.asked == [3 * STEP, 6 * STEP]


def test_a_policy_that_never_asks_for_more_stays_clipped_and_one_that_probes_gets_out():
    hidden = demand([70.0] * 6)
    clipped = replay(hidden, Held(), figures(10, 10))
    assert clipped.lost.tolist() == [60] * 6
    probing = replay(hidden, Probing(), figures(10, 10))
    assert probing.lost.tolist() == [60, 50, 30, 0, 0, 0]


def test_vram_above_the_limit_kills_once_and_the_worker_is_away_for_300_seconds():
    policy = Scripted()
    run = replay(demand([5] * 8, [4, 9, 9, 9, 9, 9, 9, 4]), policy, figures(10, 20))
    assert run.oom.tolist() == [False, True, False, False, False, False, True, False]
    assert run.down.tolist() == [False, False, True, True, True, True, False, True]
    assert policy.seen[1] == (STEP, 5, 8 * GIB, True)
    assert policy.seen[2] == (2 * STEP, 0.0, 0.0, False)


def test_a_restart_ends_early_enough_for_the_step_300_seconds_later():
    run = replay(demand([5] * 3, [9, 9, 9], step=300.0), Held(), figures(10, 20))
    assert run.oom.tolist() == [True, True, True]
    assert not run.down.any()


def test_raising_the_limit_after_a_kill_ends_the_killing():
    policy = Scripted(answers={STEP: figures(10, 20, 10, 12)})
    run = replay(demand([5] * 12, [9] * 12), policy, figures(10, 20))
    assert int(run.oom.sum()) == 1
    assert int(run.down.sum()) == 4


def test_unknown_demand_is_shown_as_unknown_and_harms_nobody():
    policy = Scripted()
    run = replay(demand([5, NAN, 5], [4, NAN, NAN]), policy, figures(10, 20))
    assert math.isnan(policy.seen[1][1])
    assert policy.seen[1][2] is not None
    assert math.isnan(policy.seen[1][2])
    assert run.lost.tolist() == [0, 0, 0]
    assert not run.oom.any()


def test_held_lost_slack_and_short_time_are_counted_in_hours():
    # An hour a step: requests 10, 10, 20; demand 5, 30 (10 above the limit), 20.
    policy = Scripted(answers={7200.0: figures(20, 20)}, interval=3600.0)
    needed = demand([5, 30, 20], step=3600.0)
    one = measured(needed, replay(needed, policy, figures(10, 20)), DEVICE, 0.0)
    assert one.hours == 3
    assert one.compute.demand == 55
    assert one.compute.request == 40
    assert one.compute.limit == 60
    assert one.compute.unused == 5
    assert one.compute.slack_share == 5 / 40
    assert one.compute.under_share == pytest.approx(1 / 3)
    assert one.compute.throttled_share == 10 / 55
    assert one.vram == type(one.vram)()
    assert one.gpus == pytest.approx((0.1 + 0.1 + 0.2) / 3)


def test_vram_is_counted_in_gib_hours_and_kills_per_1000_hours():
    needed = demand([50] * 4, [4, 4, 9, 4], step=3600.0)
    one = measured(needed, replay(needed, Held(), figures(10, 100)), DEVICE, 0.0)
    assert one.vram.request == 16
    assert one.vram.limit == 32
    assert one.vram.demand == 21
    assert one.vram.under_share == 1 / 4
    assert one.ooms == 1
    assert one.ooms_per_1000_hours == 250
    assert one.gpus == pytest.approx(0.1)


def test_time_spent_restarting_is_counted():
    needed = demand([5] * 10, [9] * 10)
    one = measured(needed, replay(needed, Held(), figures(10, 20)), DEVICE, 0.0)
    assert (one.ooms, one.down_share) == (2, 0.8)


def test_changes_count_moments_at_which_a_request_moved_visibly_and_limits_apart():
    answers = {
        STEP: figures(10, 30),  # a limit
        2 * STEP: figures(12, 30, 5),  # both requests, one moment
        3 * STEP: figures(12.001, 30, 5),  # less than a thousandth
        4 * STEP: figures(6, 30, 5),  # a request
    }
    needed = demand([5] * 6, [4] * 6)
    one = measured(needed, replay(needed, Scripted(answers=answers), figures(10, 20)), DEVICE, 0.0)
    assert (one.changes, one.limit_changes) == (2, 1)
    assert one.changes_per_day == pytest.approx(2 / (6 * STEP) * 86400)


def test_nothing_is_counted_during_the_warm_up_nor_where_the_demand_is_unknown():
    needed = demand([500, 5, NAN, 5], step=3600.0)
    one = measured(needed, replay(needed, Held(), figures(10, 20)), DEVICE, 3600.0)
    assert one.hours == 2
    assert one.compute.request == 20
    assert one.compute.lost == 0


def test_the_warm_up_is_a_day_of_a_long_trace_and_a_sixth_of_a_short_one():
    assert warm_up_seconds(demand([1] * 24, step=14400.0)) == 86400
    assert warm_up_seconds(demand([1] * 12, step=3600.0)) == 7200


def test_several_workers_hold_several_times_as_much():
    one_worker = demand([5, 5], step=3600.0)
    three = Demand(KEY, 0.0, 3600.0, one_worker.compute, None, np.array([3.0, 3.0]), one_worker.censored)
    run = replay(three, Held(), figures(10, 20))
    assert (
        measured(three, run, DEVICE, 0.0).compute.request == 3 * measured(one_worker, run, DEVICE, 0.0).compute.request
    )
    assert measured(three, run, DEVICE, 0.0).gpus == pytest.approx(0.3)


def test_measures_of_several_workloads_add_up_and_shares_are_of_the_sums():
    needed = demand([5, 5], step=3600.0)
    parts = [measured(needed, replay(needed, Held(), figures(r, 20)), DEVICE, 0.0) for r in (10, 30)]
    both = total(parts)
    assert both.compute.request == 80
    assert both.compute.slack_share == 60 / 80
    assert both.gpus == pytest.approx(0.4)
    assert total([]) == Measures()


def test_saved_is_a_share_of_what_it_is_compared_with():
    assert saved_share(40, 10) == 0.75
    assert saved_share(40, 50) == -0.25
    assert math.isnan(saved_share(0, 0))


@pytest.mark.parametrize("spike", [0, 777, 4999])
def test_pictures_keep_every_peak_however_long_the_trace(spike: int):
    values = np.ones(5000)
    values[spike] = 90.0
    needed = steady(KEY, 0.0, STEP, values, None)
    drawn = demand_strip(needed)
    assert drawn.most.shape[1] <= 360
    assert np.nanmax(drawn.most[0]) == 90
    run = replay(needed, Held(), figures(10, 20))
    strip = run_strip(needed, run)
    assert int((strip.lost_share > 0).sum()) == 1
    assert int(np.argmax(strip.lost_share)) == int(np.nanargmax(drawn.most[0]))


def test_a_run_is_the_same_every_time():
    rng = np.random.default_rng(3)
    needed = demand(list(rng.gamma(2, 5, 500)), list(rng.gamma(4, 2, 500)))

    def again(make: Callable[[], Probing]) -> Run:
        return replay(needed, make(), figures(10, 10))

    one, other = again(Probing), again(Probing)
    assert np.array_equal(one.figures, other.figures)
    assert np.array_equal(one.oom, other.oom)
