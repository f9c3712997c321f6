"""What the forecast looks at: scale-free numbers from 5-minute bins, for many rows or one.

All features but one are f(x) = log(x / s + .02), where the scale s is the mean of the last day's peaks: a workload of
3 TFLOPs and one of 300 with the same shape look the same. NaN bins are unknown and count nowhere.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from autoscaler.model.defaults import DAY, HOUR
from autoscaler.model.usage import Floats, Floats32, Ints

BIN_SECONDS: Final = 300.0
PER_HOUR: Final = int(HOUR // BIN_SECONDS)
PER_DAY: Final = int(DAY // BIN_SECONDS)
SEASON_DAYS: Final = 7
NEEDED_BINS: Final = SEASON_DAYS * PER_DAY + PER_HOUR
"""Bins behind the newest that the features may read."""
OFFSET: Final = 0.02
LEAST_SCALE: Final = 1e-9
SCALE_FLOOR_RATIO: Final = 0.005
HIGH_RATIO: Final = 0.8
DAYS_AGO: Final = np.arange(SEASON_DAYS, 0, -1)
LEVEL_CHANGE: Final = (0.3, 3.0)
UPPER_QUANTILE: Final = 0.9
PEAK_BINS: Final = np.array([1, PER_HOUR // 2, PER_HOUR, 4 * PER_HOUR, PER_DAY])
MEAN_BINS: Final = np.array([PER_HOUR, 3 * PER_HOUR, PER_DAY])
"""Spans of the features, in bins."""


class Features(NamedTuple):
    """`scale` (W,) in TFLOPs, `plain` (W, 11), `season` (W, 4; NaN: no earlier day known), `known` (W,) in bins."""

    scale: Floats
    plain: Floats
    season: Floats
    known: Ints


class Bins(NamedTuple):
    """Largest and mean use per 5-minute bin, (W, C) in TFLOPs; what is known ends before column `end`."""

    peaks: Floats32
    means: Floats32
    end: int


def relative(values: Floats, scale: Floats) -> Floats:
    """Return f of values (W, N) or (W,) at a scale of the same or fewer axes."""
    return np.log(values / scale + OFFSET)


def features(bins: Bins, original: Floats, horizon: int, days: Ints) -> Features:
    """Return the features at the end of the newest bin.

    `original` (W,): the user's own request, which keeps an idle workload's scale off zero. `horizon`: bins ahead.
    `days` (W,): earlier days that may be looked at.
    """
    end = bins.end
    last_day = bins.peaks[:, end - PER_DAY : end].astype(np.float64)
    peaks, means, known = last_day, bins.means[:, end - PER_DAY : end], ~np.isnan(last_day)
    if known.all():
        count = np.full((len(known), len(MEAN_BINS)), MEAN_BINS)
    else:
        peaks, means = np.where(known, peaks, 0.0), np.where(known, means, 0.0)
        # how many of the last k bins are known, for any k, from one pass
        count = np.cumsum(known[:, ::-1], axis=1, dtype=np.int64)[:, MEAN_BINS - 1]
    total = np.add.accumulate(means[:, ::-1].astype(np.float64), axis=1)[:, MEAN_BINS - 1]
    bins_known = count[:, 2]
    counted = np.maximum(count, 1)
    scale = np.maximum(peaks.sum(axis=1) / counted[:, 2], SCALE_FLOOR_RATIO * original)
    scale = np.maximum(scale, LEAST_SCALE)
    table = np.empty((len(scale), 11))
    table[:, :5] = np.maximum.accumulate(peaks[:, ::-1], axis=1)[:, PEAK_BINS - 1]
    table[:, 5:8] = mean = total / counted
    highest = table[:, 4]
    high = known & (peaks >= HIGH_RATIO * highest[:, None])
    rank = np.maximum(np.ceil(UPPER_QUANTILE * count).astype(np.int64) - 1, 0)
    table[:, 8] = _upper(last_day[:, -3 * PER_HOUR :], rank[:, 1], count[:, 1])
    table[:, 9] = _upper(last_day, rank[:, 2], bins_known)
    table[:, :10] = relative(table[:, :10], scale[:, None])
    table[:, 10] = np.argmax(high[:, ::-1], axis=1) / PER_HOUR
    return Features(scale, table, _season(bins, (scale, mean[:, 0]), horizon, days), bins_known)


def _upper(values: Floats, rank: Ints, count: Ints) -> Floats:
    """Return the q90 of each row's `count` known values, which has this rank; 0 where none is known."""
    ordered = np.sort(values, axis=1)  # NaN last
    return np.where(count > 0, ordered[np.arange(len(ordered)), rank], 0.0)


def _season(bins: Bins, level: tuple[Floats, Floats], horizon: int, days: Ints) -> Floats:
    """Return what the coming hours were like on the days before, (W, 4); `level`: the scale and the mean of an hour."""
    scale, now = level
    table = np.full((len(scale), 4), np.nan)
    ahead = _same_hours(bins.peaks, bins.end, horizon)
    ahead_known = ~np.isnan(ahead)
    seen = (2 * ahead_known.sum(axis=2) >= horizon) & (days[:, None] >= DAYS_AGO)
    if not seen[:, -1].any():
        return table
    behind = _same_hours(bins.means, bins.end - PER_HOUR, PER_HOUR)
    behind_known = ~np.isnan(behind)
    hours = behind_known.sum(axis=2)
    comparable = seen & (2 * hours >= PER_HOUR)
    then = np.where(behind_known, behind, 0.0).astype(np.float64).sum(axis=2) / np.maximum(hours, 1)
    soft = OFFSET * scale
    change = (now + soft)[:, None] / (then + soft[:, None])
    change = np.minimum(np.maximum(change, LEVEL_CHANGE[0]), LEVEL_CHANGE[1])
    peak = np.where(seen, np.where(ahead_known, ahead, 0.0).max(axis=2), 0.0).astype(np.float64)
    compared = comparable.sum(axis=1)
    table[:, 0] = peak[:, -1]
    table[:, 1] = peak.sum(axis=1) / np.maximum(seen.sum(axis=1), 1)
    table[:, 2] = peak.max(axis=1)
    table[:, 3] = np.where(comparable, peak * change, 0.0).sum(axis=1) / np.maximum(compared, 1)
    complete = seen[:, -1] & (compared > 0)
    return np.where(complete[:, None], relative(table, scale[:, None]), np.nan)


def _same_hours(values: Floats32, end: int, width: int) -> Floats32:
    """Return the `width` bins from `end` on, on each of the last seven days, (W, 7, width)."""
    week = values[:, end - SEASON_DAYS * PER_DAY : end]
    return week.reshape(len(values), SEASON_DAYS, PER_DAY)[:, :, :width]
