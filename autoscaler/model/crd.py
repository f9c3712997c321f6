"""Custom resource definitions, generated from the models so that both can never disagree.

The output is a structural schema in the forms that a real API server accepts: references inlined, no `anyOf` and no
nullable fields (an absent field is absent), limits on every list and string that a CEL rule can reach.
"""

from __future__ import annotations

import re
from typing import Any, Final

import yaml

from autoscaler.contract.keys import DOMAIN
from autoscaler.model.fields import Schema, Spec
from autoscaler.model.profile import TensorFusionWorkload, WorkloadProfile

_DROPPED: Final = ("title", "$defs", "additionalProperties")
_AGE: Final = {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}


def _column(name: str, path: str, *, wide: bool = False, kind: str = "string") -> dict[str, Any]:
    return {"name": name, "type": kind, "jsonPath": path} | ({"priority": 1} if wide else {})


_PROFILE_COLUMNS: Final = (
    _column("QoS", ".spec.qos"),
    _column("Auto", ".status.summary.auto"),
    _column("TFlops", ".status.summary.display.tflops"),
    _column("VRAM", ".status.summary.display.vram"),
    _column("Replicas", ".status.summary.display.replicas"),
    _column("Workloads", ".status.workloads", kind="integer"),
    _column("Ready", '.status.conditions[?(@.type=="ConfigValid")].status'),
    _column("Pool", ".spec.poolName", wide=True),
    _column("GPUs saved", ".status.summary.gpusSaved", wide=True),
    _AGE,
)
_DISPLAY: Final = ".status.autoscaling.display"
_WORKLOAD_COLUMNS: Final = (
    _column("QoS", f"{_DISPLAY}.qos"),
    _column("Auto", f"{_DISPLAY}.auto"),
    _column("TFlops", f"{_DISPLAY}.tflops"),
    _column("VRAM", f"{_DISPLAY}.vram"),
    _column("Replicas", f"{_DISPLAY}.replicas"),
    _column("Applied", ".status.autoscaling.applied"),
    _column("Status", f"{_DISPLAY}.status"),
    _column("Bounds", f"{_DISPLAY}.bounds", wide=True),
    _column("Usage", f"{_DISPLAY}.usage", wide=True),
    _column("Last scale", ".status.autoscaling.lastScaleTime", wide=True, kind="date"),
    _column("Message", f"{_DISPLAY}.message", wide=True),
    _AGE,
)
_SCALE: Final = {
    "specReplicasPath": ".spec.replicas",
    "statusReplicasPath": ".status.workerCount",
    "labelSelectorPath": ".status.selector",
}
_OBJECT_FIELDS: Final[Schema] = {
    "apiVersion": {"type": "string", "description": "Version of the schema of this object."},
    "kind": {"type": "string", "description": "Kind of this object."},
    "metadata": {"type": "object"},
}


def render_crds() -> dict[str, str]:
    """Return the manifests by file name, as YAML text."""
    profiles = _definition("WorkloadProfile", "wp", WorkloadProfile, _PROFILE_COLUMNS)
    workloads = _definition("TensorFusionWorkload", "tfw", TensorFusionWorkload, _WORKLOAD_COLUMNS)
    workloads["spec"]["versions"][0]["subresources"]["scale"] = dict(_SCALE)
    return {
        f"{DOMAIN}_{crd['spec']['names']['plural']}.yaml": yaml.dump(
            crd, Dumper=_PlainDumper, sort_keys=False, width=120, allow_unicode=True
        )
        for crd in (profiles, workloads)
    }


class _PlainDumper(yaml.SafeDumper):
    """Write shared parts out in full: anchors would make the manifests hard to read and to patch."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002  the signature is PyYAML's
        return True


def _definition(kind: str, short: str, model: type[Spec], columns: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    plural = f"{kind.lower()}s"
    schema = structural_schema(model)
    schema["properties"] = _OBJECT_FIELDS | schema["properties"]
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
        "additionalPrinterColumns": list(columns),
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{DOMAIN}"},
        "spec": {
            "group": DOMAIN,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                "categories": ["tensor-fusion"],
            },
            "scope": "Namespaced",
            "versions": [version],
        },
    }


def structural_schema(model: type[Spec]) -> Schema:
    """Return the schema of a model as an API server accepts it."""
    generated = model.model_json_schema(by_alias=True, mode="validation")
    return _structural(generated, generated.get("$defs", {}))


def _structural(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """Inline references, drop the null alternative of optional fields and what Kubernetes does not know."""
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[-1]]
        node = target | {key: value for key, value in node.items() if key != "$ref"}
    if "anyOf" in node:
        [alternative] = [choice for choice in node["anyOf"] if choice != {"type": "null"}]
        outer = {key: value for key, value in node.items() if key != "anyOf"}
        return _structural(alternative | outer, definitions)
    kept = {key: value for key, value in node.items() if key not in _DROPPED}
    if kept.get("default", ...) is None:
        del kept["default"]
    if "description" in kept:
        kept["description"] = re.sub(r"\s+", " ", kept["description"])
    if isinstance(kept.get("items"), dict):
        kept["items"] = _structural(kept["items"], definitions)
    if "properties" in kept:
        kept["properties"] = {name: _structural(child, definitions) for name, child in kept["properties"].items()}
    return kept
