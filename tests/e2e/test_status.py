"""What `kubectl get` and `kubectl describe` tell on a real API server: columns, and why something does not scale."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from autoscaler.kube.client import KubeClient
from autoscaler.model.steps import Emit
from tests.e2e.apiserver import ApiServer, missing_manager_reason
from tests.e2e.town import Town, conditions, marks

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing_manager_reason()), reason=missing_manager_reason() or "a server can be started"),
]
LAYERS = {"auto_limits": "true", "auto_requests": "true", "auto_replicas": "true"}
WIDTH = 120


@pytest.fixture
async def town(cluster: ApiServer, namespace: str) -> AsyncIterator[Town]:
    made = Town(cluster, namespace, await KubeClient.connect(cluster.kubeconfig))
    await made.add_node()
    yield made
    await made.close()


def printed(town: Town, *arguments: str) -> str:
    found = town.server.run(*arguments, "-n", town.namespace)
    assert found.returncode == 0, found.stderr
    return found.stdout


def cells(line: str) -> list[str]:
    return [part.strip() for part in line.split("   ") if part.strip()]


@pytest.mark.parametrize("name", ["llm", "llama-3-70b-serving-eu1", "stable-diffusion-xl-batch"])
async def test_columns_fit_a_terminal(town: Town, name: str) -> None:
    await town.profile("all", qos="critical", autoScalingConfig={"initialDelayPeriod": "0s"})
    await town.deploy(name, workload_profile="all", **LAYERS)
    await town.run_pass()
    await town.minutes(4, tflops=60, name=name)
    header, row = printed(town, "get", "tfw").splitlines()
    assert header.split() == ["NAME", "QOS", "AUTO", "TFLOPS", "VRAM", "REPLICAS", "APPLIED", "STATUS", "AGE"]
    assert len(row) <= WIDTH
    assert len(row.split()[7]) <= 15
    assert {name, "critical", "req,lim,rep", "1/1"} <= set(row.split())
    assert "→" in row
    wide = printed(town, "get", "tfw", "-o", "wide").splitlines()
    assert cells(wide[0])[8:] == ["BOUNDS", "USAGE", "LAST SCALE", "MESSAGE", "AGE"]
    assert "compute" in wide[1]
    profiles = printed(town, "get", "wp").splitlines()
    assert cells(profiles[0]) == ["NAME", "QOS", "AUTO", "TFLOPS", "VRAM", "REPLICAS", "WORKLOADS", "READY", "AGE"]
    assert max(map(len, profiles)) <= WIDTH
    assert profiles[1].split()[1:3] == ["critical", "req,lim,rep"]
    assert profiles[1].split()[-3:-1] == ["1", "True"]


async def not_enough_history(town: Town) -> None:
    await town.deploy(**LAYERS)
    await town.run_pass()
    await town.minutes(3)


async def stale(town: Town) -> None:
    await not_enough_history(town)
    town.clock.at += 900
    await town.run_pass()


async def prometheus_down(town: Town) -> None:
    await not_enough_history(town)
    town.history.broken = "http://prometheus:9090 did not answer within 30 s"
    await town.minutes(1)


async def paused(town: Town) -> None:
    await town.deploy(autoscaling_paused="2031-05-01T08:00:00Z", **LAYERS)
    await town.run_pass()
    await town.minutes(3, tflops=60)


async def elsewhere(town: Town) -> None:
    await town.deploy(**LAYERS | {"auto_limits": "false"})
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "llm"}
    spec = {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 3}
    body = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "by-cpu"},
        "spec": spec,
    }
    await town.request("POST", town.path("horizontalpodautoscalers", root="/apis/autoscaling/v2"), body)
    await town.run_pass()
    await town.minutes(12, tflops=60)


async def bound(town: Town) -> None:
    config = {"bounds": {"maxAllowed": {"tflops": "25"}}}
    await town.profile("small", autoScalingConfig=config)
    await town.deploy(workload_profile="small", auto_limits="true")
    await town.run_pass()
    await town.minutes(3, tflops=60)


async def whole_device(town: Town) -> None:
    await town.deploy(auto_limits="true")
    await town.run_pass()
    await town.minutes(6, tflops=2000)


async def capacity(town: Town) -> None:
    await town.profile("at-once", autoScalingConfig={"initialDelayPeriod": "0s"})
    figures = {"tflops_request": "450", "tflops_limit": "600", "auto_requests": "true"}
    await town.deploy(workers=2, workload_profile="at-once", **figures)
    await town.run_pass()
    await town.minutes(16, tflops=590)


async def dead_band(town: Town) -> None:
    config = {"initialDelayPeriod": "0s", "autoSetLimits": {"enable": True, "ignoredDeltaRange": "0.9"}}
    await town.profile("calm", autoScalingConfig=config)
    await town.deploy(workload_profile="calm", tflops_request="1", vram_request="2Gi")
    await town.run_pass()
    await town.minutes(14)


async def cooling_down(town: Town) -> None:
    config = {"initialDelayPeriod": "0s", "autoSetLimits": {"enable": True, "coolDown": "2h"}}
    await town.profile("slow", autoScalingConfig=config)
    await town.deploy(workload_profile="slow")
    await town.run_pass()
    await town.minutes(4, tflops=60)
    await town.minutes(20, tflops=2)


async def agent_away(town: Town) -> None:
    await not_enough_history(town)
    town.agents.go_away(town.node)
    await town.minutes(2, tflops=60)


async def config_wrong(town: Town) -> None:
    await town.deploy(**LAYERS | {"auto_limits": "maybe"})
    await town.run_pass()


async def recommend_only(town: Town) -> None:
    await town.deploy()
    await town.run_pass()
    await town.minutes(3, tflops=60)


WHY: dict[str, tuple[Callable[[Town], Awaitable[None]], str, tuple[str, ...]]] = {
    "not enough history": (
        not_enough_history,
        "LowConfidence",
        ("of 10 samples as of lastEvaluationTime, one comes a minute",),
    ),
    "stale metrics": (stale, "Stale", ("everything is held: the newest sample is of 20", "agent up and scraped?")),
    "Prometheus down": (prometheus_down, "PrometheusError", ("everything is held: http://prometheus:9090 did not",)),
    "paused": (paused, "Paused", ("annotation tensor-fusion.ai/autoscaling-paused, until 2031-05-01 08:00:00 UTC",)),
    "HPA": (elsewhere, "Elsewhere", ("HorizontalPodAutoscaler", "by-cpu", "leave tensor-fusion.ai/auto-replicas off")),
    "bound": (bound, "BoundLim", ("25 TFLOPs are allowed, see bounds of the profile",)),
    "whole device": (whole_device, "BoundLim", ("the device has 989 TFLOPs; more takes another GPU model",)),
    "capacity short": (
        capacity,
        "CapacityLim",
        ("room for", "unreserved for 2 of its workers", "it grows when others"),
    ),
    "dead band": (dead_band, "Hold", ("it moves when it is more than 90.0% off 20 TFLOPs",)),
    "cooling down": (cooling_down, "Hold", ("CoolingDown", "and rests 2h, until 20")),
    "agent away": (agent_away, "AgentAway", ("connection refused; what it holds stays", "when the agent answers")),
    "config wrong": (
        config_wrong,
        "ConfigInvalid",
        ("auto-limits: 'maybe' is not allowed; allowed: 'true' or 'false'",),
    ),
    "recommend only": (recommend_only, "RecommendOnly", ("the layer is off", "tensor-fusion.ai/auto-limits: 'true'")),
}


@pytest.mark.parametrize("case", WHY)
async def test_describe_alone_tells_why_nothing_is_scaled(town: Town, case: str) -> None:
    prepare, status, phrases = WHY[case]
    await prepare(town)
    text = " ".join(printed(town, "describe", "tfw", "llm").split())
    assert f" Status: {status} " in text
    for phrase in phrases:
        assert phrase in text


async def test_a_settled_workload_is_not_written_and_its_times_stand(town: Town) -> None:
    await town.profile("steady", autoScalingConfig={"initialDelayPeriod": "0s"})
    await town.deploy(workload_profile="steady", **LAYERS)
    await town.run_pass()
    await town.minutes(45)
    before = await town.workload()
    town.here.writes.clear()
    await town.minutes(10)
    assert town.here.writes == []
    after = await town.workload()
    assert after == before, "also the time of the last evaluation"
    generation = after["metadata"]["generation"]
    assert {one["observedGeneration"] for one in conditions(after).values()} == {generation}
    assert after["status"]["observedGeneration"] == generation
    town.start()
    await town.minutes(3)
    again = await town.workload()
    for type_, one in conditions(after).items():
        if conditions(again)[type_]["status"] == one["status"]:
            assert conditions(again)[type_]["lastTransitionTime"] == one["lastTransitionTime"], "also after a restart"


async def test_events_come_after_the_act_and_only_once(town: Town) -> None:
    await bound(town)
    found = {kind: await town.events(kind) for kind in ("TensorFusionWorkload", "Deployment")}
    for events in found.values():
        reasons = [one["reason"] for one in events if one["reportingController"] == "tensor-fusion.ai/autoscaler"]
        assert sorted(reasons) == ["ResourceScaledUp", "ScalingBlocked"]
    town.start()
    town.here.writes.clear()
    await town.minutes(3, tflops=60)
    assert not [one for one in town.here.writes if isinstance(one, Emit)], "nor again after a restart"


async def test_an_event_that_comes_again_is_counted(town: Town) -> None:
    await bound(town)
    emits = [one for one in town.here.writes if isinstance(one, Emit) and one.ref.kind == "TensorFusionWorkload"]
    await town.here.write(emits[0])
    counted = [one for one in await town.events("TensorFusionWorkload") if one["reason"] == emits[0].reason]
    assert [one["series"]["count"] for one in counted] == [2]


async def test_nothing_is_told_of_an_act_that_failed(town: Town) -> None:
    await town.deploy(auto_limits="true")
    await town.run_pass()
    town.here.fails = "Annotate"
    await town.minutes(3, tflops=60)
    found = [one["reason"] for one in await town.events("TensorFusionWorkload")]
    assert "ResourceScaledUp" not in found
    failed = conditions(await town.workload())["LimitsApplied"]
    assert (failed["status"], failed["reason"]) == ("False", "WriteFailed")
    town.here.fails = ""
    await town.minutes(2, tflops=60)
    assert "ResourceScaledUp" in [one["reason"] for one in await town.events("TensorFusionWorkload")]


async def test_every_field_that_is_promised_is_told(town: Town) -> None:
    rule = {"name": "night", "enable": True, "start": "0 0 * * *", "end": "59 23 * * *", "desiredReplicas": 1}
    await town.profile("full", autoScalingConfig={"cronScalingRules": [rule]})
    await town.deploy(workload_profile="full", **LAYERS)
    await town.run_pass()
    await town.minutes(4, tflops=60)
    status = (await town.workload())["status"]
    assert {"requests", "limits"} <= status["recommendation"].keys()
    assert status["recommendedReplicas"] >= 1
    assert (status["workerCount"], status["readyWorkers"]) == (1, 1)
    assert status["activeCronScalingRule"]["name"] == "night"
    told = status["autoscaling"]
    for resource in ("tflops", "vram"):
        assert {"target", "lowerBound", "upperBound", "uncappedTarget", "reason"} <= told[resource].keys()
    assert {"tflops", "vram", "replicas", "status"} <= told["display"].keys()
    assert told["current"]["limits"]["tflops"] == marks((await town.pods("llm"))[0])["tflops-limit"]
    assert (told["applied"], told["effect"], told["activeCronRule"]) == ("1/1", "immediate", "night")
    assert told["samples"] >= 3
    expected = {"selector", "span", "lastEvaluationTime", "lastScaleTime", "nextCronTransition"}
    assert expected <= told.keys()


async def test_a_profile_sums_its_workloads_and_tells_the_gpus_saved(town: Town) -> None:
    await town.profile("shared", qos="high")
    await town.deploy("one", workload_profile="shared", vram_request="40Gi", vram_limit="40Gi")
    await town.deploy("two", workload_profile="shared")
    await town.run_pass()
    await town.minutes(2, name="one")
    profile = await town.request("GET", town.path("workloadprofiles", "shared"))
    status = profile["status"]
    assert (status["workloads"], status["summary"]["current"]["requests"]["vram"]) == (2, "44Gi")
    assert float(status["summary"]["gpusSaved"]) > 0.3, "of 40 GiB a fraction is in use"
    assert status["observedGeneration"] == profile["metadata"]["generation"]


async def test_a_profile_that_nobody_uses_is_judged_too(town: Town) -> None:
    rule = {"name": "odd", "enable": True, "start": "61 0 * * *", "end": "0 9 * * *", "timeZone": "Mars/Olympus"}
    await town.profile("wrong", autoScalingConfig={"cronScalingRules": [rule], "autoSetLimits": {"percentile": "1.5"}})
    await town.run_pass()
    profile = await town.request("GET", town.path("workloadprofiles", "wrong"))
    condition = conditions(profile)["ConfigValid"]
    assert condition["status"] == "False"
    for phrase in ("start: '61 0 * * *'", "timeZone: 'Mars/Olympus'", "percentile: '1.5'", "allowed:"):
        assert phrase in condition["message"]
    assert printed(town, "get", "wp", "wrong").splitlines()[1].split()[-3:-1] == ["0", "False"]
    town.here.writes.clear()
    await town.run_pass()
    assert town.here.writes == [], "told once"


async def test_a_status_of_an_older_shape_is_taken_over(town: Town) -> None:
    await town.deploy(**LAYERS)
    await town.run_pass()
    old = {
        "conditions": [],
        "autoscaling": {"display": {"status": "Old"}, "applied": "9/9", "tflops": {}},
        "phase": "Running",
    }
    path = town.path("tensorfusionworkloads", "llm") + "/status"
    await town.request("PATCH", path, {"status": old})
    await town.minutes(2)
    status = (await town.workload())["status"]
    assert status["autoscaling"]["applied"] == "1/1"
    assert status["phase"] == "Running", "kept by whoever starts the workers"
    assert "RequestsApplied" in conditions(await town.workload())
