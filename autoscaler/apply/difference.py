"""Which devices of a node have to be planned again: those on which anything differs; pure.

Devices are independent of each other, so a move on one costs a look at its neighbours on that device only. This runs
over every worker of a fleet in every pass. Neighbours: `fit` settles what such a device has room for, `plan` asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autoscaler.apply.fit import over_devices, room_of
from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import DeviceInfo, QuotaDocument, QuotaStatus, WorkerQuota, WorkerStatus
from autoscaler.model.snapshot import NodeState


@dataclass(frozen=True, slots=True)
class Told:
    """What a node was found to have been told exactly, under which number, and the devices that it had then."""

    epoch: int
    generation: int
    quotas: tuple[WorkerQuota, ...]
    devices: tuple[DeviceInfo, ...]


def devices_to_plan(state: NodeState, desired: Sequence[WorkerQuota], told: Told | None = None) -> frozenset[str]:
    """Return the UUIDs of the devices on which a node was not told just what is desired; none: there is nothing to do.

    A node whose document has the number that it had when it was `told` has that document still.

    What a node took, it has room for. Only where it is to be sent a document, that has to hold still for every quota
    in it: one quota over its device would have the whole document refused.
    """
    status = state.quotas
    if status is None:
        return frozenset()
    if told is not None and (told.epoch, told.generation) == (status.epoch, status.generation):
        differing = _moved(told.quotas, desired) if len(told.quotas) == len(desired) else _differing(status, desired)
    else:
        told, differing = None, _differing(status, desired)
    if not differing:
        return frozenset()
    if told is not None and told.devices == state.devices:
        return frozenset(differing)
    room = room_of(state.devices)
    if told is None or room_of(told.devices) != room:
        differing |= over_devices([quota for worker in desired for quota in worker.devices], room)
    return frozenset(differing)


def _moved(before: Iterable[WorkerQuota], desired: Iterable[WorkerQuota]) -> set[str]:
    pairs = [(old, new) for old, new in zip(before, desired, strict=True) if old is not new]
    return {quota.uuid for pair in pairs if pair[0] != pair[1] for worker in pair for quota in worker.devices}


def _differing(status: QuotaStatus, desired: Sequence[WorkerQuota]) -> set[str]:
    told = {(worker.pod_uid, worker.container): worker for worker in status.workers}
    differing: set[str] = set()
    for quota in desired:
        worker = told.pop((quota.pod_uid, quota.container), None)
        if worker is None or not _is_told(worker, quota):
            differing.update([one.uuid for one in quota.devices])
            differing.update(_named(worker) if worker is not None else ())
    for worker in told.values():
        differing.update(_named(worker))
    return differing


def _is_told(worker: WorkerStatus, quota: WorkerQuota) -> bool:
    if worker.workload != quota.workload or (worker.qos is not quota.qos and worker.qos is not None):
        return False
    return tuple([device.desired for device in worker.devices]) == quota.devices


def _named(worker: WorkerStatus) -> Iterable[str]:
    """Return the devices on which a document named the worker."""
    return [device.uuid for device in worker.devices if device.desired is not None]


def is_in_force(answer: QuotaStatus, document: QuotaDocument) -> bool:
    """Tell whether a node took a document and waits for nothing: a plan that goes on from there holds still."""
    if (answer.epoch, answer.generation) != (document.epoch, document.generation):
        return False
    return all(
        device.applied or device.desired is None or device.effect is Effect.UNSUPPORTED
        for worker in answer.workers
        for device in worker.devices
    )
