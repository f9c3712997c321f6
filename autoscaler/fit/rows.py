"""History to rows of a regression: features at many moments, and the largest use that then came."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from autoscaler.model.usage import Bools, Floats, Floats32, Ints
from autoscaler.recommend.features import BIN_SECONDS, NEEDED_BINS, PER_DAY, SEASON_DAYS, Bins, features, relative
from autoscaler.recommend.forecast import LEAST_BINS

MOST_SERIES: Final = 200
MOST_ROWS: Final = 6000
"""The regression's time grows faster than its rows: 6,000 take about 10 s, and more change the weights little."""
MOST_PER_SERIES: Final = 300


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """Workers' use in 5-minute bins: `peaks`, `means` (W, C) in TFLOPs, NaN unknown; `original` (W,): requests."""

    peaks: Floats32
    means: Floats32
    original: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Rows (N) of a regression: features, the truth in f, `series` and `bin` of each row."""

    plain: Floats
    season: Floats
    truth: Floats
    series: Ints
    bin: Ints

    def where(self, chosen: Bools) -> Table:
        """Return some of the rows."""
        return Table(self.plain[chosen], self.season[chosen], self.truth[chosen], self.series[chosen], self.bin[chosen])

    @property
    def has_season(self) -> Bools:
        """Tell which rows know an earlier day."""
        return np.asarray(~np.isnan(self.season).any(axis=1), dtype=np.bool_)

    def weights(self) -> Floats:
        """Return weights (N,) of mean 1 by which every series counts the same, however many rows it has."""
        _, place, count = np.unique(self.series, return_inverse=True, return_counts=True)
        weight = 1.0 / count[place]
        return np.asarray(weight / weight.mean(), dtype=np.float64)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.truth)


def joined(tables: list[Table]) -> Table:
    """Return the rows of several tables, whose series become different ones."""
    starts = np.cumsum([0, *(int(table.series.max(initial=-1)) + 1 for table in tables)])
    return _stacked([replace(table, series=table.series + start) for table, start in zip(tables, starts, strict=False)])


def table_of(past: Past, horizon_seconds: float) -> Table:
    """Return rows at evenly spaced moments, of at most 200 evenly spaced series; seeded by nothing, so always the same.

    Moments are those at which half an hour is known behind, and half the horizon ahead.
    """
    horizon = round(horizon_seconds / BIN_SECONDS)
    count = len(past.peaks)
    chosen = np.unique(np.linspace(0, count - 1, min(count, MOST_SERIES)).astype(np.int64))
    padding = np.full((len(chosen), NEEDED_BINS), np.nan, dtype=np.float32)
    peaks = np.concatenate([padding, past.peaks[chosen]], axis=1)
    means = np.concatenate([padding, past.means[chosen]], axis=1)
    per_series = min(MOST_PER_SERIES, max(1, MOST_ROWS // max(1, len(chosen))))
    known = np.flatnonzero(~np.isnan(past.peaks).all(axis=0))
    if not known.size or known[-1] - known[0] < LEAST_BINS + horizon:
        return _nothing()
    moments = np.unique(np.linspace(known[0] + LEAST_BINS, known[-1] + 1 - horizon, per_series).astype(np.int64))
    days = np.full(len(chosen), SEASON_DAYS, dtype=np.int64)
    tables = []
    for moment in moments.tolist():
        end = NEEDED_BINS + moment
        seen = features(Bins(peaks, means, end), past.original[chosen], horizon, days)
        ahead = peaks[:, end : end + horizon].astype(np.float64)
        there = ~np.isnan(ahead)
        usable = (2 * there.sum(axis=1) >= horizon) & (seen.known >= LEAST_BINS)
        truth = relative(np.where(there, ahead, 0.0).max(axis=1), seen.scale)
        rows = Table(seen.plain, seen.season, truth, np.arange(len(chosen)), np.full(len(chosen), moment))
        tables.append(rows.where(usable))
    return _stacked(tables)


def to_bins(use: Floats, step_seconds: float) -> tuple[Floats32, Floats32]:
    """Return largest and mean use per 5 minutes (C,) each, of samples (T,) as wide or narrower; NaN unknown."""
    per = max(1, round(BIN_SECONDS / step_seconds))
    whole = use[: len(use) // per * per].reshape(-1, per)
    known = ~np.isnan(whole)
    filled = np.where(known, whole, 0.0)
    there = known.any(axis=1)
    peaks = np.where(there, filled.max(axis=1, initial=0.0), np.nan)
    means = np.where(there, filled.sum(axis=1) / np.maximum(known.sum(axis=1), 1), np.nan)
    return peaks.astype(np.float32), means.astype(np.float32)


def days_known(past: Past) -> float:
    """Return how many days any of the series covers."""
    return float((~np.isnan(past.peaks)).any(axis=0).sum() / PER_DAY)


def _stacked(tables: list[Table]) -> Table:
    return Table(
        plain=np.concatenate([table.plain for table in tables]),
        season=np.concatenate([table.season for table in tables]),
        truth=np.concatenate([table.truth for table in tables]),
        series=np.concatenate([table.series for table in tables]),
        bin=np.concatenate([table.bin for table in tables]),
    )


def _nothing() -> Table:
    none = np.zeros(0, dtype=np.int64)
    return Table(np.zeros((0, 11)), np.zeros((0, 4)), np.zeros(0), none, none)
