"""The estimators' formulas for one workload, from a record's numbers alone; see docs/how-it-decides.md for the rules.

Each function returns the figure (NaN: not known) and what led to it. A number that is not in the record is NaN, and so
is what needs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from autoscaler.model.decision import Field
from autoscaler.model.reasons import Cause
from autoscaler.model.record import FigureRecord, Record

Estimate = tuple[float, Cause]


class _Inputs(dict[str, float]):
    """Inputs by name; one that is not there is not known."""

    def __missing__(self, name: str) -> float:
        return math.nan


def inputs_of(figure: FigureRecord) -> Mapping[str, float]:
    """Return a figure's inputs by name; one that is not there is NaN."""
    return _Inputs(figure.estimated.inputs)


def most(*values: float) -> float:
    """Return the largest value that is known, NaN when none is."""
    return max((value for value in values if not math.isnan(value)), default=math.nan)


def least(*values: float) -> float:
    """Return the smallest value that is known, NaN when none is."""
    return min((value for value in values if not math.isnan(value)), default=math.nan)


def _all_known(function: Callable[..., float], *values: float) -> float:
    """Return the function of the values, NaN when one of them is not known."""
    return math.nan if any(math.isnan(value) for value in values) else function(*values)


def _compute_request(record: Record) -> Estimate:
    figure = record[Field.COMPUTE_REQUEST]
    known, current = inputs_of(figure), figure.current
    quantile, floor = known["quantile"], known["floor"]
    target = _all_known(max, most(quantile * (1 + known["buffer_ratio"]), known["forecast_target"]), floor)
    if math.isnan(target):
        return current, Cause.NO_DATA
    if not math.isnan(known["peak_above_request"]):
        return most(target, 1.1 * known["peak_above_request"]), Cause.EXCEEDED
    if max(most(quantile, known["forecast_line"]), floor) > current:
        return target, Cause.RAISED
    if known["surplus_minutes"] > known["surplus_level_minutes"] and target < (1 - 0.1) * current:
        return target, Cause.SURPLUS
    return current, Cause.UNCHANGED


def _compute_limit(record: Record) -> Estimate:
    figure = record[Field.COMPUTE_LIMIT]
    known, current = inputs_of(figure), figure.current
    request, peak, floor = known["request"], known["peak_7d"], 0.1 * figure.terms["original"]
    is_explicit = not math.isnan(known["percentile"])
    if is_explicit:
        ruled = learnt = known["quantile"] * (1 + known["buffer_ratio"])
    else:
        burst = min(1.25 * peak, known["ratio_to_request"] * request)
        ruled = max(1.3 * request, burst, floor) if record.samples > 0 else math.nan
        learnt = max(1.25 * peak, floor)
    normal = most(_all_known(max, ruled, known["visible_limit"]), known["forecast_peak"])
    if not math.isnan(known["step"]):
        return most(known["step"] * current, learnt), Cause.SATURATED
    if math.isnan(normal):
        return current, Cause.NO_DATA
    is_raised = request > record[Field.COMPUTE_REQUEST].current
    if normal > 1.05 * current or (is_raised and normal > current):
        return normal, Cause.RAISED
    is_calm = math.isnan(known["lowering_waits_seconds"])
    if normal < (1.0 if is_explicit else 0.8) * current and is_calm:
        return normal, Cause.SURPLUS
    return current, Cause.UNCHANGED


def _vram_levels(figure: FigureRecord, known: Mapping[str, float]) -> tuple[float, float]:
    """Return the guarantee `lo` and the ceiling `hi`."""
    peak, working, live, above = (known[name] for name in ("peak_4h", "working_level", "live", "buffer_ratio"))
    week = 1.02 * known["peak_7d"]
    q95 = working if math.isnan(known["q95"]) else known["q95"]
    high = most(least(peak * (1 + known["margin_ratio"]), known["burst_cap"] * q95), 1.05 * peak)
    high = week if high < week <= (1 + 0.1) * high else high
    high = _all_known(min, most(high, known["kept_level"]), figure.terms["device"])
    low = _all_known(min, most(live, working) * (1 + above), most(high, 1.05 * live))
    return low, high


def _vram_request(record: Record) -> Estimate:
    figure = record[Field.VRAM_REQUEST]
    known, current = inputs_of(figure), figure.current
    low, _ = _vram_levels(figure, known)
    live, floor = known["live"], known["oom_floor"]
    cooled = _all_known(max, 1.05 * live, 250.0 * 2**20)
    idle_seconds = math.inf if math.isnan(known["idle_seconds"]) else known["idle_seconds"]
    is_idle = idle_seconds > known["cools_after_seconds"] and cooled < low
    settled = cooled if is_idle else low
    if math.isnan(settled):
        return current, Cause.NO_DATA
    target = most(settled, floor)
    if floor > current:
        return target, Cause.OOM_SEEN
    if most(live if is_idle else low / (1 + known["buffer_ratio"]), floor) > current:
        return target, Cause.RAISED
    if target < (1 - 0.05) * current:
        return target, Cause.IDLE if is_idle else Cause.SURPLUS
    return current, Cause.UNCHANGED


