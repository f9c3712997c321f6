"""Layer 3, the baseline: what to reserve for a worker.

Compute: a quantile of the decaying histogram with a raise line, a fast path for repeated exceedance, and a CUSUM that
lowers only on accumulated evidence (Page 1954); with a forecast, quantiles of the coming hours' largest use instead of
the histogram's. VRAM: `lo` of the activity-gated rule in `vram`.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from autoscaler.model import defaults
from autoscaler.model.columns import fmax, isnan, largest, maximum, minimum, power, ratio, where, without
from autoscaler.model.decision import Field
from autoscaler.model.defaults import MINUTE
from autoscaler.model.fleet import Fleet
from autoscaler.model.reasons import Cause
from autoscaler.model.resources import Resource
from autoscaler.model.rows import Rows
from autoscaler.model.usage import Bools, Floats
from autoscaler.recommend.estimate import Estimate, choose
from autoscaler.recommend.forecast import Forecast
from autoscaler.recommend.histogram import COMPUTE_BUCKETS, quantiles
from autoscaler.recommend.vram import oom_floor

PEAK_FLOOR_RATIO: Final = 0.1
ORIGINAL_FLOOR_RATIO: Final = 0.005
EXCEEDED_GAIN: Final = 1.1
EXCEEDED_WINDOW_SECONDS: Final = 30 * MINUTE
SURPLUS_RATIO: Final = 0.1
VRAM_SURPLUS_RATIO: Final = 0.05
"""The working level of a day moves little, and what it gives back waits 25 minutes: no wide band is needed on top."""
SURPLUS_LEVEL_MINUTES: Final = 25.0
LINE_POWER: Final = 5
"""The raise line is the forecast's quantile at the target's level to this power: .77 becomes .27.

A low line lets a request stand that is likely enough to suffice; a level near 1 must not, so its line stays high.
"""
SURPLUS_LEAK: Final = 0.1
MAX_JUDGED_SECONDS: Final = 10 * MINUTE
OOM_GAIN: Final = 1.2


def compute_requests(fleet: Fleet, memory: Rows, forecast: Forecast | None = None) -> Estimate:
    """Return the wanted compute requests; advances the CUSUM to `fleet.now`, once per moment."""
    current = fleet.current[:, Field.COMPUTE_REQUEST]
    peak = largest(memory["compute_peaks"])
    floor = maximum(PEAK_FLOOR_RATIO * peak, ORIGINAL_FLOOR_RATIO * fleet.original[:, Field.COMPUTE_REQUEST])
    ahead = _Ahead(fleet, forecast)
    target, lower, named = _past(fleet, memory, ahead.replaces)
    target = maximum(fmax(target, ahead.target), floor)
    lower = maximum(fmax(lower, ahead.line), floor)
    surplus, level = _judge(fleet, memory, target), ahead.surplus_minutes(fleet)
    exceeded = _exceeded(fleet, memory)
    peak_above = memory["exceeded_peak"]
    rules = (
        (isnan(target), current, Cause.NO_DATA),
        (exceeded, fmax(target, EXCEEDED_GAIN * peak_above), Cause.EXCEEDED),
        (lower > current, target, Cause.RAISED),
        ((surplus > level) & (target < (1 - SURPLUS_RATIO) * current), target, Cause.SURPLUS),
    )
    figure, cause = choose(current, rules)
    return Estimate(
        figure=figure,
        lower=lower,
        upper=target / (1 - SURPLUS_RATIO),
        cause=cause,
        urgent=exceeded,
        inputs={
            **named,
            **ahead.inputs,
            "floor": floor,
            "peak_7d": peak,
            "peak_above_request": where(exceeded, peak_above, np.nan),
            "surplus_minutes": surplus,
            "surplus_level_minutes": level,
        },
    )


def _past(fleet: Fleet, memory: Rows, replaced: Bools) -> tuple[Floats, Floats, dict[str, Floats]]:
    """Return target and raise line of the decaying histogram (W,), NaN where a forecast replaces it, and its inputs."""
    knobs = fleet.knobs
    explicit = knobs.request_percentile[:, Resource.COMPUTE]
    percentile = where(isnan(explicit), where(replaced, np.nan, knobs.level_percentile), explicit)
    buffer = knobs.request_buffer[:, Resource.COMPUTE]
    (quantile,) = quantiles(memory.weights("request_weights"), COMPUTE_BUCKETS, percentile)
    named = {"percentile": percentile, "quantile": quantile, "buffer_ratio": buffer}
    return quantile * (1 + buffer), quantile, named


class _Ahead:
    """The forecast's target and raise line (W,), NaN where none is asked for or known; `replaces`: the histogram."""

    def __init__(self, fleet: Fleet, forecast: Forecast | None) -> None:
        knobs, level = fleet.knobs, fleet.knobs.level_forecast
        self.target = self.line = np.nan * level
        self.inputs: dict[str, Floats] = {}
        if forecast is not None:
            # Only an explicit buffer counts: the quantile of a maximum has its margin in it.
            buffer = knobs.request_buffer[:, Resource.VRAM]
            used = where(knobs.forecast_layers[:, 0] > 0, 1 + where(isnan(buffer), 0.0, buffer), np.nan)
            self.target, self.line = used * forecast.at(level), used * forecast.at(power(level, LINE_POWER))
            named = {"forecast_target": self.target, "forecast_line": self.line}
            self.inputs = {**named, "forecast_quantile": level, "forecast_ratio": used, **forecast.inputs(used)}
        self.speaks: Bools = without(isnan(self.target))
        self.replaces: Bools = self.speaks & isnan(fleet.knobs.request_percentile[:, Resource.COMPUTE])

    def surplus_minutes(self, fleet: Fleet) -> Floats:
        """Return the evidence that lowers a request (W,): less with a forecast, which rises before the use does."""
        return where(self.replaces, fleet.knobs.level_forecast_surplus, SURPLUS_LEVEL_MINUTES)


