"""What the forecast looks at: scale-free numbers from 5-minute bins, for many rows or one.

All features but one are f(x) = log(x / s + .02), where the scale s is the mean of the last day's peaks: a workload of
3 TFLOPs and one of 300 with the same shape look the same. NaN bins are unknown and count nowhere.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from autoscaler.model.defaults import DAY, HOUR
from autoscaler.model.usage import Bools, Floats, Floats32, Ints

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
LAST_OF_PEAKS: Final = PEAK_BINS - 1
LAST_OF_MEANS: Final = MEAN_BINS - 1
LAST_HOURS: Final = slice(-3 * PER_HOUR, None)
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
    peaks, means, known = _last_day(bins)
    backwards = peaks[:, ::-1]
    if known is None:
        count, counted = None, MEAN_BINS
    else:
        # how many of the last k bins are known, for any k, from one pass
        count = np.cumsum(known[:, ::-1], axis=1, dtype=np.int64)[:, LAST_OF_MEANS]
        counted = np.maximum(count, 1)
    scale = np.maximum(np.add.reduce(peaks, axis=1) / counted[..., 2], SCALE_FLOOR_RATIO * original)
    scale = np.maximum(scale, LEAST_SCALE)
    table = np.empty((len(scale), 11))
    table[:, :5] = np.maximum.accumulate(backwards, axis=1).take(LAST_OF_PEAKS, axis=1)
    total = np.add.accumulate(means[:, ::-1].astype(np.float64), axis=1).take(LAST_OF_MEANS, axis=1)
    table[:, 5:8] = mean = total / counted
    high = backwards >= HIGH_RATIO * table[:, 4:5]
    if known is None or count is None:
        in_bins = np.full(len(scale), PER_DAY)
        table[:, 8], table[:, 9] = _upper_of_all(peaks[:, LAST_HOURS]), _upper_of_all(peaks)
    else:
        in_bins, high = count[:, 2], high & known[:, ::-1]
        table[:, 8] = _upper(peaks[:, LAST_HOURS], known[:, LAST_HOURS], count[:, 1])
        table[:, 9] = _upper(peaks, known, in_bins)
    table[:, :10] = relative(table[:, :10], scale[:, None])
    table[:, 10] = high.argmax(axis=1) / PER_HOUR
    return Features(scale, table, _season(bins, (scale, mean[:, 0]), horizon, days), in_bins)


def _last_day(bins: Bins) -> tuple[Floats, Floats32, Bools | None]:
    """Return the last day's peaks and means, 0 where unknown, and which are known; None: all, as most of the time."""
    day = slice(bins.end - PER_DAY, bins.end)
    peaks, means = bins.peaks[:, day].astype(np.float64), bins.means[:, day]
    known = peaks == peaks  # noqa: PLR0124  quicker than the function, and the same
    if np.logical_and.reduce(known, axis=None):
        return peaks, means, None
    return np.where(known, peaks, 0.0), np.where(known, means, 0.0), known


def _upper_of_all(values: Floats) -> Floats:
    """Return what `_upper` does where all are known."""
    rank = math.ceil(UPPER_QUANTILE * values.shape[1]) - 1
    return np.partition(values, rank, axis=1)[:, rank]


def _upper(values: Floats, known: Bools, count: Ints) -> Floats:
    """Return the q90 of each row's `count` known values; 0 where none is known."""
    ordered = np.sort(np.where(known, values, np.inf), axis=1)
    ranks = np.maximum(np.ceil(UPPER_QUANTILE * count).astype(np.int64) - 1, 0)
    return np.where(count > 0, ordered[np.arange(len(ordered)), ranks], 0.0)


def _season(bins: Bins, level: tuple[Floats, Floats], horizon: int, days: Ints) -> Floats:
    """Return what the coming hours were like on the days before, (W, 4); `level`: the scale and the mean of an hour."""
    scale, now = level
    ahead = _same_hours(bins.peaks, bins.end, horizon)
    seen = 2 * np.add.reduce(ahead == ahead, axis=2) >= horizon  # noqa: PLR0124  quicker than the function, the same
    seen &= days[:, None] >= DAYS_AGO
    if not seen[:, -1].any():
        return np.full((len(scale), 4), np.nan)
    behind = _same_hours(bins.means, bins.end - PER_HOUR, PER_HOUR)
    known = behind == behind  # noqa: PLR0124
    hours = np.add.reduce(known, axis=2)
    comparable = seen & (2 * hours >= PER_HOUR)
    then = np.add.reduce(np.where(known, behind, 0.0).astype(np.float64), axis=2) / np.maximum(hours, 1)
    soft = OFFSET * scale
    change = (now + soft)[:, None] / (then + soft[:, None])
    change = np.minimum(np.maximum(change, LEVEL_CHANGE[0]), LEVEL_CHANGE[1])
    peak = np.where(seen, np.fmax.reduce(ahead, axis=2), 0.0).astype(np.float64)
    compared = np.add.reduce(comparable, axis=1)
    table = np.empty((len(scale), 4))
    table[:, 0] = peak[:, -1]
    table[:, 1] = np.add.reduce(peak, axis=1) / np.maximum(np.add.reduce(seen, axis=1), 1)
    table[:, 2] = np.maximum.reduce(peak, axis=1)
    table[:, 3] = np.add.reduce(np.where(comparable, peak * change, 0.0), axis=1) / np.maximum(compared, 1)
    complete = seen[:, -1] & (compared > 0)
    table = relative(table, scale[:, None])
    table[~complete] = np.nan
    return table


def _same_hours(values: Floats32, end: int, width: int) -> Floats32:
    """Return the `width` bins from `end` on, on each of the last seven days, (W, 7, width)."""
    week = values[:, end - SEASON_DAYS * PER_DAY : end]
    return week.reshape(len(values), SEASON_DAYS, PER_DAY)[:, :, :width]
