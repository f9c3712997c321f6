"""Guards on what is known: nothing moves on missing or stale evidence, nor against the owner's word."""

from __future__ import annotations

from typing import Final

import numpy as np

from autoscaler.guard.case import Case
from autoscaler.model.decision import Field
from autoscaler.model.reasons import Cause, Verdict
from autoscaler.model.usage import Bools

REPLICAS: Final = np.arange(len(Field)) == Field.REPLICAS
"""Mask over the field axis."""


def is_early(case: Case) -> Bools:
    """Return where too little is known to lower anything: the initial delay is not over, or bins are few, (W,)."""
    age = np.fmax(case.fleet.now - case.wanted.first_at, 0.0)
    return np.asarray((age < case.fleet.knobs.initial_delay) | _is_few(case), dtype=np.bool_)


def is_stale(case: Case) -> Bools:
    """Return where the newest bin is older than the staleness limit, (W,)."""
    age = case.fleet.now - case.wanted.last_at
    return np.asarray(~(age <= case.limits.fresh_seconds) & (case.wanted.samples > 0), dtype=np.bool_)


def _is_few(case: Case) -> Bools:
    return np.asarray(case.wanted.samples < case.limits.min_samples, dtype=np.bool_)


def enough(case: Case) -> Case:
    """Until the initial delay has passed and enough bins are known, only shortage moves a figure, and only up."""
    early = is_early(case)
    if not early.any():
        return case
    few = _is_few(case)
    shortage = case.caused_by(Cause.SATURATED, Cause.OOM_SEEN) & case.up
    held = case.hold(few[:, None] & ~shortage, Verdict.LOW_CONFIDENCE)
    return held.hold((early & ~few)[:, None] & ~shortage, Verdict.INITIAL_DELAY)


def fresh(case: Case) -> Case:
    """No decision is taken from a series older than the staleness limit: everything stays as it is."""
    return case.hold(is_stale(case)[:, None], Verdict.STALE, freeze=True)


def valid(case: Case) -> Case:
    """While the newest configuration is wrong the last good one explains, but moves nothing new downward."""
    invalid = case.fleet.flags.invalid
    return case.hold(invalid[:, None] & case.down, Verdict.CONFIG_INVALID) if invalid.any() else case


def unpaused(case: Case) -> Case:
    """The owner's pause holds growth, shrinking or both."""
    flags = case.fleet.flags
    if not (flags.paused_up | flags.paused_down).any():
        return case
    case = case.hold((flags.paused_up & flags.paused_down)[:, None], Verdict.PAUSED, freeze=True)
    case = case.hold(flags.paused_up[:, None] & case.up, Verdict.PAUSED, freeze=True)
    return case.hold(flags.paused_down[:, None] & case.down, Verdict.PAUSED, freeze=True)


def supported(case: Case) -> Case:
    """A whole GPU, or one whose isolation can't change at run time, has no quota to move."""
    amounts, flags = ~REPLICAS[None, :], case.fleet.flags
    if not (flags.dedicated | flags.unsupported).any():
        return case
    case = case.hold(flags.dedicated[:, None] & amounts, Verdict.DEDICATED_GPU, freeze=True)
    return case.hold(flags.unsupported[:, None] & amounts, Verdict.UNSUPPORTED_ISOLATION, freeze=True)
