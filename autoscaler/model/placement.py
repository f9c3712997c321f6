"""Which workload runs on which device, what a device has, and where it stands; as columns, row = device. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoscaler.model.gpu_models import canonical, known_model
from autoscaler.model.inventory import Device, Inventory
from autoscaler.model.knobs import UNSET
from autoscaler.model.resources import Resource
from autoscaler.model.snapshot import NodeState, Snapshot
from autoscaler.model.usage import SATURATION_DEVICE_RATIO, SATURATION_SLACK_RATIO, Bools, Floats, Ints
from autoscaler.model.workload import Workload


@dataclass(frozen=True, slots=True, eq=False)
class Sites:
    """Where the devices stand, in order of the placement's.

    `node` (D,): number of its node. `models`, `pools` (D): canonical model and pool, empty unknown. `usable` (D,):
    whether a new worker may be put there. `is_whole`: whether these are all devices there are.
    """

    node: Ints
    models: tuple[str, ...]
    pools: tuple[str, ...]
    usable: Bools
    is_whole: bool


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Which workload runs on which device: one edge per worker and device.

    `workload`, `device` (E,): row numbers. `capacity` (2, D): TFLOPs and bytes per device, NaN unknown.
    `requested` (2, D): Σ requests of its workers now. `uuids` (D). `used` (2, D): Σ live use of its workers as the
    agents see it, or the device's own figure where that is more. `foreign` (2, D): Σ requests of those on it that are
    no workload's of this fleet. `sites`: where each device stands.
    """

    workload: Ints
    device: Ints
    capacity: Floats
    requested: Floats
    uuids: tuple[str, ...]
    used: Floats
    foreign: Floats
    sites: Sites


def place(workloads: Sequence[Workload], snapshot: Snapshot) -> tuple[Placement, Floats, Floats, Floats]:
    """Return the placement, and of each workload its smallest device, its live use and what of it is demand (W, 2)."""
    inventory = snapshot.inventory if snapshot.inventory is not None else inventory_of(snapshot.nodes)
    devices = [device.info for device in inventory.devices]
    # Objects are named in lower case, and an annotation may name them.
    row_of = {info.uuid.lower(): row for row, info in enumerate(devices)}
    row_of |= {info.uuid: row for row, info in enumerate(devices)}
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
    live, demand, used, foreign = _seen(workloads, snapshot.nodes, row_of, capacity)
    whole = np.array([UNSET if info.vram_used_bytes is None else info.vram_used_bytes for info in devices], dtype=float)
    used[Resource.VRAM] = np.fmax(used[Resource.VRAM], whole)
    uuids = tuple(info.uuid for info in devices)
    for uuid, booked in inventory.foreign.items():
        foreign[:, row_of[uuid]] = np.fmax(foreign[:, row_of[uuid]], booked)
    _assume(workloads, smallest)
    sites = sites_of(inventory)
    return Placement(of_workload, of_device, capacity, requested, uuids, used, foreign, sites), smallest, live, demand


def _assume(workloads: Sequence[Workload], smallest: Floats) -> None:
    """Where nobody tells a workload's devices, take those of the model that it asks for as the table has them."""
    for row in map(int, np.flatnonzero(np.isinf(smallest).all(axis=1))):
        gpu = known_model(workloads[row].config.gpu_model)
        if gpu is not None:
            smallest[row, Resource.COMPUTE] = gpu.tflops


def _seen(
    workloads: Sequence[Workload], nodes: Mapping[str, NodeState], row_of_device: Mapping[str, int], capacity: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    """Return what the agents see: the largest live use of any worker (W, 2), NaN where none tells; `used`, `foreign`.

    Second, the largest of those that keep to the limits in force on them: who takes more tells nothing of demand.
    What nobody can tell counts for nothing in the sum of a device: its requests are counted elsewhere.
    """
    row_of = {worker.ref.uid: row for row, workload in enumerate(workloads) for worker in workload.workers}
    rows: list[int] = []
    places: list[int] = []
    uses: tuple[list[float | None], list[float | None]] = ([], [])
    limits: tuple[list[float | None], list[float | None]] = ([], [])
    nowhere = capacity.shape[1]
    used, foreign = (np.zeros((len(Resource), nowhere + 1)) for _ in range(2))
    for state in nodes.values():
        for status in state.quotas.workers if state.quotas else ():
            row = row_of.get(status.pod_uid, -1)
            for device in status.devices:
                place = row_of_device.get(device.uuid, nowhere)
                rows.append(row)
                places.append(place)
                uses[0].append(device.observed.tflops_used)
                uses[1].append(device.observed.vram_used_bytes)
                limits[0].append(device.observed.tflops_limit)
                limits[1].append(device.observed.vram_limit_bytes)
                if row < 0 and device.desired is not None:
                    foreign[:, place] += device.desired.tflops_request, device.desired.vram_request_bytes
    # The last row and the last place take what belongs to no workload or device.
    live, demand = (np.full((len(workloads) + 1, len(Resource)), UNSET) for _ in range(2))
    of_row, of_place = np.array(rows, dtype=np.int64), np.array(places, dtype=np.int64)
    for resource in Resource:
        # None, which is not known, becomes NaN.
        use, limit = np.array(uses[resource], dtype=float), np.array(limits[resource], dtype=float)
        np.fmax.at(live[:, resource], of_row, use)
        device_size = np.append(capacity[resource], UNSET)[of_place]
        np.fmax.at(demand[:, resource], of_row, np.where(_is_beyond(use, limit, device_size), UNSET, use))
        np.add.at(used[resource], of_place, np.nan_to_num(use))
    return live[:-1], demand[:-1], used[:, :-1], foreign[:, :-1]


def _is_beyond(use: Floats, limit: Floats, device: Floats) -> Bools:
    """Return where use is above the limit by more than enforcement is coarse; not where one of them is unknown."""
    slack = np.fmax(SATURATION_SLACK_RATIO * limit, SATURATION_DEVICE_RATIO * device)
    with np.errstate(invalid="ignore"):
        return np.asarray(use > limit + slack, dtype=np.bool_)


def inventory_of(nodes: Mapping[str, NodeState]) -> Inventory:
    """Return the devices that agents tell, and nothing else."""
    return Inventory(tuple(Device(info, node) for node, state in nodes.items() for info in state.devices))


def sites_of(inventory: Inventory) -> Sites:
    """Lay out where devices stand."""
    numbers = {node: number for number, node in enumerate(dict.fromkeys(one.node for one in inventory.devices))}
    return Sites(
        node=np.array([numbers[one.node] for one in inventory.devices], dtype=np.int64),
        models=tuple(canonical(one.info.model) for one in inventory.devices),
        pools=tuple(one.pool for one in inventory.devices),
        usable=np.array([one.is_usable and one.info.healthy for one in inventory.devices], dtype=np.bool_),
        is_whole=inventory.is_whole,
    )
