"""Decaying log histograms of a whole fleet: one row per workload, vectorised.

Exponential buckets and decay as in the VPA recommender's histogram (kubernetes/autoscaler), over arrays instead of
objects. A quantile is the upper edge of its bucket, so the error is at most the growth factor, and never low.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Final

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
        inside = np.fmin(np.fmax(values, self.first / self.growth), self.first * self.growth**self.count)
        position = np.floor(np.log(inside / self.first) / math.log(self.growth)) + 1
        bucket: Ints = np.minimum(np.maximum(position, 0.0), self.count - 1.0).astype(np.int64)
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
        weights *= np.exp2(-seconds / half_life).astype(np.float32)[:, None]


def add(weights: Floats32, buckets: Buckets, values: Floats, sample_weights: Floats) -> None:
    """Add samples in place; `values` and `sample_weights` (W, T), NaN values are not counted."""
    rows = weights.shape[0]
    known: Bools = ~np.isnan(values)
    flat = (np.arange(rows)[:, None] * buckets.count + buckets.index(values))[known]
    if rows == 1:
        for bucket, weight in zip(flat.tolist(), sample_weights[known].tolist(), strict=True):
            weights[0, bucket] += weight
        return
    if flat.size * 8 < weights.size:
        np.add.at(weights.reshape(-1), flat, sample_weights[known].astype(np.float32))
        return
    added = np.bincount(flat, weights=sample_weights[known], minlength=weights.size)
    weights += added.reshape(weights.shape).astype(np.float32)


def quantiles(weights: Floats32, buckets: Buckets, *levels: Floats) -> tuple[Floats, ...]:
    """Return one quantile per level and row, each (W,); NaN for rows without samples, and where the level is NaN."""
    found = np.full((len(levels), len(weights)), np.nan)
    wanted = np.array(levels)
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


@cache
def _edges(buckets: Buckets) -> Floats:
    edges = buckets.edges()
    edges.flags.writeable = False
    return edges
