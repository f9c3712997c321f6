"""Samples to bins, metric by metric: shares and events from counters, highest and latest from gauges.

Neighbours: `samples` holds the raw series, `series` joins the metrics of a worker and the workers of a workload.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from autoscaler.model.usage import Bools, Floats, Floats32, Ints, Window
from autoscaler.read.samples import Identity, Samples

KNOWN_COVERAGE = 0.5
"""A bin whose counter was followed for less than half of its seconds says nothing about the rest of it."""
HIGHEST_SHARE = 1.05
TICK_SECONDS = 1.0
"""An agent adds to its counters once per tick, so a counter may run ahead of the scrape's clock by one tick."""
TOUCH_SECONDS = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Binned:
    """One metric in the bins of a window: S series, T bins, in the unit of the metric's reduction.

    `values` (S, T): NaN is unknown. `reported` (S, T): the series was alive in the bin, so a figure was due.
    `first_seen`, `last_seen`, `first_value` (S,): NaN for a series without a usable sample; `first_*` count what lies
    to the left of the window, `last_seen` is at or before its end.
    """

    identities: tuple[Identity, ...]
    values: Floats32
    reported: Bools
    first_seen: Floats
    first_value: Floats
    last_seen: Floats


def stacked(parts: Sequence[Binned]) -> Binned:
    """Return parts of one metric, each with series of its own, as one."""
    return Binned(
        identities=tuple(chain.from_iterable(part.identities for part in parts)),
        values=np.concatenate([part.values for part in parts]),
        reported=np.concatenate([part.reported for part in parts]),
        first_seen=np.concatenate([part.first_seen for part in parts]),
        first_value=np.concatenate([part.first_value for part in parts]),
        last_seen=np.concatenate([part.last_seen for part in parts]),
    )


def gap_seconds(scrape_interval_seconds: float) -> float:
    """Return how far apart two samples of a series may be for what lies between them to be known."""
    return max(3 * scrape_interval_seconds, 120.0)


def shares(samples: Samples, window: Window, gap: float) -> Binned:
    """Return the share of time, 0..1, by which a counter of seconds rose in each bin.

    The counter is followed through resets and interpolated at the bins' edges; the share is the mean over the part of
    the bin in which it could be followed, unknown below half of the bin, next to a gap longer than `gap` seconds, and
    where the counter ran faster than time. The first sample of a series is no increase.
    """
    seconds, rise = _steps(samples)
    same = samples.owner[1:] == samples.owner[:-1]
    followed = same & (seconds > 0) & (seconds <= gap)
    increase = _between_edges(samples, window, np.where(followed, rise, 0.0))
    covered = _between_edges(samples, window, np.where(followed, seconds, 0.0))
    gaps = same & (seconds > gap)
    lost = _between_edges(samples, window, np.where(gaps, seconds, 0.0)) if gaps.any() else np.zeros_like(covered)
    reported = covered >= KNOWN_COVERAGE * window.step
    known = reported & (lost <= TOUCH_SECONDS) & (increase <= HIGHEST_SHARE * covered + TICK_SECONDS)
    values = np.full(covered.shape, np.nan, dtype=np.float32)
    np.divide(increase, covered, out=values, where=known, casting="same_kind")
    return _binned(samples, window, np.minimum(values, 1), reported)


def events(samples: Samples, window: Window) -> Binned:
    """Return how often a counter of events rose in each bin, gaps included; what a series is born with is not in it."""
    _, rise = _steps(samples)
    same = samples.owner[1:] == samples.owner[:-1]
    rises = np.concatenate(([0.0], np.where(same, rise, 0.0)))[: len(samples.values)]
    flat, inside = _flat(samples, window)
    shape = (len(samples.identities), window.bins)
    counted = np.bincount(flat, weights=rises[inside], minlength=shape[0] * shape[1]).reshape(shape)
    return _binned(samples, window, counted.astype(np.float32), _sampled(flat, shape))


