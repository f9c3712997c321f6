"""From objects to workloads: who belongs together, what they want, and what is kept when they are wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from autoscaler.contract import keys
from autoscaler.contract.keys import Effect, QoS
from autoscaler.contract.quota import DeviceStatus, Observed, QuotaStatus, WorkerStatus
from autoscaler.model.config import Mode
from autoscaler.model.resolve import Defaults
from autoscaler.model.resources import GIB, Amount, Amounts
from autoscaler.model.snapshot import NodeState
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import BrokenWorkload, ClusterView, Discovered, Workload
from autoscaler.read.discovery import discover
from autoscaler.read.generate import new_workload

Manifest = dict[str, Any]

AMOUNTS = {keys.TFLOPS_REQUEST: "10", keys.TFLOPS_LIMIT: "20", keys.VRAM_REQUEST: "4Gi", keys.VRAM_LIMIT: "8Gi"}
FIGURES = Amounts(Amount(10.0, 20.0), Amount(4 * GIB, 8 * GIB))
BORN = "2026-01-02T00:00:00Z"
BORN_AT = 1_767_312_000.0


def obj(
    kind: str, name: str, *, version: str = "1", spec: Mapping[str, Any] | None = None, **metadata: Any
) -> Manifest:
    base = {
        "name": name,
        "namespace": "lab",
        "uid": f"{kind}-{name}",
        "resourceVersion": version,
        "generation": 1,
        "creationTimestamp": BORN,
    }
    return {"apiVersion": "x/v1", "kind": kind, "metadata": base | metadata, "spec": dict(spec or {})}


def owned_by(kind: str, name: str) -> list[dict[str, Any]]:
    return [{"kind": kind, "name": name, "uid": f"{kind}-{name}", "controller": True}]


def template(annotations: Mapping[str, str], labels: Mapping[str, str] | None = None) -> Manifest:
    return {
        "metadata": {"labels": {keys.ENABLED: "true", **(labels or {})}, "annotations": dict(annotations)},
        "spec": {"containers": [{"name": "python"}]},
    }


def deployment(name: str, annotations: Mapping[str, str], replicas: int = 2, **metadata: Any) -> Manifest:
    return obj("Deployment", name, spec={"replicas": replicas, "template": template(annotations)}, **metadata)


def pod(name: str, annotations: Mapping[str, str], *, worker_of: str = "", **metadata: Any) -> Manifest:
    labels = {keys.ENABLED: "true"} | ({keys.WORKLOAD: worker_of} if worker_of else {})
    made = obj("Pod", name, labels=labels, annotations=dict(annotations), **metadata)
    made["spec"] = {"nodeName": "node-1", "containers": [{"name": "python"}]}
    made["status"] = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    return made


def chat(annotations: Mapping[str, str] = AMOUNTS, pods: int = 2) -> ClusterView:
    """A Deployment with its ReplicaSet and pods."""
    return ClusterView(
        owners=(
            deployment("chat", annotations),
            obj("ReplicaSet", "chat-7f", ownerReferences=owned_by("Deployment", "chat")),
        ),
        pods=tuple(
            pod(f"chat-7f-{n}", annotations, ownerReferences=owned_by("ReplicaSet", "chat-7f")) for n in range(pods)
        ),
    )


def only(found: Discovered) -> Workload:
    assert not found.broken, found.broken
    (workload,) = found.workloads
    return workload


def only_broken(found: Discovered) -> BrokenWorkload:
    assert not found.workloads
    (workload,) = found.broken
    return workload


# Who belongs together


def test_pods_of_a_deployment_are_found_through_their_replica_set() -> None:
    workload = only(discover(chat(), {}))

    assert workload.key == WorkloadKey("lab", "chat")
    assert [owner.kind for owner in workload.owners] == ["Deployment"]
    assert [worker.ref.name for worker in workload.workers] == ["chat-7f-0", "chat-7f-1"]
    assert workload.replicas == 2
    assert workload.created_at == BORN_AT


@pytest.mark.parametrize(
    ("owners", "reference", "top"),
    [
        ((("StatefulSet", "db", None),), ("StatefulSet", "db"), "db"),
        ((("Job", "train", None),), ("Job", "train"), "train"),
        ((("CronJob", "nightly", None), ("Job", "nightly-1", ("CronJob", "nightly"))), ("Job", "nightly-1"), "nightly"),
    ],
)
def test_other_owners_are_followed_upward_too(owners: Any, reference: tuple[str, str], top: str) -> None:
    manifests = tuple(
        obj(
            kind,
            name,
            spec={"jobTemplate": {"spec": {"template": template(AMOUNTS)}}, "template": template(AMOUNTS)},
            **({"ownerReferences": owned_by(*above)} if above else {}),
        )
        for kind, name, above in owners
    )
    view = ClusterView(owners=manifests, pods=(pod("one", AMOUNTS, ownerReferences=owned_by(*reference)),))

    workload = only(discover(view, {}))

    assert workload.key.name == top
    assert [worker.ref.name for worker in workload.workers] == ["one"]


def test_a_pod_that_nobody_owns_is_a_workload_of_its_own_name() -> None:
    workload = only(discover(ClusterView(pods=(pod("notebook", AMOUNTS),)), {}))

    assert workload.key == WorkloadKey("lab", "notebook")
    assert workload.owners == ()
    assert workload.replicas == 1


def test_a_pod_without_the_label_takes_no_part() -> None:
    plain = pod("plain", AMOUNTS)
    plain["metadata"]["labels"] = {}
    switched_off = pod("off", AMOUNTS, worker_of="chat")
    switched_off["metadata"]["labels"][keys.ENABLED] = "false"

    found = discover(ClusterView(pods=(plain, switched_off)), {})

    assert found.workloads == found.broken == ()


def test_finished_pods_are_no_workers() -> None:
    done = pod("done", AMOUNTS)
    done["status"]["phase"] = "Succeeded"

    assert discover(ClusterView(pods=(done,)), {}).workloads == ()


def test_a_deployment_without_pods_is_a_workload_without_workers() -> None:
    workload = only(discover(ClusterView(owners=(deployment("chat", AMOUNTS, replicas=0),)), {}))

    assert workload.workers == ()
    assert workload.current == workload.original == FIGURES
    assert workload.replicas == 0


def test_a_workload_object_without_pods_or_owners_stands_for_itself() -> None:
    spec = {
        "replicas": 3,
        "qos": "high",
        "resources": {"requests": {"tflops": "10", "vram": "4Gi"}, "limits": {"tflops": "20", "vram": "8Gi"}},
    }
    view = ClusterView(workloads=(obj("TensorFusionWorkload", "chat", spec=spec),))

    workload = only(discover(view, {}))

    assert workload.exists
    assert workload.ref.uid == "TensorFusionWorkload-chat"
    assert (workload.config.qos, workload.replicas, workload.original) == (QoS.HIGH, 3, FIGURES)


def test_workers_are_the_labelled_pods_and_clients_are_not() -> None:
    view = chat(AMOUNTS | {keys.WORKLOAD: "shared"})
    workers = tuple(
        pod(f"worker-{n}", AMOUNTS, worker_of="shared", ownerReferences=owned_by("TensorFusionWorkload", "shared"))
        for n in range(3)
    )
    workload = only(discover(replace(view, pods=view.pods + workers), {}))

    assert workload.key.name == "shared"
    assert [worker.ref.name for worker in workload.workers] == ["worker-0", "worker-1", "worker-2"]
    assert workload.warnings == ()


def test_where_nobody_starts_workers_the_clients_are_scaled_and_a_warning_says_so() -> None:
    (warning,) = only(discover(chat(), {})).warnings

    assert "nobody starts vGPU workers" in warning


def test_a_pod_whose_owner_was_not_read_founds_no_workload_of_a_wrong_name() -> None:
    view = chat()

    found = discover(replace(view, owners=view.owners[:1]), {})

    assert [workload.key.name for workload in found.workloads] == ["chat"]
    assert found.workloads[0].workers == ()
    assert [problem.value for problem in found.problems] == ["ReplicaSet chat-7f", "ReplicaSet chat-7f"]


def test_owners_in_a_cycle_end_the_climb() -> None:
    loop = obj("ReplicaSet", "a", ownerReferences=owned_by("ReplicaSet", "b"))
    back = obj("ReplicaSet", "b", ownerReferences=owned_by("ReplicaSet", "a"))
    view = ClusterView(owners=(loop, back), pods=(pod("one", AMOUNTS, ownerReferences=owned_by("ReplicaSet", "a")),))

    assert len(discover(view, {}).problems) == 1


def test_references_without_uid_are_followed_by_name() -> None:
    view = chat()
    for item in (*view.pods, view.owners[1]):
        for reference in item["metadata"]["ownerReferences"]:
            del reference["uid"]

    assert len(only(discover(view, {})).workers) == 2


# What they want


def test_a_missing_workload_is_named_so_that_it_can_be_created() -> None:
    workload = only(discover(chat(AMOUNTS | {keys.QOS: "high"}), {}))

    assert not workload.exists
    assert (workload.ref.kind, workload.ref.namespace, workload.ref.name) == ("TensorFusionWorkload", "lab", "chat")
    create = new_workload(workload)
    assert create is not None
    assert create.manifest["spec"] == {
        "replicas": 2,
        "resources": {"requests": {"tflops": "10", "vram": "4Gi"}, "limits": {"tflops": "20", "vram": "8Gi"}},
        "qos": "high",
        "gpuCount": 1,
    }
    (reference,) = create.manifest["metadata"]["ownerReferences"]
    assert reference == {"apiVersion": "x/v1", "kind": "Deployment", "name": "chat", "uid": "Deployment-chat"}


def test_a_generated_workload_follows_the_template_and_is_not_created_again() -> None:
    create = new_workload(only(discover(chat(), {})))
    assert create is not None
    generated = {**create.manifest, "metadata": {**create.manifest["metadata"], "uid": "new", "resourceVersion": "1"}}
    edited = replace(chat(AMOUNTS | {keys.TFLOPS_LIMIT: "30"}), workloads=(generated,))

    workload = only(discover(edited, {}))

    assert workload.problems == ()
    assert workload.original.compute == Amount(10.0, 30.0)
    assert new_workload(workload) is None


def test_the_profile_that_an_annotation_names_gives_the_defaults() -> None:
    spec = {
        "qos": "critical",
        "resources": {"requests": {"tflops": "1", "vram": "1Gi"}},
        "autoScalingConfig": {"autoSetLimits": {"enable": True}},
    }
    view = replace(
        chat({keys.WORKLOAD_PROFILE: "small", keys.TFLOPS_REQUEST: "5"}),
        profiles=(obj("WorkloadProfile", "small", spec=spec), obj("WorkloadProfile", "other")),
    )

    workload = only(discover(view, {}))

    assert workload.config.qos is QoS.CRITICAL
    assert workload.config.limits.mode is Mode.ON
    assert workload.original == Amounts(Amount(5.0, 5.0), Amount(GIB, GIB))


def test_defaults_of_the_cluster_fill_what_nobody_set() -> None:
    defaults = Defaults(requests=(2.0, 1.0 * GIB), limits=(4.0, 2.0 * GIB), qos=QoS.LOW)

    workload = only(discover(chat({}), {}, None, defaults))

    assert workload.original == Amounts(Amount(2.0, 4.0), Amount(GIB, 2 * GIB))
    assert workload.config.qos is QoS.LOW


def test_a_missing_profile_breaks_only_its_own_workload() -> None:
    view = chat({keys.WORKLOAD_PROFILE: "absent", **AMOUNTS})
    view = replace(view, pods=(*view.pods, pod("notebook", AMOUNTS)))

    found = discover(view, {})

    assert [workload.key.name for workload in found.workloads] == ["notebook"]
    (broken,) = found.broken
    assert [(problem.path, problem.value) for problem in broken.problems] == [(keys.WORKLOAD_PROFILE, "absent")]
    assert broken.problems[0].source == "Deployment lab/chat"
    assert not broken.exists


def test_a_bad_value_keeps_the_last_good_configuration_and_names_the_problem() -> None:
    good = discover(chat(AMOUNTS | {keys.QOS: "high"}), {})

    workload = only(discover(chat(AMOUNTS | {keys.QOS: "urgent"}), {}, good))

    assert workload.config == only(good).config
    assert [(problem.path, problem.value) for problem in workload.problems] == [(keys.QOS, "urgent")]


def test_without_a_last_good_configuration_a_bad_value_makes_a_broken_workload() -> None:
    broken = only_broken(discover(chat(AMOUNTS | {keys.QOS: "urgent"}), {}))

    assert broken.key == WorkloadKey("lab", "chat")
    assert [problem.path for problem in broken.problems] == [keys.QOS]


def test_a_broken_workload_recovers_when_its_configuration_does() -> None:
    broken = discover(chat(AMOUNTS | {keys.QOS: "urgent"}), {})

    assert only(discover(chat(AMOUNTS), {}, broken)).problems == ()


def test_the_same_name_with_another_uid_inherits_nothing() -> None:
    spec = {"resources": {"requests": {"tflops": "10", "vram": "4Gi"}}}
    old = obj("TensorFusionWorkload", "chat", spec=spec)
    new = obj("TensorFusionWorkload", "chat", spec={**spec, "qos": "urgent"}, uid="another")
    good = discover(ClusterView(workloads=(old,)), {})

    assert only_broken(discover(ClusterView(workloads=(new,)), {}, good)).ref.uid == "another"


def test_a_user_made_workload_rules_and_a_sharer_that_differs_is_told_so_naming_both() -> None:
    spec = {"resources": {"requests": {"tflops": "10", "vram": "4Gi"}, "limits": {"tflops": "20", "vram": "8Gi"}}}
    view = replace(
        chat(AMOUNTS | {keys.WORKLOAD: "shared", keys.TFLOPS_LIMIT: "25", keys.AUTO_LIMITS: "true"}),
        workloads=(obj("TensorFusionWorkload", "shared", spec=spec),),
    )

    workload = only(discover(view, {}))

    (problem,) = workload.problems
    assert (problem.path, problem.value, problem.source) == (keys.TFLOPS_LIMIT, "25", "Deployment lab/chat")
    assert "TensorFusionWorkload shared" in problem.allowed
    assert workload.original == FIGURES
    assert workload.config.limits.mode is Mode.ON


def test_a_sharer_that_repeats_the_ruling_amounts_in_other_words_agrees() -> None:
    spec = {"resources": {"requests": {"tflops": "10", "vram": "4Gi"}, "limits": {"tflops": "20", "vram": "8Gi"}}}
    view = replace(
        chat(AMOUNTS | {keys.WORKLOAD: "shared", keys.VRAM_LIMIT: "8192Mi", keys.TFLOPS_REQUEST: "10.0"}),
        workloads=(obj("TensorFusionWorkload", "shared", spec=spec),),
    )

    assert only(discover(view, {})).problems == ()


def test_two_owners_share_one_workload_and_the_older_speaks() -> None:
    old = deployment("web", AMOUNTS | {keys.WORKLOAD: "shared"})
    young = deployment(
        "batch", AMOUNTS | {keys.WORKLOAD: "shared", keys.VRAM_LIMIT: "16Gi"}, creationTimestamp="2026-05-01T00:00:00Z"
    )

    workload = only(discover(ClusterView(owners=(young, old)), {}))

    assert {owner.name for owner in workload.owners} == {"web", "batch"}
    assert workload.original == FIGURES
    (problem,) = workload.problems
    assert (problem.path, problem.source) == (keys.VRAM_LIMIT, "Deployment lab/batch")
    assert "Deployment lab/web" in problem.allowed


def test_one_who_only_joins_waits_for_the_workload_and_then_changes_nothing_there() -> None:
    annotations = {keys.WORKLOAD: "shared", keys.GENERATE_WORKLOAD: "false", keys.TFLOPS_LIMIT: "99"}
    waiting = only_broken(discover(chat(annotations), {}))
    assert "waited for" in waiting.problems[0].allowed

    spec = {"replicas": 4, "resources": {"limits": {"tflops": "20", "vram": "8Gi"}}}
    view = replace(chat(annotations), workloads=(obj("TensorFusionWorkload", "shared", spec=spec),))
    workload = only(discover(view, {}))

    assert workload.original.compute == Amount(20.0, 20.0)
    assert workload.owners == ()
    assert workload.replicas == 4
    assert any(keys.TFLOPS_LIMIT in warning for warning in workload.warnings)


def test_annotations_on_the_owner_itself_are_warned_about() -> None:
    owner = deployment("chat", AMOUNTS)
    owner["metadata"]["annotations"] = {keys.QOS: "high"}
    view = ClusterView(owners=(owner,))

    (warning,) = only(discover(view, {})).warnings

    assert keys.QOS in warning
    assert "pod template" in warning


def test_a_pause_on_the_workload_itself_is_heard() -> None:
    paused = obj("TensorFusionWorkload", "chat", annotations={keys.AUTOSCALING_PAUSED: "down"}, spec={"replicas": 2})

    workload = only(discover(replace(chat(), workloads=(paused,)), {}))

    assert (workload.config.pause.up, workload.config.pause.down) == (False, True)


# What they have


def test_current_is_the_largest_that_any_worker_holds_and_the_user_figure_stays_the_template() -> None:
    view = chat()
    view.pods[0]["metadata"]["annotations"] |= {keys.TFLOPS_LIMIT: "40", keys.VRAM_LIMIT: "6Gi"}

    workload = only(discover(view, {}))

    assert workload.original == FIGURES
    assert workload.current == Amounts(Amount(10.0, 40.0), Amount(4 * GIB, 8 * GIB))
    assert workload.workers[0].current == Amounts(Amount(10.0, 40.0), Amount(4 * GIB, 6 * GIB))


def test_the_user_figure_of_a_bare_pod_is_what_stood_there_before_us() -> None:
    changed = AMOUNTS | {
        keys.TFLOPS_LIMIT: "40",
        keys.AUTOSCALING_ORIGINAL: '{"tflops-limit":"20","tflops-request":"10"}',
    }

    workload = only(discover(ClusterView(pods=(pod("notebook", changed),)), {}))

    assert workload.original == FIGURES
    assert workload.current.compute == Amount(10.0, 40.0)


def test_an_original_that_is_not_ours_any_more_is_a_problem() -> None:
    view = ClusterView(pods=(pod("notebook", AMOUNTS | {keys.AUTOSCALING_ORIGINAL: "{oops"}),))

    assert [problem.path for problem in only(discover(view, {})).problems] == [keys.AUTOSCALING_ORIGINAL]


def test_an_unreadable_amount_on_a_worker_is_a_problem_and_counts_as_not_stated() -> None:
    view = chat()
    view.pods[1]["metadata"]["annotations"] |= {keys.VRAM_LIMIT: "lots"}

    workload = only(discover(view, {}))

    assert [(problem.path, problem.value, problem.source) for problem in workload.problems] == [
        (keys.VRAM_LIMIT, "lots", "Pod lab/chat-7f-1")
    ]
    assert workload.workers[1].current.vram == Amount(4 * GIB, 4 * GIB)


def node_state(pod_uid: str, *uuids: str, container: str = "") -> NodeState:
    devices = tuple(DeviceStatus(uuid, applied=True, effect=Effect.IMMEDIATE, observed=Observed()) for uuid in uuids)
    worker = WorkerStatus(pod_uid, "lab", "chat-7f-0", "chat", devices, container)
    return NodeState("node-1", quotas=QuotaStatus("node-1", 1, 1, (worker,)))


def test_devices_are_what_the_agent_sees_else_what_the_annotation_says() -> None:
    view = chat()
    for item in view.pods:
        item["metadata"]["annotations"][keys.GPU_IDS] = "GPU-a, GPU-b"
    nodes = {"node-1": node_state("Pod-chat-7f-0", "GPU-c", container="python")}

    seen, told = only(discover(view, nodes)).workers

    assert (seen.devices, seen.container) == (("GPU-c",), "python")
    assert (told.devices, told.container) == (("GPU-a", "GPU-b"), "")


@pytest.mark.parametrize(
    ("status", "node", "ready", "pending"),
    [
        ({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}, "node-1", True, False),
        ({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]}, "node-1", False, False),
        ({"phase": "Pending"}, "node-1", False, True),
        ({"phase": "Pending"}, "", False, True),
        (None, "node-1", True, False),
        (None, "", False, True),
    ],
)
def test_readiness_is_read_from_the_status_and_a_folder_without_one_trusts_the_node(
    status: Manifest | None, node: str, ready: bool, pending: bool
) -> None:
    item = pod("notebook", AMOUNTS)
    item["spec"]["nodeName"] = node
    item["status"] = status

    (worker,) = only(discover(ClusterView(pods=(item,)), {})).workers

    assert (worker.ready, worker.pending) == (ready, pending)


@pytest.mark.parametrize(
    ("status", "in_progress"),
    [
        ({}, False),
        ({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}, False),
        ({"observedGeneration": 0, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}, True),
        ({"observedGeneration": 1, "replicas": 3, "updatedReplicas": 2, "availableReplicas": 2}, True),
        ({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 1, "availableReplicas": 2}, True),
        ({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2}, True),
    ],
)
def test_a_rollout_is_seen_in_the_counters_of_the_deployment(status: Manifest, in_progress: bool) -> None:
    owner = {**deployment("chat", AMOUNTS), "status": status}

    assert only(discover(ClusterView(owners=(owner,)), {})).rollout_in_progress is in_progress


def test_the_count_of_the_workload_object_wins_over_the_owner() -> None:
    view = replace(chat(), workloads=(obj("TensorFusionWorkload", "chat", spec={"replicas": 7}),))

    assert only(discover(view, {})).replicas == 7


def test_an_age_that_nobody_tells_is_unknown_not_zero() -> None:
    item = pod("notebook", AMOUNTS)
    del item["metadata"]["creationTimestamp"]

    assert math.isnan(only(discover(ClusterView(pods=(item,)), {})).created_at)


# What is kept


def test_nothing_is_made_again_when_nothing_changed() -> None:
    first = discover(chat(), {})

    second = discover(chat(), {}, first)

    assert second.workloads[0] is first.workloads[0]


def test_a_changed_pod_changes_only_its_own_worker() -> None:
    first = discover(chat(), {})
    view = chat()
    view.pods[0]["metadata"] |= {"resourceVersion": "2", "annotations": AMOUNTS | {keys.TFLOPS_LIMIT: "40"}}

    workload = only(discover(view, {}, first))

    assert workload.workers[0].current.compute.limit == 40.0
    assert workload.workers[1] is first.workloads[0].workers[1]
    assert workload.config is first.workloads[0].config


def test_a_change_of_the_status_alone_keeps_the_configuration_and_shows_the_status() -> None:
    stored = obj("TensorFusionWorkload", "chat", spec={"replicas": 2})
    first = discover(replace(chat(), workloads=(stored,)), {})
    after = obj("TensorFusionWorkload", "chat", spec={"replicas": 2}, version="2") | {"status": {"workerCount": 2}}

    workload = only(discover(replace(chat(), workloads=(after,)), {}, first))

    assert workload.config is first.workloads[0].config
    assert workload.status == {"workerCount": 2}
    assert workload.ref.resource_version == "2"


def test_a_changed_template_is_resolved_anew() -> None:
    first = discover(chat(), {})

    workload = only(discover(chat(AMOUNTS | {keys.QOS: "low"}), {}, first))

    assert workload.config.qos is QoS.LOW
