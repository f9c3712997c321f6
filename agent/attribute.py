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
from autoscaler.contract.quota import QuotaDocument

OVERLAP: Final = 1.05
"""Workers together may exceed their device by this factor: sample periods differ by so much."""

_N = TypeVar("_N", int, float)
_Seen: TypeAlias = frozenset[WorkerKey]
_Groups: TypeAlias = dict[WorkerKey, tuple[Worker, list[ProcessUse]]]


class AtTick:
    """A directory whose workers were read once, for everyone in a tick."""

    def __init__(self, directory: ProcessDirectory) -> None:
        self._workers = directory.workers()
        self.worker_of = directory.worker_of

    def workers(self) -> tuple[Worker, ...]:
        """Return the workers as they were then."""
        return self._workers


class Placed:
    """Where pods and quotas place workers, read again only when one of them changed."""

    def __init__(self) -> None:
        self._source: tuple[QuotaDocument | None, tuple[Worker, ...]] | None = None
        self._places: _Seen = frozenset()

    def by(self, document: QuotaDocument | None, workers: tuple[Worker, ...]) -> frozenset[WorkerKey]:
        """Return the (pod_uid, container, uuid); an empty container is the only one of its pod."""
        if self._source is None or self._source[0] is not document or self._source[1] is not workers:
            entries = document.quotas if document is not None else ()
            asked = ((entry.pod_uid, entry.container, quota.uuid) for entry in entries for quota in entry.devices)
            born = ((*worker.id, uuid) for worker in workers for uuid in worker.devices)
            self._source, self._places = (document, workers), frozenset((*born, *asked))
        return self._places


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
    workers = {(worker.pod_uid, worker.container): worker for worker in directory.workers()}
    before: _Seen = previous.seen if previous is not None else frozenset()
    active = [(device, _by_worker(device, directory)) for device in sample.devices if device.healthy]
    busy = frozenset[WorkerKey]().union(*(groups for _, groups in active))
    present = {device.uuid for device in sample.devices}
    idle = [
        key for key in sorted((before | _resolved(placed, workers)) - busy) if key[:2] in workers and key[2] in present
    ]
    at_home: dict[str, list[Worker]] = {}
    for key in idle:
        at_home.setdefault(key[2], []).append(workers[key[:2]])
    uses: list[WorkerUse] = []
    rest = []
    for device, groups in active:
        own = _uses(device, groups, at_home.get(device.uuid, ()))
        uses += own
        rest.append(_unattributed(device, own))
    seen = busy.union(idle)
    # The same set is the same object, so that who compares it next is done at once.
    return Attribution(sample.at, tuple(uses), tuple(rest), before if seen == before else seen)


def _joined(before: _Seen, placed: _Seen) -> _Seen:
    return before if placed <= before else before | placed


def _by_worker(device: DeviceSample, directory: ProcessDirectory) -> _Groups:
    groups: _Groups = {}
    for process in device.processes:
        worker = directory.worker_of(process.pid)
        if worker is not None:
            key = (worker.pod_uid, worker.container, device.uuid)
            if key in groups:
                groups[key][1].append(process)
            else:
                groups[key] = (worker, [process])
    return groups


def _uses(device: DeviceSample, active: _Groups, idle: Iterable[Worker]) -> list[WorkerUse]:
    groups = [processes for _, processes in active.values()]
    ratios = _added([[process.compute_ratio for process in own] for own in groups], 1.0)
    if _is_alone(device, active):
        ratios = [device.compute_ratio]
    vram = _added([[process.vram_bytes for process in own] for own in groups], device.vram_total_bytes)
    # Without a process list only a device at rest proves that nobody computed, and nothing proves empty memory.
    resting = 0.0 if device.processes_known or device.compute_ratio == 0 else None
    vram_bytes = 0 if device.processes_known else None
    uuid, at = device.uuid, device.sampled_at
    uses = [
        WorkerUse(worker, uuid, at, ratio, used)
        for (worker, _), ratio, used in zip(active.values(), _rescaled(ratios, device.compute_ratio), vram, strict=True)
    ]
    return uses + [WorkerUse(worker, uuid, at, resting, vram_bytes) for worker in idle]


def _is_alone(device: DeviceSample, active: _Groups) -> bool:
    """Return whether every process is one worker's, on a device (a MIG instance, say) that tells of none its use."""
    return (
        len(active) == 1
        and device.processes_known
        and all(process.compute_ratio is None for process in device.processes)
        and sum(len(processes) for _, processes in active.values()) == len(device.processes)
    )


def _rescaled(ratios: list[float | None], device_ratio: float | None) -> list[float | None]:
    total = sum([ratio for ratio in ratios if ratio is not None])
    if device_ratio is None or total <= device_ratio * OVERLAP:
        return ratios
    factor = device_ratio * OVERLAP / total
    return [None if ratio is None else ratio * factor for ratio in ratios]


def _unattributed(device: DeviceSample, uses: list[WorkerUse]) -> Unattributed:
    # Whose the rest is, nobody can say of processes that were not listed; a device at rest has none.
    known = device.processes_known
    ratio = device.compute_ratio if known or device.compute_ratio == 0 else None
    return Unattributed(
        device.uuid,
        _remainder(ratio, [use.compute_ratio for use in uses]),
        _remainder(device.vram_used_bytes if known else None, [use.vram_bytes for use in uses]),
    )


def _added(parts: Iterable[Sequence[_N | None]], most: _N) -> list[_N | None]:
    """Add up each worker's processes; one unknown part makes its total unknown."""
    totals = [part[0] if len(part) == 1 else _total(part) for part in parts]
    return [most if total is not None and total > most else total for total in totals]


def _total(parts: Sequence[_N | None]) -> _N | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


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
