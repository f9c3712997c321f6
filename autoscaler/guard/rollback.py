"""The guard that takes a harmful shrink back, and tries no other for a while."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from autoscaler.guard.case import Case
from autoscaler.model.decision import Field
from autoscaler.model.defaults import DAY, MINUTE
from autoscaler.model.fleet import Fleet
from autoscaler.model.reasons import VERDICT_CODE, Verdict
from autoscaler.model.resources import Resource
from autoscaler.model.rows import Rows
from autoscaler.model.usage import Bools, Floats

FIELDS: Final = [Field.COMPUTE_LIMIT, Field.VRAM_REQUEST, Field.VRAM_LIMIT]
"""Figures whose shrink can do the harm that is seen; what a compute request lacks, exceedance brings back at once."""
OF_RESOURCE: Final = [Resource.COMPUTE, Resource.VRAM, Resource.VRAM]
NEEDED_SAMPLES: Final = np.array([2.0, 1.0, 1.0])
"""Troubled samples in a row: one of saturation is how a limit is probed, one death is a death."""
WINDOW_SECONDS: Final = 30 * MINUTE
WINDOW_EVALUATIONS: Final = 6
FIRST_FREEZE_SECONDS: Final = DAY
LONGEST_FREEZE_SECONDS: Final = 16 * DAY


def rollback(case: Case) -> Case:
    """A shrink that is followed by harm is taken back to the last good figure, and shrinking freezes.

    Harm to a VRAM figure is an out-of-memory event, harm to a compute limit is saturation, each within the larger of
    30 min and 6 evaluation periods after the figure was lowered, while it is still under the last good one. Lowering
    asks for calm first, so any harm is a rise. Saturation is also how a limit finds its level: one sample that the next
    probe step cures is no harm, unless the limit was set below what was in use in the hours before. An idle workload's
    drop is no harm by itself either; a death after it is. Once a probe has passed the last good figure, that one would
    have been too small as well.

    The freeze is 24 h; a harm after it doubles it, up to 16 days; every calm span as long as the last freeze takes one
    doubling back. While it lasts, the figure stays at or above the last good one.
    """
    memory, now = case.memory, case.fleet.now
    lowered = memory["lowered_at"][:, FIELDS]
    if not np.isfinite(lowered).any():
        return case
    current, good = case.fleet.current[:, FIELDS], memory["good"][:, FIELDS]
    rolled, freeze = memory["rolled_at"][:, FIELDS], memory["freeze_seconds"][:, FIELDS]
    harmed = _harmed(case, lowered, rolled) & (current < good)
    if harmed.any():
        freeze = np.where(harmed, _next_freeze(now - rolled - freeze, freeze), freeze)
        rolled = np.where(harmed, now, rolled)
        memory["freeze_seconds"][:, FIELDS], memory["rolled_at"][:, FIELDS] = freeze, rolled
    frozen = now < rolled + freeze
    if not frozen.any():
        return case
    figure = case.figure.copy()
    figure[:, FIELDS] = np.where(frozen, np.fmax(np.fmax(figure[:, FIELDS], good), current), figure[:, FIELDS])
    for column, field in enumerate(FIELDS):
        left = np.where(frozen[:, column], (rolled + freeze - now)[:, column], np.nan)
        last = np.where(frozen[:, column], good[:, column], np.nan)
        case = case.noting(field, last_good=last, shrinking_frozen_seconds=left)
    moved = case.move(figure, Verdict.ROLLED_BACK)
    # An estimate that asks for the last good figure by itself takes the shrink back just as well.
    named = np.zeros_like(case.frozen)
    named[:, FIELDS] = harmed & (moved.figure[:, FIELDS] == good)
    verdict = np.where(named, np.int8(VERDICT_CODE[Verdict.ROLLED_BACK]), moved.verdict).astype(np.int8)
    return replace(moved, verdict=verdict)


def may_not_shrink(memory: Rows, now: float) -> Bools:
    """Return which figures are frozen, (W, 5)."""
    return np.asarray(now < memory["rolled_at"] + memory["freeze_seconds"], dtype=np.bool_)


def keep_good(memory: Rows, before: Fleet, lowered: Bools) -> None:
    """Remember the figures (W, 5) that are lowered at `before.now`; of several shrinks in one window the first's."""
    recent = before.now - memory["lowered_at"] <= _window(before)
    held = np.where(recent, np.fmax(memory["good"], before.current), before.current)
    memory["good"][lowered] = held[lowered]


def _harmed(case: Case, lowered: Floats, rolled: Floats) -> Bools:
    """Return which of FIELDS were harmed since they were lowered, and not taken back since, (W, 3)."""
    at, samples = case.wanted.trouble_at[:, OF_RESOURCE], case.wanted.trouble_samples[:, OF_RESOURCE]
    new = (at > lowered) & (at > rolled) & ~case.frozen[:, FIELDS]
    if not new.any():
        return new
    soon = at <= lowered + _window(case.fleet)[:, FIELDS]
    used = case.memory["use_peaks"].max(axis=2)[:, OF_RESOURCE]
    counts = (samples >= NEEDED_SAMPLES) | (used > case.fleet.current[:, FIELDS])
    return np.asarray(new & soon & counts, dtype=np.bool_)


def _window(fleet: Fleet) -> Floats:
    return np.maximum(WINDOW_SECONDS, WINDOW_EVALUATIONS * fleet.knobs.evaluation)


def _next_freeze(calm: Floats, last: Floats) -> Floats:
    """Return the next freeze after `calm` seconds since the last one ended; both (W, 3)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.where(last > 0, last * np.exp2(-np.maximum(calm, 0.0) / last), 0.0)
    return np.asarray(np.clip(2 * left, FIRST_FREEZE_SECONDS, LONGEST_FREEZE_SECONDS), dtype=np.float64)
