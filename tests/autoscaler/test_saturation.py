"""Saturation counts against the limit under which it was seen, once: slow nodes and short intervals raise nothing twice."""

from __future__ import annotations

import pytest

from autoscaler.model.decision import Field
from autoscaler.model.fleet import to_fleet
from autoscaler.model.reasons import CAUSE_CODE, Cause
from autoscaler.model.resources import GIB
from autoscaler.recommend import learn, recommend, watch
from tests.autoscaler.stage import STEP, Stage, one_bin


def saturated_once() -> Stage:
    """A workload whose limit was just raised from 20 to 40 TFLOPs."""
    stage = Stage()
    stage.run(1, 1000.0)
    assert stage.figures.compute.limit == 40.0
    return stage


def see(stage: Stage, use_tflops: float, ceiling_tflops: float) -> None:
    """Show the next minute, with this limit in force on the worker."""
    stage.now += STEP
    fleet = to_fleet(stage.snapshot(2 * GIB))
    usage = one_bin(stage.now, use_tflops, 2 * GIB, (ceiling_tflops, 8 * GIB))
    learn(stage.learnt, usage, fleet)
    watch(stage.learnt, usage, fleet)


def wanted(stage: Stage) -> tuple[float, bool]:
    """Return the wanted compute limit, and whether saturation is its cause."""
    estimate = recommend(to_fleet(stage.snapshot(2 * GIB)), stage.learnt)
    cause = estimate.cause[0, Field.COMPUTE_LIMIT]
    return float(estimate.figure[0, Field.COMPUTE_LIMIT]), bool(cause == CAUSE_CODE[Cause.SATURATED])


def test_a_pass_without_a_new_bin_does_not_raise_a_limit_again():
    assert wanted(saturated_once()) == (40.0, False)


@pytest.mark.parametrize("late_bins", [1, 5])
def test_use_clipped_at_the_limit_before_the_raise_says_nothing_about_the_new_one(late_bins):
    stage = saturated_once()
    for _ in range(late_bins):
        see(stage, 20.0, 20.0)
        assert wanted(stage) == (40.0, False)


def test_use_clipped_at_the_new_limit_is_the_second_sample_in_a_row_and_quadruples_it():
    stage = saturated_once()
    see(stage, 20.0, 20.0)
    see(stage, 40.0, 40.0)
    assert wanted(stage) == (160.0, True)
