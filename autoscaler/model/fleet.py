"""The snapshot as columns: row = workload, so that recommending and guarding 10,000 workloads is a few array passes.

Last axis of every (W, 5) array: `Field`. NaN is "not known"; amounts are TFLOPs, bytes and counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np

from autoscaler.model.knobs import UNSET, Figures, Knobs, Laid, to_knobs
from autoscaler.model.resources import Amounts, Resource
from autoscaler.model.snapshot import NodeState, Snapshot
from autoscaler.model.usage import Bools, Floats, Ints, WorkloadKey
from autoscaler.model.workload import Workload

UNSCALABLE_ISOLATION: Final = frozenset({"shared", "hard", "partitioned"})


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Which workload runs on which device: one edge per worker and device.

    `workload`, `device` (E,): row numbers. `capacity` (2, D): TFLOPs and bytes per device, NaN unknown.
    `requested` (2, D): Σ requests of its workers now.
    """

    workload: Ints
    device: Ints
    capacity: Floats
    requested: Floats


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
    worker, ready workers.
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

    @property
    def knobs(self) -> Knobs:
        """Return what the configurations set."""
        return self.laid.knobs

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
    placement, device = _place(workloads, snapshot.nodes)
    return Fleet(
        now=snapshot.now,
        keys=tuple(workload.key for workload in workloads),
        uids=tuple(workload.ref.uid for workload in workloads),
        current=np.array(currents, dtype=float).reshape(-1, 5),
        original=np.array(originals, dtype=float).reshape(-1, 5),
        device=device,
        live=_live(workloads, snapshot.nodes),
        gpu_count=np.array([workload.config.gpu_count for workload in workloads], dtype=float),
        ready=np.array([sum(w.ready for w in workload.workers) for workload in workloads], dtype=float),
        flags=_flags(workloads, snapshot),
        laid=to_knobs([workload.config for workload in workloads], originals, previous.laid if previous else None),
        placement=placement,
    )


def _figures(amounts: Amounts) -> tuple[float, float, float, float]:
    return amounts.compute.request, amounts.compute.limit, amounts.vram.request, amounts.vram.limit


def _original(workload: Workload) -> Figures:
    replicas = workload.config.replicas
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


def _place(workloads: Sequence[Workload], nodes: Mapping[str, NodeState]) -> tuple[Placement, Floats]:
    """Return the placement, and the smallest device of each workload (W, 2)."""
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
    return Placement(of_workload, of_device, capacity, requested), smallest


def _live(workloads: Sequence[Workload], nodes: Mapping[str, NodeState]) -> Floats:
    """Return the largest live use of any worker, (W, 2); NaN where no agent tells."""
    row_of = {worker.ref.uid: row for row, workload in enumerate(workloads) for worker in workload.workers}
    rows: list[int] = []
    uses: tuple[list[float | None], list[float | None]] = ([], [])
    for state in nodes.values():
        for status in state.quotas.workers if state.quotas else ():
            row = row_of.get(status.pod_uid)
            if row is None:
                continue
            for device in status.devices:
                rows.append(row)
                uses[0].append(device.observed.tflops_used)
                uses[1].append(device.observed.vram_used_bytes)
    live = np.full((len(workloads), len(Resource)), UNSET)
    for resource in Resource:
        # None, which is not known, becomes NaN.
        np.fmax.at(live[:, resource], np.array(rows, dtype=np.int64), np.array(uses[resource], dtype=float))
    return live
