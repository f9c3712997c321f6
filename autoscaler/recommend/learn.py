"""Usage into memory: what each bin teaches, and what it says about the figures in force.

Formulas: activity-gated VRAM levels and decaying histograms over 60 s bins; see docs/how-it-decides.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from autoscaler.contract.gate import ACTIVE_COMPUTE_RATIO, ACTIVE_VRAM_RATIO, REFERENCE_DECAY
from autoscaler.model.decision import AMOUNT_FIELDS, Field
from autoscaler.model.defaults import DAY, HOUR, MINUTE
from autoscaler.model.fleet import Fleet
from autoscaler.model.resources import Resource
from autoscaler.model.rows import Rows
from autoscaler.model.usage import SATURATED_RATIO, SATURATION_SLACK_RATIO, Bools, Floats, Floats32, Ints, Usage
from autoscaler.recommend.forecast import observe
from autoscaler.recommend.histogram import COMPUTE_BUCKETS, VRAM_BUCKETS, add, decay
from autoscaler.recommend.memory import NEVER, UNTIL, WATCHED_AT, Learnt
from autoscaler.recommend.series import Samples

CLIPPED_GAIN: Final = 1.15
"""A clipped sample stands for at least this much more demand."""
OOM_GAIN: Final = 1.2
OOM_QUIET_SECONDS: Final = 5 * MINUTE
SQUARE_ALPHA: Final = 1 - 2 ** (-1 / 1440)
VRAM_HALF_LIFE_SECONDS: Final = DAY
SHARE_HALF_LIFE_SECONDS: Final = HOUR


@dataclass(frozen=True, slots=True, eq=False)
class _Bins:
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


def learn(memory: Learnt, usage: Usage, fleet: Fleet) -> None:
    """Add a window's bins to the memory; rows must be aligned with the fleet. Usage of unknown workloads is ignored."""
    bins = _in_row_order(memory, usage)
    ends = bins.ends
    if not ends.size:
        return
    stored = np.where(bins.clipped, CLIPPED_GAIN * bins.compute, bins.compute)
    active = _learn_calm(memory, bins) if _is_calm(memory, bins) else _learn_bin_by_bin(memory, bins)
    _keep_peaks(memory, "compute_peaks", bins, (DAY, stored))
    _add_samples(memory, bins, (stored, active), fleet)
    observe(memory, Samples(ends, bins.step, stored), fleet)
    _keep_latest(memory, bins)
    memory.marks[UNTIL] = float(ends[-1])


def watch(memory: Rows, usage: Usage, fleet: Fleet) -> None:
    """Hold a window's bins against the figures in force: exceedances, saturation, out-of-memory floors."""
    bins = _in_row_order(memory, usage)
    _note_changes(memory, fleet)
    request, limit, _, vram_limit = (fleet.current[:, field] for field in AMOUNT_FIELDS)
    ceiling = bins.compute_ceiling
    near = bins.compute >= (SATURATED_RATIO - SATURATION_SLACK_RATIO) * ceiling
    whole = bins.ends - bins.step >= memory["limit_changed_at"][:, None]
    # A worker that did not have the limit in force yet says nothing about it: a slow node must not raise it twice.
    under = ceiling < SATURATED_RATIO * limit[:, None]
    saturated = bins.clipped & (near | whole) & ~under
    silent = np.isnan(bins.compute) | under | ~whole  # a bin that straddles the change tells nothing either way
    above, oom = bins.compute > request[:, None], bins.ooms > 0
    streak = memory["saturated"]
    if saturated.any() or above.any() or oom.any():
        for column, end in enumerate(bins.ends):
            _note_exceedance(memory, bins.compute[:, column], above[:, column], (end, bins.step))
            now = saturated[:, column]
            streak[:] = np.where(now, streak + 1, np.where(silent[:, column], streak, 0.0))
            memory["saturated_at"][now] = end
            killed, at_death = oom[:, column], bins.vram_ceiling[:, column]
            memory["oom_level"][killed] = np.where(np.isnan(at_death), vram_limit, at_death)[killed]
    else:
        streak[~silent.all(axis=1)] = 0.0
    memory.marks[WATCHED_AT] = fleet.now


def _in_row_order(memory: Rows, usage: Usage) -> _Bins:
    window, order = usage.window, _order(memory, usage)
    return _Bins(
        ends=window.start + window.step * np.arange(1, window.bins + 1, dtype=np.float64),
        step=window.step,
        compute=_laid(usage.peak[Resource.COMPUTE], order, np.nan),
        vram=_laid(usage.peak[Resource.VRAM], order, np.nan),
        compute_ceiling=_laid(usage.ceiling[Resource.COMPUTE], order, np.nan),
        vram_ceiling=_laid(usage.ceiling[Resource.VRAM], order, np.nan),
        clipped=_laid(usage.clipped[Resource.COMPUTE], order, 0.0) > 0,
        ooms=_laid(usage.ooms, order, 0.0),
        compute_total=_laid(usage.total[Resource.COMPUTE], order, np.nan),
        vram_total=_laid(usage.total[Resource.VRAM], order, np.nan),
        workers=_laid(usage.workers, order, 0.0),
    )


