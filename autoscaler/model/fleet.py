"""The snapshot as columns: row = workload, so that recommending and guarding 10,000 workloads is a few array passes.

Last axis of every (W, 5) array: `Field`. NaN is "not known"; amounts are TFLOPs, bytes and counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np

from autoscaler.model.knobs import UNSET, Figures, Knobs, Laid, to_knobs
from autoscaler.model.orders import Orders, over_knobs, to_orders
from autoscaler.model.resource_quota import Quotas, to_quotas
from autoscaler.model.resources import Amounts, Resource
from autoscaler.model.snapshot import NodeState, Snapshot
from autoscaler.model.usage import Bools, Floats, Ints, WorkloadKey
from autoscaler.model.workload import Workload

UNSCALABLE_ISOLATION: Final = frozenset({"shared", "hard", "partitioned"})


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Which workload runs on which device: one edge per worker and device.

    `workload`, `device` (E,): row numbers. `capacity` (2, D): TFLOPs and bytes per device, NaN unknown.
    `requested` (2, D): Σ requests of its workers now. `uuids` (D). `used` (2, D): Σ live use of its workers as the
    agents see it, or the device's own figure where that is more. `foreign` (2, D): Σ requests of those on it that are
    no workload's of this fleet, as its node was told them.
    """

    workload: Ints
    device: Ints
    capacity: Floats
    requested: Floats
    uuids: tuple[str, ...]
    used: Floats
    foreign: Floats


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
    (inf unknown). `live` (W, 2): use now as the agents see it, largest worker. `gpu_count`, `ready` (W,): devices per
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
    gpu_count: Floats
    ready: Floats
    flags: Flags
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
    placement, device, live = _place(workloads, snapshot.nodes)
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
        gpu_count=np.array([workload.config.gpu_count for workload in workloads], dtype=float),
        ready=np.array([sum(w.ready for w in workload.workers) for workload in workloads], dtype=float),
        flags=_flags(workloads, snapshot),
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
            bool(workload.managed_elsewhere),
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


def _place(workloads: Sequence[Workload], nodes: Mapping[str, NodeState]) -> tuple[Placement, Floats, Floats]:
    """Return the placement, and of each workload its smallest device and its live use (W, 2)."""
    devices = [info for state in nodes.values() for info in state.devices]
    row_of = {info.uuid: row for row, info in enumerate(devices)}
    sizes = [(UNSET if info.tflops is None else info.tflops, info.vram_total_bytes) for info in devices]
    capacity = np.array(sizes, dtype=float).reshape(-1, 2).T
    # Flat lists: a tuple per worker would cost the garbage collector more than the loop costs.
    rows: list[int] = []
    places: list[int] = []
    requests: tuple[list[float], list[float]] = ([], [])
    for row, workload in enumerate(workloads):
        for worker in workload.workers:
            current = worker.current
            for uuid in worker.devices:
                place = row_of.get(uuid)
                if place is not None:
                    rows.append(row)
                    places.append(place)
                    requests[0].append(current.compute.request)
                    requests[1].append(current.vram.request)
    of_workload, of_device = np.array(rows, dtype=np.int64), np.array(places, dtype=np.int64)
    smallest = np.full((len(workloads), len(Resource)), np.inf)
    requested = np.zeros(capacity.shape)
    for resource in Resource:
        known = np.where(np.isnan(capacity[resource]), np.inf, capacity[resource])
        np.minimum.at(smallest[:, resource], of_workload, known[of_device])
        np.add.at(requested[resource], of_device, np.array(requests[resource], dtype=float))
    live, used, foreign = _seen(workloads, nodes, row_of)
    whole = np.array([UNSET if info.vram_used_bytes is None else info.vram_used_bytes for info in devices], dtype=float)
    used[Resource.VRAM] = np.fmax(used[Resource.VRAM], whole)
    uuids = tuple(info.uuid for info in devices)
    return Placement(of_workload, of_device, capacity, requested, uuids, used, foreign), smallest, live


def _seen(
    workloads: Sequence[Workload], nodes: Mapping[str, NodeState], row_of_device: Mapping[str, int]
) -> tuple[Floats, Floats, Floats]:
    """Return what the agents see: the largest live use of any worker (W, 2), NaN where none tells; `used`, `foreign`.

    What nobody can tell counts for nothing in the sum of a device: its requests are counted elsewhere.
    """
    row_of = {worker.ref.uid: row for row, workload in enumerate(workloads) for worker in workload.workers}
    rows: list[int] = []
    places: list[int] = []
    uses: tuple[list[float | None], list[float | None]] = ([], [])
    used, foreign = (np.zeros((len(Resource), len(row_of_device) + 1)) for _ in range(2))
    nowhere = len(row_of_device)
    for state in nodes.values():
        for status in state.quotas.workers if state.quotas else ():
            row = row_of.get(status.pod_uid, -1)
            for device in status.devices:
                place = row_of_device.get(device.uuid, nowhere)
                rows.append(row)
                places.append(place)
                uses[0].append(device.observed.tflops_used)
                uses[1].append(device.observed.vram_used_bytes)
                if row < 0 and device.desired is not None:
                    foreign[:, place] += device.desired.tflops_request, device.desired.vram_request_bytes
    # The last row and the last place take what belongs to no workload or device.
    live = np.full((len(workloads) + 1, len(Resource)), UNSET)
    of_row, of_place = np.array(rows, dtype=np.int64), np.array(places, dtype=np.int64)
    for resource in Resource:
        use = np.array(uses[resource], dtype=float)  # None, which is not known, becomes NaN.
        np.fmax.at(live[:, resource], of_row, use)
        np.add.at(used[resource], of_place, np.nan_to_num(use))
    return live[:-1], used[:, :-1], foreign[:, :-1]
