"""Replicas beside requests and limits: one shortage, one answer; one surplus, one answer.

Upward vertical comes first: where a limit still grows in this pass, replicas wait. Once replicas do move outward, the
per-worker request does not rise for the same shortage, and shrinks only after the new workers are ready, because until
then per-worker use is a mixture. Downward it is the other way round (last out, first in): while there are more workers
than before the first step outward, a surplus is answered by fewer workers, so that limits never shrink to fit many
small workers where few large ones did. All of it holds only for resources that replicas steer by.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from autoscaler.guard.bounds import PAIRS
from autoscaler.guard.case import Case
from autoscaler.guard.memory import WINDOW_SLOTS
from autoscaler.model.decision import Field
from autoscaler.model.defaults import MINUTE
from autoscaler.model.knobs import ON
from autoscaler.model.reasons import Cause, Verdict
from autoscaler.model.usage import Bools, Floats

COUNT: Final = Field.REPLICAS
SPREADING_SECONDS: Final = 15 * MINUTE
"""A new worker that does not get ready holds the others' figures no longer than this."""


def highest_of_window(case: Case) -> Floats:
    """Return the highest recommended count of the stabilization window (W,), at least the current one until it is full.

    As in the Kubernetes HPA; kept in slots of a tenth of the window, so it may look back up to a tenth longer.
    """
    memory, now, current = case.memory, case.fleet.now, case.fleet.current[:, COUNT]
    window, due = case.fleet.knobs.stabilization[:, COUNT], case.due[:, COUNT]
    most, at, since = memory["count_most"], memory["count_at"], memory["count_since"]
    width = np.maximum(window / (WINDOW_SLOTS - 1), 1.0)
    started = np.floor(now / width)
    rows = np.flatnonzero(due)
    slot = (started[rows] % WINDOW_SLOTS).astype(np.int64)
    same = at[rows, slot] >= started[rows] * width[rows]
    figure = case.figure[rows, COUNT]
    most[rows, slot] = np.where(same, np.fmax(most[rows, slot], figure), figure)
    at[rows, slot] = now
    since[due] = np.fmin(since, now)[due]
    highest = np.where(now - at < window[:, None], most, -np.inf).max(axis=1)
    full = now - since >= window
    return np.where(full, np.fmax(highest, case.figure[:, COUNT]), np.fmax(current, case.figure[:, COUNT]))


def one_answer(case: Case) -> Case:
    """A shortage or surplus is answered by limits or by replicas, never by both; see the module."""
    steered = _steered(case)
    if not steered.any():
        _above_base(case)  # for the day when replicas are steered
        return case
    grows = np.zeros(len(case.fleet), dtype=np.bool_)
    for resource, (_, limit) in enumerate(PAIRS):
        grows |= steered[:, resource] & case.up[:, limit]
    case = case.hold(_only(COUNT, grows & case.up[:, COUNT]), Verdict.VERTICAL_FIRST)
    return _spreading(_replicas_first(case, steered), steered)


def _replicas_first(case: Case, steered: Bools) -> Case:
    """Hold requests that would grow beside the replicas, and limits that would shrink while workers can go."""
    count, outward, above = case.fleet.current[:, COUNT], case.up[:, COUNT], _above_base(case)
    for resource, (request, limit) in enumerate(PAIRS):
        rises = steered[:, resource] & outward & case.up[:, request] & ~case.caused_by(Cause.OOM_SEEN)[:, request]
        case = case.hold(_only(request, rises), Verdict.REPLICAS_FIRST)
        spare = steered[:, resource] & above & (count > case.fleet.knobs.minimum[:, COUNT])
        case = case.hold(_only(limit, spare & case.down[:, limit]), Verdict.REPLICAS_FIRST)
    return case


def _spreading(case: Case, steered: Bools) -> Case:
    """Hold what would move on a mixture: workers that have the load, and new ones that don't share it yet."""
    fleet = case.fleet
    recent = fleet.now - case.memory["raised_at"][:, COUNT] < SPREADING_SECONDS
    starting = recent & (fleet.ready < fleet.current[:, COUNT])
    shortage = case.caused_by(Cause.OOM_SEEN, Cause.SATURATED)
    for resource, (request, limit) in enumerate(PAIRS):
        mixed = steered[:, resource] & starting
        for field in (request, limit):
            case = case.hold(_only(field, mixed & case.down[:, field]), Verdict.LOAD_SPREADING)
        rises = mixed & case.up[:, request] & ~shortage[:, request]
        case = case.hold(_only(request, rises), Verdict.LOAD_SPREADING)
    return case


def _above_base(case: Case) -> Bools:
    """Return where there are more workers than before the first step outward, (W,); the owner's own don't count."""
    count, base, seen = case.fleet.current[:, COUNT], case.memory["count_base"], case.memory["count_seen"]
    ours = case.fleet.now - case.memory["raised_at"][:, COUNT] < SPREADING_SECONDS
    base[:] = np.where(ours & (count > seen), np.fmin(base, seen), base)
    base[count <= base] = np.nan
    seen[:] = count
    return ~np.isnan(base)


def _steered(case: Case) -> Bools:
    """Return the resources (W, 2) by which replicas are steered, where that layer is on and nobody else moves them."""
    knobs, flags = case.fleet.laid.knobs, case.fleet.flags  # where replicas are merely ordered, limits go their own way
    moved = (knobs.mode[:, COUNT] == ON) & ~flags.managed_elsewhere
    return np.asarray(moved[:, None] & ~np.isnan(knobs.target_utilization), dtype=np.bool_)


def _only(field: Field, where: Bools) -> Bools:
    """Return a mask (W, 5) of one field."""
    return np.asarray(where[:, None] & (np.arange(len(Field)) == field)[None, :], dtype=np.bool_)