def _vram_limit(record: Record) -> Estimate:
    figure = record[Field.VRAM_LIMIT]
    known, current = inputs_of(figure), figure.current
    live, floor = known["live"], known["oom_floor"]
    if math.isnan(known["percentile"]):
        _, ceiling = _vram_levels(figure, known)
    else:
        formula = known["quantile"] * (1 + known["limit_buffer_ratio"])
        ceiling = _all_known(min, most(formula, 1.05 * live), figure.terms["device"])
    wanted = most(ceiling, floor)
    if math.isnan(wanted):
        return current, Cause.NO_DATA
    if floor > current:
        return wanted, Cause.OOM_SEEN
    if live > 0.96 * current and wanted > current:
        return wanted, Cause.SATURATED
    if wanted > 1.05 * current:
        return wanted, Cause.RAISED
    if wanted < 0.9 * current:
        return wanted, Cause.SURPLUS
    return current, Cause.UNCHANGED


def _replicas(record: Record) -> Estimate:
    figure = record[Field.REPLICAS]
    known, count = inputs_of(figure), figure.current
    steered = [side for side in _SIDES if not math.isnan(known[side.target])]
    wishes = [_wish(known, count, side) for side in steered]
    if not wishes or any(math.isnan(wish.fewest) for wish in wishes) or count < 1:
        return count, Cause.NO_DATA
    outward = [(side, wish.desired) for side, wish in zip(steered, wishes, strict=True) if wish.desired > count]
    free = [desired for side, desired in outward if known[side.exhausted]]
    if free:
        return max(free), Cause.LOAD
    if outward:
        return count, Cause.VERTICAL_FIRST
    fewest = max(1.0, *(wish.fewest for wish in wishes))
    if fewest >= count:
        return count, Cause.UNCHANGED
    return (fewest, Cause.LOAD) if _is_covered(record, known) else (count, Cause.COVER_FIRST)


@dataclass(frozen=True, slots=True)
class _Side:
    """What the inputs of one resource are called, the unit they are in, and the figures that must cover a load."""

    load: str
    limit: str
    target: str
    exhausted: str
    unit: float
    covers: tuple[tuple[str, Field], ...]


_SIDES: Final = (
    _Side(
        "load_tflops", "limit_tflops", "target_ratio", "exhausted_limit_count", 1.0,
        (("cover_request_tflops", Field.COMPUTE_REQUEST), ("cover_limit_tflops", Field.COMPUTE_LIMIT)),
    ),
    _Side(
        "load_gib", "limit_gib", "target_vram_ratio", "exhausted_vram_limit_count", 2.0**30,
        (("cover_request_gib", Field.VRAM_REQUEST), ("cover_limit_gib", Field.VRAM_LIMIT)),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Wish:
    """Workers that one resource asks for: the count to go to, and the least that carry the load with tolerance."""

    desired: float
    fewest: float


def _wish(known: Mapping[str, float], count: float, side: _Side) -> _Wish:
    gain = known["clipped_gain_ratio"] if side is _SIDES[0] and not math.isnan(known["clipped_gain_ratio"]) else 1.0
    tolerance, missing = known["tolerance_ratio"], known["missing_workers"]
    measured, capacity = known["ready_workers"] - missing, known[side.target] * known[side.limit]
    worth = gain * known[side.load] / capacity if capacity else math.nan
    ceiling = math.ceil((worth + missing) / max(1 - tolerance, 1e-6) - 1e-9) if not math.isnan(worth) else math.nan
    if measured <= 0 or math.isnan(worth):
        return _Wish(math.nan, float(ceiling))
    ratio = worth / measured
    others = missing + known["unready_workers"] if ratio > 1 else missing
    assumed = worth + missing if ratio < 1 else worth
    corrected, desired = assumed / (measured + others), float(math.ceil(assumed - 1e-9))
    is_inside = abs(corrected - 1) <= tolerance + 1e-9
    is_turned = (ratio - 1) * (corrected - 1) < 0 or (desired - count) * (corrected - 1) < 0
    desired = count if is_inside or is_turned else desired
    return _Wish(desired, max(float(ceiling), desired))


def _is_covered(record: Record, known: Mapping[str, float]) -> bool:
    """Tell whether the figures in force already cover what each remaining worker takes over."""
    return not any(
        record[field].current < known[name] * side.unit * (1 - 1e-9) for side in _SIDES for name, field in side.covers
    )


def _covering(figure: FigureRecord, estimated: Estimate) -> Estimate:
    """Return an amount's estimate, at least what each worker needs once there are fewer."""
    value, cause = estimated
    known, current = inputs_of(figure), figure.current
    needed, last = known["cover"], 1.1 * known["cover_last"]
    if math.isnan(needed):
        return estimated
    raised = most(value, 1.1 * needed if needed > current else least(last, current))
    return raised, Cause.COVER_FIRST if raised > value and raised > current else cause


def estimate(record: Record, field: Field) -> Estimate:
    """Return the figure that the estimator of a field came to, and what led to it; an order takes its place."""
    figure = record[field]
    ordered = inputs_of(figure)["ordered"]
    if not math.isnan(ordered):
        return ordered, figure.estimated.cause
    return _covering(figure, _ESTIMATORS[field](record))


_ESTIMATORS: Final[Mapping[Field, Callable[[Record], Estimate]]] = {
    Field.COMPUTE_REQUEST: _compute_request,
    Field.COMPUTE_LIMIT: _compute_limit,
    Field.VRAM_REQUEST: _vram_request,
    Field.VRAM_LIMIT: _vram_limit,
    Field.REPLICAS: _replicas,
}
