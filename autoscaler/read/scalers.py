"""Asking the external scalers that are due, and keeping what they said last; one that fails keeps only its own figures.

A scaler is asked once per interval, after its initial delay, about the workload as the pass before left it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from autoscaler.model.decision import Field, field_of
from autoscaler.model.external import Answer, Failure, Question, ScalerReason, ScalerState
from autoscaler.model.proposal import Allowed
from autoscaler.model.quantity import format_amount
from autoscaler.model.resources import SPECS, Resource, Side
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import Workload
from autoscaler.ports import Scalers

INTERVAL_SLACK: Final = 0.9
"""A pass that comes a little early still counts as the interval."""
States = Mapping[WorkloadKey, ScalerState]


async def consult(
    scalers: Scalers, workloads: tuple[Workload, ...], before: Allowed | None, known: States, now: float
) -> States:
    """Return what is known of each workload's scaler after asking those that are due; raises nothing.

    `before`: what the pass before decided (None: there was none), for the questions. `known`: what this returned then.
    """
    states = {workload.key: _state(workload, known) for workload in workloads if _has_scaler(workload)}
    if not states:
        return states
    rows = {} if before is None else {key: row for row, key in enumerate(before.fleet.keys)}
    due = [workload for workload in workloads if workload.key in states and _is_due(workload, states, now)]
    due.sort(key=lambda workload: states[workload.key].asked_at)  # whoever had to wait goes first
    questions = [_question(workload, before, rows.get(workload.key), now) for workload in due]
    for question, came in zip(questions, await scalers.ask(questions) if questions else (), strict=True):
        states[question.key] = _after(states[question.key], came, now)
    return states


def _has_scaler(workload: Workload) -> bool:
    return workload.config.external is not None and workload.config.external.enable


def _state(workload: Workload, known: States) -> ScalerState:
    scaler, state = workload.config.external, known.get(workload.key)
    assert scaler is not None
    return state if state is not None and state.scaler == scaler else ScalerState(scaler)


def _is_due(workload: Workload, states: States, now: float) -> bool:
    state = states[workload.key]
    young = now - workload.created_at < state.scaler.initial_delay_seconds  # False where the age is not known
    return not young and now - state.asked_at >= INTERVAL_SLACK * state.scaler.interval_seconds


def _after(state: ScalerState, came: Answer | Failure, now: float) -> ScalerState:
    if isinstance(came, Failure):
        # One that there was no time to ask is still due.
        asked_at = state.asked_at if came.reason is ScalerReason.BUSY else now
        return replace(state, asked_at=asked_at, reason=came.reason, message=came.message)
    message = came.reason or "its answer is in force"
    return replace(state, asked_at=now, reason=ScalerReason.ANSWERED, message=message, answer=came)


def _question(workload: Workload, before: Allowed | None, row: int | None, now: float) -> Question:
    """Return the question about a workload; what is not known is absent.

    `workloadName` and `currentResources` say the same once more as TensorFusion's own scalers expect it.
    """
    assert workload.config.external is not None
    current = {field: _current(workload, field) for field in Field}
    body: dict[str, Any] = {
        "namespace": workload.key.namespace,
        "workload": workload.key.name,
        "workloadName": workload.key.name,
        "time": datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "qos": str(workload.config.qos),
        "gpuCount": workload.config.gpu_count,
        "readyWorkers": sum(worker.ready for worker in workload.workers),
        "current": {"replicas": workload.replicas, **_resources(current)},
        "currentResources": _resources(current),
    }
    if before is not None and row is not None:
        body["recommendation"] = _recommendation(before, row)
        live = dict(zip(Resource, before.fleet.live[row], strict=True))
        usage = {SPECS[resource].key: _text(resource, value) for resource, value in live.items()}
        body["usage"] = {name: text for name, text in usage.items() if text is not None}
    return Question(workload.key, workload.config.external, msgspec.json.encode(body))


def _recommendation(before: Allowed, row: int) -> dict[str, Any]:
    target = {field: float(before.target[row, field]) for field in Field}
    count = target[Field.REPLICAS]
    return {**({"replicas": round(count)} if math.isfinite(count) else {}), **_resources(target)}


def _current(workload: Workload, field: Field) -> float:
    if field.resource is None or field.side is None:
        return float(workload.replicas)
    amount = workload.current[field.resource]
    return amount.request if field.side is Side.REQUEST else amount.limit


def _resources(figures: Mapping[Field, float]) -> dict[str, dict[str, str]]:
    return {
        name: {
            SPECS[resource].key: text
            for resource in Resource
            if (text := _text(resource, figures[field_of(resource, side)])) is not None
        }
        for name, side in (("requests", Side.REQUEST), ("limits", Side.LIMIT))
    }


def _text(resource: Resource, value: float) -> str | None:
    return format_amount(resource, float(value)) if math.isfinite(value) else None
