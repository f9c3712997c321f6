"""What is kept of objects: all that a later stage reads, and little else."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest

from autoscaler.contract import keys
from autoscaler.kube.kinds import BY_KIND, RESOURCES
from autoscaler.kube.trim import LAST_APPLIED, trimmed

MANAGED = [{"manager": "kubectl", "fieldsV1": {"f:metadata": {}}}]
OURS = {keys.TFLOPS_REQUEST: "10", keys.QOS: "high"}
METADATA = {
    "name": "chat",
    "namespace": "lab",
    "uid": "uid-1",
    "resourceVersion": "7",
    "generation": 3,
    "creationTimestamp": "2026-01-01T00:00:00Z",
    "labels": {"app": "chat", keys.ENABLED: "true"},
    "annotations": {**OURS, LAST_APPLIED: "{}" * 500, "cni.example.com/status": "x" * 500},
    "managedFields": MANAGED,
    "finalizers": ["x"],
}
CONTROLLER = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat", "uid": "uid-0", "controller": True}
TEMPLATE = {
    "metadata": {"labels": {keys.ENABLED: "true"}, "annotations": {**OURS, "checksum/config": "abc"}},
    "spec": {
        "containers": [{"name": "python", "image": "python:3", "env": [{"name": "A", "value": "1"}]}],
        "volumes": [{"name": "v"}],
    },
}


def item(**parts: Any) -> dict[str, Any]:
    return copy.deepcopy({"metadata": METADATA, **parts})


def kept(kind: str, manifest: dict[str, Any]) -> dict[str, Any]:
    return dict(trimmed(manifest, BY_KIND[kind]))


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.kind)
def test_every_kind_keeps_what_identifies_it_and_its_own_annotations_but_not_who_wrote_it(resource):
    metadata = trimmed(item(spec={}, status={}), resource)["metadata"]

    assert {key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion", "generation")} == {
        key: METADATA[key] for key in ("name", "namespace", "uid", "resourceVersion", "generation")
    }
    assert OURS.items() <= metadata["annotations"].items()
    assert "managedFields" not in metadata
    assert LAST_APPLIED not in metadata["annotations"]


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.kind)
def test_the_kind_is_told_and_the_item_left_alone(resource):
    before = item(spec={"replicas": 1}, status={})
    after = trimmed(before, resource)

    assert (after["apiVersion"], after["kind"]) == (resource.api_version, resource.kind)
    assert before == item(spec={"replicas": 1}, status={})


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.kind)
def test_an_object_without_spec_and_status_is_kept_without_them(resource):
    assert trimmed({"metadata": {"name": "x", "labels": None}}, resource)["metadata"] == {"name": "x", "labels": None}


def test_of_a_pod_stay_its_node_its_containers_names_phase_and_conditions():
    condition = {"type": "Ready", "status": "True", "lastProbeTime": None, "lastTransitionTime": "t"}
    pod = kept(
        "Pod",
        item(
            spec={"nodeName": "node-1", "containers": TEMPLATE["spec"]["containers"], "volumes": [{}]},
            status={"phase": "Running", "conditions": [condition], "containerStatuses": [{"image": "x"}]},
        ),
    )

    assert pod["spec"] == {"nodeName": "node-1", "containers": [{"name": "python"}]}
    assert pod["status"] == {
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "t"}],
    }
    assert pod["metadata"]["annotations"] == OURS


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "ReplicaSet", "Job"])
def test_of_an_owner_stay_count_rollout_and_of_the_template_what_pods_are_born_with(kind):
    spec = {"replicas": 2, "parallelism": 2, "template": TEMPLATE, "selector": {"matchLabels": {"app": "chat"}}}
    owner = kept(kind, item(spec=spec, status={"observedGeneration": 3, "updatedReplicas": 2, "collisionCount": 1}))

    assert owner["spec"]["replicas"] == owner["spec"]["parallelism"] == 2
    assert owner["spec"]["template"] == {
        "metadata": {"labels": {keys.ENABLED: "true"}, "annotations": OURS},
        "spec": {"containers": [{"name": "python", "image": "python:3"}]},
    }
    assert owner["status"] == {"observedGeneration": 3, "updatedReplicas": 2}


def test_a_cron_jobs_template_stays_where_it_stands():
    cron = kept("CronJob", item(spec={"schedule": "@daily", "jobTemplate": {"spec": {"template": TEMPLATE}}}))

    assert cron["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["annotations"] == OURS


@pytest.mark.parametrize(
    ("kind", "api_version", "controller", "is_step"),
    [
        ("ReplicaSet", "apps/v1", "Deployment", True),
        ("Job", "batch/v1", "CronJob", True),
        ("ReplicaSet", "argoproj.io/v1alpha1", "Rollout", False),
        ("ReplicaSet", "example.com/v1", "Deployment", False),
        ("StatefulSet", "apps/v1", "Deployment", False),
    ],
)
def test_an_owner_below_another_that_is_read_too_is_only_a_step_on_the_way_up(kind, api_version, controller, is_step):
    owner = item(spec={"replicas": 2, "template": TEMPLATE}, status={"replicas": 2})
    reference = {**CONTROLLER, "apiVersion": api_version, "kind": controller}
    owner["metadata"]["ownerReferences"] = [{**reference, "blockOwnerDeletion": True}]

    after = kept(kind, owner)

    assert after["metadata"]["ownerReferences"] == [reference]
    assert after["spec"]["replicas"] == 2
    assert ("template" not in after["spec"]) is is_step
    assert ("status" not in after) is is_step


def test_of_other_scalers_and_budgets_stays_whom_they_concern_and_how_far():
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"}
    hpa = kept(
        "HorizontalPodAutoscaler",
        item(
            spec={"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 5, "metrics": [{"type": "Resource"}]},
            status={"currentReplicas": 2, "currentMetrics": [{}]},
        ),
    )
    keda = item(spec={"scaleTargetRef": {"name": "chat"}, "triggers": [{"type": "prometheus"}]})
    keda["metadata"]["annotations"] = {"autoscaling.keda.sh/paused": "true", "other": "x"}
    budget = kept(
        "PodDisruptionBudget",
        item(
            spec={"selector": {"matchLabels": {"app": "chat"}}, "minAvailable": 1},
            status={"disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1, "conditions": [{}]},
        ),
    )

    assert hpa["spec"] == {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 5}
    assert hpa["status"] == {"currentReplicas": 2}
    assert kept("ScaledObject", keda)["spec"] == {"scaleTargetRef": {"name": "chat"}}
    assert kept("ScaledObject", keda)["metadata"]["annotations"] == {"autoscaling.keda.sh/paused": "true"}
    assert budget["spec"] == {"selector": {"matchLabels": {"app": "chat"}}, "minAvailable": 1}
    assert budget["status"] == {"disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1}


@pytest.mark.parametrize("kind", ["GPU", "GPUResourceQuota", "TensorFusionWorkload", "WorkloadProfile"])
def test_of_tensor_fusions_own_kinds_all_of_spec_and_status_stays(kind):
    spec, status = {"total": {"requests": {"tflops": "10"}}}, {"capacity": {"tflops": "989"}, "message": "x"}

    after = kept(kind, item(spec=spec, status=status))

    assert (after["spec"], after["status"]) == (spec, status)


def test_a_node_whose_heartbeat_alone_moved_is_kept_as_it_was():
    nodes = [
        kept("Node", item(status={"conditions": [{"type": "Ready", "lastHeartbeatTime": time}], "images": [{}]}))
        for time in ("t1", "t2")
    ]

    assert nodes[0] == nodes[1]


def test_texts_that_repeat_are_kept_once():
    text = msgspec.json.encode(item(spec={"nodeName": "a-node-with-a-rather-long-name"}))
    one, other = (kept("Pod", msgspec.json.decode(text)) for _ in range(2))

    assert one["spec"]["nodeName"] is other["spec"]["nodeName"]
    assert one["metadata"]["annotations"][keys.QOS] is other["metadata"]["annotations"][keys.QOS]


def test_a_pod_of_the_usual_size_shrinks_to_a_fraction():
    containers = [
        {"name": "python", "image": "python:3", "env": [{"name": f"V{n}", "value": "x" * 40} for n in range(60)]}
    ]
    pod = item(spec={"nodeName": "node-1", "containers": containers}, status={"phase": "Running"})

    assert len(msgspec.json.encode(kept("Pod", pod))) < len(msgspec.json.encode(pod)) / 8
