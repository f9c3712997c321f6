"""The VRAM rule: a guarantee `lo` that covers working memory, a ceiling `hi` for its bursts.

Peaks of VRAM are isolated but almost never start from idle, so only active samples teach the working level B (q95 of a
histogram with a half-life of 24 h), and the head-room over the recent maximum M shrinks as evidence of calm grows:
x = (C - 1) x max(2 (q99 - q50), 4 sqrt(ms)) / B, shrunk towards mmax = .6 (C - 1) by a prior worth 60 active samples;
hi = min(max(min(M (1 + m), C B), 1.05 M, (1 + a) B unless busy), device), lo = min(max(v, B) (1 + a), max(hi, 1.05 v)).
A maximum of the last week that lies less than a tenth over hi is covered too: what is nearly paid for should be safe.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from autoscaler.model import defaults
from autoscaler.model.columns import fmax, fmin, isnan, largest, maximum, minimum, ratio, where, without
from autoscaler.model.defaults import HOUR
from autoscaler.model.fleet import Fleet
from autoscaler.model.resources import Resource
from autoscaler.model.rows import Rows
from autoscaler.model.usage import Floats
from autoscaler.recommend.histogram import VRAM_BUCKETS, quantiles

PRIOR_SAMPLES: Final = 60.0
PRIOR_MARGIN: Final = 0.6
LEAST_MARGIN_RATIO: Final = 0.08
WORKING_PERCENTILE: Final = 0.95
WEEK_GAIN: Final = 1.02
WEEK_REACH_RATIO: Final = 0.1
BUSY_SHARE: Final = 0.9
OOM_HOLD_SECONDS: Final = 2 * HOUR


def vram_levels(fleet: Fleet, memory: Rows) -> tuple[Floats, Floats, dict[str, Floats]]:
    """Return the guarantee `lo` and the ceiling `hi` (W,) in bytes, NaN where nothing is known, and their inputs."""
    knobs = fleet.knobs
    cap, explicit = knobs.level_burst_cap, knobs.request_percentile[:, Resource.VRAM]
    percentile = where(isnan(explicit), WORKING_PERCENTILE, explicit)
    levels = percentile, WORKING_PERCENTILE, 0.99, 0.5
    working, q95, q99, q50 = quantiles(memory.weights("vram_weights"), VRAM_BUCKETS, *levels)
    of_week = largest(memory["vram_day_peaks"])
    # A quantile is its bucket's upper edge; what lies over the largest use is the bucket's width, not use.
    seen = where(of_week > 0, of_week, np.inf)
    working, q95, q99, q50 = (minimum(one, seen) for one in (working, q95, q99, q50))
    # Too few samples say how much the work needs, but its model's weights are there once it serves.
    weights = where(memory["vram_samples"] < PRIOR_SAMPLES, fleet.prior[:, Resource.VRAM], np.nan)
    lifted = weights > working
    working = where(lifted, weights, working)
    peak = largest(memory["vram_peaks"])
    peak = where(peak > 0, peak, np.nan)
    margin = _margin(memory, cap, (q95, q99, q50))
    live = fmax(memory["use"][:, Resource.VRAM], fleet.demand[:, Resource.VRAM])
    headroom = 1 + defaults.VRAM_HEADROOM_RATIO
    high = _nearly_covered(fmax(fmin(peak * (1 + margin), cap * q95), headroom * peak), WEEK_GAIN * of_week)
    buffer = knobs.request_buffer[:, Resource.VRAM]
    above = where(isnan(buffer), knobs.level_vram_margin, buffer)
    needed = fmax(live, working) * (1 + above)
    # Ceilings may overcommit: while a worker idles, fading peaks lower one no further than what its work needs once it
    # comes back. One that works all the time shows what it needs.
    kept = where(memory["active_share"] < BUSY_SHARE, working * (1 + above), np.nan)
    high = minimum(fmax(high, kept), fleet.device[:, Resource.VRAM])
    low = minimum(needed, fmax(high, headroom * live))
    inputs = {
        "percentile": percentile,
        "working_level": working,
        "q95": where(isnan(explicit) & without(lifted), np.nan, q95),
        "buffer_ratio": above,
        "peak_4h": peak,
        "peak_7d": of_week,
        "margin_ratio": margin,
        "burst_cap": cap,
        "live": live,
        "kept_level": kept,
    }
    return low, high, inputs


def oom_floor(fleet: Fleet, memory: Rows, gain: float) -> Floats:
    """Return `gain` times the limit in force at the last out-of-memory event, for two hours; NaN afterwards, (W,).

    Also where that is more than the device has: the guards cut it and say so, instead of calling all well.
    """
    held = fleet.now - memory["oom_at"] <= OOM_HOLD_SECONDS
    return where(held, gain * memory["oom_level"], np.nan)


def _nearly_covered(high: Floats, week: Floats) -> Floats:
    """Return the ceiling (W,), or what a peak of the week asks for where that is little more."""
    return where((week > high) & (week <= (1 + WEEK_REACH_RATIO) * high), week, high)


def _margin(memory: Rows, cap: Floats, levels: tuple[Floats, Floats, Floats]) -> Floats:
    """Return the head-room over the recent maximum, as a ratio, (W,)."""
    q95, q99, q50 = levels
    most, count = PRIOR_MARGIN * (cap - 1), memory["vram_samples"]
    spread = maximum(2 * (q99 - q50), 4 * np.sqrt(memory["vram_square"]))
    seen = minimum(fmax(ratio((cap - 1) * spread, q95), LEAST_MARGIN_RATIO), most)
    return (PRIOR_SAMPLES * most + count * seen) / (PRIOR_SAMPLES + count)
