"""Guards that leave to others what is theirs: other autoscalers, the owner's hand, disruption budgets, gangs."""

from __future__ import annotations

from typing import Final

import numpy as np

from autoscaler.guard.case import Case
from autoscaler.guard.evidence import REPLICAS
from autoscaler.model.decision import Field
from autoscaler.model.reasons import Verdict

FLOORS: Final = (
    ("budget_count", Verdict.DISRUPTION_LIMITED),
    ("gang_count", Verdict.GANG_LIMITED),
)
"""By column of the floor: what its number is called, and the verdict."""


def not_managed_elsewhere(case: Case) -> Case:
    """Replicas are moved by one autoscaler only, and not while pods are pending or a rollout runs.

    A pod that is pending for too long frees the way inward, and no more: another one would have no place either. A
    rollout that makes no pod any more frees both. What is ordered is not measured, so pods that are pending or changing
    don't falsify it.
    """
    if not case.due[:, Field.REPLICAS].any():
        return case
    fleet, measured = case.fleet, ~case.fleet.ordered[:, Field.REPLICAS]
    holding = fleet.holding
    for flag, verdict in (
        (holding.unscalable, Verdict.NOT_SCALABLE),
        (fleet.flags.managed_elsewhere, Verdict.REPLICAS_MANAGED_ELSEWHERE),
        (holding.rolling & measured, Verdict.ROLLOUT_IN_PROGRESS),
        (holding.starting & measured, Verdict.PODS_PENDING),
        (holding.stuck & measured & case.up[:, Field.REPLICAS], Verdict.PODS_PENDING),
    ):
        case = case.hold(flag[:, None] & REPLICAS[None, :], verdict, freeze=True)
    return case


def adopted(case: Case) -> Case:
    """A figure that somebody else set rests as it was set, for a while; see `model.takeover`."""
    return case.hold(case.fleet.now < case.fleet.holding.rests_until, Verdict.ADOPTED, freeze=True)


def undisrupted(case: Case) -> Case:
    """Replicas don't fall below what disruption budgets keep and what a gang needs, nor grow for it."""
    current = case.fleet.current[:, Field.REPLICAS]
    for column, (name, verdict) in enumerate(FLOORS):
        floor = np.fmin(case.fleet.holding.floor[:, column], current)
        cut = case.figure[:, Field.REPLICAS] < floor
        if cut.any():
            figure = np.where(REPLICAS[None, :], np.fmax(case.figure, floor[:, None]), case.figure)
            case = case.move(figure, verdict).noting(Field.REPLICAS, **{name: np.where(cut, floor, np.nan)})
    return case
