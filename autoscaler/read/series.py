"""The metrics of all workers, each in bins, joined into the use of workloads.

The same code serves Prometheus and the history in memory, so that both tell the same story. Neighbours: `readings`
says what is read, `bins` makes bins of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoscaler.model.usage import Bools, Floats, Floats32, Ints, Usage, Window, WorkloadKey, censored, empty_usage
from autoscaler.read import readings
from autoscaler.read.bins import Binned, with_births
from autoscaler.read.readings import Reading
from autoscaler.read.samples import Identity

Metrics = Mapping[Reading, Binned]
BINS_AT_ONCE = 64
BEYOND_SHARE = 0.05
"""A bin more of which than this went beyond a limit in force says nothing of demand; less is only left out of it."""
_ALIVE = (readings.COMPUTE, readings.VRAM_PEAK, readings.VRAM_USED)


@dataclass(frozen=True, slots=True, eq=False)
class Fleet:
    """R workers by device, sorted so that the rows of a pod, and of a workload, stand together.

    `placement`: of each metric that was read, the row of its series and which series have one. `row_starts`,
    `pod_starts`: first row of each workload and of each pod; `workload_starts`: first pod of each workload.
    """

    rows: tuple[Identity, ...]
    placement: Mapping[Reading, tuple[Ints, Bools]]
    keys: tuple[WorkloadKey, ...]
    row_starts: Ints
    pod_starts: Ints
    workload_starts: Ints


@dataclass(frozen=True, slots=True, eq=False)
class Workers:
    """One resource of R workers in T bins, in the resource's unit; `device` is what the worker's device has.

    `beyond`: the part of the use that went beyond a limit in force, (R, T), or (1, T) zeros where nobody's did.
    """

    use: Floats32
    ceiling: Floats32
    device: Floats32
    throttled_share: Floats32
    beyond: Floats32

    def within(self, bins: slice) -> Workers:
        """Return some of the bins."""
        shares, beyond = self.throttled_share[:, bins], self.beyond[:, bins]
        return Workers(self.use[:, bins], self.ceiling[:, bins], self.device, shares, beyond)


def usage_of(window: Window, binned: Metrics) -> Usage:
    """Return the fleet's use; a metric that nobody reports is unknown, series without a workload are ignored.

    `total` sums the workers that are known, and is unknown where a worker was followed but its figure is not.
    """
    fleet = _fleet(binned)
    if not fleet.keys:
        return empty_usage(window, ())
    due = _any(fleet, window, binned, (readings.COMPUTE,))
    resources = [_compute(fleet, window, binned), _vram(fleet, window, binned)]
    parts = [_summed(workers, due, fleet.row_starts) for workers in resources]
    peak, total, ceiling, clipped = (np.stack(arrays) for arrays in zip(*parts, strict=True))
    first_seen, last_seen = _seen(fleet, binned)
    pods = np.logical_or.reduceat(_any(fleet, window, binned, _ALIVE), fleet.pod_starts, axis=0)
    return Usage(
        window=window,
        keys=fleet.keys,
        peak=peak,
        total=total,
        ceiling=ceiling,
        clipped=clipped.astype(np.bool_),
        ooms=_ooms(fleet, window, binned, first_seen),
        workers=np.add.reduceat(pods, fleet.workload_starts, axis=0, dtype=np.float32),
        last_seen=np.fmax.reduceat(last_seen, fleet.row_starts),
    )


def joined(window: Window, parts: Sequence[Usage]) -> Usage:
    """Return consecutive parts of a window as one; a workload that a part has not seen is unknown there."""
    keys = tuple(sorted({key for part in parts for key in part.keys}))
    whole = empty_usage(window, keys)
    row_of = {key: row for row, key in enumerate(keys)}
    first = 0
    for part in parts:
        rows = np.array([row_of[key] for key in part.keys], dtype=np.int64)
        last = first + part.window.bins
        for name in ("peak", "total", "ceiling", "clipped", "ooms", "workers"):
            getattr(whole, name)[..., rows, first:last] = getattr(part, name)
        whole.last_seen[rows] = np.fmax(whole.last_seen[rows], part.last_seen)
        first = last
    return whole


def parts_of(window: Window, longest_seconds: float) -> tuple[Window, ...]:
    """Cut a window at multiples of `longest_seconds` since the epoch, moved to the next edge of a bin."""
    multiples = longest_seconds * np.arange(window.start // longest_seconds + 1, np.ceil(window.end / longest_seconds))
    bins = np.unique(np.ceil((multiples - window.start) / window.step - 1e-9).astype(np.int64))
    edges = [window.start + int(count) * window.step for count in bins if 0 < count < window.bins]
    return tuple(
        Window(start, end, window.step) for start, end in zip([window.start, *edges], [*edges, window.end], strict=True)
    )


def _fleet(binned: Metrics) -> Fleet:
    series = {
        reading: metric.identities
        for reading, metric in binned.items()
        if reading.reduction is not readings.Reduction.DEVICE
    }
    alike = _alike(series)
    workers = {first: [_worker(identity) for identity in series[first]] for first in set(alike.values())}
    rows = sorted(worker for worker in set().union(*workers.values()) if worker.workload)
    row_of = {worker: row for row, worker in enumerate(rows)}
    placements = {first: _placement(found, row_of) for first, found in workers.items()}
    row_starts, pod_starts = _starts(rows, 2), _starts(rows, 3)
    return Fleet(
        rows=tuple(rows),
        placement={reading: placements[first] for reading, first in alike.items()},
        keys=tuple(WorkloadKey(*rows[start][:2]) for start in row_starts),
        row_starts=row_starts,
        pod_starts=pod_starts,
        workload_starts=np.searchsorted(pod_starts, row_starts),
    )


def _alike(series: Mapping[Reading, tuple[Identity, ...]]) -> dict[Reading, Reading]:
    """Return for each metric the first one of the same series: most metrics of an agent name the same workers."""
    alike: dict[Reading, Reading] = {}
    for reading, identities in series.items():
        alike[reading] = next((first for first in alike.values() if series[first] == identities), reading)
    return alike


def _worker(identity: Identity) -> Identity:
    return identity._replace(source="") if identity.source else identity


def _placement(workers: Sequence[Identity], row_of: Mapping[Identity, int]) -> tuple[Ints, Bools]:
    rows = np.array([row_of.get(worker, -1) for worker in workers], dtype=np.int64)
    return rows[rows >= 0], rows >= 0


def _starts(rows: Sequence[Identity], labels: int) -> Ints:
    """Return the rows at which one of the first labels changes."""
    changes = [before[:labels] != row[:labels] for before, row in pairwise(rows)]
    return np.flatnonzero([True, *changes] if rows else [])


def _compute(fleet: Fleet, window: Window, binned: Metrics) -> Workers:
    device = _device(fleet, binned.get(readings.TFLOPS_CAPACITY))
    return Workers(
        use=_grid(fleet, window, binned, readings.COMPUTE) * device,
        ceiling=_grid(fleet, window, binned, readings.TFLOPS_CEILING),
        device=device,
        throttled_share=_grid(fleet, window, binned, readings.THROTTLED),
        beyond=_beyond(fleet, window, binned, (readings.COMPUTE_BEYOND, device)),
    )


def _vram(fleet: Fleet, window: Window, binned: Metrics) -> Workers:
    peak = _grid(fleet, window, binned, readings.VRAM_PEAK)
    return Workers(
        use=np.where(np.isnan(peak), _grid(fleet, window, binned, readings.VRAM_USED), peak),
        ceiling=_grid(fleet, window, binned, readings.VRAM_CEILING),
        device=_device(fleet, binned.get(readings.VRAM_CAPACITY)),
        throttled_share=np.full((1, window.bins), np.nan, dtype=np.float32),
        beyond=_beyond(fleet, window, binned, (readings.VRAM_BEYOND, np.ones(1, dtype=np.float32))),
    )


def _beyond(fleet: Fleet, window: Window, binned: Metrics, told: tuple[Reading, Floats32]) -> Floats32:
    """Return (R, T), or (1, T) where nobody does: what went beyond a limit; what nobody tells did not.

    `told`: the metric, and what one of its units is in the resource's.
    """
    reading, unit = told
    metric = binned.get(reading)
    if metric is None or not (metric.values > 0).any():
        return np.zeros((1, window.bins), dtype=np.float32)
    beyond: Floats32 = np.nan_to_num(_grid(fleet, window, binned, reading) * unit, copy=False)
    return beyond


def _summed(workers: Workers, due: Bools, starts: Ints) -> tuple[Floats32, Floats32, Floats32, Bools]:
    """Return peak, total, ceiling and clipped of each workload, (W, T) each; some bins at a time, to stay in cache."""
    blocks = [slice(first, first + BINS_AT_ONCE) for first in range(0, max(1, due.shape[1]), BINS_AT_ONCE)]
    parts = [_summed_block(workers.within(bins), due[:, bins], starts) for bins in blocks]
    peak, total, ceiling, clipped = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
    return peak, total, ceiling, clipped.astype(np.bool_, copy=False)


def _summed_block(workers: Workers, due: Bools, starts: Ints) -> tuple[Floats32, Floats32, Floats32, Bools]:
    use, unknown = _evidence(workers)
    known = ~np.isnan(use)
    peak = np.fmax.reduceat(use, starts, axis=0)
    summable = np.logical_or.reduceat(known, starts, axis=0) & ~np.logical_or.reduceat(due & ~known, starts, axis=0)
    total = np.where(summable, np.add.reduceat(np.where(known, use, 0), starts, axis=0), np.nan)
    highest = np.repeat(peak, np.diff(starts, append=len(use)), axis=0)
    is_largest = (use == highest) | np.isnan(highest)
    ceiling = np.fmax.reduceat(np.where(is_largest, workers.ceiling, np.nan), starts, axis=0)
    clipped = censored(*(a.astype(np.float64) for a in (use, workers.ceiling, workers.device, workers.throttled_share)))
    clipped &= ~unknown
    return peak, total.astype(np.float32), ceiling.astype(np.float32), np.logical_or.reduceat(clipped, starts, axis=0)


def _evidence(workers: Workers) -> tuple[Floats32, Bools]:
    """Return the use that tells demand, NaN where it tells nothing, and where that is.

    A limit that holds hides what is wanted above it. Who goes around it gets neither what it took nor a higher limit.
    """
    beyond = workers.beyond
    if not beyond.any():
        return workers.use, beyond > 0
    unknown = beyond > BEYOND_SHARE * workers.use
    return np.where(unknown, np.float32(np.nan), workers.use - beyond), unknown


def _grid(fleet: Fleet, window: Window, binned: Metrics, reading: Reading) -> Floats32:
    """Return (R, T): the metric of each worker, the higher one where two scrapes report the same worker."""
    grid = np.full((len(fleet.rows), window.bins), np.nan, dtype=np.float32)
    if reading in binned:
        rows, placed = fleet.placement[reading]
        _merge(np.fmax, grid, rows, binned[reading].values[placed])
    return grid


def _device(fleet: Fleet, metric: Binned | None) -> Floats32:
    """Return (R, 1): the last known figure of each worker's device; a capacity of 0 is none."""
    of_device: dict[tuple[str, str], float] = {}
    if metric is not None:
        for series in np.argsort(metric.last_seen):
            identity, value = metric.identities[series], float(metric.values[series, 0])
            if value > 0:
                of_device[identity.node, identity.gpu_uuid] = of_device["", identity.gpu_uuid] = value
    found = [of_device.get((i.node, i.gpu_uuid), of_device.get(("", i.gpu_uuid), np.nan)) for i in fleet.rows]
    return np.array(found, dtype=np.float32)[:, None]


