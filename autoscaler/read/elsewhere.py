"""Other autoscalers on the same target: HorizontalPodAutoscalers, and KEDA's ScaledObjects; pure.

A target is compared by group, kind and name, never by version: `apps/v1` and `apps/v1beta1` are the same Deployment.
KEDA makes an HPA of its own for every ScaledObject; the ScaledObject is named then, because that is what users wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from autoscaler.model.workload import EMPTY, Manifest, ObjectRef, group_of

SCALED_OBJECT: Final = "ScaledObject"
_KEDA_API_VERSION: Final = "apps/v1"
_KEDA_KIND: Final = "Deployment"
"""What KEDA assumes where a ScaledObject's target does not say."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is scaled."""

    group: str
    kind: str
    namespace: str
    name: str


def target_of(ref: ObjectRef) -> Target:
    """Return an object as a target."""
    return Target(group_of(ref.api_version), ref.kind, ref.namespace, ref.name)


def scalers_by_target(manifests: Iterable[Manifest]) -> Mapping[Target, str]:
    """Return who scales what: `HorizontalPodAutoscaler chat`, one name for each target."""
    found: dict[Target, str] = {}
    for manifest in sorted(manifests, key=_keda_first):
        target = _target(manifest)
        if target is not None and not manifest["metadata"].get("deletionTimestamp"):
            found.setdefault(target, f"{manifest['kind']} {manifest['metadata']['name']}")
    return found


def _keda_first(manifest: Manifest) -> tuple[bool, str]:
    return manifest["kind"] != SCALED_OBJECT, str(manifest["metadata"]["name"])


def _target(manifest: Manifest) -> Target | None:
    reference = (manifest.get("spec") or EMPTY).get("scaleTargetRef") or EMPTY
    name, namespace = reference.get("name"), manifest["metadata"].get("namespace", "")
    if not name:
        return None
    if manifest["kind"] == SCALED_OBJECT:
        api_version = reference.get("apiVersion") or _KEDA_API_VERSION
        return Target(group_of(str(api_version)), str(reference.get("kind") or _KEDA_KIND), namespace, str(name))
    return Target(group_of(str(reference.get("apiVersion") or "")), str(reference.get("kind")), namespace, str(name))
