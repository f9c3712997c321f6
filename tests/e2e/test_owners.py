"""Who belongs to what, what is scaled through whom, and what is left to others, on a real API server."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from autoscaler.contract import keys
from autoscaler.contract.keys import PREFIX
from autoscaler.kube.client import KubeClient, StatusError
from autoscaler.model.steps import Scale
from tests.e2e.apiserver import ApiServer, missing_manager_reason
from tests.e2e.town import AMOUNTS, Json, Town, conditions, marks, until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing_manager_reason()), reason=missing_manager_reason() or "a server can be started"),
]
APPS = "/apis/apps/v1"
HOUR = 3600.0
LAYERS: dict[str, Any] = {"auto_limits": "true", "auto_requests": "true"}


@pytest.fixture
async def town(cluster: ApiServer, namespace: str) -> AsyncIterator[Town]:
    made = Town(cluster, namespace, await KubeClient.connect(cluster.kubeconfig))
    made.clock.at = made.clock.at // HOUR * HOUR + 60
    await made.add_node()
    yield made
    await made.close()


async def order(town: Town, replicas: int, **spec: Any) -> str:
    """Make a profile by which the first half of each hour has so many replicas; return its name."""
    rule = {"name": "rush", "enable": True, "start": "0 * * * *", "end": "30 * * * *", "desiredReplicas": replicas}
    await town.profile("rush", autoScalingConfig={"cronScalingRules": [rule]}, **spec)
    return "rush"


def template(name: str, **more: Any) -> Json:
    chosen = AMOUNTS | {key.replace("_", "-"): value for key, value in more.items()}
    return {
        "metadata": {
            "labels": {"app": name, keys.ENABLED: "true"},
            "annotations": {PREFIX + key: value for key, value in chosen.items()},
        },
        "spec": {"containers": [{"name": "main", "image": "python:3"}]},
    }


async def count(town: Town, plural: str, name: str, root: str = APPS) -> int:
    return int((await town.request("GET", town.path(plural, name, root)))["spec"]["replicas"])


async def scale(town: Town, plural: str, name: str, replicas: int, root: str = APPS) -> None:
    await town.request("PATCH", town.path(plural, name, root) + "/scale", {"spec": {"replicas": replicas}})


def told(workload: Json, type_: str = "ReplicasApplied") -> tuple[str, str, str]:
    one = conditions(workload)[type_]
    return str(one["status"]), str(one["reason"]), str(one["message"])


async def notes(town: Town, reason: str, kind: str, name: str = "llm") -> list[str]:
    return [str(one["note"]) for one in await town.events(kind, name) if one["reason"] == reason]


# Scaling through owners


async def test_a_deployment_is_scaled_up_and_down_through_its_scale_and_its_pods_follow(town: Town) -> None:
    await town.deploy(workload_profile=await order(town, 3))

    await town.run_pass()

    assert await count(town, "deployments", "llm") == 3
    assert (await town.workload())["spec"]["replicas"] == 3
    await town.run_pods("llm", 3)
    await town.run_pass()
    assert (await town.workload())["status"]["workerCount"] == 3
    town.clock.at += 40 * 60
    await town.run_pass()
    assert await count(town, "deployments", "llm") == 1
    assert (await town.workload())["spec"]["replicas"] == 1


async def test_a_stateful_set_is_scaled_up_and_down_through_its_scale(town: Town) -> None:
    spec = {
        "replicas": 1,
        "serviceName": "llm",
        "selector": {"matchLabels": {"app": "llm"}},
        "template": template("llm", workload_profile=await order(town, 2)),
    }
    body = {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "llm"}, "spec": spec}
    await town.request("POST", town.path("statefulsets", root=APPS), body)
    await town.run_pods("llm", 1)

    await town.run_pass()

    assert await count(town, "statefulsets", "llm") == 2
    await town.run_pods("llm", 2)
    town.clock.at += 40 * 60
    await town.run_pass()
    assert await count(town, "statefulsets", "llm") == 1


async def fleet(town: Town, *, scalable: bool) -> str:
    """Define a kind of this test's own and make one object of it; return its API root."""
    group = f"{town.namespace}.example.com"
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version: Json = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": schema, "status": schema}}},
        "subresources": {"status": {}},
    }
    if scalable:
        version["subresources"]["scale"] = {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
        }
    names = {"plural": "fleets", "singular": "fleet", "kind": "Fleet"}
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"fleets.{group}"},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [version]},
    }
    await town.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
    root = f"/apis/{group}/v1"
    body = {"apiVersion": f"{group}/v1", "kind": "Fleet", "metadata": {"name": "llm"}, "spec": {"replicas": 1}}

    async def made() -> Json | None:
        try:
            return await town.request("POST", town.path("fleets", root=root), body)
        except StatusError as error:
            if error.status != 404:
                raise
            return None

    owner = await until("the definition is served", made)
    reference = {
        **{key: owner[key] for key in ("apiVersion", "kind")},
        "name": "llm",
        "uid": owner["metadata"]["uid"],
        "controller": True,
    }
    pod = template("llm", workload_profile=await order(town, 3))
    metadata = {**pod["metadata"], "name": "llm-0", "ownerReferences": [reference]}
    await town.request("POST", town.path("pods", root="/api/v1"), {**pod, "metadata": metadata})
    await town.run_pods("llm", 1)
    return root


