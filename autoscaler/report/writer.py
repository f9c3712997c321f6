"""Writing what a pass found: statuses, events, metrics; only where something changed.

Rendering a status costs more than deciding it, so in a large fleet only workloads whose decision, health or workers
changed are rendered at once, and the rest in turn, so that nothing stays wrong for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
import structlog

from autoscaler.guard.held import held_numbers
from autoscaler.model.decision import Decision
from autoscaler.model.external import ScalerState
from autoscaler.model.gpu_models import known_model
from autoscaler.model.orders import Orders
from autoscaler.model.proposal import Allowed
from autoscaler.model.reasons import VERDICT_CODE, Verdict
from autoscaler.model.snapshot import NodeState, Snapshot
from autoscaler.model.steps import ClusterWrite, WriteStatus
from autoscaler.model.stored import Path
from autoscaler.model.usage import Bools, Ints, WorkloadKey
from autoscaler.model.workload import BrokenWorkload, Manifest, ObjectRef, Workload
from autoscaler.ports import Cluster
from autoscaler.report.conditions import ConditionType
from autoscaler.report.disturbed import disturbed_workers
from autoscaler.report.events import events_of, invalid_events
from autoscaler.report.metrics import ControllerMetrics
from autoscaler.report.outbox import Outbox, Put
from autoscaler.report.profiles import profile_writes
from autoscaler.report.reported import MetricsHealth, MetricsReason, Reported, timestamp
from autoscaler.report.status import broken_status, changed, status_of

log = structlog.get_logger(__name__)
SWEEP_PASSES: Final = 20
TARGET_DRIFT_RATIO: Final = 0.05
NO_SAMPLE: Final = (
    "no sample of any worker yet: is a worker running and using the GPU, is its node's agent up, and scraped by the "
    "Prometheus that is asked?"
)


@dataclass(frozen=True, slots=True, eq=False)
class Passed:
    """One pass: what was seen, decided and done, and the pass before (None: the first).

    `nodes` as they answered last; `errors` of the writes by workload; `held` by pod UID: what a node could not be sent.
    `number` counts the passes.
    """

    snapshot: Snapshot
    allowed: Allowed
    nodes: Mapping[str, NodeState]
    errors: Mapping[WorkloadKey, str]
    held: Mapping[str, str]
    history_error: str
    fresh_seconds: float
    before: Passed | None
    number: int = 0

    def lost(self, ref: ObjectRef) -> frozenset[Path]:
        """Return the fields of a status that the definitions of this object's kind don't hold here."""
        return self.snapshot.lost.get(ref.kind, frozenset())

    def alone(self) -> Passed:
        """Return the pass without the ones before it, to be kept."""
        return replace(self, before=None)


async def report(
    passed: Passed,
    cluster: Cluster,
    metrics: ControllerMetrics,
    outbox: Outbox | None = None,
    *,
    dry_run: bool = False,
) -> None:
    """Write statuses and events and feed the metrics; one workload's failure stops no other.

    `outbox` is kept from pass to pass: it knows what was refused.
    """
    rows = _rows(passed)
    decisions = {int(row): passed.allowed.decision(int(row)) for row in rows}
    _measure(passed, metrics, decisions.values())
    if dry_run:
        return
    outbox = outbox or Outbox()
    async with outbox.open(cluster) as put:
        for row, decision in decisions.items():
            await put(decision.key, _writes(passed, row, decision, outbox))
            await asyncio.sleep(0)  # what is rendered is sent while others are rendered, and whoever leads renews
        for broken in passed.snapshot.discovered.broken:
            new = broken_status(broken, passed.snapshot.now)
            if broken.exists and changed(broken.status, new, passed.lost(broken.ref)):
                await put(broken.key, [WriteStatus(broken.ref, new)])
        await _report_invalid(passed, put)
        before = passed.before.snapshot if passed.before is not None else None
        for key, write in profile_writes(passed.snapshot, before, decisions, passed.allowed):
            await put(key, [write])


def _writes(passed: Passed, row: int, decision: Decision, outbox: Outbox) -> list[ClusterWrite]:
    """Return what one workload's readers are to be told: its status where it changed, then what happened."""
    try:
        reported = _reported(passed, row, decision)
        new, events = status_of(reported), events_of(reported)
    except Exception:  # whatever is wrong with one workload, the others go on
        log.exception("not_rendered", workload=str(decision.key))
        return []
    workload = reported.workload
    stale = workload.exists and changed(workload.status, new, passed.lost(workload.ref))
    stale = stale and not outbox.has_refused(workload.ref, new)
    news = stale or decision.changed or bool(reported.error)  # else it was told when it was new
    return [*([WriteStatus(workload.ref, new)] if stale else []), *(events if news else ())]


def health(passed: Passed, row: int) -> MetricsHealth:
    """Return whether a workload's history can be decided on."""
    wanted = passed.allowed.wanted
    age = passed.snapshot.now - float(wanted.last_at[row])
    if passed.history_error:
        return MetricsHealth(MetricsReason.PROMETHEUS_ERROR, f"everything is held: {passed.history_error}")
    if wanted.samples[row] == 0:
        return _missing(passed.snapshot.discovered.workloads[row].config.gpu_model)
    if not age <= passed.fresh_seconds:
        return MetricsHealth(MetricsReason.STALE, _staleness(passed, float(wanted.last_at[row])))
    return MetricsHealth(MetricsReason.FOUND, "samples are arriving")


