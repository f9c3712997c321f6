"""The conditions of a workload: every "no" with its reason and a sentence with the numbers; pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

from autoscaler.errors import Problem
from autoscaler.model.config import Mode
from autoscaler.model.decision import Decision, Field, FieldDecision
from autoscaler.model.external import ScalerReason
from autoscaler.model.reasons import Cause, Verdict
from autoscaler.report.message import is_blocked
from autoscaler.report.remedy import switched_off
from autoscaler.report.reported import Acknowledgement, MetricsReason, Reported, SyncReason, timestamp

MAX_MESSAGE_CHARACTERS: Final = 4096


class ConditionType(StrEnum):
    """Types, in the order in which they are listed."""

    CONFIG_VALID = "ConfigValid"
    METRICS_AVAILABLE = "MetricsAvailable"
    RECOMMENDATION_PROVIDED = "RecommendationProvided"
    REQUESTS_APPLIED = "RequestsApplied"
    LIMITS_APPLIED = "LimitsApplied"
    REPLICAS_APPLIED = "ReplicasApplied"
    ENFORCEMENT_IN_SYNC = "EnforcementInSync"
    EXTERNAL_SCALER_AVAILABLE = "ExternalScalerAvailable"
    """Only where the workload has a scaler of its own."""


class Reason(StrEnum):
    """Reasons that are neither a verdict nor a node's."""

    VALID = "Valid"
    INVALID = "Invalid"
    READY = "Ready"
    NO_DATA = "NoData"
    APPLIED = "Applied"
    APPLIED_PARTIALLY = "AppliedPartially"
    WRITE_FAILED = "WriteFailed"


LAYERS: Final = {
    ConditionType.REQUESTS_APPLIED: (Field.COMPUTE_REQUEST, Field.VRAM_REQUEST),
    ConditionType.LIMITS_APPLIED: (Field.COMPUTE_LIMIT, Field.VRAM_LIMIT),
    ConditionType.REPLICAS_APPLIED: (Field.REPLICAS,),
}
GRAVEST_FIRST: Final = (
    # the owner or the cluster's people must act
    Verdict.CONFIG_INVALID,
    Verdict.STALE,
    Verdict.AGENT_UNREACHABLE,
    Verdict.UNSUPPORTED_ISOLATION,
    Verdict.DEDICATED_GPU,
    Verdict.REPLICAS_MANAGED_ELSEWHERE,
    Verdict.NOT_SCALABLE,
    Verdict.ROLLED_BACK,
    Verdict.QUOTA_LIMITED,
    Verdict.CAPACITY_LIMITED,
    Verdict.GAVE_TO_HIGHER_QOS,
    Verdict.DISRUPTION_LIMITED,
    Verdict.GANG_LIMITED,
    Verdict.BOUND_LIMITED,
    # passes by itself
    Verdict.PODS_PENDING,
    Verdict.LOAD_SPREADING,
    Verdict.VERTICAL_FIRST,
    Verdict.REPLICAS_FIRST,
    Verdict.ROLLOUT_IN_PROGRESS,
    Verdict.PAUSED,
    Verdict.ADOPTED,
    Verdict.INITIAL_DELAY,
    Verdict.LOW_CONFIDENCE,
    Verdict.LIVE_USE,
    Verdict.STEP_LIMITED,
    Verdict.RATE_LIMITED,
    Verdict.COOLING_DOWN,
    Verdict.STABILIZING,
    Verdict.WITHIN_TOLERANCE,
    Verdict.RECOMMEND_ONLY,
    Verdict.PASSED,
)
_ACTED_ON_FIRST: Final = frozenset({Reason.WRITE_FAILED, SyncReason.AGENT_UNREACHABLE})

Told = tuple[bool | None, str, str]
"""Status (None: Unknown), reason, message."""


def conditions_of(reported: Reported, nodes: Acknowledgement) -> list[dict[str, Any]]:
    """Return all conditions, in order; lastTransitionTime is kept where the status is what it was."""
    told = {
        ConditionType.CONFIG_VALID: config_valid(reported.workload.problems, reported.workload.warnings),
        ConditionType.METRICS_AVAILABLE: (
            reported.metrics.reason is MetricsReason.FOUND,
            reported.metrics.reason.value,
            reported.metrics.message,
        ),
        ConditionType.RECOMMENDATION_PROVIDED: _provided(reported),
        **{type_: _applied(reported, nodes, fields) for type_, fields in LAYERS.items()},
        ConditionType.ENFORCEMENT_IN_SYNC: _in_sync(nodes),
        **_scaler(reported),
    }
    return listed(told, reported.workload.status, reported.workload.generation, reported.now)


def config_valid(problems: Sequence[Problem], warnings: Iterable[str] = ()) -> Told:
    """Return ConfigValid: False names every key, its value and what is allowed."""
    if problems:
        return False, Reason.INVALID, "; ".join(map(str, problems))
    return True, Reason.VALID, "; ".join(warnings) or "the configuration is valid"


