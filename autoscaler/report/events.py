"""Events of a pass: what was done, after it was done, and what newly stands in the way; pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Final

from autoscaler.errors import Problem
from autoscaler.model.allowed import is_applied
from autoscaler.model.decision import Decision, Field, FieldDecision
from autoscaler.model.reasons import Cause, Verdict
from autoscaler.model.steps import Emit
from autoscaler.model.workload import BrokenWorkload, Workload
from autoscaler.report.blocked import blocked_now, told_before, wants_more
from autoscaler.report.conditions import LAYERS
from autoscaler.report.reported import Reported


class EventReason(StrEnum):
    """Reasons of the events on a workload and its owners."""

    RESOURCE_SCALED_UP = "ResourceScaledUp"
    RESOURCE_SCALED_DOWN = "ResourceScaledDown"
    REPLICAS_SCALED_UP = "ReplicasScaledUp"
    REPLICAS_SCALED_DOWN = "ReplicasScaledDown"
    SCALING_BLOCKED = "ScalingBlocked"
    OOM_DETECTED = "OOMDetected"
    ROLLED_BACK = "RolledBack"


WARNINGS: Final = frozenset({EventReason.SCALING_BLOCKED, EventReason.OOM_DETECTED, EventReason.ROLLED_BACK})
Told = tuple[EventReason, str]


def events_of(reported: Reported) -> tuple[Emit, ...]:
    """Return the events of one workload, each on the workload and on its owners.

    Call it after the writes: where they failed (`error`) nothing was scaled. Blocked growth and memory exhaustion are
    told once, when the stored status does not know of them yet.
    """
    decision = reported.decision
    if decision is None:
        return ()
    told = [] if reported.error else [*_scaled(reported, decision)]
    told += [*_blocked(reported, decision), *_out_of_memory(reported, decision)]
    workload = reported.workload
    refs = (workload.ref, *workload.owners) if workload.exists else workload.owners
    return tuple(Emit(ref, reason, text, warning=reason in WARNINGS) for reason, text in told for ref in refs)


def invalid_events(workload: Workload | BrokenWorkload, problems_before: Sequence[Problem]) -> tuple[Emit, ...]:
    """Return a warning for every owner when its configuration turned wrong, or wrong in another way."""
    if not workload.problems or tuple(problems_before) == workload.problems:
        return ()
    refs = (workload.ref, *workload.owners) if workload.exists else workload.owners
    text = "; ".join(map(str, workload.problems))
    return tuple(Emit(ref, EventReason.SCALING_BLOCKED, text, warning=True) for ref in refs)


def _scaled(reported: Reported, decision: Decision) -> Iterator[Told]:
    moved = [one for one in decision.fields if is_applied(one) and one.changed]
    groups = (
        (EventReason.RESOURCE_SCALED_UP, True, False),
        (EventReason.RESOURCE_SCALED_DOWN, False, False),
        (EventReason.REPLICAS_SCALED_UP, True, True),
        (EventReason.REPLICAS_SCALED_DOWN, False, True),
    )
    for reason, grows, is_replicas in groups:
        group = [one for one in moved if _grows(one) is grows and (one.field is Field.REPLICAS) is is_replicas]
        if group:
            yield reason, _joined(reported, group)
    returned = [one for one in moved if one.verdict is Verdict.ROLLED_BACK and _grows(one)]
    if returned:
        yield EventReason.ROLLED_BACK, _joined(reported, returned)


def _grows(decision: FieldDecision) -> bool:
    return decision.allowed > decision.current


def _blocked(reported: Reported, decision: Decision) -> Iterator[Told]:
    """Yield what newly keeps a layer from growing."""
    before = told_before(reported.workload.status)
    now = blocked_now(decision, before)
    news = [type_ for type_ in LAYERS if type_ in now and now[type_] != before.get(type_)]
    blocked = [decision[field] for type_ in news for field in LAYERS[type_] if wants_more(decision[field])]
    if blocked:
        yield EventReason.SCALING_BLOCKED, _joined(reported, blocked)


def _out_of_memory(reported: Reported, decision: Decision) -> Iterator[Told]:
    before = (reported.workload.status.get("autoscaling") or {}).get("vram") or {}
    hit = [one for one in decision.fields if one.cause is Cause.OOM_SEEN]
    if hit and before.get("reason") != Cause.OOM_SEEN:
        yield EventReason.OOM_DETECTED, _joined(reported, hit)


def _joined(reported: Reported, decisions: Iterable[FieldDecision]) -> str:
    return "; ".join(reported.sentences[one.field] for one in decisions)
