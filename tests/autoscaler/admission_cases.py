"""Questions as an API server sends them, and a workload whose figures were moved, for the tests of admission."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Mapping
from typing import Any

from autoscaler.admission.birth import birth_annotations
from autoscaler.admission.pods import Place, Surroundings, pod_of
from autoscaler.admission.review import Answer, Review, parse_review, render_answer
from autoscaler.contract import keys
from autoscaler.model.decision import Field
from autoscaler.model.usage import WorkloadKey
from autoscaler.report.reported import MetricsHealth, Reported
from autoscaler.report.status import status_of
from tests.autoscaler.apply_cases import NODE, NOW, decision, quota, told, workload

UID = "705ab4f5-6393-11e8-b7cc-42010a800002"
OWN = {keys.TFLOPS_REQUEST: "10", keys.TFLOPS_LIMIT: "20", keys.VRAM_REQUEST: "4Gi", keys.VRAM_LIMIT: "4Gi"}
ON = {keys.AUTO_REQUESTS: "true", keys.AUTO_LIMITS: "true"}
KEY = WorkloadKey("prod", "chat")
PLACE = Place(KEY, "Deployment prod/chat")
FIGURES = ("tflops-request", "tflops-limit", "vram-request", "vram-limit")


def pod(annotations: Mapping[str, str] | None = None, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return a pod as kube-controller-manager sends it: without a name, without a UID of its own in most fields."""
    stated = OWN | ON if annotations is None else annotations
    metadata: dict[str, Any] = {
        "generateName": "chat-5d8f7b6c9d-",
        "creationTimestamp": None,
        "labels": {"app": "chat", "pod-template-hash": "5d8f7b6c9d", keys.ENABLED: "true", **(labels or {})},
        "ownerReferences": [
            {
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "name": "chat-5d8f7b6c9d",
                "uid": "rs-uid",
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
    if stated:
        metadata["annotations"] = dict(stated)
    spec = {"containers": [{"name": "python", "image": "python:3"}], "restartPolicy": "Always"}
    return {"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": spec, "status": {}}


def question(manifest: Any, operation: str = "CREATE", old: Any = None, **more: Any) -> dict[str, Any]:
    """Return an AdmissionReview, as captured from a 1.36 API server."""
    kind = manifest.get("kind", "Pod") if isinstance(manifest, dict) else "Pod"
    request = {
        "uid": UID,
        "kind": {"group": "", "version": "v1", "kind": kind},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "requestKind": {"group": "", "version": "v1", "kind": kind},
        "requestResource": {"group": "", "version": "v1", "resource": "pods"},
        "namespace": "prod",
        "operation": operation,
        "userInfo": {
            "username": "system:serviceaccount:kube-system:replicaset-controller",
            "uid": "a",
            "groups": ["system:serviceaccounts", "system:authenticated"],
        },
        "object": manifest,
        "oldObject": old,
        "dryRun": False,
        "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        **more,
    }
    return {"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request}


def moved_status(**more: Any) -> dict[str, Any]:
    """Return the status that the controller writes after it moved 10/20 TFLOPs and 4Gi to 12/24 and 3Gi/5Gi."""
    changes = {
        Field.COMPUTE_REQUEST: 12.0,
        Field.COMPUTE_LIMIT: 24.0,
        Field.VRAM_REQUEST: 3.0 * 2**30,
        Field.VRAM_LIMIT: 5.0 * 2**30,
    }
    quotas = [quota(name, tflops=(12.0, 24.0), vram=(3.0, 5.0)) for name in ("chat-0", "chat-1")]
    settings: dict[str, Any] = {
        "workload": workload(),
        "decision": decision(changes),
        "metrics": MetricsHealth(),
        "now": NOW,
        "nodes": {NODE: told(*quotas).state()},
    }
    return status_of(Reported(**(settings | more)))


def tensor_fusion_workload(status: Mapping[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """Return the generated object of the workload."""
    metadata = {
        "name": "chat",
        "namespace": "prod",
        "uid": "uid-tfw",
        "generation": 3,
        "labels": {"app.kubernetes.io/managed-by": keys.FIELD_MANAGER},
    }
    made = {"apiVersion": "tensor-fusion.ai/v1", "kind": "TensorFusionWorkload", "metadata": metadata, "spec": spec}
    return made | {"status": moved_status() if status is None else status}


def around(workload: Mapping[str, Any] | None = None, **more: Any) -> Surroundings:
    """Return the surroundings of the workload's pods."""
    return Surroundings(PLACE, tensor_fusion_workload() if workload is None else workload, **more)


def changed(status: Mapping[str, Any], kind: str, truth: str, reason: str) -> dict[str, Any]:
    """Return a status in which one condition says something else."""
    made = copy.deepcopy(dict(status))
    for one in made["conditions"]:
        if one["type"] == kind:
            one.update(status=truth, reason=reason)
    return made


def patched(manifest: Any, response: Mapping[str, Any]) -> Any:
    """Return an object with an answer's JSON patch applied as RFC 6902 says; AssertionError where it does not apply."""
    made = copy.deepcopy(manifest)
    if "patch" not in response:
        return made
    assert response["patchType"] == "JSONPatch"
    for step in json.loads(base64.b64decode(response["patch"])):
        assert step["op"] == "add"
        *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in step["path"].split("/")[1:]]
        target = made
        for part in parents:
            assert isinstance(target, dict), f"{step['path']} does not exist"
            assert part in target, f"{step['path']} does not exist"
            target = target[part]
        assert isinstance(target, dict)
        target[last] = step["value"]
    return made


def review(manifest: Any, operation: str = "CREATE", old: Any = None) -> Review:
    return parse_review(json.dumps(question(manifest, operation, old)).encode())


def born(manifest: Any, surroundings: Surroundings | None = None, now: float = NOW) -> dict[str, str]:
    read = pod_of(review(manifest))
    assert read is not None
    return birth_annotations(read, surroundings or around(), now)


def figures(annotations: dict[str, str]) -> tuple[str | None, ...]:
    return tuple(annotations.get(keys.PREFIX + name) for name in FIGURES)


def answered(manifest: Any, annotations: dict[str, str]) -> Any:
    asked = review(manifest)
    return patched(manifest, json.loads(render_answer(asked, Answer(annotations=annotations)))["response"])


def profile(spec: Any, **more: Any) -> dict[str, Any]:
    metadata = {"name": "small", "namespace": "prod", "generation": 1}
    return {"apiVersion": "tensor-fusion.ai/v1", "kind": "WorkloadProfile", "metadata": metadata, "spec": spec, **more}
