"""The gate between VRAM request and ceiling: open while there is work, nearly closed in between."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from autoscaler.contract.gate import HOLD_SECONDS, LEAST_BYTES, OF_CEILING_RATIO, Gate
from autoscaler.model.resources import GIB

REQUEST, CEILING = 20.0 * GIB, 40.0 * GIB


def worked(gate: Gate, since: float, seconds: int, compute: float, vram: float) -> float:
    """One sample a second; returns the effective limit after the last."""
    for second in range(1, seconds + 1):
        gate.sample(since + second, compute, vram)
    return gate.limit(since + seconds, REQUEST, CEILING)


def test_a_working_worker_has_its_whole_ceiling():
    assert worked(Gate(REQUEST), 0.0, 60, 10.0, 18 * GIB) == CEILING


def test_an_idle_worker_keeps_little_more_than_its_request_from_a_minute_and_a_half_on():
    gate = Gate(REQUEST)
    worked(gate, 0.0, 60, 10.0, 18 * GIB)
    assert worked(gate, 60.0, int(HOLD_SECONDS), 0.0, 18 * GIB) == CEILING
    assert worked(gate, 60.0 + HOLD_SECONDS, 1, 0.0, 18 * GIB) == OF_CEILING_RATIO * CEILING == 24 * GIB


def test_with_a_request_near_the_ceiling_idleness_lends_what_is_over_the_request():
    gate = Gate(CEILING)
    for second in range(1, 200):
        gate.sample(float(second), float(second == 1), 18 * GIB)
    assert gate.limit(200.0, 30 * GIB, CEILING) == 30 * GIB


def test_a_working_worker_follows_its_ceiling_however_little_that_moved():
    gate = Gate(CEILING)
    gate.sample(1.0, 10.0, 18 * GIB)
    assert gate.limit(1.0, REQUEST, 0.93 * CEILING) == 0.93 * CEILING
    assert gate.limit(1.0, REQUEST, 0.96 * CEILING) == 0.96 * CEILING


def test_an_idle_worker_lends_what_is_over_a_ceiling_that_fell():
    gate = Gate(30 * GIB)
    for second in range(1, 200):
        gate.sample(float(second), float(second == 1), 18 * GIB)
    assert gate.limit(200.0, 27 * GIB, 28 * GIB) == 28 * GIB


def test_one_sample_of_work_opens_it_again():
    gate = Gate(REQUEST)
    worked(gate, 0.0, 60, 10.0, 18 * GIB)
    assert worked(gate, 60.0, 600, 0.0, 18 * GIB) == 24 * GIB
    assert worked(gate, 660.0, 1, 5.0, 18 * GIB) == CEILING


def test_memory_that_moves_is_work_and_memory_that_sits_there_is_not():
    gate = Gate(REQUEST)
    worked(gate, 0.0, 600, 0.0, 18 * GIB)
    assert worked(gate, 600.0, 1, 0.0, 18.1 * GIB) < CEILING
    assert worked(gate, 601.0, 1, 0.0, 19 * GIB) == CEILING


def test_what_is_held_is_never_cut_even_over_the_ceiling():
    gate = Gate(REQUEST)
    assert worked(gate, 0.0, 600, 0.0, 39.9 * GIB) >= 1.05 * 39.9 * GIB


def test_an_empty_idle_worker_keeps_a_little():
    gate = Gate(1.0 * GIB)
    gate.sample(1.0, 0.0, 0.0)
    assert gate.limit(1.0 + HOLD_SECONDS, 0.0, 0.1 * GIB) == LEAST_BYTES


samples = st.tuples(st.floats(0, 100), st.floats(0, 60 * GIB), st.booleans())


@given(st.lists(samples, min_size=1, max_size=60), st.floats(1 * GIB, 30 * GIB), st.floats(1, 2))
def test_whatever_comes_the_limit_covers_what_is_held_and_passes_the_ceiling_only_for_it(rows, request, ratio):
    gate, ceiling = Gate(request), ratio * request
    for second, (compute, vram, oom) in enumerate(rows):
        gate.sample(float(second), compute, vram, oom=oom)
        limit = gate.limit(float(second), request, ceiling)
        assert limit >= vram
        assert limit <= max(ceiling, 1.05 * vram, LEAST_BYTES)
