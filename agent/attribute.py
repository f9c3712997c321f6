"""A tick's use by worker: processes grouped to their workers, and what belongs to none. Pure.

Worker figures are bounded by the device's own: time shares of processes overlap and come from another clock than the
device's. A worker that was on a device and has no process there now is idle, which is a measured 0; one that left the
directory has no figure at all. Neighbours: a device source samples, a process directory knows the workers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, TypeAlias, TypeVar

from agent.model.samples import (
    Attribution,
    DeviceSample,
    NodeSample,
    ProcessDirectory,
    ProcessUse,
    Unattributed,
    Worker,
    WorkerId,
    WorkerKey,
    WorkerUse,
)

OVERLAP: Final = 1.05
"""Workers together may exceed their device by this factor: sample periods differ by so much."""

_N = TypeVar("_N", int, float)
_Seen: TypeAlias = frozenset[WorkerKey]


def attribute(
    sample: NodeSample,
    directory: ProcessDirectory,
    previous: Attribution | None = None,
    placed: Collection[WorkerKey] = (),
) -> Attribution:
    """Return what each worker used on each healthy device, and what remains.

    `previous` is the last tick's attribution (which workers were seen where), `placed` the (pod_uid, container, uuid)
    that quotas name, with an empty container for the only one of a pod.
    """
    workers = {worker.id: worker for worker in directory.workers()}
    before: _Seen = previous.seen if previous is not None else frozenset()
    seen = before | _resolved(placed, workers)
    active = [(device, _by_worker(device, directory)) for device in sample.devices if device.healthy]
    busy = {(*name, device.uuid) for device, groups in active for name in groups}
    at_home = _by_device(seen - busy, workers)
    uses: list[WorkerUse] = []
    rest = []
    for device, groups in active:
        own = _uses(device, groups, at_home.get(device.uuid, ()))
        uses += own
        rest.append(_unattributed(device, own))
    present = {device.uuid for device in sample.devices}
    kept = frozenset(busy.union(key for key in seen if key[:2] in workers and key[2] in present))
    # The same set is the same object, so that who compares it next is done at once.
    return Attribution(sample.at, tuple(uses), tuple(rest), before if kept == before else kept)


def _by_worker(device: DeviceSample, directory: ProcessDirectory) -> dict[WorkerId, tuple[Worker, list[ProcessUse]]]:
    groups: dict[WorkerId, tuple[Worker, list[ProcessUse]]] = {}
    for process in device.processes:
        worker = directory.worker_of(process.pid)
        if worker is None:
            continue
        name = (worker.pod_uid, worker.container)
        group = groups.get(name)
        if group is None:
            groups[name] = (worker, [process])
        else:
            group[1].append(process)
    return groups


def _by_device(seen: _Seen, workers: Mapping[WorkerId, Worker]) -> dict[str, list[Worker]]:
    """Return the known workers of each device, in a steady order."""
    placed: dict[str, list[Worker]] = {}
    for pod_uid, container, uuid in sorted(seen):
        worker = workers.get((pod_uid, container))
        if worker is not None:
            placed.setdefault(uuid, []).append(worker)
    return placed


def _uses(
    device: DeviceSample, active: Mapping[WorkerId, tuple[Worker, list[ProcessUse]]], idle: Iterable[Worker]
) -> list[WorkerUse]:
    workers = [worker for worker, _ in active.values()]
    ratios = [_total([process.compute_ratio for process in processes], 1.0) for _, processes in active.values()]
    if _is_alone(device, active):
        ratios = [device.compute_ratio]
    most = device.vram_total_bytes
    vram = [_total([process.vram_bytes for process in processes], most) for _, processes in active.values()]
    # Without a process list only a device at rest proves that nobody computed, and nothing proves empty memory.
    resting = 0.0 if device.processes_known or device.compute_ratio == 0 else None
    vram_bytes = 0 if device.processes_known else None
    uuid, at = device.uuid, device.sampled_at
    uses = [
        WorkerUse(worker, uuid, at, ratio, used)
        for worker, ratio, used in zip(workers, _rescaled(ratios, device.compute_ratio), vram, strict=True)
    ]
    return uses + [WorkerUse(worker, uuid, at, resting, vram_bytes) for worker in idle]


def _is_alone(device: DeviceSample, active: Mapping[WorkerId, tuple[Worker, list[ProcessUse]]]) -> bool:
    """Return whether every process is one worker's, on a device (a MIG instance, say) that tells of none its use."""
    return (
        len(active) == 1
        and device.processes_known
        and all(process.compute_ratio is None for process in device.processes)
        and sum(len(processes) for _, processes in active.values()) == len(device.processes)
    )


def _rescaled(ratios: list[float | None], device_ratio: float | None) -> list[float | None]:
    total = sum(ratio for ratio in ratios if ratio is not None)
    if device_ratio is None or total <= device_ratio * OVERLAP:
        return ratios
    factor = device_ratio * OVERLAP / total
    return [None if ratio is None else ratio * factor for ratio in ratios]


def _unattributed(device: DeviceSample, uses: list[WorkerUse]) -> Unattributed:
    return Unattributed(
        device.uuid,
        _remainder(device.compute_ratio, [use.compute_ratio for use in uses]),
        _remainder(device.vram_used_bytes, [use.vram_bytes for use in uses]),
    )


def _total(parts: Sequence[_N | None], most: _N) -> _N | None:
    """Add up; one unknown part makes the total unknown."""
    if len(parts) == 1:
        return None if parts[0] is None else min(most, parts[0])
    known = [part for part in parts if part is not None]
    return min(most, sum(known)) if len(known) == len(parts) else None


def _remainder(whole: _N | None, parts: Sequence[_N | None]) -> _N | None:
    known = [part for part in parts if part is not None]
    return None if whole is None or len(known) < len(parts) else whole - min(whole, sum(known))


def _resolved(placed: Collection[WorkerKey], workers: Mapping[WorkerId, Worker]) -> _Seen:
    """Give the places that name no container the one known container of their pod."""
    if all(container for _, container, _ in placed):
        return frozenset(placed)
    containers: dict[str, list[str]] = {}
    for pod_uid, container in workers:
        containers.setdefault(pod_uid, []).append(container)
    only = {pod_uid: names[0] for pod_uid, names in containers.items() if len(names) == 1}
    return frozenset((pod_uid, container or only.get(pod_uid, ""), uuid) for pod_uid, container, uuid in placed)
