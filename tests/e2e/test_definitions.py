"""Definitions that know less than ours, that are upgraded, and that go: on a server of its own, as others share them."""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import yaml

from autoscaler.kube.client import KubeClient
from autoscaler.model.crd import render_crds
from autoscaler.model.steps import WriteStatus
from tests.e2e.apiserver import ApiServer, api_server, is_existing, missing_manager_reason
from tests.e2e.town import Town, conditions, marks, until

_REASON = missing_manager_reason() or (
    "definitions of a cluster that others use stay as they are" if is_existing() else ""
)
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(_REASON), reason=_REASON or "a server can be started"),
]
KEPT = {"phase", "conditions", "workerCount", "readyWorkers", "podTemplateHash", "recommendation"}
KEPT |= {"appliedRecommendedReplicas", "activeCronScalingRule", "gang"}
"""What TensorFusion's own definition has in a workload's status; a profile's is empty."""
LAYERS = {"auto_limits": "true", "auto_requests": "true"}
THEIRS = {
    "type": "ResourceUpdate",
    "status": "True",
    "reason": "Updated",
    "message": "by somebody else",
    "lastTransitionTime": "2026-01-01T00:00:00Z",
}


def whole() -> list[dict[str, Any]]:
    return [yaml.safe_load(text) for text in render_crds().values()]


def smaller() -> list[dict[str, Any]]:
    """Return definitions that hold what TensorFusion's do: less of a status, and conditions as a plain list."""
    found = copy.deepcopy(whole())
    for one in found:
        version = one["spec"]["versions"][0]
        status = version["schema"]["openAPIV3Schema"]["properties"]["status"]
        is_profile = one["spec"]["names"]["kind"] == "WorkloadProfile"
        kept = set() if is_profile else KEPT
        status["properties"] = {key: value for key, value in status["properties"].items() if key in kept}
        for key in ("x-kubernetes-list-type", "x-kubernetes-list-map-keys"):
            status["properties"].get("conditions", {}).pop(key, None)
        version["subresources"].pop("scale", None)
        version["additionalPrinterColumns"] = []
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with api_server(tmp_path_factory.mktemp("definitions"), manager=True) as running:
        yield running


def install(server: ApiServer, definitions: list[dict[str, Any]]) -> None:
    for one in definitions:
        applied = server.run("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(one))
        assert applied.returncode == 0, applied.stderr
        name = f"crd/{one['metadata']['name']}"
        assert server.run("wait", "--for=condition=Established", name, "--timeout=240s").returncode == 0


@pytest.fixture
async def town(server: ApiServer, request: pytest.FixtureRequest) -> AsyncIterator[Town]:
    install(server, smaller())
    namespace = f"of-{request.node.name[5:40].strip('_').replace('_', '-')}"
    assert server.run("create", "namespace", namespace).returncode == 0
    made = Town(server, namespace, await KubeClient.connect(server.kubeconfig))
    await made.add_node()
    yield made
    await made.close()


def statuses(town: Town) -> list[WriteStatus]:
    return [one for one in town.here.writes if isinstance(one, WriteStatus)]


async def test_a_smaller_definition_gets_what_it_can_hold_and_is_not_written_for_ever(town: Town) -> None:
    await town.profile("steady", autoScalingConfig={"initialDelayPeriod": "0s"})
    await town.deploy(workload_profile="steady", **LAYERS)
    await town.run_pass()
    path = town.path("tensorfusionworkloads", "llm")
    known = (await town.workload()).get("status") or {}
    theirs = {"phase": "Running", "workerCount": 7, "conditions": [*known.get("conditions", ()), THEIRS]}
    await town.request("PATCH", f"{path}/status", {"status": theirs})
    await town.minutes(45, tflops=60)
    workload = await town.workload()
    assert workload["status"].keys() <= KEPT
    assert conditions(workload)["LimitsApplied"]["status"] == "True"
    assert conditions(workload)["LimitsApplied"]["observedGeneration"] == workload["metadata"]["generation"]
    limit = workload["status"]["recommendation"]["limits"]["tflops"]
    assert limit == marks((await town.pods("llm"))[0])["tflops-limit"]
    assert (workload["status"]["phase"], workload["status"]["workerCount"]) == ("Running", 7), (
        "whoever starts them counts"
    )
    assert conditions(workload)["ResourceUpdate"]["message"] == "by somebody else"
    town.here.writes.clear()
    await town.minutes(10, tflops=60)
    assert statuses(town) == []
    town.start()
    await town.minutes(3, tflops=60)
    town.here.writes.clear()
    await town.minutes(5, tflops=60)
    assert statuses(town) == [], "nor after a restart"


async def test_an_upgrade_of_the_definitions_keeps_what_is_stored_and_fills_what_is_new(town: Town) -> None:
    await town.profile("old", qos="low")
    await town.deploy(workload_profile="old", **LAYERS)
    await town.run_pass()
    await town.minutes(3, tflops=60)
    before = await town.workload()
    install(town.server, whole())

    async def filled() -> bool | None:
        town.start()
        await town.minutes(1, tflops=60)
        return "autoscaling" in (await town.workload())["status"] or None

    await until("the new fields are told", filled)
    after = await town.workload()
    assert after["spec"] == before["spec"]
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    for type_, one in conditions(before).items():
        if conditions(after)[type_]["status"] == one["status"]:
            assert conditions(after)[type_]["lastTransitionTime"] == one["lastTransitionTime"]
    profile = await town.request("GET", town.path("workloadprofiles", "old"))
    assert profile["status"]["workloads"] == 1


async def test_uninstalling_leaves_workloads_as_they_are(town: Town) -> None:
    install(town.server, whole())
    await town.deploy(**LAYERS)
    await town.run_pass()
    await town.minutes(3, tflops=60)
    (before,) = await town.pods("llm")
    assert float(marks(before)["tflops-limit"]) > 20
    template = (await town.request("GET", town.path("deployments", "llm", "/apis/apps/v1")))["spec"]
    names = [f"crd/{one['metadata']['name']}" for one in whole()]
    assert town.server.run("delete", *names, "--timeout=120s").returncode == 0
    (after,) = await town.pods("llm")
    assert (after["metadata"]["uid"], marks(after)) == (before["metadata"]["uid"], marks(before))
    assert after["status"]["phase"] == "Running"
    assert (await town.request("GET", town.path("deployments", "llm", "/apis/apps/v1")))["spec"] == template
