"""From the cluster's objects to workloads with a resolved configuration; pure.

What is unchanged since the last pass is taken from there, so that a pass over a quiet fleet costs almost nothing.
Neighbours: `membership` says who belongs together, `configure` what they want, `assemble` what they have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autoscaler.contract import keys
from autoscaler.contract.quota import WorkerStatus
from autoscaler.model.config import Configuration
from autoscaler.model.resolve import Defaults
from autoscaler.model.snapshot import NodeState
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import (
    EMPTY,
    BrokenWorkload,
    ClusterView,
    Discovered,
    Worker,
    Workload,
)
from autoscaler.read.assemble import Place, assemble, is_same, object_ref, surroundings_of
from autoscaler.read.configure import Resolution, inputs_of, settle
from autoscaler.read.membership import Group, group_by_workload
from autoscaler.read.notices import notices_of
from autoscaler.read.workers import (
    container_of,
    devices_of,
    make_worker,
    statuses_by_pod,
)

NO_DEFAULTS = Defaults()


@dataclass(frozen=True, slots=True)
class Remembered(Discovered):
    """What discovery returns: also what it needs to recognise unchanged inputs in the next pass."""

    resolutions: Mapping[WorkloadKey, Resolution] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class _Before:
    """The last pass, by key and by pod UID."""

    resolutions: Mapping[WorkloadKey, Resolution]
    workloads: Mapping[WorkloadKey, Workload]
    workers: Mapping[str, Worker]


def discover(
    view: ClusterView,
    nodes: Mapping[str, NodeState],
    previous: Discovered | None = None,
    defaults: Defaults = NO_DEFAULTS,
) -> Remembered:
    """Return every workload of the cluster; one that is wrong keeps its last good configuration from `previous`.

    A workload that does not exist yet has `exists` False and the reference to create. Devices and containers come from
    the agents (`nodes`), else from the pods' annotations.
    """
    before, around = _index(previous), surroundings_of(view)
    statuses = statuses_by_pod(nodes.values())
    profiles = {(item["metadata"].get("namespace", ""), item["metadata"]["name"]): item for item in view.profiles}
    workloads: list[Workload] = []
    broken: list[BrokenWorkload] = []
    resolutions: dict[WorkloadKey, Resolution] = {}
    membership = group_by_workload(view)
    for key, group in sorted(membership.groups.items()):
        inputs = inputs_of(group, profiles, defaults)
        known = before.resolutions.get(key)
        resolution = known if known is not None and known.inputs == inputs else settle(inputs)
        resolutions[key] = resolution
        config = resolution.config or _last_good(key, group, before)
        if config is None:
            broken.append(_broken(key, group, resolution))
        else:
            place = Place(key, group, resolution, _workers(group, config, statuses, before.workers), around)
            same = before.workloads.get(key)
            if same is None or resolution is not known or not is_same(same, place):
                same = assemble(place, config, _namesake(same, group), before.workers)
            workloads.append(same)
    return Remembered(
        tuple(workloads),
        tuple(broken),
        profiles=view.profiles,
        problems=(*view.problems, *membership.problems),
        notices=notices_of(view.owners),
        resolutions=resolutions,
    )


def _namesake(known: Workload | None, group: Group) -> Workload | None:
    """Return the workload of the pass before, unless another object has taken its name since."""
    if known is None or group.workload is None:
        return known
    return known if known.ref.uid in {"", group.workload["metadata"].get("uid", "")} else None


def _index(previous: Discovered | None) -> _Before:
    if previous is None:
        return _Before({}, {}, {})
    return _Before(
        previous.resolutions if isinstance(previous, Remembered) else {},
        {workload.key: workload for workload in previous.workloads},
        {worker.ref.uid: worker for workload in previous.workloads for worker in workload.workers},
    )


def _last_good(key: WorkloadKey, group: Group, before: _Before) -> Configuration | None:
    """Return the configuration that was in force, unless another object has taken the name since."""
    known = _namesake(before.workloads.get(key), group)
    return known.config if known is not None else None


def _workers(
    group: Group,
    config: Configuration,
    statuses: Mapping[str, tuple[WorkerStatus, ...]],
    before: Mapping[str, Worker],
) -> tuple[Worker, ...]:
    workers = []
    for pod in group.workers:
        metadata = pod["metadata"]
        uid = metadata.get("uid", "")
        seen = statuses.get(uid, ())
        devices, container = devices_of(pod, seen), container_of(seen)
        known = before.get(uid)
        if (
            known is not None
            and known.ref.resource_version == metadata.get("resourceVersion")
            and known.devices == devices
            and known.container == container
            and (keys.VRAM_LIMIT in known.annotations and keys.TFLOPS_LIMIT in known.annotations)
        ):
            workers.append(known)
        else:
            workers.append(make_worker(pod, devices, container, config.amounts))
    return tuple(workers)


def _broken(key: WorkloadKey, group: Group, resolution: Resolution) -> BrokenWorkload:
    manifest = group.workload or EMPTY
    return BrokenWorkload(
        key=key,
        ref=object_ref(key, group),
        problems=resolution.problems,
        owners=tuple(sharer.ref for sharer in group.sharers.values()),
        exists=group.workload is not None,
        generation=int((manifest.get("metadata") or EMPTY).get("generation", 0)),
        status=manifest.get("status") or EMPTY,
    )