def _missing(model: str) -> MetricsHealth:
    """Return why there is no sample: a model that no driver of ours can see never sends one."""
    if model and known_model(model) is None:
        text = f"no sample yet, and gpu-model {model} is none that the node agents know: they see what NVML shows"
        return MetricsHealth(MetricsReason.UNSUPPORTED_DEVICE, text)
    return MetricsHealth(MetricsReason.MISSING, NO_SAMPLE)


def _staleness(passed: Passed, last_at: float) -> str:
    return (
        f"everything is held: the newest sample is of {timestamp(last_at)}, over {passed.fresh_seconds:.0f} s old; "
        "is a worker running, and is its node's agent up and scraped? Use beyond a limit is no sample of demand: see "
        "EnforcementInSync"
    )


def _reported(passed: Passed, row: int, decision: Decision) -> Reported:
    workload = passed.snapshot.discovered.workloads[row]
    return Reported(
        workload=workload,
        decision=decision,
        metrics=health(passed, row),
        now=passed.snapshot.now,
        nodes=passed.nodes,
        held=passed.held,
        error=passed.errors.get(workload.key, ""),
        turn=passed.allowed.fleet.orders.turns.turns[row],
        scaler=passed.allowed.fleet.orders.scalers[row],
        numbers=partial(held_numbers, passed.allowed, row),
    )


def _rows(passed: Passed) -> Ints:
    """Return the rows to render in this pass."""
    allowed, before = passed.allowed, passed.before
    if before is None or before.allowed.fleet.keys != allowed.fleet.keys:
        return np.arange(len(allowed.fleet))
    due = allowed.changed | before.allowed.changed | _differs(allowed, before.allowed) | _disturbed(passed, before)
    due |= _ordered_otherwise(allowed.fleet.orders, before.allowed.fleet.orders)
    due[passed.number % SWEEP_PASSES :: SWEEP_PASSES] = True
    return np.flatnonzero(due).astype(np.int64)


def _differs(allowed: Allowed, before: Allowed) -> Bools:
    """Return where a verdict, a cause or (noticeably) a target is another than in the pass before."""
    with np.errstate(invalid="ignore"):
        moved = np.abs(allowed.target - before.target) > TARGET_DRIFT_RATIO * np.abs(before.target)
    other = (allowed.verdict != before.verdict) | (allowed.cause != before.cause) | moved
    return np.asarray(other.any(axis=1), dtype=np.bool_)


def _ordered_otherwise(orders: Orders, before: Orders) -> Bools:
    """Return whose rules took another turn, or whose scaler answers otherwise, than in the pass before."""
    turns = zip(orders.turns.turns, before.turns.turns, strict=True)
    scalers = zip(orders.scalers, before.scalers, strict=True)
    return np.array(
        [
            (turn is not earlier and turn != earlier) or (new is not old and _health(new) != _health(old))
            for (turn, earlier), (new, old) in zip(turns, scalers, strict=True)
        ],
        dtype=np.bool_,
    )


def _health(scaler: ScalerState | None) -> str:
    return "" if scaler is None else scaler.reason


def _disturbed(passed: Passed, before: Passed) -> Bools:
    """Return where the workload's object, its history, its writes or its workers on their nodes are not as before."""
    workloads = passed.snapshot.discovered.workloads
    known = before.snapshot.discovered.workloads
    if bool(passed.history_error) != bool(before.history_error):
        return np.ones(len(workloads), dtype=np.bool_)
    uids = disturbed_workers(passed.nodes, before.nodes)
    uids |= {uid for uid, _ in passed.held.items() ^ before.held.items()}
    failed = passed.errors.keys() | before.errors.keys()
    return np.array(
        [
            _is_altered(new, old)
            or new.key in failed
            or (bool(uids) and any(one.ref.uid in uids for one in new.workers))
            for new, old in zip(workloads, known, strict=True)
        ],
        dtype=np.bool_,
    )


def _is_altered(new: Workload, old: Workload) -> bool:
    """Tell whether an object says another thing than before, apart from the status that was written to it."""
    return new is not old and replace(old, ref=new.ref, status=new.status) != new


def _measure(passed: Passed, metrics: ControllerMetrics, decisions: Iterable[Decision]) -> None:
    keys = passed.allowed.fleet.keys
    metrics.workloads.set(len(keys))
    metrics.stale_workloads.set(int((passed.allowed.verdict == VERDICT_CODE[Verdict.STALE]).any(axis=1).sum()))
    for decision in decisions:
        metrics.decided(decision)
    metrics.keep(keys)


async def _report_invalid(passed: Passed, put: Put) -> None:
    """Tell once what is wrong with a configuration: when it turned wrong, or wrong in another way."""
    found = passed.snapshot.discovered
    before = passed.before.snapshot.discovered if passed.before is not None else None
    earlier: tuple[Workload | BrokenWorkload, ...] = (*before.workloads, *before.broken) if before is not None else ()
    known = {one.key: one.problems for one in earlier}
    everyone: tuple[Workload | BrokenWorkload, ...] = (*found.workloads, *found.broken)
    for one in everyone:
        told = one.problems if before is None and _is_told(one.status) else known.get(one.key, ())
        await put(one.key, invalid_events(one, told))


def _is_told(status: Manifest) -> bool:
    """Return whether the stored status says already that the configuration is wrong."""
    conditions = status.get("conditions") or ()
    return any(one.get("type") == ConditionType.CONFIG_VALID and one.get("status") == "False" for one in conditions)