def _order(memory: Rows, usage: Usage) -> Ints | None:
    """Return the usage's row of each of the memory's rows, -1 for none (W,); None where they are the same."""
    if usage.keys == memory.keys:
        return None
    row_of = {key: row for row, key in enumerate(usage.keys)}
    return np.array([row_of.get(key, -1) for key in memory.keys], dtype=np.int64)


def _laid(values: Floats32 | Bools, order: Ints | None, fill: float) -> Floats:
    """Return values (W, T) in the memory's row order, `fill` for workloads without."""
    if order is None:
        return values.astype(np.float64)
    if not len(values):
        return np.full((len(order), values.shape[1]), fill)
    laid: Floats = values.astype(np.float64)[order]
    laid[order < 0] = fill
    return laid


def _is_calm(memory: Rows, bins: _Bins) -> bool:
    """Tell whether every workload reported all along and none ran out of memory: then bins can be learnt together."""
    calm = not np.isnan(bins.vram + bins.compute).any() and not bins.ooms.any()
    return bool(
        calm and not np.isnan(memory["vram_last"]).any() and (bins.ends[0] - memory["oom_at"] > OOM_QUIET_SECONDS).all()
    )


def _learn_calm(memory: Rows, bins: _Bins) -> Bools:
    """Do what `_learn_bin_by_bin` does, in fewer steps, where `_is_calm`."""
    compute, vram, ends = bins.compute, bins.vram, bins.ends
    before = np.concatenate([memory["vram_last"][:, None], vram[:, :-1]], axis=1)
    reference, references = memory["compute_reference"], np.empty(compute.shape)
    for column in range(len(ends)):
        reference = np.fmax(compute[:, column], REFERENCE_DECAY * reference)
        references[:, column] = reference
    step = vram - before
    active: Bools = (compute > ACTIVE_COMPUTE_RATIO * references) | (
        np.abs(step) > ACTIVE_VRAM_RATIO * np.fmax(vram, before)
    )
    counted = memory["vram_samples"][:, None] + np.cumsum(active, axis=1)
    square, change = memory["vram_square"], step**2
    alpha = np.where(active, np.maximum(SQUARE_ALPHA, 1.0 / np.maximum(counted, 1.0)), 0.0)
    share, gain = memory["active_share"], _share_gain(bins.step)
    for column in range(len(ends)):
        square = square + alpha[:, column] * (change[:, column] - square)
        share += gain * (active[:, column] - share)
    latest = np.where(active, ends, NEVER).max(axis=1)
    memory["compute_reference"][:], memory["vram_square"][:] = reference, square
    memory["vram_samples"][:] = counted[:, -1]
    memory["active_at"][:] = np.maximum(memory["active_at"], latest)
    memory["vram_last"][:] = vram[:, -1]
    _keep_peaks(memory, "vram_peaks", bins, (HOUR, vram))
    _keep_peaks(memory, "vram_day_peaks", bins, (DAY, vram))
    samples = memory["samples"]
    samples += len(ends)
    memory["first_at"][:] = np.fmin(memory["first_at"], ends[0])
    memory["last_at"][:] = ends[-1]
    return active


def _learn_bin_by_bin(memory: Rows, bins: _Bins) -> Bools:
    """Update activity, changes and peaks of VRAM; return which samples (W, T) count as active."""
    active = np.zeros(bins.vram.shape, dtype=bool)
    grown = np.empty(bins.vram.shape)
    for column, end in enumerate(bins.ends):
        active[:, column], grown[:, column] = _learn_bin(memory, bins, column, end)
    _keep_peaks(memory, "vram_peaks", bins, (HOUR, grown))
    _keep_peaks(memory, "vram_day_peaks", bins, (DAY, grown))
    return active


def _learn_bin(memory: Rows, bins: _Bins, column: int, end: float) -> tuple[Bools, Floats]:
    """Update one bin; return which VRAM samples (W,) count as active, and what they say of the peak."""
    compute, vram, oom = bins.compute[:, column], bins.vram[:, column], bins.ooms[:, column] > 0
    reference, last = memory["compute_reference"], memory["vram_last"]
    reference[:] = np.fmax(compute, REFERENCE_DECAY * reference)
    known = ~np.isnan(vram)
    quiet = end - memory["oom_at"] <= OOM_QUIET_SECONDS
    step = vram - last
    first = known & np.isnan(last)
    moved = np.abs(step) > ACTIVE_VRAM_RATIO * np.fmax(vram, last)
    worked = (compute > ACTIVE_COMPUTE_RATIO * reference) | moved | oom | first
    active: Bools = known & worked & ~quiet
    samples, square = memory["vram_samples"], memory["vram_square"]
    alpha = np.maximum(SQUARE_ALPHA, 1.0 / (samples + 1.0))
    change = np.where(first, 0.0, step**2)
    square[active] += (alpha * (change - square))[active]
    samples[active] += 1
    memory["active_at"][(worked & known) | oom] = end
    share = memory["active_share"]
    share[known] += (_share_gain(bins.step) * ((worked | oom) - share))[known]
    memory["oom_at"][oom] = end
    last[known & ~quiet] = vram[known & ~quiet]
    seen = known | ~np.isnan(compute)
    memory["samples"][seen] += 1
    memory["first_at"][:] = np.where(seen, np.fmin(memory["first_at"], end), memory["first_at"])
    memory["last_at"][seen] = end
    return active, np.where(oom, OOM_GAIN * np.fmax(vram, bins.vram_ceiling[:, column]), np.where(quiet, np.nan, vram))


