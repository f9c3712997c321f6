"""What the forecast looks at: scale-free numbers from 5-minute bins, for many rows or one.

All features but one are f(x) = log(x / s + .02), where the scale s is the mean of the last day's peaks: a workload of
3 TFLOPs and one of 300 with the same shape look the same. NaN bins are unknown and count nowhere.
"""

from __future__ import annotations

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
LEVEL_CHANGE: Final = (0.3, 3.0)
UPPER_QUANTILE: Final = 0.9


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
    known: Bools = ~np.isnan(last_day)
    peaks = np.where(known, last_day, 0.0)
    means = np.where(known, bins.means[:, end - PER_DAY : end], 0.0)
    # how many of the last k bins are known, for any k, from one pass
    count: Ints = np.cumsum(known[:, ::-1], axis=1, dtype=np.int64)
    total = np.cumsum(means[:, ::-1], axis=1, dtype=np.float64)
    bins_known = count[:, -1]
    scale = np.maximum(peaks.sum(axis=1) / np.maximum(bins_known, 1), SCALE_FLOOR_RATIO * original)
    scale = np.maximum(scale, LEAST_SCALE)
    spans = [PER_HOUR - 1, 3 * PER_HOUR - 1, PER_DAY - 1]
    mean = total[:, spans] / np.maximum(count[:, spans], 1)
    highest = peaks.max(axis=1)
    high = known & (peaks >= HIGH_RATIO * highest[:, None])
    table = np.empty((len(scale), 11))
    table[:, 0] = peaks[:, -1]
    table[:, 1] = peaks[:, -PER_HOUR // 2 :].max(axis=1)
    table[:, 2] = peaks[:, -PER_HOUR:].max(axis=1)
    table[:, 3] = peaks[:, -4 * PER_HOUR :].max(axis=1)
    table[:, 4] = highest
    table[:, 5:8] = mean
    table[:, 8] = _upper(last_day[:, -3 * PER_HOUR :], count[:, 3 * PER_HOUR - 1])
    table[:, 9] = _upper(last_day, bins_known)
    table[:, :10] = relative(table[:, :10], scale[:, None])
    table[:, 10] = np.argmax(high[:, ::-1], axis=1) / PER_HOUR
    return Features(scale, table, _season(bins, (scale, mean[:, 0]), horizon, days), bins_known)


def _upper(values: Floats, count: Ints) -> Floats:
    """Return the q90 of each row's `count` known values, by nearest rank; 0 where none is known."""
    ordered = np.sort(values, axis=1)  # NaN last
    rank = np.maximum(np.ceil(UPPER_QUANTILE * count).astype(np.int64) - 1, 0)
    return np.where(count > 0, ordered[np.arange(len(ordered)), rank], 0.0)


def _season(bins: Bins, level: tuple[Floats, Floats], horizon: int, days: Ints) -> Floats:
    """Return what the coming hours were like on the days before, (W, 4); `level`: the scale and the mean of an hour."""
    scale, now = level
    ahead, ahead_known = _same_hours(bins.peaks, bins.end, horizon, days)
    behind, behind_known = _same_hours(bins.means, bins.end - PER_HOUR, PER_HOUR, days)
    seen = 2 * ahead_known >= horizon
    peak = ahead.max(axis=2)
    comparable = seen & (2 * behind_known >= PER_HOUR)
    then = behind.sum(axis=2) / np.maximum(behind_known, 1)
    soft = OFFSET * scale
    change = np.clip((now + soft)[:, None] / (then + soft[:, None]), *LEVEL_CHANGE)
    table = np.full((len(scale), 4), np.nan)
    count, compared = seen.sum(axis=1), comparable.sum(axis=1)
    complete = seen[:, -1] & (compared > 0)
    peak = np.where(seen, peak, 0.0)
    table[:, 0] = peak[:, -1]
    table[:, 1] = peak.sum(axis=1) / np.maximum(count, 1)
    table[:, 2] = peak.max(axis=1)
    table[:, 3] = np.where(comparable, peak * change, 0.0).sum(axis=1) / np.maximum(compared, 1)
    return np.where(complete[:, None], relative(table, scale[:, None]), np.nan)


def _same_hours(values: Floats32, end: int, width: int, days: Ints) -> tuple[Floats, Ints]:
    """Return the `width` bins from `end` on, on each of the last seven days (W, 7, width), and how many are known."""
    week = values[:, end - SEASON_DAYS * PER_DAY : end].reshape(len(values), SEASON_DAYS, PER_DAY)[:, :, :width]
    allowed = np.arange(SEASON_DAYS, 0, -1) <= days[:, None]
    known = ~np.isnan(week) & allowed[:, :, None]
    return np.where(known, week, 0.0).astype(np.float64), known.sum(axis=2)
