"""What a user applies to have one Deployment's workers autoscaled, and the objects that a cluster makes of it."""

from __future__ import annotations

from typing import Any

from tests.integration.simulated_worker import CONTAINER_ID

Manifest = dict[str, Any]

NAMESPACE, NAME, POD, NODE = "lab", "chat", "chat-7d4b9-x2x7q", "node-a"
PREFIX = "tensor-fusion.ai/"
LIMIT_TFLOPS = 25.0
EVALUATION_SECONDS = 5.0
STABILIZATION_SECONDS = 10.0
FIGURES = {"tflops-request": "10", "tflops-limit": f"{LIMIT_TFLOPS:g}", "vram-request": "2Gi", "vram-limit": "12Gi"}

_ANNOTATIONS = {PREFIX + key: text for key, text in {"workload-profile": NAME, "qos": "high", **FIGURES}.items()}
_LABELS = {"app": NAME, PREFIX + "enabled": "true", PREFIX + "workload": NAME}
_CONTAINERS = [{"name": "main", "image": "registry.local/chat:1"}]
_REPLICATED = {
    "replicas": 1,
    "selector": {"matchLabels": {"app": NAME}},
    "template": {
        "metadata": {"labels": _LABELS, "annotations": _ANNOTATIONS},
        "spec": {"containers": _CONTAINERS},
    },
}

PROFILE: Manifest = {
    "apiVersion": "tensor-fusion.ai/v1",
    "kind": "WorkloadProfile",
    "metadata": {"name": NAME, "namespace": NAMESPACE},
    "spec": {
        "qos": "high",
        "autoScalingConfig": {
            "autoSetLimits": {
                "enable": True,
                "targetResource": "all",
                "evaluationPeriod": f"{EVALUATION_SECONDS:g}s",
                # A short memory and short pauses, so that a story of days fits into a minute.
                "aggregationPeriod": "8s",
                "percentile": "0.9",
                "extraTFlopsBufferRatio": "0.3",
                "extraVRAMBufferRatio": "0.15",
                "scaleUpStep": "2",
                "scaleDownStabilization": f"{STABILIZATION_SECONDS:g}s",
                "coolDown": "5s",
            },
            "autoSetRequests": {"enable": False},
            "initialDelayPeriod": "20s",
        },
    },
}


def node() -> Manifest:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}


def deployment() -> Manifest:
    metadata = {"name": NAME, "namespace": NAMESPACE}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": _REPLICATED}


def replica_set(deployment_uid: str) -> Manifest:
    metadata = {
        "name": POD.rpartition("-")[0],
        "namespace": NAMESPACE,
        "labels": _LABELS,
        "ownerReferences": _controlled_by("Deployment", NAME, deployment_uid),
    }
    return {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": metadata, "spec": _REPLICATED}


def pod(replica_set_uid: str) -> Manifest:
    metadata = {
        "name": POD,
        "namespace": NAMESPACE,
        "labels": _LABELS,
        "annotations": _ANNOTATIONS,
        "ownerReferences": _controlled_by("ReplicaSet", POD.rpartition("-")[0], replica_set_uid),
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"nodeName": NODE, "containers": _CONTAINERS},
    }


POD_STATUS: Manifest = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}


def as_kubelet_tells(pod_uid: str) -> list[Manifest]:
    """The entry of a pod in the file from which the agent knows the pods of its node."""
    containers = [{"name": "main", "id": f"containerd://{CONTAINER_ID}"}]
    names = {"uid": pod_uid, "namespace": NAMESPACE, "name": POD, "node": NODE, "workload": NAME}
    return [{**names, "labels": _LABELS, "annotations": _ANNOTATIONS, "containers": containers}]


def _controlled_by(kind: str, name: str, uid: str) -> list[Manifest]:
    return [{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid, "controller": True}]
