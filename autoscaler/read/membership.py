"""Which pods and owners belong to which TensorFusionWorkload; pure.

A pod takes part by its label `enabled: 'true'`, or by the label `workload` that worker pods carry. Its workload is the
one it names, else its top owner's name, else its own. Neighbours: `owners` climbs, `configure` settles what they want.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from autoscaler.contract import keys
from autoscaler.errors import Problem
from autoscaler.model.problems import is_name
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import EMPTY, ClusterView, Manifest, ObjectRef, ref_of
from autoscaler.read.owners import Owners, TopOwner, controller_of, pod_template, wanted_replicas

WORKLOAD_KIND: Final = "TensorFusionWorkload"
_ENDED: Final = frozenset({"Succeeded", "Failed"})


@dataclass(frozen=True, slots=True)
class Sharer:
    """Someone who asks for the workload: an owner with its pod template, or a pod that nobody owns.

    `annotations` are the user's own: of a pod, what we wrote is put back to what was there before. `is_worker`: a pod
    that carries the workers' label; it speaks only where nobody else does.
    """

    ref: ObjectRef
    manifest: Manifest
    annotations: Mapping[str, str]
    labels: Mapping[str, str]
    containers: tuple[str, ...] | None
    replicas: int | None
    is_owner: bool = False
    is_worker: bool = False
    problems: tuple[Problem, ...] = ()
    spokesman: tuple[str, str] = ("", "")
    """Birth and name of the pod that speaks for an owner without a template."""

    @property
    def joins(self) -> bool:
        """Whether it only joins an existing workload."""
        return self.annotations.get(keys.GENERATE_WORKLOAD) == "false"

    def __str__(self) -> str:
        return f"{self.ref.kind} {self.ref.namespace}/{self.ref.name}"


@dataclass(slots=True)
class Group:
    """Everything that names one workload."""

    workload: Manifest | None = None
    pods: list[Manifest] = field(default_factory=list)
    remote: bool = False
    """Whether somebody else than the owners runs its workers: the owners' pods are clients then."""
    sharers: dict[tuple[str, str], Sharer] = field(default_factory=dict)

    @property
    def workers(self) -> list[Manifest]:
        """The pods that use the GPU: those labelled as workers, else (nobody starts such here) all of them."""
        return [pod for pod in self.pods if keys.WORKLOAD in _labels(pod)] or self.pods


@dataclass(frozen=True, slots=True)
class Membership:
    """Every workload that exists or is asked for, with its members; `problems` are pods that had to be left out."""

    groups: Mapping[WorkloadKey, Group]
    problems: tuple[Problem, ...] = ()


def group_by_workload(view: ClusterView) -> Membership:
    """Return who belongs to which workload.

    A pod whose owner should have been read but was not is left out: it would found a workload of the wrong name.
    """
    owners = Owners(view.owners)
    groups = {
        WorkloadKey(item["metadata"].get("namespace", ""), item["metadata"]["name"]): Group(item)
        for item in view.workloads
    }
    sharers = _Sharers(groups)
    for manifest in view.owners:
        metadata = pod_template(manifest).get("metadata") or EMPTY
        if _takes_part(metadata.get("labels") or EMPTY) and controller_of(manifest) is None:
            sharers.add_owner(manifest, _key(manifest, _named(metadata) or manifest["metadata"]["name"]))
    leaving: list[tuple[Manifest, TopOwner | None, WorkloadKey]] = []
    # Replicas of one owner come by the thousand: where the first one went, the others go.
    placed: dict[tuple[int, str | None], Group] = {}
    for pod in view.pods:
        metadata = pod["metadata"]
        if not _takes_part(metadata.get("labels") or EMPTY) or (pod.get("status") or EMPTY).get("phase") in _ENDED:
            continue
        top, named = owners.top(pod), _named(metadata)
        group = placed.get((id(top), named)) if top is not None and _speaks_by_template(top) else None
        if group is None:
            key = _key(pod, named or (top.name if top is not None else metadata["name"]))
            if metadata.get("deletionTimestamp") or (top is not None and top.is_missing):
                leaving.append((pod, top, key))
                continue
            group = sharers.place(pod, top, key)
            placed[id(top), named] = group
        group.pods.append(pod)
    return Membership(groups, tuple(_leave(groups, leaving)))


def _leave(
    groups: Mapping[WorkloadKey, Group], leaving: Iterable[tuple[Manifest, TopOwner | None, WorkloadKey]]
) -> Iterator[Problem]:
    """Put pods that go, or whose owner has gone, where they belong; they found nothing any more."""
    for pod, top, key in leaving:
        group = groups.get(key)
        if group is not None:
            group.remote |= _is_remote(pod, top)
            group.pods.append(pod)
        elif not pod["metadata"].get("deletionTimestamp") and top is not None:
            yield _orphaned(pod, top)


