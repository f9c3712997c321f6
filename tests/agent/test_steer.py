"""Steering a bucket by the worker's own utilization, on a plant that is a line of arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.enforce.steer import RATE_MAX, RATE_MIN, RATE_START, Metered, Pull, Steering, held_back, pull, steer


def run(price: float, target: float, steps: int, start: Steering | None = None) -> tuple[list[float], Steering]:
    """Return the utilization after each second of a worker that takes all tokens it can get."""
    now, used = start or Steering(), []
    for _ in range(steps):
        ratio = min(now.rate / price, 1.0)
        used.append(ratio)
        now = steer(now, target, Metered(round(ratio, 2), min(now.rate, price), 0.0))
    return used, now


@given(price=st.floats(50.0, 50_000.0), target=st.floats(0.05, 0.95))
def test_any_kernel_meets_any_limit_within_ten_seconds_and_passes_it_by_ten_points_at_most(
    price: float, target: float
) -> None:
    # A first price of under 100 tokens a second is more than the start rate: a device full from the first launch.
    used, _ = run(price, target, 20)
    assert all(abs(ratio - target) <= 0.05 for ratio in used[10:])
    assert max(used[2:]) <= target + 0.10


def test_a_doubled_limit_doubles_the_use_in_the_next_step() -> None:
    _, settled = run(4000.0, 0.3, 15)
    used, _ = run(4000.0, 0.6, 4, steer(settled, 0.6, Metered(0.3, 1200.0, 0.0)))
    assert used[1] == pytest.approx(0.6, abs=0.1)


def test_an_idle_worker_keeps_what_was_learnt_of_it() -> None:
    _, settled = run(4000.0, 0.3, 15)
    idle = settled
    for _ in range(600):
        idle = steer(idle, 0.3, Metered(0.0, 0.0, 1.0))
    assert idle == settled


def test_a_worker_below_its_limit_by_its_own_choice_is_not_given_more() -> None:
    _, settled = run(4000.0, 0.5, 15)
    calm = settled
    for _ in range(100):
        calm = steer(calm, 0.5, Metered(0.1, 400.0, 1.0))
    assert calm.rate == pytest.approx(settled.rate, rel=0.1)


def test_without_a_measurement_nothing_changes() -> None:
    before = Steering(700.0, 1400.0, 0.1)
    assert steer(before, 0.9, Metered(None, 300.0, 0.0)) == before


def test_a_worker_whose_launches_cost_much_is_opened_threefold_until_something_is_seen() -> None:
    after = steer(Steering(), 0.5, Metered(0.0, RATE_START, 0.0))
    assert after.rate == 3 * RATE_START


@given(
    before=st.builds(Steering, st.floats(RATE_MIN, RATE_MAX), st.none() | st.floats(1.0, 1e7), st.floats(-0.25, 0.25)),
    target=st.floats(0.0, 1.0),
    metered=st.builds(Metered, st.none() | st.floats(0.0, 1.0), st.floats(0.0, 1e7), st.floats(0.0, 10.0)),
)
def test_the_refill_stays_within_its_bounds_whatever_was_metered(
    before: Steering, target: float, metered: Metered
) -> None:
    after = steer(before, target, metered)
    assert RATE_MIN <= after.rate <= RATE_MAX
    assert after.capacity >= 20.0


FULL, HALF = Pull(1.0, 1.0, 0.0), Pull(0.5, 0.5, 0.0)


@pytest.mark.parametrize(
    ("pulls", "held"),
    [
        ((FULL, FULL), True),
        ((Pull(1.2, 0.7, 0.4), Pull(0.75, 1.3, 0.0)), True),
        ((Pull(1.0, 0.2, 0.0), Pull(1.0, 0.3, 0.0)), False),
        ((HALF, HALF), False),
        ((FULL, Pull(1.0, 1.0, 0.9)), False),
        ((FULL, Pull(1.0, None, 0.0)), None),
        ((FULL,), None),
    ],
    ids=["at the limit", "out of step", "below its share", "asks for less", "leaves tokens", "use not known", "new"],
)
def test_only_who_takes_all_it_may_have_is_held_back(pulls, held) -> None:
    assert held_back(pulls) is held


def test_a_pull_is_measured_by_the_refill_and_the_limit_of_its_step() -> None:
    assert pull(Steering(rate=200.0), 0.5, Metered(0.25, 100.0, 0.1)) == Pull(0.5, 0.5, 0.1)
