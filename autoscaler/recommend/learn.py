"""Usage into memory: what each bin teaches.

Formulas: activity-gated VRAM levels and decaying histograms over 60 s bins; see docs/how-it-decides.md.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from autoscaler.contract.gate import ACTIVE_COMPUTE_RATIO, ACTIVE_VRAM_RATIO, REFERENCE_DECAY
from autoscaler.model.columns import fmax, fmin, isnan, last_known, maximum, where, without
from autoscaler.model.defaults import DAY, HOUR, MINUTE
from autoscaler.model.fleet import Fleet
from autoscaler.model.resources import Resource
from autoscaler.model.rows import Rows
from autoscaler.model.usage import Bools, Floats, Usage
from autoscaler.recommend.bins import Bins, blocks, in_row_order
from autoscaler.recommend.forecast import observe
from autoscaler.recommend.histogram import COMPUTE_BUCKETS, VRAM_BUCKETS, add_at, decay, left
from autoscaler.recommend.memory import NEVER, UNTIL, Learnt
from autoscaler.recommend.series import Samples

CLIPPED_GAIN: Final = 1.15
"""A clipped sample stands for at least this much more demand."""
OOM_GAIN: Final = 1.2
OOM_QUIET_SECONDS: Final = 5 * MINUTE
SQUARE_ALPHA: Final = 1 - 2 ** (-1 / 1440)
VRAM_HALF_LIFE_SECONDS: Final = DAY
SHARE_HALF_LIFE_SECONDS: Final = HOUR


def learn(memory: Learnt, usage: Usage, fleet: Fleet) -> None:
    """Add a window's bins to the memory; rows must be aligned with the fleet. Usage of unknown workloads is ignored."""
    bins = in_row_order(memory, usage)
    ends = bins.ends
    if not ends.size:
        return
    stored = np.where(bins.clipped, CLIPPED_GAIN * bins.compute, bins.compute)
    active, grown = _learn_activity(memory, bins)
    days = blocks(bins, DAY)
    _keep_peaks(memory["compute_peaks"], days, stored)
    _keep_peaks(memory["vram_day_peaks"], days, grown)
    _keep_peaks(memory["vram_peaks"], blocks(bins, HOUR), grown)
    _add_samples(memory, bins, (stored, active), fleet)
    observe(memory, Samples(ends, bins.step, stored), fleet)
    memory.marks[UNTIL] = float(ends[-1])


def _learn_activity(memory: Rows, bins: Bins) -> tuple[Bools, Floats]:
    """Update activity, changes and the newest use; return which samples are active and what says what of peaks."""
    if len(memory.keys) == 1:
        one, numbers = memory.alone(), bins.alone()
        learnt = _learn_bin_by_bin(one, numbers)
        _keep_latest(one, numbers)
        return learnt
    learnt = _learn_calm(memory, bins) if _is_calm(memory, bins) else _learn_bin_by_bin(memory, bins)
    _keep_latest(memory, bins)
    return learnt


def _is_calm(memory: Rows, bins: Bins) -> bool:
    """Tell whether every workload reported all along and none ran out of memory: then bins can be learnt together."""
    calm = not np.isnan(bins.vram + bins.compute).any() and not bins.ooms.any()
    return bool(
        calm and not np.isnan(memory["vram_last"]).any() and (bins.ends[0] - memory["oom_at"] > OOM_QUIET_SECONDS).all()
    )


def _learn_calm(memory: Rows, bins: Bins) -> tuple[Bools, Floats]:
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
    samples = memory["samples"]
    samples += len(ends)
    memory["first_at"][:] = np.fmin(memory["first_at"], ends[0])
    memory["last_at"][:] = ends[-1]
    return active, vram


class _Activity(NamedTuple):
    """What is remembered of activity and of the peaks' changes, (W,) each, by the names of the memory's columns."""

    compute_reference: Floats
    vram_last: Floats
    vram_square: Floats
    vram_samples: Floats
    active_at: Floats
    active_share: Floats
    oom_at: Floats
    samples: Floats
    first_at: Floats
    last_at: Floats


def _learn_bin_by_bin(memory: Rows, bins: Bins) -> tuple[Bools, Floats]:
    """Update bin by bin; return which VRAM samples (W, T) count as active, and what they say of the peak."""
    shape = len(memory.keys), len(bins.ends)
    active, grown = np.zeros(shape, dtype=bool), np.empty(shape)
    activity = _Activity(*(memory[name] for name in _Activity._fields))
    for column, end in enumerate(bins.ends.tolist()):
        activity, active[:, column], grown[:, column] = _after_bin(activity, bins, column, end)
    for name, values in zip(_Activity._fields, activity, strict=True):
        memory[name] = values
    return active, grown