def with_births(counted: Binned, window: Window, known_since: Floats) -> Floats32:
    """Return the events (S, T) with those that a series was born with, placed in the bin of its birth.

    They count when its worker was seen before, `known_since` (S,), or is not seen otherwise (NaN); a series that
    appears together with its worker may carry old events.
    """
    born = counted.first_seen
    with np.errstate(invalid="ignore"):
        is_new = (born > window.start) & (born <= window.end) & ~(known_since >= born)
    place = np.ceil((born[is_new] - window.start) / window.step - 1e-9).astype(np.int64) - 1
    values = counted.values.copy()
    values[np.flatnonzero(is_new), place] += counted.first_value[is_new]
    return values


def highest(samples: Samples, window: Window) -> Binned:
    """Return the highest sample of each bin."""
    flat, inside = _flat(samples, window)
    starts, _ = _runs(flat)
    figures = np.maximum.reduceat(samples.values[inside], starts) if len(starts) else np.zeros(0)
    return _gauge(samples, window, flat[starts], figures)


def latest(samples: Samples, window: Window) -> Binned:
    """Return the last sample of each bin."""
    flat, inside = _flat(samples, window)
    _, ends = _runs(flat)
    return _gauge(samples, window, flat[ends], samples.values[inside][ends])


def last_known(samples: Samples, end: float) -> Binned:
    """Return the last sample at or before `end` as one bin, T = 1."""
    start = float(samples.times.min(initial=end)) - 1.0
    return latest(samples, Window(start, end, end - start))


def _gauge(samples: Samples, window: Window, places: Ints, figures: Floats) -> Binned:
    shape = (len(samples.identities), window.bins)
    values = np.full(shape, np.nan, dtype=np.float32)
    values.reshape(-1)[places] = figures
    return _binned(samples, window, values, _sampled(places, shape))


def _steps(samples: Samples) -> tuple[Floats, Floats]:
    """Return seconds and rise from each sample to the next; a counter that fell began again at 0."""
    times, values = samples.times, samples.values
    rise = values[1:] - values[:-1]
    return times[1:] - times[:-1], np.where(rise < 0, values[1:], rise)


def _between_edges(samples: Samples, window: Window, amounts: Floats) -> Floats:
    """Return (S, T): how much of the amounts (N-1,), each spread evenly from a sample to the next, falls in each bin.

    All series are laid one after the other on a single axis, so that one interpolation serves them all.
    """
    edges = window.start + window.step * np.arange(window.bins + 1)
    series = np.arange(len(samples.identities))
    if not len(samples.times):
        return np.zeros((len(series), window.bins))
    origin = min(samples.times.min(), window.start)
    span = max(samples.times.max(), edges[-1]) - origin + window.step
    axis = samples.owner * span + (samples.times - origin)
    running = np.concatenate(([0.0], np.cumsum(amounts)))
    at_edges: Floats = np.interp(series[:, None] * span + (edges - origin), axis, running)
    return at_edges[:, 1:] - at_edges[:, :-1]


def _flat(samples: Samples, window: Window) -> tuple[Ints, Bools]:
    """Return the flat (S, T) index of each sample that lies in a bin, and which those are; an edge ends its bin."""
    bins = np.ceil((samples.times - window.start) / window.step - 1e-9).astype(np.int64) - 1
    inside = (bins >= 0) & (bins < window.bins)
    return samples.owner[inside] * window.bins + bins[inside], inside


def _runs(groups: Ints) -> tuple[Ints, Ints]:
    """Return first and last index of each run of equal numbers."""
    if not len(groups):
        return groups, groups
    changes = np.flatnonzero(groups[1:] != groups[:-1])
    return np.concatenate(([0], changes + 1)), np.concatenate((changes, [len(groups) - 1]))


def _sampled(places: Ints, shape: tuple[int, int]) -> Bools:
    sampled = np.zeros(shape, dtype=np.bool_)
    sampled.reshape(-1)[places] = True
    return sampled


def _binned(samples: Samples, window: Window, values: Floats32, reported: Bools) -> Binned:
    first_seen, first_value, last_seen = (np.full(len(samples.identities), np.nan) for _ in range(3))
    starts, _ = _runs(samples.owner)
    first_seen[samples.owner[starts]] = samples.times[starts]
    first_value[samples.owner[starts]] = samples.values[starts]
    by_end = samples.times <= window.end
    owner, times = samples.owner[by_end], samples.times[by_end]
    _, ends = _runs(owner)
    last_seen[owner[ends]] = times[ends]
    return Binned(samples.identities, values, reported, first_seen, first_value, last_seen)
