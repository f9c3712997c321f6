"""The guards in their order, and the one verb that runs them."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from autoscaler.guard.bounds import PAIRS, bounds, live_use, order, published
from autoscaler.guard.capacity import capacity, rate
from autoscaler.guard.case import Case, Guard, Limits
from autoscaler.guard.evidence import enough, fresh, supported, unpaused, valid
from autoscaler.guard.horizontal import one_answer
from autoscaler.guard.memory import Memory, remember_use
from autoscaler.guard.ordered import of_layers
from autoscaler.guard.others import adopted, not_managed_elsewhere, undisrupted
from autoscaler.guard.quota import quota
from autoscaler.guard.rollback import keep_good, rollback
from autoscaler.guard.room import room
from autoscaler.guard.stability import cool_down, dead_band, stabilization, step
from autoscaler.model.fleet import Fleet
from autoscaler.model.knobs import ON
from autoscaler.model.proposal import Allowed, Passage, Trace, Wanted
from autoscaler.model.reasons import CAUSE_CODE, VERDICT_CODE, Cause, Verdict
from autoscaler.model.usage import Bools, Floats

GUARDS: Final[tuple[Guard, ...]] = (
    # is there anything to decide on?
    of_layers(enough),
    of_layers(fresh),
    of_layers(valid),
    unpaused,
    supported,
    not_managed_elsewhere,
    adopted,
    # is now the time?
    of_layers(dead_band),
    of_layers(stabilization),
    of_layers(step),
    of_layers(rollback),
    of_layers(cool_down),
    # how far? From here on a figure is only made safer, whatever came before.
    live_use,
    bounds,
    order,
    published,
    order,
    undisrupted,
    # is there room? What is rounded up already is only cut, to figures that can be published.
    quota,
    capacity,
    room,
    of_layers(one_answer),
    rate,
    order,
)
SHAPING: Final[tuple[Guard, ...]] = (bounds, order, published, order)
"""What a recommendation is shown with, apart from the moment."""
TOLD: Final = (
    *("raised_at", "lowered_at", "shrink_since", "shrink_most", "evaluated_at", "surged_at", "good", "rolled_at"),
    "freeze_seconds",
)
"""What a trace keeps of the memory: later passes write over it."""
DRIFT_RATIO: Final = 0.05
"""A recommendation that moved less than this since it was last shown is no news, while nothing is applied."""
EVALUATION_SLACK: Final = 0.9
"""A pass that comes a little early still counts as a layer's period."""


def guard(fleet: Fleet, wanted: Wanted, memory: Memory, limits: Limits, *, told: bool = True) -> Allowed:
    """Return what may be applied now; figures whose layer is not on, or not due for evaluation, stay in force.

    Where nobody is `told`, as in a replay, what is recommended beside it is not worked out, and no trace is kept.
    """
    remember_use(fleet, memory)
    figure = np.where(np.isnan(wanted.figure), fleet.current, wanted.figure)
    on = fleet.knobs.mode == ON
    waited = fleet.now - memory["evaluated_at"]
    due = (waited >= EVALUATION_SLACK * fleet.knobs.evaluation) | wanted.urgent
    due |= memory["verdict"] == VERDICT_CODE[Verdict.STALE]  # what was held for lack of samples waits for nothing else
    idle = ~on & (figure != fleet.current)
    verdict = np.where(idle, VERDICT_CODE[Verdict.RECOMMEND_ONLY], VERDICT_CODE[Verdict.PASSED]).astype(np.int8)
    applied = np.where(on & due, figure, fleet.current)
    case = Case(fleet, wanted, memory, limits, on & due, applied, verdict, ~(on & due))
    if not told:
        for guard_it in GUARDS:
            case = guard_it(case)
        return _remembered(case, case.figure, due)
    case, way = _through(case, GUARDS)
    target, shown, advised = _recommended(case, figure, on)
    known = {name: memory[name].copy() for name in TOLD}
    trace = Trace(on, due, way, shown, advised, known, limits.fresh_seconds, limits.min_samples)
    return replace(_remembered(case, target, due), trace=trace)


def at_rest(fleet: Fleet, wanted: Wanted, memory: Memory) -> bool:
    """Tell whether nothing wants to move: then guarding changes nothing but what is shown. Forgets waits to shrink."""
    moves = wanted.figure != fleet.current
    rests = not (moves.any() and (moves & ~np.isnan(wanted.figure)).any())
    if rests:
        memory["shrink_since"][:] = np.nan
    return rests


def _through(case: Case, guards: tuple[Guard, ...]) -> tuple[Case, tuple[Passage, ...]]:
    """Return the case behind the last guard, and what each one left."""
    way = []
    for guard_it in guards:
        case = guard_it(case)
        way.append(Passage(guard_it.__name__, case.figure, case.verdict))
    return case, tuple(way)


def _recommended(case: Case, figure: Floats, on: Bools) -> tuple[Floats, tuple[Passage, ...], tuple[Passage, ...]]:
    """Return what is shown: inside bounds, order and device, apart from what the moment allows; and the ways there.

    A layer that is on is shown beside what is in force, not beside what others merely recommend; those yield to it.
    """
    free = replace(case, frozen=np.zeros_like(case.frozen))
    held, shown = _through(replace(free, figure=np.where(on, figure, case.fleet.current)), SHAPING)
    every, advised = _through(replace(free, figure=figure), SHAPING)
    target = np.where(on, held.figure, every.figure)
    for request, limit in PAIRS:
        target[:, request] = np.fmin(target[:, request], target[:, limit])
    return target, shown, advised


def _remembered(case: Case, target: Floats, due: Bools) -> Allowed:
    """Keep the verdict and target of what is due, recall those of what is not."""
    memory, current = case.memory, case.fleet.current
    evaluated = due | np.isnan(memory["target"])
    small = np.abs(target - memory["target"]) <= DRIFT_RATIO * memory["target"]
    drifts = small & (case.figure == current) & (target != current)
    memory["target"][:] = np.where(evaluated & ~drifts, target, memory["target"])
    told = evaluated | (case.figure != current)  # who gives to others may not be due
    memory["verdict"][:] = np.where(told, case.verdict, memory["verdict"])
    memory["cause"][:] = np.where(evaluated, case.wanted.cause, memory["cause"])
    memory["evaluated_at"][due] = case.fleet.now
    return Allowed(
        fleet=case.fleet,
        wanted=case.wanted,
        figure=case.figure,
        target=memory["target"].copy(),
        cause=memory["cause"].astype(np.int8),
        verdict=memory["verdict"].astype(np.int8),
        notes=case.notes,
    )


def note(memory: Memory, before: Fleet, figure: Floats) -> None:
    """Remember which figures moved at `before.now`, once they were written; `figure` (W, 5)."""
    lowered = figure < before.current
    if lowered.any():
        keep_good(memory, before, lowered)
        memory["lowered_at"][lowered] = before.now
        memory["idled_at"][lowered & (memory["cause"] == CAUSE_CODE[Cause.IDLE])] = before.now
    memory["raised_at"][figure > before.current] = before.now
    memory["shrink_since"][figure != before.current] = np.nan
