"""The status of a TensorFusionWorkload; pure.

Neighbours: `model.status` is its schema, `conditions`, `display` and `message` its parts, `compare` tells whether it
has to be written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from autoscaler.contract.keys import WORKLOAD
from autoscaler.model.allowed import allowed_amounts, is_applied
from autoscaler.model.config import Mode
from autoscaler.model.decision import Decision, Field, field_of
from autoscaler.model.quantity import format_duration
from autoscaler.model.resources import SPECS, Amounts, Resource, Side
from autoscaler.model.schedule import Turn
from autoscaler.model.workload import BrokenWorkload, Workload
from autoscaler.report.blocked import blocked_now, blocked_text, told_before
from autoscaler.report.compare import COUNTS, OURS, beside_others, changed, has_operator
from autoscaler.report.conditions import (
    ConditionType,
    conditions_of,
    config_valid,
    gravest,
    headline,
    listed,
)
from autoscaler.report.display import arrow, layers_on, recommended_amounts, short_status
from autoscaler.report.fitting import fitted
from autoscaler.report.message import amount_text, is_blocked, moves
from autoscaler.report.reported import (
    Acknowledgement,
    MetricsHealth,
    MetricsReason,
    Reported,
    acknowledged,
    timestamp,
)

__all__ = ["MetricsHealth", "MetricsReason", "Reported", "broken_status", "changed", "status_of"]

MAX_MESSAGE_CHARACTERS: Final = 4096


def status_of(reported: Reported) -> dict[str, Any]:
    """Return the whole status of a workload, as its schema has it; what is not known is absent."""
    workload, nodes = reported.workload, acknowledged(reported)
    conditions = conditions_of(reported, nodes)
    current = workload.current if reported.error else allowed_amounts(workload.current, reported.decision)
    figures = recommended_amounts(current, reported.decision)
    replicas = _recommended_replicas(reported)
    status: dict[str, Any] = {
        "observedGeneration": workload.generation,
        "conditions": beside_others(conditions, workload.status),
        **_counts(workload),
        "selector": f"{WORKLOAD}={workload.key.name}",
        "recommendation": _resources(figures) if reported.decision is not None else None,
        "recommendedReplicas": replicas if reported.decision is not None else None,
        "appliedRecommendedReplicas": nodes.applied if figures == _held(current) else 0,
        "activeCronScalingRule": _rule(reported.turn),
        "autoscaling": {
            **_figures(reported),
            "current": _resources(_held(current)),
            "original": _resources(_held(workload.original)),
            "display": _display(reported, current, nodes, headline(conditions, reported.decision)),
            "selector": f"{WORKLOAD}={workload.key.name}",
            **_progress(reported, nodes),
            **_by_clock(reported),
        },
    }
    return _known_fields(status)


def broken_status(broken: BrokenWorkload, now: float) -> dict[str, Any]:
    """Return the status of a workload whose configuration was never good: what is wrong, beside what it said before."""
    told = {ConditionType.CONFIG_VALID: config_valid(broken.problems)}
    ours = OURS - COUNTS if has_operator(broken.status) else OURS
    known = {key: value for key, value in broken.status.items() if key in ours}
    types = {str(type_) for type_ in ConditionType} - {ConditionType.CONFIG_VALID}
    others = [one for one in known.get("conditions") or () if one.get("type") in types]
    autoscaling = dict(broken.status.get("autoscaling") or {})
    autoscaling["display"] = {
        **(autoscaling.get("display") or {}),
        "status": short_status(config_valid(broken.problems)[1]),
        "message": config_valid(broken.problems)[2][:MAX_MESSAGE_CHARACTERS],
    }
    return {
        **known,
        "observedGeneration": broken.generation,
        "conditions": beside_others([*listed(told, broken.status, broken.generation, now), *others], broken.status),
        "autoscaling": autoscaling,
    }


def _counts(workload: Workload) -> dict[str, int]:
    """Return how many workers there are; nothing where the operator that starts them counts them itself."""
    if has_operator(workload.status):
        return {}
    ready = sum(worker.ready for worker in workload.workers)
    return {"workerCount": len(workload.workers), "readyWorkers": ready}


def _figures(reported: Reported) -> dict[str, Any]:
    decision = reported.decision
    if decision is None:
        return {}
    count = decision[Field.REPLICAS]
    replicas = {
        "target": _count(count.wanted),
        "uncappedTarget": _count(count.uncapped),
        "reason": str(count.cause),
        "message": reported.sentences[Field.REPLICAS][:MAX_MESSAGE_CHARACTERS],
    }
    resources = {SPECS[resource].key: _resource(reported.sentences, decision, resource) for resource in Resource}
    return {**resources, "replicas": replicas}


def _resource(sentences: Mapping[Field, str], decision: Decision, resource: Resource) -> dict[str, Any]:
    request, limit = (decision[field_of(resource, side)] for side in Side)
    speaker = gravest((request, limit)) or (limit if limit.changed else request)
    return {
        "target": _text(resource, request.wanted),
        "lowerBound": _text(resource, request.lower_bound),
        "upperBound": _text(resource, request.upper_bound),
        "uncappedTarget": _text(resource, request.uncapped),
        "limitTarget": _text(resource, limit.wanted),
        "uncappedLimitTarget": _text(resource, limit.uncapped),
        "reason": str(speaker.cause),
        "message": f"{sentences[request.field]}; {sentences[limit.field]}"[:MAX_MESSAGE_CHARACTERS],
    }


def _display(reported: Reported, current: Amounts, nodes: Acknowledgement, reason: str) -> dict[str, Any]:
    decision, workload = reported.decision, reported.workload
    cells = {
        "qos": str(workload.config.qos),
        "auto": layers_on(workload.config),
        "replicas": arrow(str(_replicas_now(reported)), str(_recommended_replicas(reported))),
        "status": short_status(reason),
    }
    figures = recommended_amounts(current, decision)
    applied = {"applied": f"{nodes.applied}/{nodes.workers}"}
    tflops, vram = fitted(workload.key.name, cells | applied, current, figures)
    return {
        **cells,
        "tflops": tflops,
        "vram": vram,
        "bounds": _bounds(decision),
        "usage": _usage(reported),
        "message": (nodes.message if reason == nodes.reason else _message(reported))[:MAX_MESSAGE_CHARACTERS],
    }


def _message(reported: Reported) -> str:
    """Return the one sentence that says most: what is wrong, else what holds the figure that matters most."""
    if reported.workload.problems:
        return config_valid(reported.workload.problems)[2]
    if reported.error:
        return reported.error
    if reported.metrics.reason is not MetricsReason.FOUND or reported.decision is None:
        return reported.metrics.message
    on = [one for one in reported.decision.fields if one.mode is Mode.ON]
    held = gravest(on)
    if held is not None:
        return reported.told((held.field,))
    moving = [one.field for one in on if moves(one)] or [
        one.field for one in reported.decision.fields if is_blocked(one)
    ]
    return reported.told(moving) or "every figure is where it should be"


def _bounds(decision: Decision | None) -> str | None:
    if decision is None:
        return None
    requests = [decision[field_of(resource, Side.REQUEST)] for resource in Resource]
    pairs = [
        "..".join(amount_text(one.field.resource, value) for value in (one.lower_bound, one.upper_bound))
        for one in requests
        if math.isfinite(one.lower_bound) and math.isfinite(one.upper_bound)
    ]
    return ", ".join(pairs) or None


def _usage(reported: Reported) -> str | None:
    """Return live use of the busiest worker as its node sees it: TFLOPs, bytes."""
    seen = [device.observed for status in reported.statuses if status is not None for device in status.devices]
    tflops = max((one.tflops_used for one in seen if one.tflops_used is not None), default=math.nan)
    vram = max((one.vram_used_bytes for one in seen if one.vram_used_bytes is not None), default=math.nan)
    known = [amount_text(resource, value) for resource, value in zip(Resource, (tflops, vram), strict=True)]
    return None if math.isnan(tflops) and math.isnan(vram) else ", ".join(known)


def _by_clock(reported: Reported) -> dict[str, Any]:
    """Return the rule in force and when a rule next begins or ends."""
    turn = reported.turn
    if turn is None:
        return {}
    return {
        "activeCronRule": turn.rule.name if turn.rule is not None else None,
        "nextCronTransition": timestamp(turn.next_at) if math.isfinite(turn.next_at) else None,
    }


def _rule(turn: Turn | None) -> dict[str, Any] | None:
    """Return the rule in force in the form in which it was written, as TensorFusion's own status shows it."""
    rule = turn.rule if turn is not None else None
    if rule is None:
        return None
    sides = {"requests": rule.requests, "limits": rule.limits}
    figures = {
        side: {
            SPECS[r].key: amount_text(r, value) for r, value in zip(Resource, pair, strict=True) if value is not None
        }
        for side, pair in sides.items()
    }
    return {
        "name": rule.name,
        "enable": True,
        "timeZone": rule.time_zone,
        "start": rule.start,
        "end": rule.end,
        "priority": rule.priority or None,
        "desiredResources": {side: figure for side, figure in figures.items() if figure} or None,
        "desiredReplicas": rule.replicas,
    }


