"""Every annotation on a real API server, named after its key: what it changes, and how a bad value is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from autoscaler.contract import keys
from autoscaler.contract.keys import PREFIX
from autoscaler.kube.client import KubeClient
from autoscaler.model.annotations import ALLOWED, ANNOTATIONS
from tests.e2e.apiserver import ApiServer, missing_manager_reason
from tests.e2e.town import Json, Town, conditions, marks

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing_manager_reason()), reason=missing_manager_reason() or "a server can be started"),
]
LAYERS = {"auto_limits": "true", "auto_requests": "true"}
Case = Callable[[Town], Awaitable[None]]


@pytest.fixture
async def town(cluster: ApiServer, namespace: str) -> AsyncIterator[Town]:
    made = Town(cluster, namespace, await KubeClient.connect(cluster.kubeconfig))
    await made.add_node()
    yield made
    await made.close()


async def told(town: Town, **annotations: str) -> Json:
    """Deploy with these annotations, and return the workload after one pass."""
    await town.deploy(**annotations)
    await town.run_pass()
    return await town.workload()


def figures(workload: Json, side: str) -> Json:
    return dict(workload["status"]["autoscaling"]["current"][side])


def auto(workload: Json) -> str:
    return str(workload["status"]["autoscaling"]["display"]["auto"])


def valid(workload: Json) -> str:
    found = conditions(workload)["ConfigValid"]
    assert found["status"] == "True", found["message"]
    return str(found["message"])


def reason(workload: Json, type_: str) -> str:
    return str(conditions(workload)[type_]["reason"])


async def tflops_request(town: Town) -> None:
    workload = await told(town, tflops_request="12.5")
    assert workload["spec"]["resources"]["requests"]["tflops"] == "12.5"
    assert figures(workload, "requests")["tflops"] == "12.5"


async def tflops_limit(town: Town) -> None:
    workload = await told(town, tflops_limit="24", tflops_request="")
    assert figures(workload, "limits")["tflops"] == "24"
    assert figures(workload, "requests")["tflops"] == "24", "a missing request is the limit"


async def vram_request(town: Town) -> None:
    workload = await told(town, vram_request="3Gi", vram_limit="")
    assert figures(workload, "requests")["vram"] == "3Gi"
    assert figures(workload, "limits")["vram"] == "3Gi", "a missing limit is the request"


async def vram_limit(town: Town) -> None:
    workload = await told(town, vram_limit="6Gi")
    assert workload["spec"]["resources"]["limits"]["vram"] == "6Gi"
    assert workload["status"]["autoscaling"]["display"]["vram"].startswith("4Gi/6Gi")


async def qos(town: Town) -> None:
    workload = await told(town, qos="critical")
    assert workload["spec"]["qos"] == "critical"
    assert workload["status"]["autoscaling"]["display"]["qos"] == "critical"


async def gpu_count(town: Town) -> None:
    assert (await told(town, gpu_count="2"))["spec"]["gpuCount"] == 2


async def gpu_model(town: Town) -> None:
    workload = await told(town, gpu_model="L40s")
    assert workload["spec"]["gpuModel"] == "L40s"
    assert reason(workload, "MetricsAvailable") == "Missing"
    await town.deploy("npu", gpu_model="Ascend910B")
    await town.run_pass()
    assert reason(await town.workload("npu"), "MetricsAvailable") == "UnsupportedDevice"


async def gpupool(town: Town) -> None:
    assert (await told(town, gpupool="blue"))["spec"]["poolName"] == "blue"


async def replicas(town: Town) -> None:
    workload = await told(town, replicas="3")
    assert workload["spec"]["replicas"] == 3
    assert "3 workers, but the owner's replicas are 1" in valid(workload)


async def _switch(town: Town, key: str, name: str, block: str) -> None:
    await town.profile("on", autoScalingConfig={block: {"enable": True}})
    assert auto(await told(town, **{key: "true"})) == name, "without any profile"
    for other, value, expected in (("by-profile", "", name), ("off", "false", "off")):
        await town.deploy(other, workload_profile="on", **{key: value})
        await town.run_pass()
        assert auto(await town.workload(other)) == expected


async def auto_requests(town: Town) -> None:
    await _switch(town, "auto_requests", "req", "autoSetRequests")


async def auto_limits(town: Town) -> None:
    await _switch(town, "auto_limits", "lim", "autoSetLimits")
    await town.minutes(3, tflops=60)
    (pod,) = await town.pods("llm")
    assert float(marks(pod)["tflops-limit"]) > 20, "a running pod's limit is raised"


async def auto_replicas(town: Town) -> None:
    await _switch(town, "auto_replicas", "rep", "autoSetReplicas")


async def workload_profile(town: Town) -> None:
    await town.profile("cheap", qos="low", gpuModel="A100")
    workload = await told(town, workload_profile="cheap", qos="high")
    assert (workload["spec"]["qos"], workload["spec"]["gpuModel"]) == ("high", "A100"), "annotation over profile"
    profile = await town.request("GET", town.path("workloadprofiles", "cheap"))
    assert profile["status"]["workloads"] == 1


async def workload(town: Town) -> None:
    await town.deploy("one", workload="shared")
    await town.deploy("two", workload="shared")
    await town.run_pass()
    shared = await town.workload("shared")
    owners = {owner["name"] for owner in shared["metadata"]["ownerReferences"]}
    assert (owners, shared["status"]["workerCount"]) == ({"one", "two"}, 2)
    assert await town.workload("one") == {}


async def generate_workload(town: Town) -> None:
    await town.deploy("guest", workload="home", generate_workload="false", qos="low")
    await town.run_pass()
    assert await town.workload("home") == {}, "a missing one is waited for"
    (event,) = [one for one in await town.events("Deployment", "guest") if one["reason"] == "ScalingBlocked"]
    assert "it is waited for" in event["note"]
    spec = {"replicas": 1, "qos": "high", "resources": {"requests": {"tflops": "7", "vram": "2Gi"}}}
    body = {
        "apiVersion": "tensor-fusion.ai/v1",
        "kind": "TensorFusionWorkload",
        "metadata": {"name": "home"},
        "spec": spec,
    }
    await town.request("POST", town.path("tensorfusionworkloads"), body)
    await town.run_pass()
    home = await town.workload("home")
    assert home["spec"]["qos"] == "high"
    assert "qos changes nothing" in valid(home)
    assert "ownerReferences" not in home["metadata"], "nobody owns what a user made"


async def inject_container(town: Town) -> None:
    await town.deploy(containers=("web", "model"), inject_container=" model ")
    await town.run_pass()
    valid(await town.workload())
    await town.deploy("wrong", containers=("web", "model"), inject_container="modle")
    await town.run_pass()
    message = conditions(await town.workload("wrong"))["ConfigValid"]["message"]
    assert f"{keys.INJECT_CONTAINER}: 'modle'" in message
    assert "web, model" in message


async def is_local_gpu(town: Town) -> None:
    workload = await told(town, is_local_gpu="true")
    assert workload["spec"]["isLocalGPU"] is True
    assert "nobody starts vGPU workers here" in valid(workload), "workers still come from the workload"


async def no_standalone_worker_mode(town: Town) -> None:
    workload = await told(town, is_local_gpu="true", no_standalone_worker_mode="true")
    assert valid(workload) == "the configuration is valid"
    await town.deploy("alone", no_standalone_worker_mode="true")
    await town.run_pass()
    message = conditions(await town.workload("alone"))["ConfigValid"]["message"]
    assert f"only with {keys.IS_LOCAL_GPU}" in message


async def autoscale(town: Town) -> None:
    assert auto(await told(town, autoscale="true")) == "req,lim"


async def autoscale_target(town: Town) -> None:
    await told(town, autoscale="true", autoscale_target="vram")
    await town.minutes(3, tflops=60)
    (pod,) = await town.pods("llm")
    assert marks(pod)["tflops-limit"] == "20", "compute is clipped, but only VRAM is scaled"
    assert "limit 20 TFLOPs, recommended" in (await town.workload())["status"]["autoscaling"]["tflops"]["message"]


async def auto_resources(town: Town) -> None:
    assert auto(await told(town, auto_resources="true")) == "req,lim"


async def isolation(town: Town) -> None:
    await told(town, isolation="hard", **LAYERS)
    await town.minutes(3, tflops=60)
    workload = await town.workload()
    assert reason(workload, "LimitsApplied") == "UnsupportedIsolation"
    assert "hard is fixed when a worker starts" in conditions(workload)["LimitsApplied"]["message"]
    assert workload["status"]["autoscaling"]["display"]["status"] == "Isolation"


async def dedicated_gpu(town: Town) -> None:
    await told(town, dedicated_gpu="true", **LAYERS)
    await town.minutes(3, tflops=60)
    assert reason(await town.workload(), "LimitsApplied") == "DedicatedGPU"


async def autoscaling_paused(town: Town) -> None:
    await told(town, autoscaling_paused="up", **LAYERS)
    await town.minutes(3, tflops=60)
    workload = await town.workload()
    assert reason(workload, "LimitsApplied") == "Paused"
    assert keys.AUTOSCALING_PAUSED in conditions(workload)["LimitsApplied"]["message"]
    (pod,) = await town.pods("llm")
    assert marks(pod)["tflops-limit"] == "20"
    body = {"metadata": {"annotations": {keys.AUTOSCALING_PAUSED: "false"}}}
    await town.annotate("llm", autoscaling_paused=None)
    await town.request("PATCH", town.path("tensorfusionworkloads", "llm"), body)
    await town.minutes(2, tflops=60)
    (pod,) = await town.pods("llm")
    assert float(marks(pod)["tflops-limit"]) > 20


async def autoscaling_revert(town: Town) -> None:
    await told(town, **LAYERS)
    await town.minutes(3, tflops=60)
    await town.annotate("llm", auto_limits="false", auto_requests="false")
    await town.run_pass()
    (pod,) = await town.pods("llm")
    assert float(marks(pod)["tflops-limit"]) > 20, "what was put in force stays"
    await town.annotate("llm", autoscaling_revert="true")
    await town.run_pass()
    (pod,) = await town.pods("llm")
    assert marks(pod)["tflops-limit"] == "20", "the user's own figure"


async def autoscaling_original(town: Town) -> None:
    await told(town, **LAYERS)
    await town.minutes(3, tflops=60)
    (pod,) = await town.pods("llm")
    assert '"tflops-limit":"20"' in marks(pod)["autoscaling-original"], "written by us, with the user's figures"
    template = (await town.request("GET", town.path("deployments", "llm", "/apis/apps/v1")))["spec"]["template"]
    assert PREFIX + "autoscaling-original" not in template["metadata"]["annotations"]


async def enabled(town: Town) -> None:
    await town.deploy("off")
    body = {"spec": {"paused": True, "template": {"metadata": {"labels": {keys.ENABLED: "false"}}}}}
    await town.request("PATCH", town.path("deployments", "off", "/apis/apps/v1"), body)
    for pod in await town.pods("off"):
        label = {"metadata": {"labels": {keys.ENABLED: "false"}}}
        await town.request("PATCH", town.path("pods", pod["metadata"]["name"], "/api/v1"), label)
    await town.run_pass()
    assert await town.workload("off") == {}


async def _model(town: Town) -> None:
    """7 billion parameters of 2 bytes and 4 K of context for 2 users: 14 + 8 GiB."""
    size = {"model_params": "7B", "model_precision": "fp16", "model_context": "4K", "model_users": "2"}
    workload = await told(town, vram_request="", vram_limit="", **size)
    assert figures(workload, "requests")["vram"] == "22Gi"


CASES: dict[str, Case] = {
    keys.TFLOPS_REQUEST: tflops_request,
    keys.TFLOPS_LIMIT: tflops_limit,
    keys.VRAM_REQUEST: vram_request,
    keys.VRAM_LIMIT: vram_limit,
    keys.QOS: qos,
    keys.GPU_COUNT: gpu_count,
    keys.GPU_MODEL: gpu_model,
    keys.GPU_POOL: gpupool,
    keys.REPLICAS: replicas,
    keys.AUTO_REQUESTS: auto_requests,
    keys.AUTO_LIMITS: auto_limits,
    keys.AUTO_REPLICAS: auto_replicas,
    keys.WORKLOAD_PROFILE: workload_profile,
    keys.WORKLOAD: workload,
    keys.GENERATE_WORKLOAD: generate_workload,
    keys.INJECT_CONTAINER: inject_container,
    keys.IS_LOCAL_GPU: is_local_gpu,
    keys.NO_STANDALONE_WORKER_MODE: no_standalone_worker_mode,
    keys.ENABLED: enabled,
    keys.AUTOSCALE: autoscale,
    keys.AUTOSCALE_TARGET: autoscale_target,
    keys.AUTO_RESOURCES: auto_resources,
    keys.ISOLATION: isolation,
    keys.DEDICATED_GPU: dedicated_gpu,
    keys.AUTOSCALING_PAUSED: autoscaling_paused,
    keys.AUTOSCALING_REVERT: autoscaling_revert,
    keys.AUTOSCALING_ORIGINAL: autoscaling_original,
    **dict.fromkeys((keys.MODEL_PARAMS, keys.MODEL_PRECISION, keys.MODEL_CONTEXT, keys.MODEL_USERS), _model),
}


@pytest.mark.parametrize("key", [pytest.param(key, id=key.removeprefix(PREFIX)) for key in CASES])
async def test_an_annotation_has_its_effect(town: Town, key: str) -> None:
    await CASES[key](town)


def test_every_annotation_has_its_case() -> None:
    assert {spec.key for spec in ANNOTATIONS} <= CASES.keys()


BAD: dict[str, str] = {
    keys.TFLOPS_REQUEST: "-5",
    keys.TFLOPS_LIMIT: "fast",
    keys.VRAM_REQUEST: "4GB",
    keys.VRAM_LIMIT: "0",
    keys.QOS: "urgent",
    keys.GPU_COUNT: "129",
    keys.GPU_MODEL: " ",
    keys.GPU_POOL: "Blue Pool",
    keys.REPLICAS: "-1",
    keys.WORKLOAD_PROFILE: "not_a_name",
    keys.WORKLOAD: "Not_A_Name",
    keys.INJECT_CONTAINER: "a,,b",
    keys.AUTOSCALE_TARGET: "disk",
    keys.ISOLATION: "loose",
    keys.AUTOSCALING_PAUSED: "tomorrow",
    keys.MODEL_PARAMS: "many",
    keys.MODEL_PRECISION: "fp3",
    keys.MODEL_CONTEXT: "long",
    keys.MODEL_USERS: "0",
}
"""Of the others, which are switches: "yes"."""


async def test_a_value_that_is_not_allowed_is_told_with_key_value_and_what_is_allowed(town: Town) -> None:
    """All of them in one namespace: one broken workload stands in no other's way."""
    names = {spec.key: f"bad-{spec.key.removeprefix(PREFIX)}" for spec in ANNOTATIONS}
    for key, name in names.items():
        await town.deploy(name, **{key.removeprefix(PREFIX).replace("-", "_"): BAD.get(key, "yes")})
    await town.deploy("good")
    await town.run_pass()
    for key, name in names.items():
        found = await town.workload(name)
        assert found, f"{key}: nothing tells that it is wrong"
        condition = conditions(found)["ConfigValid"]
        assert (condition["status"], condition["reason"]) == ("False", "Invalid"), key
        assert f"{key}: {BAD.get(key, 'yes')!r} is not allowed; allowed: {ALLOWED[key]}" in condition["message"]
        assert found["status"]["autoscaling"]["display"]["status"] == "ConfigInvalid"
        assert await blocked(town, name) == 1
    valid(await town.workload("good"))
    town.start()
    await town.run_pass()
    assert {await blocked(town, name) for name in names.values()} == {1}, "told once, also after a restart"


async def blocked(town: Town, name: str) -> int:
    return sum(one["reason"] == "ScalingBlocked" for one in await town.events("Deployment", name))


async def test_a_good_configuration_that_turned_bad_stays_in_force_until_it_is_corrected(town: Town) -> None:
    await told(town, qos="high", **LAYERS)
    await town.annotate("llm", qos="urgent")
    await town.minutes(3, tflops=60)
    broken = await town.workload()
    assert conditions(broken)["ConfigValid"]["status"] == "False"
    assert broken["status"]["autoscaling"]["display"]["qos"] == "high", "the last good one"
    (pod,) = await town.pods("llm")
    assert float(marks(pod)["tflops-limit"]) > 20, "a shortage is still answered"
    await town.annotate("llm", qos="low")
    await town.minutes(1)
    corrected = await town.workload()
    valid(corrected)
    assert corrected["status"]["autoscaling"]["display"]["qos"] == "low"


async def test_a_key_that_looks_like_a_typo_is_named(town: Town) -> None:
    await town.deploy(auto_limit="true")
    await town.run_pass()
    assert f"did you mean {keys.AUTO_LIMITS}?" in valid(await town.workload())