def _judge(fleet: Fleet, memory: Rows, target: Floats) -> Floats:
    """Accumulate evidence (in minutes) that the request is too large, and return it."""
    surplus, judged_at = memory["surplus"], memory["judged_at"]
    elapsed = minimum(fmax(fleet.now - judged_at, 0.0), MAX_JUDGED_SECONDS) / MINUTE
    excess = 1 - ratio(target, fleet.current[:, Field.COMPUTE_REQUEST])
    leaked = maximum(0.0, surplus - SURPLUS_LEAK * elapsed)
    grown = where(excess > SURPLUS_RATIO, surplus + excess * elapsed, where(excess < 0, 0.0, leaked))
    grown = where(isnan(excess), surplus, grown)
    surplus = minimum(grown, 10 * SURPLUS_LEVEL_MINUTES)
    memory["surplus"], memory["judged_at"] = surplus, fleet.now
    return surplus


def _exceeded(fleet: Fleet, memory: Rows) -> Bools:
    """Return where use passed the request in at least k samples within half an hour."""
    times, needed = memory["exceeded_at"], fleet.knobs.level_exceedances
    latest = where(needed <= 1, times[:, 0], times[:, 1])
    return fleet.now - latest <= EXCEEDED_WINDOW_SECONDS


def vram_requests(fleet: Fleet, memory: Rows, low: Floats, inputs: dict[str, Floats]) -> Estimate:
    """Return the wanted VRAM requests: the guarantee `low` (W,), the cooled level of an idle workload, or more.

    After an out-of-memory event the guarantee itself must grow: on a full device a higher ceiling is not to be had.
    """
    current = fleet.current[:, Field.VRAM_REQUEST]
    idle_seconds = fleet.now - memory["active_at"]
    use, floor = inputs["live"], oom_floor(fleet, memory, OOM_GAIN)
    cooled = maximum((1 + defaults.VRAM_HEADROOM_RATIO) * use, defaults.COOLED_VRAM_BYTES)
    idle = (idle_seconds > fleet.knobs.level_cool) & (cooled < low)
    settled = where(idle, cooled, low)
    target = fmax(settled, where(isnan(settled), np.nan, floor))
    needed = fmax(where(idle, use, low / (1 + inputs["buffer_ratio"])), floor)
    ran_out, spare = floor > current, target < (1 - VRAM_SURPLUS_RATIO) * current
    rules = (
        (isnan(target), current, Cause.NO_DATA),
        (ran_out, target, Cause.OOM_SEEN),
        (needed > current, target, Cause.RAISED),
        (spare & idle, target, Cause.IDLE),
        (spare, target, Cause.SURPLUS),
    )
    figure, cause = choose(current, rules)
    return Estimate(
        figure=figure,
        lower=needed,
        upper=target / (1 - VRAM_SURPLUS_RATIO),
        cause=cause,
        urgent=ran_out,
        inputs={
            **inputs,
            "idle_seconds": where(idle_seconds < np.inf, idle_seconds, np.nan),
            "cools_after_seconds": where(fleet.knobs.level_cool < np.inf, fleet.knobs.level_cool, np.nan),
            "oom_floor": floor,
        },
    )
