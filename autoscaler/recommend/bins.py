"""A window of use as the estimators take it in: bins in the order of the memory's rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from autoscaler.model.resources import Resource
from autoscaler.model.rows import Row, Rows
from autoscaler.model.usage import Bools, Floats, Floats32, Ints, Usage, WorkloadKey


class Bins(NamedTuple):
    """A window's usage in the memory's row order: (W, T) arrays, NaN for workloads that did not report."""

    ends: Floats
    step: float
    compute: Floats
    vram: Floats
    compute_ceiling: Floats
    vram_ceiling: Floats
    clipped: Bools
    ooms: Floats
    compute_total: Floats
    vram_total: Floats
    workers: Floats

    def alone(self) -> Bins:
        """Return the bins of a workload alone, as numbers."""
        ends, step, *columns = self
        rows: list[Any] = [Row(column[0]) for column in columns]
        return Bins(ends, step, *rows)


def in_row_order(memory: Rows, usage: Usage) -> Bins:
    """Return a window's usage in the order of the memory's rows."""
    return _of_one(usage, memory.keys) if len(memory.keys) == 1 else _in_order(usage, memory.keys)


@lru_cache(maxsize=1)
def _of_one(usage: Usage, keys: tuple[WorkloadKey, ...]) -> Bins:
    """Remember a single worker's: it is learnt from first, and then held against the figures in force."""
    return _in_order(usage, keys)


def _in_order(usage: Usage, keys: tuple[WorkloadKey, ...]) -> Bins:
    window, order = usage.window, _order(usage, keys)
    peak, ceiling, total = (_laid(one, order, np.nan) for one in (usage.peak, usage.ceiling, usage.total))
    return Bins(
        ends=window.start + window.step * np.arange(1, window.bins + 1, dtype=np.float64),
        step=window.step,
        compute=peak[Resource.COMPUTE],
        vram=peak[Resource.VRAM],
        compute_ceiling=ceiling[Resource.COMPUTE],
        vram_ceiling=ceiling[Resource.VRAM],
        clipped=_laid(usage.clipped[Resource.COMPUTE], order, 0.0) > 0,
        ooms=_laid(usage.ooms, order, 0.0),
        compute_total=total[Resource.COMPUTE],
        vram_total=total[Resource.VRAM],
        workers=_laid(usage.workers, order, 0.0),
    )


def _order(usage: Usage, keys: tuple[WorkloadKey, ...]) -> Ints | None:
    """Return the usage's row of each of these workloads, -1 for none (W,); None where they are the same."""
    if usage.keys == keys:
        return None
    row_of = {key: row for row, key in enumerate(usage.keys)}
    return np.array([row_of.get(key, -1) for key in keys], dtype=np.int64)


def _laid(values: Floats32 | Bools, order: Ints | None, fill: float) -> Floats:
    """Return values (..., W, T) in the memory's row order, `fill` for workloads without."""
    if order is None:
        return values.astype(np.float64)
    if not values.shape[-2]:
        return np.full((*values.shape[:-2], len(order), values.shape[-1]), fill)
    laid: Floats = values.astype(np.float64)[..., order, :]
    laid[..., order < 0, :] = fill
    return laid


def blocks(bins: Bins, seconds: float) -> list[tuple[int, slice, bool]]:
    """Return the blocks of the clock that the bins lie in: number, bins, and whether its first bin begins in it."""
    step = bins.step
    starts = [end - step for end in bins.ends.tolist()]
    return [(number, columns, starts[columns.start] % seconds < step) for number, columns in runs(starts, seconds)]


def runs(times: Sequence[float], seconds: float) -> list[tuple[int, slice]]:
    """Return the number of each block of the clock that these rising moments lie in, and which of them do."""
    first = math.floor(times[0] / seconds)
    if first == math.floor(times[-1] / seconds):
        return [(first, slice(0, len(times)))]
    numbers = [math.floor(time / seconds) for time in times]
    cuts = [0, *(place for place in range(1, len(numbers)) if numbers[place] != numbers[place - 1]), len(numbers)]
    return [(numbers[start], slice(start, stop)) for start, stop in pairwise(cuts)]
