"""What there is and who holds it, as TensorFusion's objects say it on a real API server: GPUs, and quotas."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from autoscaler.contract.quota import DeviceInfo
from autoscaler.kube.client import KubeClient
from tests.e2e.apiserver import ApiServer, missing_manager_reason
from tests.e2e.town import GIB, MODEL, Town, conditions

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing_manager_reason()), reason=missing_manager_reason() or "a server can be started"),
]
ANY = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
GPUS = "/apis/tensor-fusion.ai/v1/gpus"


def definition(kind: str, plural: str, scope: str) -> dict[str, Any]:
    """Return a definition of the group, name, scope and subresources of TensorFusion's own; of any content."""
    schema = {"type": "object", "properties": {"spec": ANY, "status": ANY}}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    version["subresources"] = {"status": {}}
    names = {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.tensor-fusion.ai"},
        "spec": {"group": "tensor-fusion.ai", "names": names, "scope": scope, "versions": [version]},
    }


@pytest.fixture(scope="module")
def tensor_fusion(cluster: ApiServer) -> Iterator[ApiServer]:
    """Return a server that knows TensorFusion's GPUs and quotas; what was not there before is taken away again."""
    wanted = (definition("GPU", "gpus", "Cluster"), definition("GPUResourceQuota", "gpuresourcequotas", "Namespaced"))
    made = [one for one in wanted if cluster.run("get", "crd", one["metadata"]["name"]).returncode != 0]
    for one in made:
        applied = cluster.run("create", "-f", "-", stdin=json.dumps(one))
        assert applied.returncode == 0, applied.stderr
    for one in wanted:
        name = f"crd/{one['metadata']['name']}"
        assert cluster.run("wait", "--for=condition=Established", name, "--timeout=120s").returncode == 0
    yield cluster
    for one in made:
        cluster.run("delete", "crd", one["metadata"]["name"], "--wait=false")


@pytest.fixture
async def town(tensor_fusion: ApiServer, namespace: str) -> AsyncIterator[Town]:
    small = DeviceInfo("GPU-0", MODEL, 10 * GIB, 60.0)
    made = Town(tensor_fusion, namespace, await KubeClient.connect(tensor_fusion.kubeconfig), devices=(small,))
    await made.add_node(**{"kubernetes.io__hostname": namespace})
    await made.profile("at-once", autoScalingConfig={"initialDelayPeriod": "0s"})
    yield made
    for gpu in (await made.request("GET", GPUS))["items"]:
        if gpu["metadata"]["name"].startswith(namespace):
            await made.request("DELETE", f"{GPUS}/{gpu['metadata']['name']}")
    await made.close()


async def add_gpu(town: Town, number: int = 0, **more: Any) -> None:
    name = f"{town.namespace}-gpu-{number}"
    status = {
        "phase": "Running",
        "uuid": name,
        "gpuModel": "H100",
        "capacity": {"tflops": "60", "vram": "10Gi"},
        "available": {"tflops": "60", "vram": "10Gi"},
        "nodeSelector": {"kubernetes.io/hostname": town.namespace},
        "usedBy": "tensor-fusion",
        "message": "",
    } | more
    labels = {"tensor-fusion.ai/gpupool": "blue"}
    body = {"apiVersion": "tensor-fusion.ai/v1", "kind": "GPU", "metadata": {"name": name, "labels": labels}}
    await town.request("POST", GPUS, body)
    await town.request("PATCH", f"{GPUS}/{name}/status", {"status": status})


async def put_on_gpu(town: Town, name: str) -> None:
    """Write down where a workload's pods run, as TensorFusion's operator does."""
    for pod in await town.pods(name):
        body = {"metadata": {"annotations": {"tensor-fusion.ai/gpu-ids": f"{town.namespace}-gpu-0"}}}
        await town.request("PATCH", town.path("pods", pod["metadata"]["name"], "/api/v1"), body)


def running(*requests: tuple[str, str]) -> list[dict[str, Any]]:
    pods = [
        {
            "name": f"p{number}",
            "namespace": "elsewhere",
            "uid": f"u{number}",
            "requests": {"tflops": tflops, "vram": vram},
        }
        for number, (tflops, vram) in enumerate(requests)
    ]
    return [{"name": "other", "namespace": "elsewhere", "count": len(pods), "pods": pods}]


