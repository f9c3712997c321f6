"""Decaying log histograms of a whole fleet: one row per workload, vectorised.

Exponential buckets and decay as in the VPA recommender's histogram (kubernetes/autoscaler), over arrays instead of
objects. A quantile is the upper edge of its bucket, so the error is at most the growth factor, and never low.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Final, cast

import numpy as np

from autoscaler.model.usage import Bools, Floats, Floats32, Ints


@dataclass(frozen=True, slots=True)
class Buckets:
    """Bucket edges: bucket 0 holds everything below `first`, bucket i up to first x growth^i."""

    first: float
    growth: float
    count: int

    def index(self, values: Floats) -> Ints:
        """Return the bucket of each value (any shape; NaN gives 0, weigh it with 0)."""
        # well inside of the outermost buckets, so that no rounding leads past them
        inside = np.minimum(
            np.fmax(values, self.first * self.growth**-0.5), self.first * self.growth ** (self.count - 1.5)
        )
        position = np.floor(np.log(inside / self.first) / math.log(self.growth)) + 1
        bucket: Ints = position.astype(np.int64)
        return bucket

    def edges(self) -> Floats:
        """Return the upper edge of each bucket; bucket 0 reads as 0, so that idleness stays zero."""
        edges = self.first * self.growth ** np.arange(self.count, dtype=float)
        edges[0] = 0.0
        return edges


COMPUTE_BUCKETS: Final = Buckets(first=0.01, growth=1.05, count=256)
"""To 2,500 TFLOPs, the largest device known, in steps of 5 %."""
VRAM_BUCKETS: Final = Buckets(first=16 * 2.0**20, growth=1.025, count=416)
"""16 MiB to 440 GiB in steps of 2.5 %."""
ROWS_AT_ONCE: Final = 256
"""Rows whose cumulated weights stay in a processor's cache."""


def decay(weights: Floats32, seconds: float, half_life: Floats) -> None:
    """Age all samples of all rows in place; `half_life` (W,) in seconds."""
    if seconds > 0:
        weights *= _left_of_all(seconds, half_life)


def _left_of_all(age: float, half_life: Floats) -> Floats32:
    """Return what is left of all weights after this time in seconds, (W, 1)."""
    if half_life.size == 1:
        return _left_of_one(age, half_life.item())
    return np.exp2(-age / half_life).astype(np.float32)[:, None]


def left(ages: Floats, half_life: Floats) -> Floats:
    """Return what is left of a sample's weight at these ages (1, T) in seconds with each half-life (W,), (W, T)."""
    if half_life.size == 1:
        return _left(tuple(ages[0].tolist()), half_life.item())
    return np.exp2(-ages / half_life[:, None])


@lru_cache(maxsize=256)
def _left_of_one(age: float, half_life: float) -> Floats32:
    return _left((age,), half_life).astype(np.float32)


@lru_cache(maxsize=256)
def _left(ages: tuple[float, ...], half_life: float) -> Floats:
    """Remember it: every window of a replay has the same bins."""
    shares = np.exp2(-np.array([ages]) / half_life)
    shares.flags.writeable = False
    return shares


def add(weights: Floats32, buckets: Buckets, values: Floats, sample_weights: Floats) -> None:
    """Add samples in place; `values` and `sample_weights` (W, T), NaN values are not counted."""
    add_at(weights, buckets.index(values), ~np.isnan(values), sample_weights)


def add_at(weights: Floats32, places: Ints, counted: Bools, sample_weights: Floats) -> None:
    """Add samples in place, where they are `counted`, to the buckets that they lie in; all (W, T)."""
    rows, width = weights.shape
    if rows == 1:
        row, samples = weights[0], zip(places[0].tolist(), counted[0].tolist(), sample_weights[0].tolist(), strict=True)
        for place, counts, weight in samples:
            if counts:
                row[place] += weight
        return
    flat = (np.arange(rows)[:, None] * width + places)[counted]
    if flat.size * 8 < weights.size:
        np.add.at(weights.reshape(-1), flat, sample_weights[counted].astype(np.float32))
        return
    added = np.bincount(flat, weights=sample_weights[counted], minlength=weights.size)
    weights += added.reshape(weights.shape).astype(np.float32)


def quantiles(weights: Floats32, buckets: Buckets, *levels: Floats | float) -> tuple[Floats, ...]:
    """Return one quantile per level and row, each (W,); NaN for rows without samples, and where the level is NaN.

    A level is one for each row (W,), or one for all. From the weights of one row (B,) come numbers.
    """
    if weights.ndim == 1:
        return cast("tuple[Floats, ...]", _of_one(weights, buckets, levels))
    found = np.full((len(levels), len(weights)), np.nan)
    wanted = np.empty(found.shape)
    for place, level in enumerate(levels):
        wanted[place] = level
    known = ~np.isnan(wanted)
    asked = np.flatnonzero(known.any(axis=0))
    edges = _edges(buckets)
    for start in range(0, len(asked), ROWS_AT_ONCE):
        rows = asked[start : start + ROWS_AT_ONCE]
        cumulated = np.cumsum(weights[rows], axis=1, dtype=np.float64)
        total, level = cumulated[:, -1], wanted[:, rows]
        position = (cumulated >= (level * total * (1 - 1e-9))[:, :, None]).argmax(axis=2)
        found[:, rows] = np.where((total > 0) & known[:, rows], edges[position], np.nan)
    return tuple(found)


def _of_one(weights: Floats32, buckets: Buckets, levels: tuple[Any, ...]) -> tuple[float, ...]:
    """Return the quantiles of one row (B,): weights are never negative, so their sums can be searched."""
    if not all(map(math.isnan, levels)):
        cumulated = np.add.accumulate(weights, dtype=np.float64)
        total, edges = cumulated.item(-1), _edges(buckets)
        if total > 0:
            places = cumulated.searchsorted([level * total * (1 - 1e-9) for level in levels]).tolist()
            pairs = zip(levels, places, strict=True)
            return tuple(math.nan if math.isnan(level) else edges.item(place) for level, place in pairs)
    return (math.nan,) * len(levels)


@cache
def _edges(buckets: Buckets) -> Floats:
    edges = buckets.edges()
    edges.flags.writeable = False
    return edges
