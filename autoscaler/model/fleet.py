"""The snapshot as columns: row = workload, so that recommending and guarding 10,000 workloads is a few array passes.

Last axis of every (W, 5) array: `Field`. NaN is "not known"; amounts are TFLOPs, bytes and counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np

from autoscaler.model.holding import Holding, to_holding
from autoscaler.model.knobs import UNSET, Figures, Knobs, Laid, to_knobs
from autoscaler.model.orders import Orders, over_knobs, to_orders
from autoscaler.model.placement import Placement, place
from autoscaler.model.resource_quota import Quotas, to_quotas
from autoscaler.model.resources import Amounts
from autoscaler.model.snapshot import Snapshot
from autoscaler.model.usage import Bools, Floats, WorkloadKey
from autoscaler.model.workload import Workload

UNSCALABLE_ISOLATION: Final = frozenset({"shared", "hard", "partitioned"})


@dataclass(frozen=True, slots=True, eq=False)
class Flags:
    """What keeps a workload from moving, (W,) each."""

    pending: Bools
    rollout: Bools
    managed_elsewhere: Bools
    invalid: Bools
    unsupported: Bools
    dedicated: Bools
    paused_up: Bools
    paused_down: Bools


@dataclass(frozen=True, slots=True, eq=False)
class Fleet:
    """All workloads of a snapshot as columns.

    `current`, `original` (W, 5): figures in force, and the user's own. `device` (W, 2): the smallest device it runs on
    (inf unknown). `live` (W, 2): use now as the agents see it, largest worker; `demand` (W, 2): the same of those that
    keep to the limits in force on them, which alone tell what is needed. `gpu_count`, `ready` (W,): devices per
    worker, ready workers. `revision` (W,): fingerprint of what runs, NaN unknown. `laid`: configurations as columns;
    `knobs`: the same under what is ordered now. `quotas`: of their namespaces, None where there is none.
    """

    now: float
    keys: tuple[WorkloadKey, ...]
    uids: tuple[str, ...]
    current: Floats
    original: Floats
    device: Floats
    live: Floats
    demand: Floats
    gpu_count: Floats
    ready: Floats
    flags: Flags
    holding: Holding
    laid: Laid
    placement: Placement
    orders: Orders
    knobs: Knobs
    revision: Floats
    quotas: Quotas | None = None

    @property
    def ordered(self) -> Bools:
        """Return which figures a rule by the clock or an external scaler orders now, (W, 5)."""
        return self.orders.given

    @property
    def prior(self) -> Floats:
        """Return what is known before anything was measured (W, 2): TFLOPs and bytes needed at least, NaN none."""
        return self.knobs.prior

    def __len__(self) -> int:
        """Return the number of workloads."""
        return len(self.keys)


def to_fleet(snapshot: Snapshot, previous: Fleet | None = None) -> Fleet:
    """Lay a snapshot out as columns; rows are in the order of `snapshot.discovered.workloads`.

    With the `previous` fleet only configurations that are new since are worked out.
    """
    workloads = snapshot.discovered.workloads
    originals = [_original(workload) for workload in workloads]
    currents = [(*_figures(workload.current), float(workload.replicas)) for workload in workloads]
    placement, device, live, demand = place(workloads, snapshot)
    laid = to_knobs([workload.config for workload in workloads], originals, previous.laid if previous else None)
    orders = to_orders(snapshot, laid, previous.orders if previous else None)
    return Fleet(
        now=snapshot.now,
        keys=tuple(workload.key for workload in workloads),
        uids=tuple(workload.ref.uid for workload in workloads),
        current=np.array(currents, dtype=float).reshape(-1, 5),
        original=np.array(originals, dtype=float).reshape(-1, 5),
        device=device,
        live=live,
        demand=demand,
        gpu_count=np.array([workload.config.gpu_count for workload in workloads], dtype=float),
        ready=np.array([sum(w.ready for w in workload.workers) for workload in workloads], dtype=float),
        flags=_flags(workloads, snapshot),
        holding=to_holding(workloads, snapshot.now),
        laid=laid,
        placement=placement,
        orders=orders,
        knobs=over_knobs(orders, laid),
        revision=np.array([workload.revision or UNSET for workload in workloads], dtype=float),
        quotas=to_quotas([workload.key for workload in workloads], snapshot.quotas),
    )


def _figures(amounts: Amounts) -> tuple[float, float, float, float]:
    return amounts.compute.request, amounts.compute.limit, amounts.vram.request, amounts.vram.limit


def _original(workload: Workload) -> Figures:
    noted = workload.original_replicas  # the owner's count was moved since: its present one is not the user's
    replicas = workload.config.replicas if noted is None else noted
    return *_figures(workload.original), float(workload.replicas if replicas is None else replicas)


def _flags(workloads: Sequence[Workload], snapshot: Snapshot) -> Flags:
    rows = [
        (
            any(worker.pending for worker in workload.workers),
            workload.rollout_in_progress,
            bool(workload.managed_elsewhere or workload.unscalable),
            bool(workload.problems),
            workload.config.isolation in UNSCALABLE_ISOLATION,
            workload.config.dedicated_gpu,
            *_paused(workload, snapshot.now),
        )
        for workload in workloads
    ]
    return Flags(*np.array(rows, dtype=bool).reshape(-1, len(fields(Flags))).T)


def _paused(workload: Workload, now: float) -> tuple[bool, bool]:
    pause = workload.config.pause
    active = pause.until is None or now < pause.until
    return pause.up and active, pause.down and active
