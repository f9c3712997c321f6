"""The numbers behind the verdict on one figure, evaluated in this pass or before; worked out when asked for.

A record (see `trace`) tells every guard's step of one pass; this tells what stands in the way now.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from autoscaler.guard.bounds import PAIRS
from autoscaler.guard.numbers import Moment, Numbers, numbers_of
from autoscaler.model.decision import Field
from autoscaler.model.proposal import Allowed
from autoscaler.model.reasons import VERDICTS, Verdict

GUARD_OF: Final[Mapping[Verdict, str]] = {
    Verdict.LOW_CONFIDENCE: "enough",
    Verdict.INITIAL_DELAY: "enough",
    Verdict.STALE: "fresh",
    Verdict.PAUSED: "unpaused",
    Verdict.WITHIN_TOLERANCE: "dead_band",
    Verdict.STABILIZING: "stabilization",
    Verdict.STEP_LIMITED: "step",
    Verdict.ROLLED_BACK: "rollback",
    Verdict.COOLING_DOWN: "cool_down",
    Verdict.LIVE_USE: "live_use",
    Verdict.BOUND_LIMITED: "bounds",
    Verdict.QUOTA_LIMITED: "quota",
    Verdict.CAPACITY_LIMITED: "capacity",
    Verdict.GAVE_TO_HIGHER_QOS: "capacity",
    Verdict.ADOPTED: "adopted",
    Verdict.DISRUPTION_LIMITED: "undisrupted",
    Verdict.GANG_LIMITED: "undisrupted",
}
"""The guard that names a verdict; those that are not here have no numbers."""
_PARTNERS: Final = dict(PAIRS) | {limit: request for request, limit in PAIRS}


def held_numbers(allowed: Allowed, row: int, field: Field) -> Numbers:
    """Return what the guard that named a figure's verdict goes by, by name; empty where it goes by no number."""
    guard, trace = GUARD_OF.get(VERDICTS[int(allowed.verdict[row, field])]), allowed.trace
    if guard is None or trace is None:
        return {}
    wanted, current = allowed.wanted.figure[row], allowed.fleet.current[row]
    before = [float(value) for value in np.where(np.isnan(wanted), current, wanted)]
    after = [float(value) for value in allowed.figure[row]]
    verdicts = [int(code) for code in allowed.verdict[row]]
    moment = Moment(allowed, trace, row, before, after, verdicts)
    return {**numbers_of(guard, moment, field), **_noted(allowed, row, field), **_beside(moment, field)}


def _noted(allowed: Allowed, row: int, field: Field) -> Numbers:
    noted = {name: float(column[row]) for name, column in allowed.notes.get(field, {}).items()}
    return {name: value for name, value in noted.items() if not np.isnan(value)}


def _beside(at: Moment, field: Field) -> Numbers:
    """Return what bounds an amount besides its own bounds: its device, and the other side of its pair."""
    partner = _PARTNERS.get(field)
    return {} if partner is None else {"device": at.device(field), "partner": at.after[partner]}
