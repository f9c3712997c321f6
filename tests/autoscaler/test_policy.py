"""Policy objects: the product's own engine behind the protocol of a trace's judge."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from autoscaler.model.resources import GIB
from autoscaler.replay import policy
from autoscaler.replay.policy import Policy

MINUTE = 60.0
EVERY = [policy.low, policy.medium, policy.high, policy.critical]


def replayed(
    made: Policy, compute: list[float], vram: list[float] | None = None, init: float = 1.5, step: float = MINUTE
) -> np.ndarray:
    """Closed loop: what is used is cut at the limit in force; returns the figures in force (T, 4)."""
    most = max(vram) if vram else 0.0
    figures = (init * max(compute), init * max(compute), init * most, init * most)
    made.reset({"step": step, "init": figures, "has_vram": vram is not None})
    rows = []
    for number, demand in enumerate(compute):
        rows.append(figures)
        held = None if vram is None else min(vram[number], figures[3])
        oom = vram is not None and vram[number] > figures[3]
        made.observe(number * step, min(demand, figures[1]), held, oom)
        figures = made.recommend((number + 1) * step) or figures
    return np.array(rows)


def day(seed: int = 1, minutes: int = 1440) -> tuple[list[float], list[float]]:
    """Bursts of work out of idleness, and the memory they take."""
    rng = np.random.default_rng(seed)
    busy = np.convolve(rng.random(minutes) < 0.05, np.ones(8), "same") > 0
    compute = np.where(busy, rng.gamma(4.0, 5.0, minutes), 0.0)
    vram = (10 + np.where(busy, rng.gamma(2.0, 2.0, minutes), 0.0)) * GIB
    return compute.tolist(), vram.tolist()


@pytest.mark.parametrize("make", EVERY)
def test_figures_are_finite_positive_and_in_order(make: Callable[[], Policy]):
    figures = replayed(make(), *day())
    assert np.isfinite(figures).all()
    assert (figures > 0).all()
    assert (figures[:, 0] <= figures[:, 1]).all()


@pytest.mark.parametrize("make", EVERY)
def test_equal_days_give_equal_figures_whatever_the_object_did_before(make: Callable[[], Policy]):
    used = make()
    replayed(used, *day(seed=2, minutes=300))
    assert (replayed(used, *day(minutes=400)) == replayed(make(), *day(minutes=400))).all()


def test_a_series_without_memory_gets_compute_figures_only():
    figures = replayed(policy.high(), [10.0] * 400)
    assert (figures[:, 2:] == 0).all()
    assert 10 <= figures[-1, 0] < 15


def test_a_demand_three_times_the_limit_is_covered_at_the_second_interval_and_ten_times_at_the_third():
    for factor, intervals in ((3, 2), (10, 3)):
        demand = [10.0] * 600 + [factor * 13.0] * 30
        figures = replayed(policy.high_reactive(), demand, init=0.13 * 10 / factor)
        limit = figures[600, 1]
        demand = [10.0] * 600 + [factor * limit] * 30
        figures = replayed(policy.high_reactive(), demand, init=figures[0, 1] / max(demand))
        assert figures[600 + intervals, 1] >= factor * limit, factor


def test_idleness_lends_memory_out_and_work_has_it_back_within_a_sample():
    compute, vram = day()
    figures = replayed(
        policy.high(), [*compute, *[0.0] * 10, 20.0, 20.0], [*vram, *[10 * GIB] * 10, 10 * GIB, 10 * GIB]
    )
    assert figures[1449, 3] < figures[1451, 3]
    assert figures[1451, 3] == figures[:1440, 3].max() or figures[1451, 3] > 1.2 * figures[1449, 3]


def test_critical_lends_nothing():
    compute, vram = day()
    figures = replayed(policy.critical(), [*compute, *[0.0] * 30], [*vram, *[10 * GIB] * 30])
    assert len(set(figures[-25:, 3].tolist())) == 1


def test_five_minute_samples_are_read_as_they_come():
    figures = replayed(policy.high_reactive(), [10.0] * 300, step=300.0)
    assert 10 <= figures[-1, 0] < 15
