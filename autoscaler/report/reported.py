"""What is reported about one workload after a pass, and how far its nodes acknowledged it; pure.

Neighbours: `conditions`, `status` and `events` render a `Reported`, each for its readers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from typing import Final

from autoscaler.contract.keys import EFFECTIVE_NOW, Effect
from autoscaler.contract.quota import DeviceQuota, DeviceStatus, WorkerStatus
from autoscaler.model.allowed import Overlay, overlay_of
from autoscaler.model.decision import Decision, Field, FieldDecision
from autoscaler.model.external import ScalerState
from autoscaler.model.reasons import Verdict
from autoscaler.model.resources import Amounts
from autoscaler.model.schedule import Turn
from autoscaler.model.snapshot import NodeState
from autoscaler.model.workload import Worker, Workload
from autoscaler.report.message import VERDICT_TEXT, brief, is_blocked, sentence
from autoscaler.report.remedy import Held, way_out

_SLOWEST_LAST: Final = tuple(Effect)


class MetricsReason(StrEnum):
    """Reasons of MetricsAvailable; only FOUND means that there is something to decide on."""

    FOUND = "Found"
    MISSING = "Missing"
    STALE = "Stale"
    PROMETHEUS_ERROR = "PrometheusError"
    UNSUPPORTED_DEVICE = "UnsupportedDevice"


class SyncReason(StrEnum):
    """Reasons of EnforcementInSync, besides those of a Held."""

    IN_SYNC = "InSync"
    NO_WORKERS = "NoWorkers"
    AGENT_UNREACHABLE = "AgentUnreachable"
    NOT_ACKNOWLEDGED = "NotAcknowledged"
    PENDING_EFFECT = "PendingEffect"
    UNSUPPORTED = "Unsupported"
    LIMIT_BYPASSED = "LimitBypassed"


@dataclass(frozen=True, slots=True)
class MetricsHealth:
    """Whether a workload's history could be read, and what was seen instead."""

    reason: MetricsReason = MetricsReason.FOUND
    message: str = "samples are arriving"


def _unnumbered(_: Field) -> Mapping[str, float]:
    return {}


def _waits(decision: FieldDecision) -> bool:
    return is_blocked(decision) and decision.verdict is not Verdict.RECOMMEND_ONLY


@dataclass(frozen=True)
class Reported:
    """A workload after a pass. `decision` is None while there is nothing to decide on.

    `nodes` are the nodes as they answered last. `held` says per pod UID what the node could not be sent
    (`Reason: sentence`), `error` why writes failed (empty: they did not). `now` is in seconds since the epoch. `turn`:
    what its rules by the clock say, `scaler`: what is known of its own scaler; None where it has none. `numbers`: those
    behind the verdict on a figure, worked out when asked for.
    """

    workload: Workload
    decision: Decision | None
    metrics: MetricsHealth
    now: float
    nodes: Mapping[str, NodeState] = field(default_factory=dict)
    held: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    turn: Turn | None = None
    scaler: ScalerState | None = None
    numbers: Callable[[Field], Mapping[str, float]] = _unnumbered

    @cached_property
    def statuses(self) -> tuple[WorkerStatus | None, ...]:
        """Its workers, in their order, as their nodes told them last."""
        return tuple(status_of_worker(self.nodes.get(worker.node), worker) for worker in self.workload.workers)

    @cached_property
    def overlay(self) -> Overlay:
        """What was decided for every worker."""
        return overlay_of(self.decision)

    @cached_property
    def sentences(self) -> Mapping[Field, str]:
        """One sentence per figure, empty while nothing is decided: rendered once for all who show it."""
        if self.decision is None:
            return {}
        return {one.field: sentence(one) + self._way(one) for one in self.decision.fields}

    def told(self, figures: Iterable[Field]) -> str:
        """Return what happens to some figures, and once for those that wait for the same what that is."""
        groups: dict[str, list[str]] = {}
        decision = self.decision
        for one in [decision[figure] for figure in figures] if decision is not None else ():
            held = f": {one.verdict}, {VERDICT_TEXT[one.verdict]}{self._way(one)}" if _waits(one) else ""
            groups.setdefault(held, []).append(brief(one))
        return "; ".join(
            ", ".join(texts) + held for held, texts in sorted(groups.items(), key=lambda group: not group[0])
        )

    @cached_property
    def _ways(self) -> Mapping[Field, str]:
        waiting = [one for one in self.decision.fields if _waits(one)] if self.decision is not None else []
        return {one.field: way_out(Held(one, self.numbers(one.field), self.workload)) for one in waiting}

    def _way(self, decision: FieldDecision) -> str:
        way = self._ways.get(decision.field, "")
        return f": {way}" if way else ""


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """How many of the workers have in force what was decided; `effect` is the slowest class among them."""

    applied: int
    workers: int
    effect: Effect | None
    reason: SyncReason | str
    message: str

    @property
    def in_sync(self) -> bool:
        """Whether every worker acknowledged."""
        return self.applied == self.workers


