"""The recent past of workloads with a forecast: 5-minute bins of compute, and how well each head forecast them.

Memory of its own, with rows only for workloads that asked for a forecast, so that a fleet without any pays nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from autoscaler.model.fleet import Fleet
from autoscaler.model.knobs import Knobs
from autoscaler.model.rows import Column, Rows
from autoscaler.model.usage import Floats, Ints
from autoscaler.recommend.bins import runs
from autoscaler.recommend.features import BIN_SECONDS, NEEDED_BINS, PER_DAY

WIDTH: Final = NEEDED_BINS + PER_DAY
"""Bins kept. Columns move left by a day at once when the last one is filled, not by one for each bin."""
MAX_HORIZON: Final = PER_DAY // 6
"""Bins: 4 hours."""
FIRST: Final = "first"
"""Mark: number of the bin in column 0 (bin n starts at 300 n seconds)."""
NEWEST: Final = "newest"
"""Mark: number of the newest bin that is complete."""
OPEN: Final = "open"
"""Mark: number of the bin that samples are being added to."""

COLUMNS: Final[Mapping[str, Column]] = {
    "peaks": Column((WIDTH,), fill=np.nan, dtype=np.float32),
    "means": Column((WIDTH,), fill=np.nan, dtype=np.float32),
    # the open bin: largest, sum, samples
    "open": Column((3,)),
    # forecasts whose truth is not known yet, by bin number modulo MAX_HORIZON: scale, plain (3), season (3)
    "pending": Column((MAX_HORIZON, 7), fill=np.nan, dtype=np.float32),
    "losses": Column((2,), fill=np.nan),
    # the newest forecast
    "scale": Column(fill=np.nan),
    "plain": Column((3,), fill=np.nan),
    "season": Column((3,), fill=np.nan),
}


class Samples(NamedTuple):
    """A window's use by one worker: ends (T,) and `step` in seconds, values (W, T) in TFLOPs, NaN unknown."""

    ends: Floats
    step: float
    values: Floats


def new_series() -> Rows:
    """Return the memory of nobody's past."""
    return Rows(COLUMNS)


def forecast_rows(fleet: Fleet) -> Ints:
    """Return the fleet's rows that asked for a forecast."""
    return _asking(fleet.knobs)


@lru_cache(maxsize=4)
def _asking(knobs: Knobs) -> Ints:
    """Remember them: knobs stay the same from pass to pass."""
    rows = np.flatnonzero(knobs.forecast > 0)
    rows.flags.writeable = False
    return rows


def align(series: Rows, fleet: Fleet, rows: Ints) -> None:
    """Give the series one row per workload that asked for a forecast, in the fleet's order."""
    if len(rows) == len(fleet):
        series.align(fleet.keys, fleet.uids)
    else:
        series.align([fleet.keys[row] for row in rows], [fleet.uids[row] for row in rows])


def parts(samples: Samples) -> list[tuple[int, slice, bool]]:
    """Cut a window at the borders of bins: number of the bin, its samples, and whether they complete it."""
    half, ends = samples.step / 2, samples.ends.tolist()
    return [
        (number, columns, ends[columns.stop - 1] + half >= (number + 1) * BIN_SECONDS)
        for number, columns in runs([end - half for end in ends], BIN_SECONDS)
    ]


def add(series: Rows, values: Floats) -> None:
    """Add samples (W, T) to the open bin."""
    gathered, count, total = series["open"], values.shape[1], np.add.reduce(values, axis=1)
    if np.isnan(total).any():
        known = ~np.isnan(values)
        values = np.where(known, values, 0.0)
        count, total = np.add.reduce(known, axis=1), np.add.reduce(values, axis=1)
    gathered[:, 0] = np.maximum(gathered[:, 0], np.maximum.reduce(values, axis=1))
    gathered[:, 1] += total
    gathered[:, 2] += count


def close(series: Rows, number: int) -> None:
    """Complete the open bin `number`; bins between it and the one before stay unknown."""
    column = _make_room(series, number)
    gathered = series["open"]
    count = np.where(gathered[:, 2] > 0, gathered[:, 2], np.nan)
    series.weights("peaks")[:, column] = np.where(count > 0, gathered[:, 0], np.nan)
    series.weights("means")[:, column] = gathered[:, 1] / count
    gathered[:] = 0.0
    if number > series.marks.get(NEWEST, number) + 1:
        series.weights("pending")[:] = np.nan  # what came true meanwhile was not seen
    series.marks[NEWEST] = float(number)


def _make_room(series: Rows, number: int) -> int:
    """Return the column of a bin, newer than all before; the first goes where the features can look back from."""
    first = int(series.marks.setdefault(FIRST, float(number - NEEDED_BINS)))
    column = number - first
    if column >= WIDTH:
        moved = max(PER_DAY, column - WIDTH + 1)
        for name in ("peaks", "means"):
            values = series.weights(name)
            kept = max(0, WIDTH - moved)
            values[:, :kept] = values[:, WIDTH - kept :].copy()
            values[:, kept:] = np.nan
        series.marks[FIRST] = float(first + moved)
        column -= moved
    return column