def _share_gain(step: float) -> float:
    return float(1 - 2 ** (-step / SHARE_HALF_LIFE_SECONDS))


def _keep_peaks(memory: Rows, name: str, bins: _Bins, what: tuple[float, Floats]) -> None:
    """Keep the maximum per block of the clock, as many blocks as there are slots; `what`: seconds of a block, values.

    A slot is cleared by the first bin that begins in its block.
    """
    block, values = what
    peaks, starts = memory[name], bins.ends - bins.step
    numbers = np.floor(starts / block).astype(np.int64)
    cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    for first, stop in pairwise(cuts):
        slot = int(numbers[first]) % peaks.shape[1]
        if starts[first] % block < bins.step:
            peaks[:, slot] = 0.0
        peaks[:, slot] = np.fmax(peaks[:, slot], np.fmax.reduce(values[:, first:stop], axis=1))


def _add_samples(memory: Rows, bins: _Bins, samples: tuple[Floats, Bools], fleet: Fleet) -> None:
    stored, active = samples
    age = bins.ends[-1] - bins.ends
    elapsed = float(bins.ends[-1]) - memory.marks.get(UNTIL, float(bins.ends[-1]))
    rows = len(memory.keys)
    histograms = (
        ("request_weights", COMPUTE_BUCKETS, fleet.knobs.request_half_life, stored),
        ("limit_weights", COMPUTE_BUCKETS, fleet.knobs.limit_half_life, stored),
        ("vram_weights", VRAM_BUCKETS, np.full(rows, VRAM_HALF_LIFE_SECONDS), np.where(active, bins.vram, np.nan)),
    )
    for name, buckets, half_life, values in histograms:
        weights = memory.weights(name)
        decay(weights, elapsed, half_life)
        add(weights, buckets, values, np.exp2(-age[None, :] / half_life[:, None]))


def _keep_latest(memory: Rows, bins: _Bins) -> None:
    """Keep the newest known use of the largest worker, and of all workers together."""
    use, load = memory["use"], memory["load"]
    for resource, one, all_of_them in (
        (Resource.COMPUTE, bins.compute, bins.compute_total),
        (Resource.VRAM, bins.vram, bins.vram_total),
    ):
        use[:, resource] = _last_known(one, use[:, resource])
        load[:, resource] = _last_known(all_of_them, load[:, resource])
    memory["reporting"][:] = bins.workers[:, -1]


def _last_known(values: Floats, before: Floats) -> Floats:
    """Return each row's newest known value (W, T), else what was known before."""
    latest = values[:, -1]
    if not np.isnan(latest).any():
        return latest
    known = ~np.isnan(values)
    newest = values.shape[1] - 1 - np.argmax(known[:, ::-1], axis=1)
    return np.where(known.any(axis=1), values[np.arange(len(values)), newest], before)


def _note_changes(memory: Rows, fleet: Fleet) -> None:
    """Notice figures that changed since the last pass: what was counted against the old ones no longer counts."""
    amounts = fleet.current[:, list(AMOUNT_FIELDS)]
    seen = memory["seen"]
    changed = (seen != amounts) & ~np.isnan(seen)
    memory["limit_changed_at"][changed[:, Field.COMPUTE_LIMIT]] = memory.marks.get(WATCHED_AT, -np.inf)
    request = changed[:, Field.COMPUTE_REQUEST]
    memory["surplus"][request] = 0.0
    raised = request & (amounts[:, Field.COMPUTE_REQUEST] > seen[:, Field.COMPUTE_REQUEST])
    memory["exceeded_at"][raised] = -np.inf
    memory["exceeded_peak"][raised] = 0.0
    seen[:] = amounts


def _note_exceedance(memory: Rows, compute: Floats, above: Bools, span: tuple[float, float]) -> None:
    """Count use above the request; `span`: end and width of the bin. One of two minutes counts as two samples."""
    end, step = span
    times, peak = memory["exceeded_at"], memory["exceeded_peak"]
    forgotten = end - times[:, 0] > 30 * MINUTE
    peak[above] = np.where(forgotten, compute, np.fmax(peak, compute))[above]
    times[above, 1] = times[above, 0] if step < 2 * MINUTE else end
    times[above, 0] = end