async def test_gpu_objects_bound_what_no_agent_tells_of(town: Town) -> None:
    await add_gpu(town)
    town.agents.go_away(town.node)
    await town.deploy(auto_limits="true")
    await put_on_gpu(town, "llm")
    await town.run_pass()
    await town.minutes(5, tflops=500)
    workload = await town.workload()
    assert workload["status"]["autoscaling"]["current"]["limits"]["tflops"] == "60"
    assert workload["status"]["autoscaling"]["display"]["status"] == "AgentAway"


async def test_what_other_apps_hold_on_a_gpu_is_not_given_away(town: Town) -> None:
    await add_gpu(town, runningApps=running(("30", "4Gi"), ("10", "2Gi")))
    town.agents.go_away(town.node)
    await town.deploy(auto_requests="true", workload_profile="at-once", tflops_request="10", tflops_limit="60")
    await put_on_gpu(town, "llm")
    await town.run_pass()
    await town.minutes(16, tflops=55)
    condition = conditions(await town.workload())["RequestsApplied"]
    assert condition["reason"] == "CapacityLimited", condition["message"]
    assert "compute request 10 → 20 TFLOPs" in str(await town.events("TensorFusionWorkload")), "60 - 30 - 10 are left"


async def test_a_broken_workload_s_pods_hold_what_they_ask_for(town: Town) -> None:
    await add_gpu(town)
    town.agents.go_away(town.node)
    await town.deploy("broken", tflops_request="30", tflops_limit="30", qos="urgent")
    await town.deploy("llm")
    for name in ("broken", "llm"):
        await put_on_gpu(town, name)
    passed = await town.run_pass()
    inventory = passed.snapshot.inventory
    assert inventory is not None
    assert inventory.foreign == {f"{town.namespace}-gpu-0": (30.0, 4.0 * GIB)}


async def test_replicas_grow_by_as_many_workers_as_find_a_place(town: Town) -> None:
    await town.deploy(auto_replicas="true", workload_profile="at-once")
    await town.run_pass()
    await town.minutes(14, tflops=60)
    await town.run_pods("llm", 2)  # 10 GiB hold two requests of 4
    await town.minutes(6, tflops=60)
    assert len(await town.pods("llm")) == 2
    workload = await town.workload()
    condition = conditions(workload)["ReplicasApplied"]
    assert condition["reason"] == "CapacityLimited", condition["message"]
    assert "there is room for 0 more of its workers" in condition["message"]
    assert workload["status"]["recommendedReplicas"] > 2


async def test_another_pool_has_no_room_for_it(town: Town) -> None:
    await add_gpu(town, number=7, nodeSelector={"kubernetes.io/hostname": f"{town.namespace}-two"})
    labels = {"kubernetes.io__hostname": f"{town.namespace}-two"}
    await town.add_node(f"{town.namespace}-second", **labels)
    for name, pool in (("red", "red"), ("blue", "blue")):
        await town.deploy(name, auto_replicas="true", workload_profile="at-once", gpupool=pool)
    passed = await town.run_pass()
    sites = passed.allowed.fleet.placement.sites
    assert sites.is_whole
    assert sorted(sites.pools) == ["", "blue"]


async def test_a_quota_s_last_figures_are_not_passed(town: Town) -> None:
    spec = {"total": {"limits": {"tflops": "30", "vram": "64Gi"}, "requests": {"tflops": "30", "vram": "64Gi"}}}
    body = {"apiVersion": "tensor-fusion.ai/v1", "kind": "GPUResourceQuota", "metadata": {"name": "team"}, "spec": spec}
    await town.request("POST", town.path("gpuresourcequotas"), body)
    await town.deploy(auto_limits="true")
    await town.run_pass()
    await town.minutes(5, tflops=60)
    workload = await town.workload()
    assert workload["status"]["autoscaling"]["current"]["limits"]["tflops"] == "30"
    condition = conditions(workload)["LimitsApplied"]
    assert condition["reason"] == "QuotaLimited", condition["message"]
    assert f"the GPUResourceQuota of {town.namespace} has 0 TFLOPs left" in condition["message"]
    assert workload["status"]["autoscaling"]["display"]["status"] == "QuotaLim"
