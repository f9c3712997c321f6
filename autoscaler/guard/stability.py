"""Guards on time: dead band, stabilization, step, cool-down - four different things.

Of amounts `stabilization` remembers only while the same figure is in force, of replicas all that its window saw.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from autoscaler.guard.bounds import PAIRS
from autoscaler.guard.case import Case
from autoscaler.guard.evidence import REPLICAS
from autoscaler.guard.horizontal import highest_of_window
from autoscaler.model import defaults
from autoscaler.model.decision import AMOUNT_FIELDS, Field
from autoscaler.model.reasons import VERDICT_CODE, Cause, Verdict
from autoscaler.model.usage import Bools


def dead_band(case: Case) -> Case:
    """A change smaller than the band is noise; shortage is not."""
    current = case.fleet.current
    small = np.abs(case.figure - current) <= case.fleet.knobs.dead_band * current
    return case.hold(small & ~case.wanted.urgent, Verdict.WITHIN_TOLERANCE)


def stabilization(case: Case) -> Case:
    """A figure shrinks only after it wanted to for the whole window, and then to the most it wanted in it.

    An idle workload's memory has waited for its level's cool-down already. Replicas: the highest count of the window.
    """
    if case.due[:, Field.REPLICAS].any():
        highest = np.fmin(highest_of_window(case), case.fleet.current[:, Field.REPLICAS])[:, None]
        case = case.move(np.where(REPLICAS & case.down, highest, case.figure), Verdict.STABILIZING)
    since, most, now = case.memory["shrink_since"], case.memory["shrink_most"], case.fleet.now
    down = case.down & ~case.frozen & ~REPLICAS
    started = down & np.isnan(since)
    since[started] = now
    since[case.due & ~down] = np.nan
    most[:] = np.where(down, np.fmax(np.where(started, np.nan, most), case.figure), most)
    waiting = now - since < case.fleet.knobs.stabilization
    exempt = case.caused_by(Cause.IDLE)
    case = case.hold(down & waiting & ~exempt, Verdict.STABILIZING)
    return case.move(np.where(down & ~waiting & ~exempt, most, case.figure), Verdict.STABILIZING)


def step(case: Case) -> Case:
    """Replicas move at most one step at a time, a count or a percentage of the current count; cool-downs space them."""
    current = case.fleet.current[:, Field.REPLICAS]
    if not (case.figure[:, Field.REPLICAS] != current).any():
        return case
    steps = case.fleet.knobs.largest_step(current)
    figure = case.figure.copy()
    figure[:, Field.REPLICAS] = np.clip(figure[:, Field.REPLICAS], current - steps[:, 1], current + steps[:, 0])
    return case.move(figure, Verdict.STEP_LIMITED)


def cool_down(case: Case) -> Case:
    """After a change the opposite one waits, and replicas wait either way; a surge to twice the figure does not.

    An amount that was lowered rises again only after its cool-down, and no guard may pull it up before, unless there is
    a shortage of its resource, a harmful shrink is taken back, or it was an idle workload's, which was only lent out. A
    surge of the load, whether or not it moved the replicas, forbids fewer of them for their downward cool-down.
    """
    now, knobs = case.fleet.now, case.fleet.knobs
    raised, lowered = case.memory["raised_at"], case.memory["lowered_at"]
    moved = np.maximum(raised, lowered)
    surge: Bools = case.wanted.urgent & (case.wanted.figure >= defaults.SURGE_RATIO * case.fleet.current)
    hot_up: Bools = now - np.where(REPLICAS, moved, lowered) < knobs.up_cool_down
    if hot_up.any():
        hot_up &= ~np.where(REPLICAS, surge, _is_pressed(case))
    surged = case.memory["surged_at"]
    surged[surge[:, Field.REPLICAS]] = now
    calmed = np.where(REPLICAS, np.maximum(moved, surged[:, None]), moved)
    hot_down = now - calmed < knobs.down_cool_down
    case = case.hold((case.up & hot_up) | (case.down & hot_down), Verdict.COOLING_DOWN)
    return replace(case, frozen=case.frozen | (hot_up & ~REPLICAS & ~case.down))


def _is_pressed(case: Case) -> Bools:
    """Return which amounts may rise at any time, (W, 5)."""
    urgent = case.wanted.urgent & case.up
    short = np.stack([urgent[:, [request, limit]].any(axis=1) for request, limit in PAIRS], axis=1)
    pressed = np.zeros(urgent.shape, dtype=np.bool_)
    pressed[:, AMOUNT_FIELDS] = np.repeat(short, 2, axis=1)
    returns = (case.verdict == VERDICT_CODE[Verdict.ROLLED_BACK]) & case.up
    lent = np.isfinite(case.memory["idled_at"]) & (case.memory["idled_at"] == case.memory["lowered_at"])
    return np.asarray(pressed | returns | lent, dtype=np.bool_)