async def undefine(town: Town) -> None:
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/fleets.{town.namespace}.example.com"
    await town.request("DELETE", path)


async def test_an_owner_of_a_kind_that_nobody_knows_is_scaled_through_its_scale_subresource(town: Town) -> None:
    root = await fleet(town, scalable=True)
    try:
        await town.run_pass()

        workload = await town.workload()
        assert [one["kind"] for one in workload["metadata"]["ownerReferences"]] == ["Fleet"]
        assert workload["status"]["autoscaling"]["current"]["limits"]["tflops"] == "20"
        assert await count(town, "fleets", "llm", root) == 3
    finally:
        await undefine(town)


async def test_an_owner_without_a_scale_subresource_is_only_advised_and_the_reason_names_it(town: Town) -> None:
    root = await fleet(town, scalable=False)
    try:
        await town.run_pass()

        assert await count(town, "fleets", "llm", root) == 1
        workload = await town.workload()
        status, reason, message = told(workload)
        assert (status, reason) == ("False", "NotScalable"), message
        assert "Fleet llm has no scale subresource" in told(workload, "ConfigValid")[2]
    finally:
        await undefine(town)


# What others hold


async def test_an_hpa_on_the_deployment_keeps_the_replicas_and_the_status_names_it(town: Town) -> None:
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "llm"}
    hpa = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "by-load"},
        "spec": {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 5},
    }
    await town.request("POST", town.path("horizontalpodautoscalers", root="/apis/autoscaling/v2"), hpa)
    await town.deploy(workload_profile=await order(town, 3))

    await town.run_pass()

    workload = await town.workload()
    status, reason, _ = told(workload)
    assert (status, reason) == ("False", "ReplicasManagedElsewhere")
    assert "HorizontalPodAutoscaler by-load of Deployment llm" in told(workload, "ConfigValid")[2]
    assert workload["status"]["recommendedReplicas"] == 3
    assert await count(town, "deployments", "llm") == 1
    assert not [write for write in town.here.writes if isinstance(write, Scale)]


async def test_scaling_in_stops_at_what_a_disruption_budget_keeps_and_says_how_many(town: Town) -> None:
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "two"},
        "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "llm"}}},
    }
    await town.request("POST", town.path("poddisruptionbudgets", root="/apis/policy/v1"), budget)
    await town.deploy(workers=3, workload_profile=await order(town, 1))

    async def counted() -> Json | None:
        path = town.path("poddisruptionbudgets", "two", "/apis/policy/v1")
        found = await town.request("GET", path)
        return found if (found.get("status") or {}).get("disruptionsAllowed") == 1 else None

    await until("the budget is counted", counted)
    await town.run_pass()

    assert await count(town, "deployments", "llm") == 2
    await until("one pod has gone", lambda: _of(town, 2))
    await town.run_pass()
    await town.run_pass()
    assert await count(town, "deployments", "llm") == 2
    status, reason, message = told(await town.workload())
    assert (status, reason) == ("False", "DisruptionLimited")
    assert "two asks for 2" in message


async def buried(town: Town, name: str = "llm") -> list[Json]:
    """Return the pods that are there to stay: those that were deleted go at once, as no kubelet ends them here."""
    pods = await town.pods(name)
    for pod in pods:
        if pod["metadata"].get("deletionTimestamp"):
            path = town.path("pods", pod["metadata"]["name"], "/api/v1")
            with contextlib.suppress(StatusError):  # somebody was faster
                await town.client.request("DELETE", path, {"gracePeriodSeconds": "0"})
    return [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]


async def _of(town: Town, pods: int, name: str = "llm") -> bool | None:
    await buried(town, name)
    return len(await town.pods(name)) == pods or None


# The user's hand


