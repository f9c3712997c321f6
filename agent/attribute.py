"""A tick's use by worker: processes grouped to their workers, and what belongs to none. Pure.

Worker figures are bounded by the device's own: time shares of processes overlap and come from another clock than the
device's. A worker that was on a device and has no process there now is idle, which is a measured 0; one that left the
directory has no figure at all. Neighbours: a device source samples, a process directory knows the workers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeAlias, TypeVar

from agent.samples import (
    Attribution,
    DeviceSample,
    NodeSample,
    ProcessDirectory,
    ProcessUse,
    Unattributed,
    Worker,
    WorkerUse,
)

OVERLAP: Final = 1.05
"""Workers together may exceed their device by this factor: sample periods differ by so much."""

_N = TypeVar("_N", int, float)
_WorkerId: TypeAlias = tuple[str, str]
_Seen: TypeAlias = frozenset[tuple[str, str, str]]


def attribute(
    sample: NodeSample,
    directory: ProcessDirectory,
    previous: Attribution | None = None,
    placed: Collection[tuple[str, str, str]] = (),
) -> Attribution:
    """Return what each worker used on each healthy device, and what remains.

    `previous` is the last tick's attribution (which workers were seen where), `placed` the (pod_uid, container, uuid)
    that quotas name, with an empty container for the only one of a pod.
    """
    workers = {_id(worker): worker for worker in directory.workers()}
    seen = (previous.seen if previous is not None else frozenset()) | _resolved(placed, workers)
    uses: list[WorkerUse] = []
    rest = []
    at_home = _by_device(seen, workers)
    for device in sample.devices:
        if device.healthy:
            own = _uses(device, _by_worker(device, directory), at_home.get(device.uuid, ()))
            uses += own
            rest.append(_unattributed(device, own))
    present = {device.uuid for device in sample.devices}
    kept = {key for key in seen if key[:2] in workers and key[2] in present}
    kept |= {(*_id(use.worker), use.uuid) for use in uses}
    return Attribution(sample.at, tuple(uses), tuple(rest), frozenset(kept))


def _by_worker(device: DeviceSample, directory: ProcessDirectory) -> dict[_WorkerId, tuple[Worker, list[ProcessUse]]]:
    groups: dict[_WorkerId, tuple[Worker, list[ProcessUse]]] = {}
    for process in device.processes:
        worker = directory.worker_of(process.pid)
        if worker is not None:
            groups.setdefault(_id(worker), (worker, []))[1].append(process)
    return groups


def _by_device(seen: _Seen, workers: Mapping[_WorkerId, Worker]) -> dict[str, list[Worker]]:
    """Return the known workers of each device, in a steady order."""
    placed: dict[str, list[Worker]] = {}
    for pod_uid, container, uuid in sorted(seen):
        worker = workers.get((pod_uid, container))
        if worker is not None:
            placed.setdefault(uuid, []).append(worker)
    return placed


def _uses(
    device: DeviceSample, active: Mapping[_WorkerId, tuple[Worker, list[ProcessUse]]], placed: Iterable[Worker]
) -> list[WorkerUse]:
    uses = [
        WorkerUse(
            worker,
            device.uuid,
            device.sampled_at,
            _total([process.compute_ratio for process in processes], 1.0),
            _total([process.vram_bytes for process in processes], device.vram_total_bytes),
        )
        for worker, processes in active.values()
    ]
    # Without a process list only a device at rest proves that nobody computed, and nothing proves empty memory.
    ratio = 0.0 if device.processes_known or device.compute_ratio == 0 else None
    vram_bytes = 0 if device.processes_known else None
    uses += [
        WorkerUse(worker, device.uuid, device.sampled_at, ratio, vram_bytes)
        for worker in placed
        if _id(worker) not in active
    ]
    return _rescaled(uses, device.compute_ratio)


def _rescaled(uses: list[WorkerUse], device_ratio: float | None) -> list[WorkerUse]:
    total = sum(use.compute_ratio for use in uses if use.compute_ratio is not None)
    if device_ratio is None or total <= device_ratio * OVERLAP:
        return uses
    factor = device_ratio * OVERLAP / total
    return [
        use if use.compute_ratio is None else replace(use, compute_ratio=use.compute_ratio * factor) for use in uses
    ]


def _unattributed(device: DeviceSample, uses: list[WorkerUse]) -> Unattributed:
    return Unattributed(
        device.uuid,
        _remainder(device.compute_ratio, [use.compute_ratio for use in uses]),
        _remainder(device.vram_used_bytes, [use.vram_bytes for use in uses]),
    )


def _total(parts: Sequence[_N | None], most: _N) -> _N | None:
    """Add up; one unknown part makes the total unknown."""
    known = [part for part in parts if part is not None]
    return min(most, sum(known)) if len(known) == len(parts) else None


def _remainder(whole: _N | None, parts: Sequence[_N | None]) -> _N | None:
    known = [part for part in parts if part is not None]
    return None if whole is None or len(known) < len(parts) else whole - min(whole, sum(known))


def _resolved(placed: Collection[tuple[str, str, str]], workers: Mapping[_WorkerId, Worker]) -> _Seen:
    """Give the places that name no container the one known container of their pod."""
    containers: dict[str, list[str]] = {}
    for pod_uid, container in workers:
        containers.setdefault(pod_uid, []).append(container)
    only = {pod_uid: names[0] for pod_uid, names in containers.items() if len(names) == 1}
    return frozenset((pod_uid, container or only.get(pod_uid, ""), uuid) for pod_uid, container, uuid in placed)


def _id(worker: Worker) -> _WorkerId:
    return (worker.pod_uid, worker.container)
