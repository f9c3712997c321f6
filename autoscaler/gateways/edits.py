"""What an API server does to an object's metadata, and what each write does to an object; pure.

A change of the spec raises the generation, any change raises the resourceVersion, a write that changes nothing
changes neither. Neighbours: `folder` finds the objects and stores the result.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from autoscaler.errors import ClusterError
from autoscaler.model.plain import plain
from autoscaler.model.steps import Annotate, Own, Scale, WriteStatus
from autoscaler.model.workload import Manifest

CLUSTER_SCOPED: Final = frozenset({"Node"})
SCALABLE: Final = frozenset({"Deployment", "StatefulSet", "ReplicaSet", "TensorFusionWorkload"})
_UID_SPACE: Final = uuid.UUID("6c1b7a4e-52f6-4f3e-9d0a-54f1a0c7be11")
_SERVED: Final = ("uid", "resourceVersion", "generation", "creationTimestamp")


def identity(manifest: Manifest) -> tuple[str, str, str]:
    """Return (kind, namespace, name); cluster-scoped kinds have no namespace, others default to `default`."""
    metadata = manifest["metadata"]
    namespace = "" if manifest["kind"] in CLUSTER_SCOPED else str(metadata.get("namespace") or "default")
    return str(manifest["kind"]), namespace, str(metadata["name"])


def served(manifest: Manifest, before: Manifest | None, born_at: float) -> Manifest:
    """Return a manifest as read from a file, with the metadata that an API server would have given it.

    `before` is the same object when it was last read. Edited by hand, it carries its old metadata, so both
    versions are raised here; unchanged, `before` itself is returned. `born_at` (seconds since the epoch) dates an
    object that nobody dated.
    """
    kind, namespace, name = identity(manifest)
    metadata = dict(manifest["metadata"])
    if namespace:
        metadata["namespace"] = namespace
    metadata["uid"] = str(metadata.get("uid") or uuid.uuid5(_UID_SPACE, f"{kind}/{namespace}/{name}"))
    old = before["metadata"] if before is not None and before["metadata"]["uid"] == metadata["uid"] else None
    if not metadata.get("creationTimestamp"):
        metadata["creationTimestamp"] = old["creationTimestamp"] if old else _timestamp(born_at)
    version, generation = _whole(metadata.get("resourceVersion")), _whole(metadata.get("generation"))
    if old is not None and before is not None:
        if _content(manifest, metadata) == _content(before, old):
            return before
        version = max(version, _whole(old["resourceVersion"]) + 1)
        generation = max(generation, _whole(old["generation"]) + (manifest.get("spec") != before.get("spec")))
    metadata |= {"resourceVersion": str(version), "generation": generation}
    return {**manifest, "metadata": metadata}


def annotated(manifest: Manifest, write: Annotate) -> Manifest:
    """Return the object with annotations merged; None removes one."""
    metadata = manifest["metadata"]
    merged = {**(metadata.get("annotations") or {}), **write.annotations}
    annotations = {key: value for key, value in merged.items() if value is not None}
    if annotations == (metadata.get("annotations") or {}):
        return manifest
    return _raised({**manifest, "metadata": {**metadata, "annotations": annotations}}, spec_changed=False)


def owned(manifest: Manifest, write: Own) -> Manifest:
    """Return the object with these owners on record."""
    metadata = manifest["metadata"]
    references = [
        {"apiVersion": one.api_version, "kind": one.kind, "name": one.name, "uid": one.uid} for one in write.owners
    ]
    if references == (metadata.get("ownerReferences") or []):
        return manifest
    return _raised({**manifest, "metadata": {**metadata, "ownerReferences": references}}, spec_changed=False)


def with_status(manifest: Manifest, write: WriteStatus) -> Manifest:
    """Return the object with the whole status replaced."""
    status = plain(write.status)
    if manifest.get("status") == status:
        return manifest
    return _raised({**manifest, "status": status}, spec_changed=False)


def scaled(manifest: Manifest, write: Scale) -> Manifest:
    """Return the object with its replicas set.

    Raises:
        ClusterError: the kind has no scale subresource.

    """
    if manifest["kind"] not in SCALABLE:
        raise ClusterError(f"{manifest['kind']} {write.ref.name} has no replicas to set")
    if write.replicas < 0:
        raise ClusterError(f"{manifest['kind']} {write.ref.name} can't have {write.replicas} replicas")
    spec = manifest.get("spec") or {}
    if spec.get("replicas") == write.replicas:
        return manifest
    return _raised({**manifest, "spec": {**spec, "replicas": write.replicas}}, spec_changed=True)


def created(manifest: Manifest, now: float) -> Manifest:
    """Return a new object as an API server would store it: no status, a fresh UID, generation 1."""
    _, namespace, _ = identity(manifest)
    metadata = {key: value for key, value in plain(manifest["metadata"]).items() if key not in _SERVED}
    if namespace:
        metadata["namespace"] = namespace
    metadata |= {
        "uid": str(uuid.uuid4()),
        "creationTimestamp": _timestamp(now),
        "generation": 1,
        "resourceVersion": "1",
    }
    body = {key: plain(value) for key, value in manifest.items() if key not in {"metadata", "status"}}
    return {"apiVersion": body.pop("apiVersion"), "kind": body.pop("kind"), "metadata": metadata, **body}


def _raised(manifest: Manifest, *, spec_changed: bool) -> Manifest:
    metadata = manifest["metadata"]
    versions = {
        "resourceVersion": str(_whole(metadata["resourceVersion"]) + 1),
        "generation": _whole(metadata["generation"]) + spec_changed,
    }
    return {**manifest, "metadata": {**metadata, **versions}}


def _content(manifest: Manifest, metadata: Mapping[str, Any]) -> tuple[Any, Any]:
    own = {key: value for key, value in metadata.items() if key not in {"resourceVersion", "generation"}}
    return own, {key: value for key, value in manifest.items() if key != "metadata"}


def _whole(value: object) -> int:
    """Return a version as a number; absent or not a number counts as the first."""
    text = str(value or "")
    return int(text) if text.isascii() and text.isdecimal() else 1


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
