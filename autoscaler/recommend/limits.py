"""Layer 1, the burst ceiling: follows the request and the recent peak, and probes upward when use is clipped.

Usage at the limit is censored, so a saturated workload's demand is unknown: the limit doubles, then quadruples from the
second saturated sample in a row, until use is no longer clipped. Where the profile sets a percentile or buffer, the
published formula holds instead: percentile x (1 + buffer), on saturation at least current x scaleUpStep.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from autoscaler.model import defaults
from autoscaler.model.columns import fmax, isnan, largest, maximum, minimum, power, where, without
from autoscaler.model.decision import Field
from autoscaler.model.fleet import Fleet
from autoscaler.model.reasons import Cause
from autoscaler.model.resources import Resource
from autoscaler.model.rows import Rows
from autoscaler.model.usage import SATURATED_RATIO, SATURATION_DEVICE_RATIO, Bools, Floats
from autoscaler.recommend.estimate import Estimate, choose
from autoscaler.recommend.forecast import Forecast, foreseen_peak
from autoscaler.recommend.histogram import COMPUTE_BUCKETS, VRAM_BUCKETS, quantiles
from autoscaler.recommend.vram import oom_floor

OVER_REQUEST_RATIO: Final = 1.3
OVER_PEAK_RATIO: Final = 1.25
ORIGINAL_FLOOR_RATIO: Final = 0.1
RAISE_RATIO: Final = 1.05
VISIBLE_GAIN: Final = 1.02
LOWER_RATIO: Final = 0.8
VRAM_LOWER_RATIO: Final = 0.9
NEAR_LIMIT_RATIO: Final = 0.96
OOM_STEP: Final = 1.5


def compute_limits(fleet: Fleet, memory: Rows, request: Floats, forecast: Forecast | None = None) -> Estimate:
    """Return the wanted compute limits for the wanted requests (W,)."""
    current = fleet.current[:, Field.COMPUTE_LIMIT]
    normal, inputs = _normal(fleet, memory, request)
    if forecast is not None:
        inputs["forecast_peak"] = foreseen_peak(fleet, forecast)
        normal = fmax(normal, inputs["forecast_peak"])
    lower_ratio = where(isnan(inputs["percentile"]), LOWER_RATIO, 1.0)
    streak = memory["saturated"]
    saturated = (streak > 0) & _judged(memory, current)
    step = where(streak > 1, power(fleet.knobs.scale_up_step, 2), fleet.knobs.scale_up_step)
    probe = fmax(step * current, inputs.pop("learnt"))
    # Saturation is a shortage that was answered by a raise: after it lowering waits as long as after one.
    since, wait = fleet.now - memory["saturated_at"], fleet.knobs.down_cool_down[:, Field.COMPUTE_LIMIT]
    calm = since > wait
    raised = request > fleet.current[:, Field.COMPUTE_REQUEST]
    rules = (
        (isnan(normal) & without(saturated), current, Cause.NO_DATA),
        (saturated, probe, Cause.SATURATED),
        ((normal > RAISE_RATIO * current) | (raised & (normal > current)), normal, Cause.RAISED),
        ((normal < lower_ratio * current) & calm, normal, Cause.SURPLUS),
    )
    figure, cause = choose(current, rules)
    return Estimate(
        figure=figure,
        lower=normal / RAISE_RATIO,
        upper=normal / lower_ratio,
        cause=cause,
        urgent=saturated,
        inputs={
            **inputs,
            "saturated_samples": +streak,
            "step": where(saturated, step, np.nan),
            "lowering_waits_seconds": where(calm, np.nan, wait - since),
        },
    )


def _normal(fleet: Fleet, memory: Rows, request: Floats) -> tuple[Floats, dict[str, Floats]]:
    """Return the limit of an unsaturated workload (W,) and its inputs; `learnt`: what a probe never stays below."""
    peak = largest(memory["compute_peaks"])
    most = fleet.knobs.max_ratio_to_requests
    most = where(isnan(most), defaults.MAX_RATIO_TO_REQUESTS, most)
    floor = ORIGINAL_FLOOR_RATIO * fleet.original[:, Field.COMPUTE_LIMIT]
    burst = minimum(OVER_PEAK_RATIO * peak, most * request)
    ruled = maximum(maximum(OVER_REQUEST_RATIO * request, burst), floor)
    formula, percentile, quantile = _formula(fleet, memory, Resource.COMPUTE)
    explicit = without(isnan(percentile))
    visible = _visible(fleet, where(explicit, quantile, burst / OVER_PEAK_RATIO))
    known = where(memory["samples"] > 0, ruled, np.nan)
    inputs = {
        "percentile": percentile,
        "quantile": quantile,
        "buffer_ratio": where(explicit, fleet.knobs.limit_buffer[:, Resource.COMPUTE], np.nan),
        "request": +request,
        "peak_7d": peak,
        "ratio_to_request": most,
        "visible_limit": visible,
        "use": +memory["use"][:, Resource.COMPUTE],
        "learnt": where(explicit, formula, maximum(OVER_PEAK_RATIO * peak, floor)),
    }
    return maximum(where(explicit, formula, known), visible), inputs


def _judged(memory: Rows, current: Floats) -> Bools:
    """Return where saturation was seen under the limit in force (W,): a pass without a new bin must not raise again."""
    same = memory["seen"][:, Field.COMPUTE_LIMIT] == current
    judged: Bools = same & (memory["saturated_at"] > memory["limit_changed_at"])
    return judged


def _visible(fleet: Fleet, use: Floats) -> Floats:
    """Return the least limit under which this use (W,) does not count as saturated, 0 where the device is unknown.

    Enforcement is as coarse as 1 % of the device: under a smaller limit than this every sample would look clipped, and
    the limit would probe for ever.
    """
    device = fleet.device[:, Resource.COMPUTE]
    return where(device < np.inf, VISIBLE_GAIN * (use + SATURATION_DEVICE_RATIO * device) / SATURATED_RATIO, 0.0)


def vram_limits(fleet: Fleet, memory: Rows, high: Floats, inputs: dict[str, Floats]) -> Estimate:
    """Return the wanted VRAM limits from the ceiling `high` (W,)."""
    current, live = fleet.current[:, Field.VRAM_LIMIT], inputs["live"]
    formula, percentile, quantile = _formula(fleet, memory, Resource.VRAM)
    explicit = without(isnan(percentile))
    device = fleet.device[:, Resource.VRAM]
    ceiling = where(explicit, minimum(fmax(formula, (1 + defaults.VRAM_HEADROOM_RATIO) * live), device), high)
    floor = _floor(fleet, memory)
    wanted = fmax(ceiling, floor)
    ran_out = floor > current
    near = (live > NEAR_LIMIT_RATIO * current) & (wanted > current)
    rules = (
        (isnan(wanted), current, Cause.NO_DATA),
        (ran_out, wanted, Cause.OOM_SEEN),
        (near, wanted, Cause.SATURATED),
        (wanted > RAISE_RATIO * current, wanted, Cause.RAISED),
        (wanted < VRAM_LOWER_RATIO * current, wanted, Cause.SURPLUS),
    )
    figure, cause = choose(current, rules)
    buffer = where(explicit, fleet.knobs.limit_buffer[:, Resource.VRAM], np.nan)
    named = {**inputs, "percentile": percentile, "quantile": quantile, "limit_buffer_ratio": buffer, "oom_floor": floor}
    return Estimate(figure, wanted / RAISE_RATIO, wanted / VRAM_LOWER_RATIO, cause, near | ran_out, named)


def _floor(fleet: Fleet, memory: Rows) -> Floats:
    """Return the least ceiling after an out-of-memory event (W,): half more than was in force, and the owner's again.

    A ceiling that was learnt from calm times and ends the work would cost a death for every step on the way back.
    """
    floor = oom_floor(fleet, memory, OOM_STEP)
    return where(isnan(floor), np.nan, fmax(floor, fleet.original[:, Field.VRAM_LIMIT]))


def _formula(fleet: Fleet, memory: Rows, resource: Resource) -> tuple[Floats, Floats, Floats]:
    """Return the published formula's figure, its percentile (NaN where not asked for) and the quantile, (W,) each."""
    percentile = fleet.knobs.limit_percentile[:, resource]
    name, buckets = (("limit_weights", COMPUTE_BUCKETS), ("vram_weights", VRAM_BUCKETS))[resource]
    (quantile,) = quantiles(memory.weights(name), buckets, percentile)
    return quantile * (1 + fleet.knobs.limit_buffer[:, resource]), percentile, quantile