class _Sharers:
    """Puts those who ask for a workload into its group."""

    def __init__(self, groups: dict[WorkloadKey, Group]) -> None:
        self._groups = groups

    def place(self, pod: Manifest, top: TopOwner | None, key: WorkloadKey) -> Group:
        """Return the pod's group, with whoever speaks for the pod in it."""
        group = self._groups.setdefault(key, Group())
        group.remote |= _is_remote(pod, top)
        if top is None:
            self.add_pod(pod, key)
        elif top.manifest is not None and _speaks_by_template(top):
            self.add_owner(top.manifest, key)
        elif top.kind != WORKLOAD_KIND:
            self.add_owner_of(pod, top, key)
        return group

    def add_owner(self, manifest: Manifest, key: WorkloadKey) -> None:
        group = self._groups.setdefault(key, Group())
        if (manifest["kind"], manifest["metadata"]["name"]) in group.sharers:
            return
        template = pod_template(manifest)
        metadata = template.get("metadata") or EMPTY
        group.sharers[manifest["kind"], manifest["metadata"]["name"]] = Sharer(
            ref=ref_of(manifest),
            manifest=manifest,
            annotations=metadata.get("annotations") or EMPTY,
            labels=metadata.get("labels") or EMPTY,
            containers=_containers(template),
            replicas=wanted_replicas(manifest),
            is_owner=True,
        )

    def add_owner_of(self, pod: Manifest, top: TopOwner, key: WorkloadKey) -> None:
        """Add an owner that keeps no pod template where others do: the first of its pods speaks for it."""
        group = self._groups[key]
        known = group.sharers.get((top.kind, top.name))
        if known is not None and known.spokesman <= _birth(pod):
            return
        annotations, problems = _before_us(pod["metadata"].get("annotations") or EMPTY)
        ref = top.ref(key.namespace) if top.manifest is None else ref_of(top.manifest)
        stub = {"apiVersion": ref.api_version, "kind": ref.kind, "metadata": {"name": ref.name}, "unscalable": ""}
        group.sharers[top.kind, top.name] = Sharer(
            ref=ref,
            manifest=top.manifest if top.manifest is not None else stub,
            annotations=annotations,
            labels=_labels(pod),
            containers=_containers(pod),
            replicas=None if top.manifest is None else wanted_replicas(top.manifest),
            is_owner=True,
            problems=problems,
            spokesman=_birth(pod),
        )

    def add_pod(self, pod: Manifest, key: WorkloadKey) -> None:
        annotations, problems = _before_us(pod["metadata"].get("annotations") or EMPTY)
        self._groups[key].sharers["Pod", pod["metadata"]["name"]] = Sharer(
            ref=ref_of(pod),
            manifest=pod,
            annotations=annotations,
            labels=_labels(pod),
            containers=_containers(pod),
            replicas=None,
            is_worker=keys.WORKLOAD in _labels(pod),
            problems=problems,
        )


def _speaks_by_template(top: TopOwner) -> bool:
    return top.manifest is not None and bool(pod_template(top.manifest))


def _is_remote(pod: Manifest, top: TopOwner | None) -> bool:
    """Tell whether a pod is a worker that no owner among the sharers runs."""
    return (top is None or top.kind == WORKLOAD_KIND) and keys.WORKLOAD in _labels(pod)


def _birth(pod: Manifest) -> tuple[str, str]:
    return str(pod["metadata"].get("creationTimestamp", "")), str(pod["metadata"]["name"])


def _takes_part(labels: Mapping[str, str]) -> bool:
    enabled = labels.get(keys.ENABLED)
    return enabled == "true" or (enabled is None and keys.WORKLOAD in labels)


def _named(metadata: Manifest) -> str | None:
    """Return the workload that a pod or template names; what can be no object's name is told where its owner looks."""
    named = (metadata.get("annotations") or EMPTY).get(keys.WORKLOAD)
    named = named or (metadata.get("labels") or EMPTY).get(keys.WORKLOAD)
    return named if named and is_name(named) else None


def _key(manifest: Manifest, name: str) -> WorkloadKey:
    return WorkloadKey(manifest["metadata"].get("namespace", ""), name)


def _orphaned(pod: Manifest, top: TopOwner) -> Problem:
    metadata = pod["metadata"]
    allowed = f"an owner that exists, or the workload's name in {keys.WORKLOAD}; the pod is left out until then"
    source = f"Pod {metadata.get('namespace', '')}/{metadata['name']}"
    return Problem("metadata.ownerReferences", f"{top.kind} {top.name}", allowed, source)


def _labels(manifest: Manifest) -> Mapping[str, str]:
    return manifest["metadata"].get("labels") or EMPTY


def _containers(pod: Manifest) -> tuple[str, ...] | None:
    containers: Iterable[Manifest] | None = (pod.get("spec") or EMPTY).get("containers")
    return None if not containers else tuple(str(container.get("name", "")) for container in containers)


def _before_us(annotations: Mapping[str, str]) -> tuple[Mapping[str, str], tuple[Problem, ...]]:
    """Return a pod's annotations with the original amounts in place of those that we wrote."""
    text = annotations.get(keys.AUTOSCALING_ORIGINAL)
    annotations = {key: value for key, value in annotations.items() if key != keys.AUTOSCALING_APPLIED}
    if text is None:
        return annotations, ()
    try:
        original = json.loads(text)
    except ValueError:
        original = None
    if not isinstance(original, dict):
        allowed = "the JSON object that the autoscaler wrote; remove the key to make the present amounts yours"
        return annotations, (Problem(keys.AUTOSCALING_ORIGINAL, text[:80], allowed),)
    restored = {**annotations, **{keys.PREFIX + str(name): str(value) for name, value in original.items()}}
    del restored[keys.AUTOSCALING_ORIGINAL]
    return restored, ()
