"""A record's figures, worked out again from its numbers alone, one plain formula after the other; pure.

This is the second opinion that keeps a record honest: it shares no code with the estimators and guards, which work on
arrays of the whole fleet. Neighbour: `estimates` has the estimators' formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from autoscaler.model.decision import Field
from autoscaler.model.reasons import Cause
from autoscaler.model.record import EVALUATION, LAYER, PARTNER, REMEMBERED, FigureRecord, Record, Step
from autoscaler.model.resources import MIB, Resource
from autoscaler.report.estimates import estimate, least, most


@dataclass(frozen=True, slots=True)
class Recomputed:
    """One figure, worked out again: what was estimated and why, what is recommended, and what is applied."""

    estimated: float
    cause: Cause
    recommended: float
    allowed: float


class InconsistentError(ValueError):
    """A record's steps don't follow from one another."""


def recompute(record: Record) -> dict[Field, Recomputed]:
    """Return every figure as it follows from the record's numbers; equal to the record's own, bit for bit.

    Raises:
        InconsistentError: a step does not begin where the one before ended.

    """
    return {figure.field: _recomputed(record, figure) for figure in record.figures}


def _recomputed(record: Record, figure: FigureRecord) -> Recomputed:
    estimated, cause = estimate(record, figure.field)
    start = figure.current if math.isnan(estimated) else estimated
    return Recomputed(
        estimated=estimated,
        cause=cause,
        recommended=_walk(figure.recommended_steps, start, figure, record.at),
        allowed=_walk(figure.allowed_steps, start, figure, record.at),
    )


def _walk(steps: Sequence[Step], value: float, figure: FigureRecord, now: float) -> float:
    """Return what the steps make of a value, one after the other."""
    for step in steps:
        if step.before != value:
            raise InconsistentError(f"{figure.field.name}: {step.guard} begins at {step.before}, not at {value}")
        value = RULES.get(step.guard, _cut)(step, figure, now)
    return value


def _hold(_: Step, figure: FigureRecord, _now: float) -> float:
    return figure.current


def _cut(step: Step, figure: FigureRecord, _now: float) -> float:
    """A guard with nothing but a cap or a floor; with neither it put the figure in force back, or let it pass."""
    numbers = step.numbers
    if "most" in numbers:
        return min(step.before, numbers["most"])
    if "least" in numbers:
        return max(step.before, numbers["least"])
    return step.before if step.after == step.before else figure.current


def _dead_band(step: Step, figure: FigureRecord, _now: float) -> float:
    is_small = abs(step.before - figure.current) <= step.numbers["band_ratio"] * figure.current
    return figure.current if is_small else step.before


def _enough(step: Step, figure: FigureRecord, now: float) -> float:
    numbers = step.numbers
    is_early = now < numbers["until_at"] or math.isnan(numbers["until_at"])
    return figure.current if is_early or numbers["samples"] < numbers["min_samples"] else step.before


def _fresh(step: Step, figure: FigureRecord, _now: float) -> float:
    is_fresh = step.numbers["age_seconds"] <= step.numbers["fresh_seconds"]
    return step.before if is_fresh else figure.current


def _stabilization(step: Step, figure: FigureRecord, now: float) -> float:
    numbers = step.numbers
    if "since_at" not in numbers:
        return _cut(step, figure, now)
    return figure.current if now - numbers["since_at"] < numbers["window_seconds"] else numbers["most"]


def _cool_down(step: Step, figure: FigureRecord, now: float) -> float:
    is_hot = now - step.numbers["moved_at"] < step.numbers["cool_down_seconds"]
    return figure.current if is_hot else step.before


def _step(step: Step, figure: FigureRecord, _now: float) -> float:
    if "most_added" in step.numbers:
        return min(step.before, figure.current + step.numbers["most_added"])
    return max(step.before, figure.current - step.numbers["most_removed"])


def _rollback(step: Step, figure: FigureRecord, now: float) -> float:
    good = step.numbers["last_good"]
    return most(step.before, good, figure.current) if now < step.numbers["until_at"] else step.before


def _live_use(step: Step, figure: FigureRecord, _now: float) -> float:
    live = step.numbers["live"]
    floor = figure.current if math.isnan(live) else min((1 + step.numbers["headroom_ratio"]) * live, figure.current)
    return max(step.before, floor) if step.before < figure.current else step.before


def _bounds(step: Step, _figure: FigureRecord, _now: float) -> float:
    numbers = step.numbers
    value = min(max(step.before, numbers["minimum"]), numbers["maximum"])
    if "ratio_to_request" in numbers:
        value = min(value, numbers["ratio_to_request"] * numbers["request"])
    return value


def _order(step: Step, _figure: FigureRecord, _now: float) -> float:
    value = min(step.before, step.numbers["device"])
    if "request" in step.numbers:
        return max(value, step.numbers["request"])
    return min(value, step.numbers["limit"])


def _capacity(step: Step, figure: FigureRecord, now: float) -> float:
    if "room" not in step.numbers:
        return _cut(step, figure, now)
    return figure.current + min(step.before - figure.current, step.numbers["room"])


def _published(step: Step, figure: FigureRecord, _now: float) -> float:
    """Up to three significant digits of TFLOPs, or whole MiB; a shrink does not become growth by that."""
    value, unit = step.before, float(MIB)
    if figure.field.resource is Resource.COMPUTE:
        unit = 10.0 ** (math.floor(math.log10(value if value > 0 else 1.0)) - 2.0)
    rounded = math.ceil(value / unit - 1e-9) * unit
    rounded = least(round(rounded * 1e10) / 1e10, step.numbers["most"])
    return least(rounded, figure.current) if value < figure.current else rounded


def _remembered(step: Step, _figure: FigureRecord, _now: float) -> float:
    return step.numbers["shown"]


def _partner(step: Step, _figure: FigureRecord, _now: float) -> float:
    return min(step.before, step.numbers["limit"])


RULES: Final[Mapping[str, Callable[[Step, FigureRecord, float], float]]] = {
    LAYER: _hold,
    EVALUATION: _hold,
    "enough": _enough,
    "fresh": _fresh,
    "valid": _hold,
    "unpaused": _hold,
    "supported": _hold,
    "not_managed_elsewhere": _hold,
    "adopted": _hold,
    "dead_band": _dead_band,
    "stabilization": _stabilization,
    "step": _step,
    "cool_down": _cool_down,
    "live_use": _live_use,
    "bounds": _bounds,
    "order": _order,
    "rollback": _rollback,
    "capacity": _capacity,
    "rate": _hold,
    "published": _published,
    REMEMBERED: _remembered,
    PARTNER: _partner,
}
"""By guard; any other guard's step is a cap, a floor or a hold, see `_cut`."""
