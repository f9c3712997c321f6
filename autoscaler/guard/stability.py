"""Guards on time: dead band, stabilization, step, cool-down - four different things.

Of amounts `stabilization` remembers only while the same figure is in force, of replicas all that its window saw.
"""

from __future__ import annotations

import numpy as np

from autoscaler.guard.case import Case
from autoscaler.guard.evidence import REPLICAS
from autoscaler.guard.horizontal import highest_of_window
from autoscaler.model import defaults
from autoscaler.model.decision import Field
from autoscaler.model.reasons import Cause, Verdict
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
    steps = case.fleet.knobs.largest_step(current)
    figure = case.figure.copy()
    figure[:, Field.REPLICAS] = np.clip(figure[:, Field.REPLICAS], current - steps[:, 1], current + steps[:, 0])
    return case.move(figure, Verdict.STEP_LIMITED)


def cool_down(case: Case) -> Case:
    """After a change the opposite one waits, and replicas wait either way; a surge to twice the figure does not.

    A surge of the load, whether or not it moved the replicas, forbids fewer of them for their downward cool-down.
    """
    now, knobs = case.fleet.now, case.fleet.knobs
    raised, lowered = case.memory["raised_at"], case.memory["lowered_at"]
    moved = np.maximum(raised, lowered)
    surge: Bools = case.wanted.urgent & (case.wanted.figure >= defaults.SURGE_RATIO * case.fleet.current)
    hot_up = (now - moved < knobs.up_cool_down) & ~surge
    surged = case.memory["surged_at"]
    surged[surge[:, Field.REPLICAS]] = now
    calmed = np.where(REPLICAS, np.maximum(moved, surged[:, None]), moved)
    hot_down = now - calmed < knobs.down_cool_down
    return case.hold((case.up & hot_up) | (case.down & hot_down), Verdict.COOLING_DOWN)
