"""What would have to happen for a figure to move, from where it stands after this decision; pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from autoscaler.model.decision import Field
from autoscaler.model.record import FigureRecord, Record
from autoscaler.report.estimates import inputs_of
from autoscaler.report.wording import amount, span, until

SURPLUS_RATIO: Final = 0.1


def moves_of(record: Record, figure: FigureRecord) -> Iterator[str]:
    """Yield what moves a figure up, what moves it down, and what has to pass first."""
    if not math.isnan(inputs_of(figure)["ordered"]):
        yield "when another order comes, or this one ends"
        return
    stands = figure.current if math.isnan(figure.allowed) else figure.allowed
    yield from _RULES[figure.field](replace(figure, current=stands))
    waits = [step.numbers["until_at"] for step in figure.allowed_steps if "until_at" in step.numbers]
    later = [at for at in waits if math.isfinite(at) and at > record.at]
    if later:
        yield f"not before that: it waits {until(max(later), record.at)}"


def _compute_request(figure: FigureRecord) -> Iterator[str]:
    known, current, field = inputs_of(figure), figure.current, figure.field
    quantile, count = known["quantile"], figure.terms.get("exceedances", math.nan)
    now = f" (now {amount(field, quantile)})" if not math.isnan(quantile) else ""
    often = f"in {count:g} sample{'s' if count > 1 else ''} within 30m"
    yield f"up when the {known['percentile']:g} quantile of use passes {amount(field, current)}{now}"
    yield f"up when use stays above {amount(field, current)} {often}"
    low = (1 - SURPLUS_RATIO) * current
    target = figure.estimated.upper_bound * (1 - SURPLUS_RATIO)
    level, gathered = known["surplus_level_minutes"], known["surplus_minutes"]
    if target < low:
        left = max(level - gathered, 0.0) / (1 - target / current)
        rest = span(60.0 * math.ceil(left)) if left > 0 else "no more time"
        stays = f"at {amount(field, target)}, below {amount(field, low)}"
        yield f"down when the estimate stays {stays}, for about {rest} more"
    else:
        yield f"down when the estimate stays below {amount(field, low)} for {level:g}m of surplus and more"


def _compute_limit(figure: FigureRecord) -> Iterator[str]:
    current, field = figure.current, figure.field
    device = figure.terms["device"]
    slack = max(0.05 * current, 0.01 * device if math.isfinite(device) else 0.0)
    clipped = max(0.95 * current - slack, 0.0)
    yield f"up when use reaches {amount(field, clipped)}, which counts as clipped"
    yield f"up when the rule asks for more than {amount(field, 1.05 * current)}"
    is_explicit = not math.isnan(inputs_of(figure)["percentile"])
    yield f"down when it asks for less than {amount(field, (1.0 if is_explicit else 0.8) * current)}{_stays(figure)}"


def _vram_request(figure: FigureRecord) -> Iterator[str]:
    current, field, buffer = figure.current, figure.field, inputs_of(figure)["buffer_ratio"]
    level = amount(field, current / (1 + buffer))
    yield f"up when live use or the working level passes {level}, or after an out-of-memory event"
    yield f"down when the estimate is below {amount(field, 0.95 * current)}{_stays(figure)}"
    cools = inputs_of(figure)["cools_after_seconds"]
    if not math.isnan(cools):
        yield f"down to live use once idle for {span(cools)}"


def _vram_limit(figure: FigureRecord) -> Iterator[str]:
    current, field = figure.current, figure.field
    yield (
        f"up when the estimate passes {amount(field, 1.05 * current)}, when live use passes "
        f"{amount(field, 0.96 * current)}, or after an out-of-memory event"
    )
    yield f"down when the estimate is below {amount(field, 0.9 * current)}{_stays(figure)}"


def _replicas(figure: FigureRecord) -> Iterator[str]:
    tolerance = inputs_of(figure)["tolerance_ratio"]
    yield (
        f"out when the load needs more than {figure.current * (1 + tolerance):.3g} workers at their target "
        "and no limit can grow"
    )
    low = figure.terms["minimum"]
    if figure.current > low:
        yield f"in when fewer would carry the load with {tolerance:.0%} to spare{_stays(figure)}"
    else:
        yield f"not in: {low:g} is the least allowed"


def _stays(figure: FigureRecord) -> str:
    """Return how long something must last, and how long after a change it must wait, in words."""
    window, wait = figure.terms["stabilization_seconds"], figure.terms["down_cool_down_seconds"]
    stays = f" for {span(window)}" if window > 0 else ""
    return stays + (f", {span(wait)} after the last change at the earliest" if wait > 0 else "")


_RULES: Final[Mapping[Field, Callable[[FigureRecord], Iterator[str]]]] = {
    Field.COMPUTE_REQUEST: _compute_request,
    Field.COMPUTE_LIMIT: _compute_limit,
    Field.VRAM_REQUEST: _vram_request,
    Field.VRAM_LIMIT: _vram_limit,
    Field.REPLICAS: _replicas,
}
