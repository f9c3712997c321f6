"""What holds over whole histories of passes, whatever the estimators want and however devices are shared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.contract.keys import QoS
from autoscaler.guard import Limits
from autoscaler.guard.bounds import PAIRS
from autoscaler.guard.rollback import may_not_shrink
from autoscaler.model.config import Bounds
from autoscaler.model.decision import AMOUNT_FIELDS, Field
from autoscaler.model.reasons import CAUSE_CODE, VERDICTS, Cause, Verdict
from autoscaler.model.resources import GIB
from tests.autoscaler.shared_devices import Load, Town, sums, unexplained

PASSES = 8
ROLLED_BACK = VERDICTS.index(Verdict.ROLLED_BACK)
LEAST, MOST = (5.0, 80.0), (2.0, 24.0)
ratios = st.sampled_from([0.3, 0.6, 0.9, 1.0, 1.0, 1.1, 1.5, 3.0])
rows = st.tuples(ratios, ratios, ratios, ratios)


@st.composite
def moments(draw: st.DrawFn) -> list[tuple[float, bool, Cause, bool, list[tuple[float, ...]]]]:
    """Passes: seconds since the last one, whether it is a shortage, the cause, whether harm is seen, what is wanted."""
    cause = st.sampled_from([Cause.SURPLUS, Cause.RAISED, Cause.IDLE, Cause.OOM_SEEN])
    return [
        (
            draw(st.sampled_from([60.0, 300.0, 600.0])),
            draw(st.booleans()),
            draw(cause),
            draw(st.sampled_from([False, False, False, True])),
            draw(st.lists(rows, min_size=3, max_size=3)),
        )
        for _ in range(PASSES)
    ]


def town() -> Town:
    loads = [Load("low", QoS.LOW, used=3), Load("medium", QoS.MEDIUM, used=2), Load("top", QoS.CRITICAL, used=2)]
    for load in loads:
        bounds = Bounds(min_allowed=(LEAST[0], MOST[0] * GIB), max_allowed=(LEAST[1], MOST[1] * GIB))
        load.config = replace(load.config, bounds=bounds)
    return Town(loads, vram=30, tflops=200, limits=Limits(120.0, 2, 10))


@settings(max_examples=15, deadline=None)
@given(history=moments())
def test_whatever_came_before_bounds_order_and_devices_hold_and_nothing_swings_without_a_shortage(
    history: list[tuple[float, bool, Cause, bool, list[tuple[float, ...]]]],
) -> None:
    """Excused are a shortage of the resource, the return from a harmful shrink, and what an idle workload lent out."""
    place, last = town(), np.full((3, 4), -np.inf)
    way = np.zeros((3, 4))
    for seconds, urgent, cause, harmed, wished in history:
        place.now += seconds
        before = place.fleet
        asked = before.current[:, :4] * np.array(wished)
        wanted = place.wants(urgent=urgent)
        figure = np.column_stack([asked, before.current[:, 4]])
        moved = figure != before.current
        wanted = replace(
            wanted,
            figure=figure,
            lower=np.where(figure > before.current, figure, 0.5 * figure),
            cause=np.where(moved, CAUSE_CODE[cause], CAUSE_CODE[Cause.UNCHANGED]).astype(np.int8),
            urgent=moved & urgent & (figure > before.current),
        )
        if harmed:
            wanted.trouble_at[:], wanted.trouble_samples[:] = place.now - 30, 2.0
        allowed = place.decide(wanted)
        held = allowed.figure[:, :4]
        _bounds_and_order_hold(place, held, allowed.verdict)
        assert not unexplained(allowed)
        step = np.sign(held - before.current[:, :4])
        pressed = np.column_stack([wanted.urgent[:, pair].any(axis=1) for pair in PAIRS for _ in pair])
        returns = may_not_shrink(place.memory, place.now)[:, :4]
        excused = pressed | returns | (place.memory["idled_at"][:, :4] == last)
        opposite = (step * way < 0) & (place.now - last < 600) & ~((step > 0) & excused)
        assert not opposite.any()
        last, way = np.where(step != 0, place.now, last), np.where(step != 0, step, way)


def _bounds_and_order_hold(place: Town, held: np.ndarray, verdict: np.ndarray) -> None:
    for resource, (request, limit) in enumerate(PAIRS):
        unit = (1.0, GIB)[resource]
        least, most = (LEAST[0], MOST[0])[resource] * unit, (LEAST[1], MOST[1])[resource] * unit
        assert (held[:, request] <= held[:, limit]).all()
        assert (held[:, limit] <= min(most, (200.0, 30.0 * GIB)[resource])).all()
        gave = np.isin(verdict[:, request], [VERDICTS.index(Verdict.GAVE_TO_HIGHER_QOS), ROLLED_BACK])
        full = verdict[:, request] == VERDICTS.index(Verdict.CAPACITY_LIMITED)
        assert (held[:, limit] >= least).all()
        assert ((held[:, request] >= least) | gave | full | (held[:, request] >= 0.1)).all()
    assert max(sums(place, Field.COMPUTE_REQUEST).values()) <= 200 + 1e-9
    assert max(sums(place, Field.VRAM_REQUEST).values()) <= 30 + 1e-9
    assert len(AMOUNT_FIELDS) == held.shape[1]
