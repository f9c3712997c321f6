"""From a group of members to a Workload: what it has, what is in force, and what surrounds it; pure.

Neighbours: `discovery` walks the groups and keeps what is unchanged, `standing` and `counts` tell what is in force.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from autoscaler.contract import keys
from autoscaler.contract.keys import FIELD_MANAGER
from autoscaler.model.config import Configuration
from autoscaler.model.profile import API_VERSION
from autoscaler.model.resolve import COUNTED_APART
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import EMPTY, ClusterView, Floor, Manifest, ObjectRef, Worker, Workload, ref_of
from autoscaler.read.configure import MANAGED_BY, Resolution
from autoscaler.read.counts import Count, count_of, owners_of
from autoscaler.read.disruption import floor_of
from autoscaler.read.elsewhere import Target, scalers_by_target, target_of
from autoscaler.read.membership import WORKLOAD_KIND, Group
from autoscaler.read.owners import rollout_in_progress
from autoscaler.read.revision import revision_of
from autoscaler.read.standing import found_amounts, in_force, noted_count, on_record, own_figures, still_held
from autoscaler.read.workers import amount_problems, noted_replicas, seconds_of


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What others say about the same pods: who scales what, and the disruption budgets by namespace."""

    scalers: Mapping[Target, str]
    budgets: Mapping[str, Sequence[Manifest]]

    def scaler_of(self, ref: ObjectRef, owners: Sequence[ObjectRef]) -> str:
        """Return who else scales the object or an owner: `HorizontalPodAutoscaler chat of Deployment chat`."""
        for one in (*owners, ref):
            scaler = self.scalers.get(target_of(one))
            if scaler is not None:
                return f"{scaler} of {one.kind} {one.name}"
        return ""


def surroundings_of(view: ClusterView) -> Surroundings:
    """Return what surrounds the workloads of a view."""
    budgets: dict[str, list[Manifest]] = defaultdict(list)
    for budget in view.budgets:
        budgets[budget["metadata"].get("namespace", "")].append(budget)
    return Surroundings(scalers_by_target(view.scalers), budgets)


@dataclass(frozen=True, slots=True)
class Place:
    """What a workload is made of."""

    key: WorkloadKey
    group: Group
    resolution: Resolution
    workers: tuple[Worker, ...]
    around: Surroundings

    def elsewhere(self) -> str:
        """Return who else sets the replicas, empty: nobody."""
        return self.around.scaler_of(object_ref(self.key, self.group), _owner_refs(self.group))

    def floor(self, replicas: int, config: Configuration) -> Floor:
        """Return below how many replicas nothing scales in."""
        budgets = self.around.budgets.get(self.key.namespace)
        if not budgets and not config.gang_members:
            return Floor()
        return floor_of(replicas, budgets or (), self.group.pods, config.gang_members)


def is_same(before: Workload, place: Place) -> bool:
    """Tell whether nothing that a Workload is made of has changed, its configuration aside."""
    group = place.group
    return (
        before.exists == (group.workload is not None)
        and before.ref == object_ref(before.key, group)
        and len(before.workers) == len(place.workers)
        and all(one is other for one, other in zip(before.workers, place.workers, strict=True))
        and before.owners == _owner_refs(group)
        and before.managed_elsewhere == place.elsewhere()
        and before.floor == place.floor(before.replicas, before.config)
        # A file that was edited by hand has another image under the same resourceVersion.
        and before.revision == revision_of(group.sharers.values(), before.config)
    )


