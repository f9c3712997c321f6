"""What is kept of each kind of object: a table of fields, and the reading of it; pure.

A big cluster has a hundred thousand objects that matter little to us, so what no stage reads is dropped before an
object is stored. A field that a stage begins to read has to be added here: absent reads as "the user set nothing".
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from autoscaler.contract.keys import DOMAIN
from autoscaler.kube.kinds import ApiResource
from autoscaler.model.workload import EMPTY, Manifest, group_of

WHOLE: Final = "whole"
"""The value as it is."""
SHARED: Final = "shared"
"""The value as it is, its texts kept once for all objects: labels, images and node names repeat by the thousand."""
OURS: Final = "ours"
"""Of a map of annotations, those that somebody reads here."""
Mask = str | Mapping[str, "Mask"] | list["Mask"]
"""Fields by name, `[mask]` for each item of a list, or one of the above at the end."""

LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
OTHERS: Final = ("scheduling.k8s.io/", "scheduling.x-k8s.io/", "autoscaling.keda.sh/")
"""Prefixes of annotations that are kept beside those of our domain: gangs of other schedulers, KEDA's pause."""


def _fields(names: str, leaf: Mask = WHOLE) -> dict[str, Mask]:
    return dict.fromkeys(names.split(), leaf)


_REFERENCES: Final[Mask] = [_fields("apiVersion kind name uid controller", SHARED)]
_METADATA: Final[Mapping[str, Mask]] = {
    **_fields("name uid resourceVersion generation creationTimestamp deletionTimestamp"),
    "namespace": SHARED,
    "labels": SHARED,
    "annotations": OURS,
    "ownerReferences": _REFERENCES,
}
_LINK: Final[Mapping[str, Mask]] = {
    **_fields("name uid resourceVersion generation creationTimestamp deletionTimestamp"),
    "namespace": SHARED,
    "ownerReferences": _REFERENCES,
}
_CONDITIONS: Final[Mask] = [{**_fields("type status reason", SHARED), **_fields("message lastTransitionTime")}]
_TEMPLATE: Final[Mask] = {
    "metadata": {"labels": SHARED, "annotations": OURS},
    "spec": {"containers": [_fields("name image", SHARED)]},
}
_PARENT: Final[Mapping[str, Mask]] = {
    "metadata": _METADATA,
    "spec": {
        **_fields("replicas parallelism completions suspend paused progressDeadlineSeconds strategy updateStrategy"),
        "selector": SHARED,
        "template": _TEMPLATE,
        "jobTemplate": {"spec": {**_fields("parallelism completions"), "template": _TEMPLATE}},
    },
    "status": {
        **_fields("observedGeneration replicas updatedReplicas readyReplicas availableReplicas unavailableReplicas"),
        **_fields("currentReplicas currentRevision updateRevision active succeeded failed"),
        "conditions": _CONDITIONS,
    },
}
_ENTIRE: Final[Mapping[str, Mask]] = {"metadata": _METADATA, "spec": WHOLE, "status": WHOLE}

KEPT: Final[Mapping[str, Mapping[str, Mask]]] = {
    "Pod": {
        "metadata": _METADATA,
        "spec": {"nodeName": SHARED, "containers": [_fields("name", SHARED)]},
        "status": {"phase": SHARED, "conditions": _CONDITIONS},
    },
    **dict.fromkeys(("Deployment", "StatefulSet", "ReplicaSet", "Job", "CronJob"), _PARENT),
    "Node": {
        "metadata": _METADATA,
        "spec": _fields("unschedulable taints providerID"),
        "status": {**_fields("capacity allocatable", SHARED), "addresses": WHOLE, "conditions": _CONDITIONS},
    },
    "HorizontalPodAutoscaler": {
        "metadata": _METADATA,
        "spec": _fields("scaleTargetRef minReplicas maxReplicas", SHARED),
        "status": {**_fields("currentReplicas desiredReplicas"), "conditions": [_fields("type status reason", SHARED)]},
    },
    "ScaledObject": {
        "metadata": _METADATA,
        "spec": _fields("scaleTargetRef minReplicaCount maxReplicaCount idleReplicaCount", SHARED),
        "status": {"conditions": [_fields("type status reason", SHARED)]},
    },
    "PodDisruptionBudget": {
        "metadata": _METADATA,
        "spec": _fields("selector minAvailable maxUnavailable"),
        "status": _fields("disruptionsAllowed currentHealthy desiredHealthy expectedPods observedGeneration"),
    },
    "GPUResourceQuota": _ENTIRE,
    "GPU": _ENTIRE,
}
"""Kinds that are not here are our own (TensorFusionWorkload, WorkloadProfile): users see all of those in reports."""

_STEPS: Final[Mapping[str, Mask]] = {"metadata": _LINK, "spec": _fields("replicas parallelism")}
_PASSED_ON: Final = frozenset({("ReplicaSet", "apps", "Deployment"), ("Job", "batch", "CronJob")})
"""An object and its controller's group and kind: a step on the way up, whose template says nothing of its own.

They are most of all owners: each Deployment leaves ten ReplicaSets behind, each CronJob its Jobs.
"""


def trimmed(item: Mapping[str, Any], resource: ApiResource) -> Manifest:
    """Return what is kept of an object, with its kind, which the items of lists lack; `item` is left alone."""
    mask = KEPT.get(resource.kind)
    if mask is not None and _is_step(item, resource.kind):
        mask = _STEPS
    kept = _own(item) if mask is None else _masked(item, mask)
    return {"apiVersion": resource.api_version, "kind": resource.kind, **kept}


def _own(item: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {key: value for key, value in item["metadata"].items() if key != "managedFields"}
    if LAST_APPLIED in (metadata.get("annotations") or EMPTY):
        metadata["annotations"] = {key: value for key, value in metadata["annotations"].items() if key != LAST_APPLIED}
    return {**item, "metadata": metadata}


def _is_step(item: Mapping[str, Any], kind: str) -> bool:
    references = item["metadata"].get("ownerReferences") or ()
    return any(
        one.get("controller") and (kind, group_of(str(one.get("apiVersion", ""))), one.get("kind")) in _PASSED_ON
        for one in references
    )


def _masked(value: Any, mask: Mask) -> Any:
    """Return the part of a value that the mask names; a value of another form than the mask's is kept as it is."""
    if mask == WHOLE:
        return value
    if mask == SHARED:
        return _shared(value)
    if mask == OURS:
        return {_one(key): _one(text) for key, text in value.items() if _is_read(key)} if value else value
    if isinstance(mask, list):
        return [_masked(item, mask[0]) for item in value] if isinstance(value, list) else value
    if not isinstance(value, Mapping) or isinstance(mask, str):
        return value
    return {key: _masked(value[key], inner) for key, inner in mask.items() if key in value}


def _shared(value: Any) -> Any:
    if isinstance(value, str):
        return _one(value)
    if isinstance(value, dict):
        return {_one(key): _shared(inner) for key, inner in value.items()}
    return [_shared(inner) for inner in value] if isinstance(value, list) else value


@lru_cache(maxsize=65_536)
def _one(text: str) -> str:
    """Return the first text of those that are equal; a bounded pool, as Python's own is never emptied."""
    return text


@lru_cache(maxsize=4_096)
def _is_read(key: str) -> bool:
    domain, _, _ = key.partition("/")
    return domain.endswith(DOMAIN) or key.startswith(OTHERS)