def _any(fleet: Fleet, window: Window, binned: Metrics, which: Sequence[Reading]) -> Bools:
    """Return (R, T): whether the worker was alive in the bin, as one of these metrics tells."""
    alive = np.zeros((len(fleet.rows), window.bins), dtype=np.bool_)
    for reading in which:
        if reading in binned:
            rows, placed = fleet.placement[reading]
            _merge(np.logical_or, alive, rows, binned[reading].reported[placed])
    return alive


def _merge(merged: np.ufunc, target: NDArray[Any], rows: Ints, values: NDArray[Any]) -> None:
    """Merge values into rows of the target; only rows that several series share need the slower way."""
    if len(np.unique(rows)) == len(rows):
        target[rows] = merged(target[rows], values)
    else:
        merged.at(target, rows, values)


def _seen(fleet: Fleet, binned: Metrics) -> tuple[Floats, Floats]:
    """Return first and last time of each worker, (R,); events say nothing of it, they come and go as they like."""
    first, last = (np.full(len(fleet.rows), np.nan) for _ in range(2))
    for reading, (rows, placed) in fleet.placement.items():
        if reading is not readings.OOMS:
            _merge(np.fmin, first, rows, binned[reading].first_seen[placed])
            _merge(np.fmax, last, rows, binned[reading].last_seen[placed])
    return first, last


def _ooms(fleet: Fleet, window: Window, binned: Metrics, first_seen: Floats) -> Floats32:
    """Return (W, T): events over workers and sources; what two scrapes report of one source counts once."""
    counts = np.zeros((len(fleet.rows), window.bins), dtype=np.float32)
    if readings.OOMS in binned:
        metric = binned[readings.OOMS]
        rows, placed = fleet.placement[readings.OOMS]
        known_since = np.full(len(metric.identities), np.nan)
        known_since[placed] = first_seen[rows]
        values = with_births(metric, window, known_since)[placed]
        sources = [identity for identity, is_placed in zip(metric.identities, placed, strict=True) if is_placed]
        index = {source: i for i, source in enumerate(dict.fromkeys(sources))}
        by_source = np.zeros((len(index), window.bins), dtype=np.float32)
        np.maximum.at(by_source, [index[source] for source in sources], values)
        row_of = dict(zip(sources, rows, strict=True))
        np.add.at(counts, [row_of[source] for source in index], by_source)
    return np.add.reduceat(counts, fleet.row_starts, axis=0)