def assemble(place: Place, config: Configuration, known: Workload | None, before: Mapping[str, Worker]) -> Workload:
    """Return the workload; `known` is the same object's in the pass before, `before` all workers then, by UID."""
    key, group, workers, resolution = place.key, place.group, place.workers, place.resolution
    manifest = group.workload or EMPTY
    status, elsewhere = manifest.get("status") or EMPTY, place.elsewhere()
    taken = still_held(on_record(group.workload), config.amounts)
    original, count = own_figures(config.amounts, taken), count_of(group, config, known, len(workers))
    found = (*found_amounts(workers, before, config), *((count.found,) if count.found is not None else ()))
    unreadable = tuple(problem for worker in workers for problem in amount_problems(worker))
    return Workload(
        key=key,
        ref=object_ref(key, group),
        config=config,
        original=original,
        current=in_force(workers, config, original, status),
        workers=workers,
        replicas=count.replicas,
        created_at=_created_at(group),
        generation=int((manifest.get("metadata") or EMPTY).get("generation", 0)),
        owners=_owner_refs(group),
        exists=group.workload is not None,
        revision=revision_of(group.sharers.values(), config),
        rollout_in_progress=any(rollout_in_progress(sharer.manifest) for sharer in owners_of(group)),
        rollout_since=max((worker.born_at for worker in workers if not math.isnan(worker.born_at)), default=math.nan),
        managed_elsewhere=elsewhere,
        status=status,
        problems=(*resolution.problems, *unreadable),
        warnings=(
            *_said(resolution.warnings, group, count),
            *_missing_operator(group, config),
            *_not_ours(elsewhere, count),
        ),
        original_replicas=noted_replicas(manifest),
        scale_target=count.target,
        unscalable=count.unscalable,
        counts=count.counts,
        floor=place.floor(count.replicas, config),
        references=_references(group.workload),
        taken=taken,
        found=found,
    )


def object_ref(key: WorkloadKey, group: Group) -> ObjectRef:
    """Return the reference of a workload's object, as it is or as it is to be created."""
    if group.workload is not None:
        return ref_of(group.workload)
    return ObjectRef(API_VERSION, WORKLOAD_KIND, key.namespace, key.name)


def _owner_refs(group: Group) -> tuple[ObjectRef, ...]:
    return tuple(sharer.ref for sharer in owners_of(group))


def _references(workload: Manifest | None) -> tuple[ObjectRef, ...] | None:
    """Return the owners on record in an object that this controller made."""
    metadata = (workload or EMPTY).get("metadata") or EMPTY
    if (metadata.get("labels") or EMPTY).get(MANAGED_BY) != FIELD_MANAGER:
        return None
    return tuple(
        ObjectRef(
            *(str(one.get("apiVersion", "")), str(one.get("kind", ""))),
            *(metadata.get("namespace", ""), str(one.get("name", "")), str(one.get("uid", ""))),
        )
        for one in metadata.get("ownerReferences") or ()
    )


def _said(warnings: Sequence[str], group: Group, count: Count) -> Iterator[str]:
    """Return the warnings, but for a count that differs from the annotation's because it was set here."""
    ours = count.counts[1] is not None and noted_count(group.workload) == count.counts[1]
    return (warning for warning in warnings if not (ours and COUNTED_APART in warning))


def _not_ours(elsewhere: str, count: Count) -> tuple[str, ...]:
    told = [f"{elsewhere} sets the replicas: they are only recommended here"] if elsewhere else []
    if count.unscalable:
        told.append(f"{count.unscalable}: its replicas are only recommended")
    return tuple(told)


def _created_at(group: Group) -> float:
    """Return when the workload appeared: itself, else the first who asked for it (seconds since the epoch, or NaN)."""
    asking = [sharer.manifest for sharer in group.sharers.values()]
    objects = [group.workload] if group.workload is not None else asking or group.pods
    texts = (item["metadata"].get("creationTimestamp") for item in objects)
    times = [seconds_of(text) for text in texts if isinstance(text, str)]
    return min((time for time in times if not math.isnan(time)), default=math.nan)


def _missing_operator(group: Group, config: Configuration) -> tuple[str, ...]:
    clients = group.pods and not any(keys.WORKLOAD in (pod["metadata"].get("labels") or EMPTY) for pod in group.pods)
    if clients and not config.no_standalone_worker:
        return (f"no pod is labelled {keys.WORKLOAD}: nobody starts vGPU workers here, the client pods are scaled",)
    return ()
