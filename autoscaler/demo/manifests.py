"""The town as the manifests that its users, and a scheduler, would have written; pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import yaml

from autoscaler.contract import keys
from autoscaler.demo.scenario import CONTAINER, NAMESPACE, pod_name, pod_uid
from autoscaler.demo.services import Service, Town
from autoscaler.model.profile import API_VERSION
from autoscaler.model.quantity import format_amount
from autoscaler.model.resources import SPECS, Amounts

Object = dict[str, Any]

_LAYERS_ON: Final = {"autoSetRequests": {"enable": True}, "autoSetLimits": {"enable": True}}
_LAYERS_SHOWN: Final = {"autoSetRequests": {"enable": False}, "autoSetLimits": {"enable": False}}
_REPLICAS_SHOWN: Final = {
    "autoSetReplicas": {"enable": False, "targetTFlopsOfLimits": "0.7", "minReplicas": 1, "maxReplicas": 4}
}
PROFILES: Final = {"small-model": _LAYERS_ON, "look-only": _LAYERS_SHOWN, "replicas": _REPLICAS_SHOWN}
"""autoScalingConfig by profile; `enable: false` shows what it would do and leaves it at that."""


def manifests(town: Town, start_seconds: float) -> dict[str, str]:
    """Return YAML by file name; everything was created at `start_seconds` since the epoch."""
    born = datetime.fromtimestamp(start_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    files = {f"node-{node}.yaml": [_node(town, node)] for node in town.nodes}
    files |= {f"profile-{name}.yaml": [_profile(town, name)] for name in PROFILES}
    files |= {f"{service.name}.yaml": [_deployment(service), *_pods(town, service)] for service in town.services}
    for objects in files.values():
        for item in objects:
            item["metadata"]["creationTimestamp"] = born
    return {name: yaml.safe_dump_all(objects, sort_keys=False) for name, objects in files.items()}


def _node(town: Town, name: str) -> Object:
    gpus = sum(device.node == name for device in town.devices)
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "status": {"allocatable": {"nvidia.com/gpu": str(gpus)}},
    }


def _profile(town: Town, name: str) -> Object:
    spec: Object = {"autoScalingConfig": PROFILES[name]}
    sized = next((one for one in town.services if one.profile == name and one.sized_by_profile), None)
    if sized is not None:
        spec = {"qos": str(sized.qos), "resources": _resources(sized.amounts), **spec}
    metadata = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": API_VERSION, "kind": "WorkloadProfile", "metadata": metadata, "spec": spec}


def _resources(amounts: Amounts) -> Object:
    return {
        side: {spec.key: format_amount(spec.resource, getattr(amounts[spec.resource], attribute)) for spec in SPECS}
        for side, attribute in (("requests", "request"), ("limits", "limit"))
    }


def _deployment(service: Service) -> Object:
    labels = {"app": service.name}
    template = {
        "metadata": {"labels": {**labels, keys.ENABLED: "true"}, "annotations": _annotations(service)},
        "spec": _containers(service),
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": service.name, "namespace": NAMESPACE, "uid": f"uid-{service.name}"},
        "spec": {"replicas": len(service.workers), "selector": {"matchLabels": labels}, "template": template},
    }


def _annotations(service: Service) -> dict[str, str]:
    """Return what the owner wrote on the pod template: a profile, or amounts and the switches, or both."""
    written = {keys.WORKLOAD_PROFILE: service.profile} if service.profile else {}
    if service.sized_by_profile:
        return written
    amounts = _resources(service.amounts)
    return {
        keys.TFLOPS_REQUEST: amounts["requests"]["tflops"],
        keys.TFLOPS_LIMIT: amounts["limits"]["tflops"],
        keys.VRAM_REQUEST: amounts["requests"]["vram"],
        keys.VRAM_LIMIT: amounts["limits"]["vram"],
        keys.QOS: str(service.qos),
        keys.AUTO_REQUESTS: "true",
        keys.AUTO_LIMITS: "true",
        **written,
    }


def _containers(service: Service) -> Object:
    return {"containers": [{"name": CONTAINER, "image": f"registry.example/{service.name}:1"}]}


def _pods(town: Town, service: Service) -> Iterator[Object]:
    """Yield the running workers, each placed on a device, as its scheduler left them."""
    owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": service.name, "uid": f"uid-{service.name}"}
    for number, device in enumerate(service.workers):
        yield {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": pod_name(service, number),
                "namespace": NAMESPACE,
                "uid": pod_uid(service, number),
                "labels": {"app": service.name, keys.ENABLED: "true", keys.WORKLOAD: service.name},
                "annotations": {**_annotations(service), keys.GPU_IDS: device},
                "ownerReferences": [{**owner, "controller": True}],
            },
            "spec": {"nodeName": town.device(device).node, **_containers(service)},
            "status": {"phase": "Running"},
        }
