"""From the cluster's objects to workloads with a resolved configuration; pure.

What is unchanged since the last pass is taken from there, so that a pass over a quiet fleet costs almost nothing.
Neighbours: `membership` says who belongs together, `configure` what they want, `workers` what each worker has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache

from autoscaler.contract import keys
from autoscaler.contract.quota import WorkerStatus
from autoscaler.model.config import Configuration
from autoscaler.model.profile import API_VERSION
from autoscaler.model.resolve import Defaults
from autoscaler.model.snapshot import NodeState
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import (
    EMPTY,
    BrokenWorkload,
    ClusterView,
    Discovered,
    ObjectRef,
    Worker,
    Workload,
    ref_of,
)
from autoscaler.read.configure import Resolution, inputs_of, settle
from autoscaler.read.membership import WORKLOAD_KIND, Group, group_by_workload
from autoscaler.read.owners import rollout_in_progress
from autoscaler.read.revision import revision_of
from autoscaler.read.workers import (
    amount_problems,
    container_of,
    devices_of,
    largest,
    make_worker,
    noted_replicas,
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
    before = _index(previous)
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
            workers = _workers(group, config, statuses, before.workers)
            same = before.workloads.get(key) if resolution is known else None
            if same is None or not _is_same(same, group, workers):
                same = _workload(key, group, config, resolution, workers)
            workloads.append(same)
    problems = (*view.problems, *membership.problems)
    return Remembered(tuple(workloads), tuple(broken), view.profiles, problems, resolutions)


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
    known = before.workloads.get(key)
    if known is None:
        return None
    uid = group.workload["metadata"].get("uid", "") if group.workload is not None else ""
    return known.config if known.ref.uid in {"", uid} or group.workload is None else None


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


def _is_same(before: Workload, group: Group, workers: tuple[Worker, ...]) -> bool:
    """Tell whether nothing that a Workload is made of has changed, its configuration aside."""
    return (
        before.exists == (group.workload is not None)
        and before.ref == _ref(before.key, group)
        and len(before.workers) == len(workers)
        and all(one is other for one, other in zip(before.workers, workers, strict=True))
        and before.owners == _owner_refs(group)
        # A file that was edited by hand has another image under the same resourceVersion.
        and before.revision == revision_of(group.sharers.values(), before.config)
    )


def _owner_refs(group: Group) -> tuple[ObjectRef, ...]:
    return tuple(sharer.ref for sharer in group.sharers.values() if sharer.is_owner and not sharer.joins)


def _workload(
    key: WorkloadKey, group: Group, config: Configuration, resolution: Resolution, workers: tuple[Worker, ...]
) -> Workload:
    owners = [sharer for sharer in group.sharers.values() if sharer.is_owner and not sharer.joins]
    unreadable = tuple(problem for worker in workers for problem in amount_problems(worker))
    manifest = group.workload or EMPTY
    return Workload(
        key=key,
        ref=_ref(key, group),
        config=config,
        original=config.amounts,
        current=largest(workers, config.amounts),
        workers=workers,
        replicas=_replicas(group, config, len(workers)),
        created_at=_created_at(group),
        generation=int((manifest.get("metadata") or EMPTY).get("generation", 0)),
        owners=_owner_refs(group),
        exists=group.workload is not None,
        revision=revision_of(group.sharers.values(), config),
        rollout_in_progress=any(rollout_in_progress(sharer.manifest) for sharer in owners),
        status=manifest.get("status") or EMPTY,
        problems=(*resolution.problems, *unreadable),
        warnings=(*resolution.warnings, *_missing_operator(group, config)),
        original_replicas=noted_replicas(manifest),
    )


def _broken(key: WorkloadKey, group: Group, resolution: Resolution) -> BrokenWorkload:
    manifest = group.workload or EMPTY
    return BrokenWorkload(
        key=key,
        ref=_ref(key, group),
        problems=resolution.problems,
        owners=tuple(sharer.ref for sharer in group.sharers.values()),
        exists=group.workload is not None,
        generation=int((manifest.get("metadata") or EMPTY).get("generation", 0)),
        status=manifest.get("status") or EMPTY,
    )


def _ref(key: WorkloadKey, group: Group) -> ObjectRef:
    if group.workload is not None:
        return ref_of(group.workload)
    return ObjectRef(API_VERSION, WORKLOAD_KIND, key.namespace, key.name)


def _replicas(group: Group, config: Configuration, workers: int) -> int:
    """Return the count in force: the workload's own, else its only owner's, else what runs."""
    own = ((group.workload or EMPTY).get("spec") or EMPTY).get("replicas")
    if isinstance(own, int):
        return own
    counts = [sharer.replicas for sharer in group.sharers.values() if not sharer.joins and sharer.replicas is not None]
    if len(counts) == 1:
        return counts[0]
    return workers or config.replicas or 0


def _created_at(group: Group) -> float:
    """Return when the workload appeared: itself, else the first who asked for it (seconds since the epoch, or NaN)."""
    asking = [sharer.manifest for sharer in group.sharers.values()]
    objects = [group.workload] if group.workload is not None else asking or group.pods
    texts = (item["metadata"].get("creationTimestamp") for item in objects)
    times = [_seconds(text) for text in texts if isinstance(text, str)]
    return min((time for time in times if not math.isnan(time)), default=math.nan)


@lru_cache(maxsize=65_536)
def _seconds(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return math.nan
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def _missing_operator(group: Group, config: Configuration) -> tuple[str, ...]:
    clients = group.pods and not any(keys.WORKLOAD in (pod["metadata"].get("labels") or EMPTY) for pod in group.pods)
    if clients and not config.no_standalone_worker:
        return (f"no pod is labelled {keys.WORKLOAD}: nobody starts vGPU workers here, the client pods are scaled",)
    return ()