def _progress(reported: Reported, nodes: Acknowledgement) -> dict[str, Any]:
    decision, before = reported.decision, reported.workload.status.get("autoscaling") or {}
    moved = (
        [reported.sentences[one.field] for one in decision.fields if is_applied(one) and one.changed]
        if decision
        else []
    )
    scaled = bool(moved) and not reported.error
    return {
        "applied": f"{nodes.applied}/{nodes.workers}",
        "effect": None if nodes.effect is None else str(nodes.effect),
        "samples": None if decision is None else decision.samples,
        "span": None if decision is None else format_duration(round(decision.span_seconds / 60) * 60),
        "lastEvaluationTime": timestamp(reported.now if decision is None else decision.at),
        "lastScaleTime": timestamp(reported.now) if scaled else before.get("lastScaleTime"),
        "lastBlocked": None
        if decision is None
        else blocked_text(blocked_now(decision, told_before(reported.workload.status))),
        "lastChange": "; ".join(moved)[:MAX_MESSAGE_CHARACTERS] if scaled else before.get("lastChange"),
    }


def _recommended_replicas(reported: Reported) -> int:
    wanted = reported.decision[Field.REPLICAS].wanted if reported.decision is not None else math.nan
    return _replicas_now(reported) if math.isnan(wanted) else round(wanted)


def _replicas_now(reported: Reported) -> int:
    figure = reported.decision[Field.REPLICAS] if reported.decision is not None else None
    written = figure is not None and is_applied(figure) and not reported.error
    return round(figure.allowed) if figure is not None and written else reported.workload.replicas


def _resources(figures: Mapping[Field, float]) -> dict[str, Any]:
    return {
        name: {SPECS[r].key: _text(r, figures[field_of(r, side)]) for r in Resource}
        for name, side in (("requests", Side.REQUEST), ("limits", Side.LIMIT))
    }


def _held(current: Amounts) -> dict[Field, float]:
    return recommended_amounts(current, None)


def _text(resource: Resource, value: float) -> str | None:
    return amount_text(resource, value) if math.isfinite(value) else None


def _count(value: float) -> int | None:
    return round(value) if math.isfinite(value) else None


def _known_fields(value: dict[str, Any]) -> dict[str, Any]:
    """Return a status without what is not known, all the way down."""
    return {key: _known_fields(one) if isinstance(one, dict) else one for key, one in value.items() if one is not None}