async def test_a_count_set_by_hand_is_followed_told_once_and_not_fought(town: Town) -> None:
    await town.deploy(auto_replicas="true")
    await town.minutes(2)

    await scale(town, "deployments", "llm", 3)
    await town.run_pods("llm", 3)
    await town.minutes(2)

    assert await count(town, "deployments", "llm") == 3
    workload = await town.workload()
    assert workload["spec"]["replicas"] == 3
    (note,) = await notes(town, "FigureAdopted", "TensorFusionWorkload")
    assert note.startswith("replicas 1 → 3: somebody else set it on Deployment llm")
    assert len(await notes(town, "FigureAdopted", "Deployment")) == 1


async def test_a_tool_that_puts_the_count_back_is_left_alone_longer_each_time(town: Town) -> None:
    await town.deploy(workload_profile=await order(town, 3))
    await town.run_pass()
    rested = []
    for _ in range(2):
        await scale(town, "deployments", "llm", 1)
        for minutes in range(30):
            town.clock.at += 60
            await town.run_pass()
            if await count(town, "deployments", "llm") != 1:
                rested.append(minutes)
                break

    assert rested == [5, 10]
    (event,) = [one for one in await town.events("Deployment", "llm") if one["reason"] == "FigureAdopted"]
    assert event["series"]["count"] == 2


async def test_a_count_set_by_hand_on_the_workload_reaches_the_owner(town: Town) -> None:
    await town.deploy(auto_replicas="true")
    await town.minutes(1)

    await scale(town, "tensorfusionworkloads", "llm", 2, "/apis/tensor-fusion.ai/v1")
    await town.minutes(1)

    assert await count(town, "deployments", "llm") == 2


async def test_an_amount_set_by_hand_is_adopted_once_and_the_template_stays(town: Town) -> None:
    await town.deploy(**LAYERS)
    await town.minutes(4, tflops=60)
    (pod,) = await town.pods("llm")
    assert float(marks(pod)["tflops-limit"]) > 20
    await edit(town, pod, {"tflops-limit": "50"})

    await town.minutes(3, tflops=5)

    (pod,) = await town.pods("llm")
    assert marks(pod)["tflops-limit"] == "50"
    assert json.loads(marks(pod)["autoscaling-original"])["tflops-limit"] == "50"
    (note,) = await notes(town, "FigureAdopted", "TensorFusionWorkload")
    assert "→ 50" in note
    assert pod["metadata"]["name"] in note
    workload = await town.workload()
    assert workload["status"]["autoscaling"]["original"]["limits"]["tflops"] == "50"
    deployment = await town.request("GET", town.path("deployments", "llm", APPS))
    assert deployment["spec"]["template"]["metadata"]["annotations"][keys.TFLOPS_LIMIT] == "20"
    town.start()
    await town.minutes(1, tflops=5)
    assert len(await notes(town, "FigureAdopted", "TensorFusionWorkload")) == 1
    (pod,) = await town.pods("llm")
    assert marks(pod)["tflops-limit"] == "50"


async def edit(town: Town, pod: Json, annotations: Mapping[str, str]) -> None:
    body = {"metadata": {"annotations": {PREFIX + key: value for key, value in annotations.items()}}}
    await town.request("PATCH", town.path("pods", pod["metadata"]["name"], "/api/v1"), body)


async def test_a_pod_reborn_without_the_webhook_gets_the_recommendation_again_with_the_users_figures_kept(
    town: Town,
) -> None:
    await town.deploy(**LAYERS)
    await town.minutes(4, tflops=60)
    (before,) = await town.pods("llm")
    raised = marks(before)["tflops-limit"]
    await town.request("DELETE", town.path("pods", before["metadata"]["name"], "/api/v1"))
    await until("the pod is another one", lambda: _reborn(town, before))
    (born,) = await town.run_pods("llm", 1)
    assert marks(born)["tflops-limit"] == "20"
    assert float(raised) > 20
    town.start()

    await town.run_pass()

    (after,) = await town.pods("llm")
    assert after["metadata"]["uid"] == born["metadata"]["uid"]
    assert marks(after)["tflops-limit"] == raised
    assert json.loads(marks(after)["autoscaling-original"])["tflops-limit"] == "20"
    assert not await notes(town, "FigureAdopted", "TensorFusionWorkload")


async def _reborn(town: Town, before: Json) -> bool | None:
    await buried(town)
    uids = [pod["metadata"]["uid"] for pod in await town.pods("llm")]
    return (len(uids) == 1 and before["metadata"]["uid"] not in uids) or None


async def test_an_edited_template_is_the_users_new_figure(town: Town) -> None:
    await town.deploy(auto_limits="true")
    await town.minutes(1)
    await town.annotate("llm", tflops_limit="40")

    await town.minutes(1)

    workload = await town.workload()
    assert workload["status"]["autoscaling"]["original"]["limits"]["tflops"] == "40"
    assert not await notes(town, "FigureAdopted", "TensorFusionWorkload")