def timestamp(seconds: float) -> str:
    """Return seconds since the epoch as RFC 3339, whole seconds, UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def acknowledged(reported: Reported) -> Acknowledgement:
    """Return what the nodes say about the workload's workers, held against what was decided."""
    lags, effects = [], set()
    for worker, status in zip(reported.workload.workers, reported.statuses, strict=True):
        effects |= {device.effect for device in status.devices} if status else set()
        lag = _lag(reported, worker, status)
        if lag is not None:
            lags.append((worker.ref.name, *lag))
    effect = max(effects, key=_SLOWEST_LAST.index, default=None)
    workers = len(reported.workload.workers)
    if not workers:
        return Acknowledgement(0, 0, None, SyncReason.NO_WORKERS, "there is no worker")
    if not lags:
        past = _bypassed(reported)
        held = SyncReason.LIMIT_BYPASSED if past else SyncReason.IN_SYNC
        return Acknowledgement(workers, workers, effect, held, f"{workers} of {workers} acknowledged{past}")
    pod, reason, text = lags[0]
    message = f"{workers - len(lags)} of {workers} acknowledged; {pod}: {text}"
    if reason == SyncReason.AGENT_UNREACHABLE:
        message += "; what it holds stays, what was decided is sent when the agent answers"
    return Acknowledgement(workers - len(lags), workers, effect, reason, message)


def status_of_worker(state: NodeState | None, worker: Worker) -> WorkerStatus | None:
    """Return a worker as its node last told it."""
    uid, container = worker.ref.uid, worker.container
    for status in state.quotas.workers if state is not None and state.quotas else ():
        if status.pod_uid == uid and (status.container == container or not (status.container and container)):
            return status
    return None


def _lag(reported: Reported, worker: Worker, status: WorkerStatus | None) -> tuple[str, str] | None:
    """Return why a worker does not have what was decided (reason, sentence), None when it has."""
    state = reported.nodes.get(worker.node)
    if state is None or not state.reachable:
        what = "no agent is known" if state is None else state.error
        return SyncReason.AGENT_UNREACHABLE, f"node {worker.node or '(none yet)'}: {what}"
    wanted = reported.overlay.over(worker.current)
    found = next(_differences(wanted, status, state), None)
    reason, _, text = reported.held.get(worker.ref.uid, "").partition(": ")
    if status is None or not status.devices or found is not None:
        return (reason, text) if reason else found or (SyncReason.NOT_ACKNOWLEDGED, "its node does not list it")
    return None


def _bypassed(reported: Reported) -> str:
    """Return who goes around a limit that is in force; without the node's figures, which differ from pass to pass."""
    for worker, status in zip(reported.workload.workers, reported.statuses, strict=True):
        for device in status.devices if status else ():
            if device.applied and device.reason.startswith(SyncReason.LIMIT_BYPASSED):
                return f"; {worker.ref.name}: uses more of {device.uuid} than its effective limit; that is no demand"
    return ""


def _differences(wanted: Amounts, status: WorkerStatus | None, state: NodeState) -> Iterator[tuple[str, str]]:
    for device in status.devices if status else ():
        if device.desired is None or not _told(wanted, device.desired, state):
            yield SyncReason.NOT_ACKNOWLEDGED, f"{device.uuid} was not told these amounts yet"
        elif not device.applied:
            yield _unapplied(device), device.reason or f"{device.uuid} has not put them into force"


def _told(wanted: Amounts, desired: DeviceQuota, state: NodeState) -> bool:
    """Tell whether a quota is what was decided; a ceiling over the device counts as the device."""
    info = next((one for one in state.devices if one.uuid == desired.uuid), None)
    tflops = math.inf if info is None or info.tflops is None else info.tflops
    vram = math.inf if info is None else info.vram_total_bytes
    return (
        desired.tflops_request == min(wanted.compute.request, tflops)
        and desired.tflops_limit == min(wanted.compute.limit, tflops)
        and desired.vram_request_bytes == min(_whole(wanted.vram.request), vram)
        and desired.vram_limit_bytes == min(_whole(wanted.vram.limit), vram)
    )


def _whole(value: float) -> float:
    return math.ceil(value) if math.isfinite(value) else value


def _unapplied(device: DeviceStatus) -> SyncReason:
    if device.effect is Effect.UNSUPPORTED:
        return SyncReason.UNSUPPORTED
    return SyncReason.NOT_ACKNOWLEDGED if device.effect in EFFECTIVE_NOW else SyncReason.PENDING_EFFECT