def listed(
    told: Mapping[ConditionType, Told], old_status: Mapping[str, Any], generation: int, now: float
) -> list[dict[str, Any]]:
    """Return conditions as the API has them; `now` is their transition time where the status changed."""
    before = {one.get("type"): one for one in old_status.get("conditions") or ()}
    conditions = []
    for type_, (holds, reason, message) in told.items():
        status = "Unknown" if holds is None else str(holds)
        old = before.get(type_, {})
        kept = old.get("lastTransitionTime") if old.get("status") == status else None
        conditions.append(
            {
                "type": str(type_),
                "status": status,
                "reason": str(reason),
                "message": message[:MAX_MESSAGE_CHARACTERS],
                "lastTransitionTime": kept or timestamp(now),
                "observedGeneration": generation,
            }
        )
    return conditions


def gravest(decisions: Iterable[FieldDecision]) -> FieldDecision | None:
    """Return the figure whose guard matters most to a reader, None when none was held back."""
    blocked = [one for one in decisions if is_blocked(one)]
    return min(blocked, key=_gravity, default=None)


def _gravity(decision: FieldDecision) -> int:
    """Return a figure's place among those that were held: a bound under which nothing shrinks is nobody's trouble."""
    is_floor = decision.verdict is Verdict.BOUND_LIMITED and decision.uncapped <= decision.allowed
    return GRAVEST_FIRST.index(Verdict.WITHIN_TOLERANCE if is_floor else decision.verdict)


def _provided(reported: Reported) -> Told:
    decision = reported.decision
    known = [one for one in decision.fields if math.isfinite(one.wanted) and _estimated(one)] if decision else []
    if decision is None or not known or not decision.samples:
        return False, Reason.NO_DATA, f"no recommendation yet: {reported.metrics.message}"
    held = {one.verdict for one in known}
    text = f"from {decision.samples} samples"
    for verdict in (Verdict.INITIAL_DELAY, Verdict.LOW_CONFIDENCE):
        if verdict in held:
            return True, verdict, f"{text}; not enough to lower anything"
    return True, Reason.READY, text


def _estimated(decision: FieldDecision) -> bool:
    return decision.cause not in {Cause.NO_DATA, Cause.CRON, Cause.CRON_ENDED, Cause.EXTERNAL, Cause.REVERTED}


def _applied(reported: Reported, nodes: Acknowledgement, fields: tuple[Field, ...]) -> Told:
    decision = reported.decision
    if decision is None:
        reason = Verdict.CONFIG_INVALID if reported.workload.problems else Reason.NO_DATA
        return False, reason, "there is no decision"
    text = reported.told(fields)
    on = [decision[field] for field in fields if decision[field].mode is Mode.ON]
    if not on:
        is_recommending = any(decision[field].mode is Mode.RECOMMEND for field in fields)
        return False, Verdict.RECOMMEND_ONLY, f"{switched_off(fields[0], is_recommending=is_recommending)}; {text}"
    if reported.error and any(one.changed for one in on):
        return False, Reason.WRITE_FAILED, reported.error
    worst = gravest(on)
    if worst is not None:
        return False, worst.verdict, text
    if Field.REPLICAS in fields or nodes.in_sync:
        return True, Reason.APPLIED, text
    away = nodes.reason == SyncReason.AGENT_UNREACHABLE
    return False, SyncReason.AGENT_UNREACHABLE if away else Reason.APPLIED_PARTIALLY, nodes.message


def _in_sync(nodes: Acknowledgement) -> Told:
    if not nodes.workers:
        return None, nodes.reason, nodes.message
    return nodes.in_sync, nodes.reason, nodes.message


def _scaler(reported: Reported) -> dict[ConditionType, Told]:
    """Return whether the workload's own scaler answers, and for how long what it said last still holds."""
    scaler = reported.scaler
    if scaler is None:
        return {}
    holds = {ScalerReason.ANSWERED: True, ScalerReason.NOT_ASKED: None}.get(scaler.reason, False)
    text, answer = scaler.message, scaler.answer
    if answer is not None and holds is False:
        fresh = scaler.order(reported.now) is not None
        text += f"; its answer of {timestamp(answer.at)} {'still holds' if fresh else 'is too old to hold'}"
    return {ConditionType.EXTERNAL_SCALER_AVAILABLE: (holds, scaler.reason, text)}


def headline(conditions: Sequence[Mapping[str, Any]], decision: Decision | None) -> str:
    """Return the one reason that speaks for a workload in a narrow column: the first of its layers' that is grave."""
    by_type = {one["type"]: one for one in conditions}
    for type_ in (ConditionType.CONFIG_VALID, ConditionType.METRICS_AVAILABLE):
        if by_type[type_]["status"] == "False":
            return str(by_type[type_]["reason"])
    sync = by_type[ConditionType.ENFORCEMENT_IN_SYNC]
    failing = [by_type[type_]["reason"] for type_ in LAYERS if by_type[type_]["status"] == "False"]
    grave = [reason for reason in failing if reason != Verdict.RECOMMEND_ONLY]
    away = [sync["reason"]] if grave and sync["status"] == "False" else []
    urgent = next((reason for reason in (*grave, *away) if reason in _ACTED_ON_FIRST), None)
    if urgent is not None:
        return str(urgent)
    if grave:
        worst = gravest(one for one in decision.fields if one.mode is Mode.ON) if decision else None
        return str(worst.verdict) if worst is not None else str(grave[0])
    if len(failing) == len(LAYERS):
        return str(Verdict.RECOMMEND_ONLY)
    return str(sync["reason"]) if sync["status"] == "False" else str(Reason.APPLIED)