async def test_an_edited_profile_is_in_force_after_one_pass_and_no_pod_is_restarted(town: Town) -> None:
    await town.profile("mine", qos="low")
    await town.deploy(workload_profile="mine")
    await town.minutes(1)
    (before,) = await town.pods("llm")
    await town.request("PATCH", town.path("workloadprofiles", "mine"), {"spec": {"qos": "critical"}})

    await town.minutes(1)

    assert (await town.workload())["status"]["autoscaling"]["display"]["qos"] == "critical"
    (after,) = await town.pods("llm")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


async def test_keys_on_the_deployment_itself_are_told_by_an_event_even_where_nothing_takes_part(town: Town) -> None:
    wrong = template("llm")
    wrong["metadata"] = {"labels": {"app": "llm"}}
    body = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "llm", "annotations": {keys.TFLOPS_LIMIT: "20"}},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "llm"}}, "template": wrong},
    }
    await town.request("POST", town.path("deployments", root=APPS), body)

    await town.run_pass()
    await town.run_pass()

    (note,) = await notes(town, "MisplacedKey", "Deployment")
    assert keys.TFLOPS_LIMIT in note
    assert "pod template" in note
    assert f"{keys.ENABLED}: 'true'" in note


# Sharing and going


async def test_sharers_are_on_record_and_the_workload_goes_with_the_last_of_them(town: Town) -> None:
    await town.deploy("one", workload="shared")
    await town.run_pass()
    await town.deploy("two", workload="shared")
    await town.run_pass()
    owners = (await town.workload("shared"))["metadata"]["ownerReferences"]
    assert sorted(one["name"] for one in owners) == ["one", "two"]

    await town.request("DELETE", town.path("deployments", "one", APPS))
    await until("one is off the record", lambda: _owners(town, ["two"]))
    await town.run_pass()
    assert await town.workload("shared")
    await town.request("DELETE", town.path("deployments", "two", APPS))

    await until("the workload is collected", lambda: _owners(town, []))
    await town.run_pass()
    assert not await town.workload("shared")


async def _owners(town: Town, names: list[str]) -> bool | None:
    references = (await town.workload("shared")).get("metadata", {}).get("ownerReferences", [])
    return sorted(one["name"] for one in references) == names or None


async def test_one_who_leaves_for_another_workload_is_off_the_record(town: Town) -> None:
    for name in ("one", "two"):
        await town.deploy(name, workload="shared")
    await town.run_pass()
    await town.annotate("two", workload="other")
    await town.request("PATCH", town.path("deployments", "two", APPS), {"spec": {"replicas": 0, "paused": False}})
    await until("the pods of two are gone", lambda: _of(town, 0, "two"))

    await town.run_pass()

    assert [one["name"] for one in (await town.workload("shared"))["metadata"]["ownerReferences"]] == ["one"]
    assert [one["name"] for one in (await town.workload("other"))["metadata"]["ownerReferences"]] == ["two"]


async def test_the_same_name_made_anew_begins_anew(town: Town) -> None:
    await town.deploy(**LAYERS)
    await town.minutes(4, tflops=60)
    before = await town.workload()
    assert float(before["status"]["autoscaling"]["current"]["limits"]["tflops"]) > 20
    await town.request("DELETE", town.path("deployments", "llm", APPS))
    await until("its pods are gone", lambda: _of(town, 0))
    await town.deploy(**LAYERS)

    async def another() -> Json | None:
        await town.run_pass()
        found = await town.workload()
        return found if found and found["metadata"]["uid"] != before["metadata"]["uid"] else None

    await until("the workload is another one", another)
    await town.run_pass()

    workload = await town.workload()
    assert workload["status"]["autoscaling"]["current"]["limits"]["tflops"] == "20"
    assert workload["status"]["autoscaling"]["samples"] == 0


async def test_a_namespace_that_is_deleted_mid_way_stops_nothing(town: Town) -> None:
    await town.deploy(workers=2, **LAYERS)
    await town.minutes(2, tflops=60)
    await town.request("DELETE", f"/api/v1/namespaces/{town.namespace}")

    async def gone() -> bool | None:
        await town.run_pass()
        await buried(town)
        try:
            await town.request("GET", f"/api/v1/namespaces/{town.namespace}")
        except StatusError as error:
            return error.status == 404 or None
        await asyncio.sleep(0.1)
        return None

    await until("the namespace is gone", gone)
    passed = await town.run_pass()
    assert passed.snapshot.discovered.workloads == ()