def _after_bin(before: _Activity, bins: Bins, column: int, end: float) -> tuple[_Activity, Bools, Floats]:
    """Return the activity after a bin, which VRAM samples (W,) count as active, and what they say of the peak."""
    compute, vram, oom = bins.compute[:, column], bins.vram[:, column], bins.ooms[:, column] > 0
    reference, last, square, samples, active_at, share, oom_at, count, first_at, last_at = before
    reference = fmax(compute, REFERENCE_DECAY * reference)
    known = without(isnan(vram))
    quiet = end - oom_at <= OOM_QUIET_SECONDS
    step = vram - last
    first = known & isnan(last)
    moved = abs(step) > ACTIVE_VRAM_RATIO * fmax(vram, last)
    worked = (compute > ACTIVE_COMPUTE_RATIO * reference) | moved | oom | first
    taught = known & without(quiet)
    active, seen = taught & worked, known | without(isnan(compute))
    alpha = maximum(SQUARE_ALPHA, 1.0 / (samples + 1.0))
    change = where(first, 0.0, step * step)
    after = _Activity(
        compute_reference=reference,
        vram_last=where(taught, vram, last),
        vram_square=where(active, square + alpha * (change - square), square),
        vram_samples=where(active, samples + 1, samples),
        active_at=where((worked & known) | oom, end, active_at),
        active_share=where(known, share + _share_gain(bins.step) * (where(worked, 1.0, 0.0) - share), share),
        oom_at=where(oom, end, oom_at),
        samples=where(seen, count + 1, count),
        first_at=where(seen, fmin(first_at, end), first_at),
        last_at=where(seen, end, last_at),
    )
    peak = where(oom, OOM_GAIN * fmax(vram, bins.vram_ceiling[:, column]), where(quiet, np.nan, vram))
    return after, active, peak


@lru_cache(maxsize=16)
def _share_gain(step: float) -> float:
    return float(1 - 2 ** (-step / SHARE_HALF_LIFE_SECONDS))


def _keep_peaks(peaks: Floats, parts: list[tuple[int, slice, bool]], values: Floats) -> None:
    """Keep the maximum per block of the clock in as many slots as there are, (W, S), of values (W, T).

    A slot is cleared by the first bin that begins in its block.
    """
    for number, columns, begins in parts:
        slot = number % peaks.shape[1]
        if begins:
            peaks[:, slot] = 0.0
        peaks[:, slot] = np.fmax(peaks[:, slot], np.fmax.reduce(values[:, columns], axis=1))


def _add_samples(memory: Rows, bins: Bins, samples: tuple[Floats, Bools], fleet: Fleet) -> None:
    stored, active = samples
    age = (bins.ends[-1] - bins.ends)[None, :]
    elapsed = float(bins.ends[-1]) - memory.marks.get(UNTIL, float(bins.ends[-1]))
    knobs, vram_half_life = fleet.knobs, np.full(len(memory.keys), VRAM_HALF_LIFE_SECONDS)
    compute, known = COMPUTE_BUCKETS.index(stored), ~np.isnan(stored)
    vram, taught = VRAM_BUCKETS.index(bins.vram), active & ~np.isnan(bins.vram)
    for name, half_life, places, counted in (
        ("request_weights", knobs.request_half_life, compute, known),
        ("limit_weights", knobs.limit_half_life, compute, known),
        ("vram_weights", vram_half_life, vram, taught),
    ):
        weights = memory.weights(name)
        decay(weights, elapsed, half_life)
        add_at(weights, places, counted, left(age, half_life))


def _keep_latest(memory: Rows, bins: Bins) -> None:
    """Keep the newest known use of the largest worker, and of all workers together."""
    use, load = memory["use"], memory["load"]
    for resource, one, all_of_them in (
        (Resource.COMPUTE, bins.compute, bins.compute_total),
        (Resource.VRAM, bins.vram, bins.vram_total),
    ):
        use[:, resource] = last_known(one, use[:, resource])
        load[:, resource] = last_known(all_of_them, load[:, resource])
    memory["reporting"] = bins.workers[:, -1]
