"""From a pod up to the object a user wrote: its top owner, that owner's pod template, replicas and rollout; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from autoscaler.model.workload import EMPTY, Manifest, ObjectRef

_MAX_DEPTH: Final = 8
"""Pod, ReplicaSet, Deployment and what may own those; also ends a cycle."""

READ_KINDS: Final = frozenset({"Deployment", "StatefulSet", "ReplicaSet", "Job", "CronJob"})
_READ_GROUPS: Final = frozenset({"", "apps", "batch"})
SCALABLE: Final = frozenset({"Deployment", "StatefulSet", "ReplicaSet"})
"""Kinds that are read whole and have a scale subresource; one of another kind brings its scale along."""
_COUNTED_BY: Final = {
    "Deployment": "replicas",
    "StatefulSet": "replicas",
    "ReplicaSet": "replicas",
    "Job": "parallelism",
}
"""The field of `spec` that says how many pods an owner wants; Kubernetes' default is 1."""


@dataclass(frozen=True, slots=True)
class TopOwner:
    """The last controller on the way up; `manifest` is None for one that was not read (another kind, or deleted)."""

    kind: str
    name: str
    manifest: Manifest | None
    api_version: str = ""
    uid: str = ""

    @property
    def is_missing(self) -> bool:
        """Whether it is of a kind that is read, but was not there: deleted, or younger than the view."""
        group = self.api_version.rpartition("/")[0]
        return self.manifest is None and self.kind in READ_KINDS and group in _READ_GROUPS

    def ref(self, namespace: str) -> ObjectRef:
        """Return its reference, as far as its dependants tell."""
        return ObjectRef(self.api_version, self.kind, namespace, self.name, self.uid)


class Owners:
    """Owners of one view, found by UID; a reference without UID (a folder's) is followed by kind and name."""

    def __init__(self, manifests: Iterable[Manifest]) -> None:
        self._by_uid: dict[str, Manifest] = {}
        self._by_name: dict[tuple[str, str, str], Manifest] = {}
        for manifest in manifests:
            metadata = manifest["metadata"]
            self._by_uid[metadata.get("uid", "")] = manifest
            self._by_name[metadata.get("namespace", ""), manifest["kind"], metadata["name"]] = manifest
        self._tops: dict[object, TopOwner] = {}

    def top(self, manifest: Manifest) -> TopOwner | None:
        """Return the top owner of an object, None when nothing controls it."""
        reference = controller_of(manifest)
        if reference is None:
            return None
        namespace = manifest["metadata"].get("namespace", "")
        key = reference.get("uid") or (namespace, reference.get("kind"), reference.get("name"))
        top = self._tops.get(key)
        if top is None:
            top = self._tops[key] = self._climb(namespace, reference)
        return top

    def _climb(self, namespace: str, reference: Mapping[str, Any]) -> TopOwner:
        for _ in range(_MAX_DEPTH):
            owner = self._find(namespace, reference)
            above = controller_of(owner) if owner is not None else None
            if owner is None or above is None:
                return _top(reference, owner)
            reference = above
        return _top(reference, None)

    def _find(self, namespace: str, reference: Mapping[str, Any]) -> Manifest | None:
        uid = reference.get("uid")
        if uid:
            return self._by_uid.get(uid)
        return self._by_name.get((namespace, str(reference.get("kind")), str(reference.get("name"))))


def _top(reference: Mapping[str, Any], manifest: Manifest | None) -> TopOwner:
    kind, name = str(reference.get("kind")), str(reference.get("name"))
    return TopOwner(kind, name, manifest, str(reference.get("apiVersion") or ""), str(reference.get("uid") or ""))


def controller_of(manifest: Manifest) -> Mapping[str, Any] | None:
    """Return the ownerReference of the object's controller, None when it has none."""
    for reference in manifest["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            return reference  # type: ignore[no-any-return]  # manifests are free-form
    return None


def pod_template(owner: Manifest) -> Manifest:
    """Return the pod template of an owner (metadata and spec), empty when it has none."""
    spec = owner.get("spec") or EMPTY
    if owner["kind"] == "CronJob":
        spec = (spec.get("jobTemplate") or EMPTY).get("spec") or EMPTY
    return spec.get("template") or EMPTY


def is_scalable(owner: Manifest) -> bool:
    """Tell whether the owner's replicas can be set through its scale subresource."""
    return "scale" in owner or (owner["kind"] in SCALABLE and not is_foreign(owner))


def is_foreign(owner: Manifest) -> bool:
    """Tell whether an owner is of a kind that only bears the name of one that is read: a StatefulSet of another group.

    In a folder anything may stand as its API version; there a kind is what it is called.
    """
    return "scale" in owner or "unscalable" in owner


def wanted_replicas(owner: Manifest) -> int | None:
    """Return how many pods the owner wants, None for a kind that doesn't say (CronJob)."""
    if is_foreign(owner):
        count = ((owner.get("scale") or EMPTY).get("spec") or EMPTY).get("replicas")
        return int(count) if isinstance(count, int) else None
    field = _COUNTED_BY.get(owner["kind"])
    if field is None:
        return None
    count = (owner.get("spec") or EMPTY).get(field)
    return 1 if count is None else int(count)


def rollout_in_progress(owner: Manifest) -> bool:
    """Tell whether the owner is still replacing pods; not known (no status: nobody reconciles it) counts as no.

    One that its own controller has given up (ProgressDeadlineExceeded) is over.
    """
    status = owner.get("status") or EMPTY
    observed, wanted = _whole(status.get("observedGeneration")), wanted_replicas(owner) or 0
    if observed is None:
        return False
    if owner["metadata"].get("generation", 0) > observed:
        return True
    if any(one.get("reason") == "ProgressDeadlineExceeded" for one in status.get("conditions") or ()):
        return False
    updated = status.get("updatedReplicas") or 0
    if owner["kind"] == "Deployment":
        available, total = status.get("availableReplicas") or 0, status.get("replicas") or 0
        return updated < wanted or total > updated or available < updated
    if owner["kind"] == "StatefulSet" and not is_foreign(owner):
        return _replaces_in_turn(owner, wanted, updated)
    return "updatedReplicas" in status and updated < wanted


def _replaces_in_turn(owner: Manifest, wanted: int, updated: int) -> bool:
    """Tell whether a StatefulSet still replaces pods, of those that its strategy lets it replace."""
    strategy, status = (owner.get("spec") or EMPTY).get("updateStrategy") or EMPTY, owner.get("status") or EMPTY
    if strategy.get("type") == "OnDelete" or status.get("currentRevision") == status.get("updateRevision"):
        return False
    partition = (strategy.get("rollingUpdate") or EMPTY).get("partition") or 0
    return updated < wanted - partition if partition else True


def _whole(value: Any) -> int | None:
    """Return a generation, which some controllers write as text."""
    text = str(value)
    return int(text) if text.isascii() and text.isdecimal() else None
