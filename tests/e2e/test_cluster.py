"""The Cluster port on a real API server: built-in objects, pages, rights, and what discovery makes of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from autoscaler.contract import keys
from autoscaler.errors import ClusterError, ConflictError
from autoscaler.kube.client import KubeClient
from autoscaler.kube.cluster import KubeCluster
from autoscaler.model.crd import render_crds
from autoscaler.model.steps import Annotate, Scale, WriteStatus
from autoscaler.model.workload import ref_of
from autoscaler.read.discovery import discover
from autoscaler.read.generate import new_workload
from tests.e2e.apiserver import ApiServer, api_server, missing_own_reason

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing_own_reason()), reason=missing_own_reason() or "a server can be started"),
]
ANNOTATIONS = {
    keys.TFLOPS_REQUEST: "10",
    keys.TFLOPS_LIMIT: "20",
    keys.VRAM_LIMIT: "8Gi",
    keys.WORKLOAD_PROFILE: "small",
}

REFUSED = {
    "type": "ConfigValid",
    "status": "True",
    "reason": "no spaces here",
    "message": "",
    "lastTransitionTime": "2026-01-01T00:00:00Z",
}


@dataclass
class FixedClock:
    def now(self) -> float:
        return 1_800_000_000.0


def manifests() -> list[dict[str, Any]]:
    template = {
        "metadata": {"labels": {"app": "chat", keys.ENABLED: "true"}, "annotations": ANNOTATIONS},
        "spec": {"containers": [{"name": "python", "image": "python:3"}]},
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "chat", "namespace": "default"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "chat"}}, "template": template},
    }
    profile = {
        "apiVersion": "tensor-fusion.ai/v1",
        "kind": "WorkloadProfile",
        "metadata": {"name": "small", "namespace": "default"},
        "spec": {"qos": "high", "autoScalingConfig": {"autoSetLimits": {"enable": True}}},
    }
    return [deployment, profile]


def pod(name: str, uid: str) -> dict[str, Any]:
    owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat", "uid": uid, "controller": True}
    metadata = {"name": name, "namespace": "default", "labels": {keys.ENABLED: "true"}, "annotations": ANNOTATIONS}
    spec = {"nodeName": "node-1", "containers": [{"name": "python", "image": "python:3"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata | {"ownerReferences": [owner]}, "spec": spec}


def apply(server: ApiServer, *documents: dict[str, Any]) -> None:
    applied = server.run("apply", "-f", "-", stdin="\n---\n".join(json.dumps(document) for document in documents))
    assert applied.returncode == 0, applied.stderr


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with api_server(tmp_path_factory.mktemp("apiserver")) as running:
        apply(running, *(json_of(text) for text in render_crds().values()))
        established = running.run("wait", "--for=condition=Established", "crd", "--all", "--timeout=240s")
        assert established.returncode == 0, established.stderr
        apply(running, *manifests())
        uid = running.run("get", "deployment", "chat", "-o", "jsonpath={.metadata.uid}").stdout
        apply(running, *(pod(f"chat-{number}", uid) for number in range(5)))
        yield running


def json_of(text: str) -> dict[str, Any]:
    import yaml

    return dict(yaml.safe_load(text))


@pytest.fixture
async def cluster(server: ApiServer) -> AsyncIterator[KubeCluster]:
    # Pages of two, so that a list of five pods takes three requests.
    made = KubeCluster(await KubeClient.connect(server.kubeconfig, page=2), FixedClock())
    yield made
    await made.close()


async def test_lists_longer_than_a_page_are_read_whole_and_each_pod_once(cluster: KubeCluster) -> None:
    view = await cluster.read()

    assert sorted(item["metadata"]["name"] for item in view.pods) == [f"chat-{number}" for number in range(5)]
    assert {(item["apiVersion"], item["kind"]) for item in view.pods} == {("v1", "Pod")}
    assert [item["metadata"]["name"] for item in view.profiles] == ["small"]
    assert [item["kind"] for item in view.owners] == ["Deployment"]


async def test_what_is_discovered_can_be_created_annotated_reported_and_scaled(cluster: KubeCluster) -> None:
    (missing,) = discover(await cluster.read(), {}).workloads
    assert (missing.exists, len(missing.workers), missing.replicas) == (False, 5, 2)
    creation = new_workload(missing)
    assert creation is not None
    await cluster.write(creation)

    (workload,) = discover(await cluster.read(), {}).workloads
    assert workload.exists
    assert workload.problems == ()
    assert new_workload(workload) is None
    for worker in workload.workers:
        await cluster.write(Annotate(worker.ref, {keys.TFLOPS_LIMIT: "25"}))
    await cluster.write(WriteStatus(workload.ref, {"workerCount": 5, "readyWorkers": 0}))
    await cluster.write(Scale(workload.owners[0], 3))
    await cluster.write(Scale(workload.ref, 3))

    (after,) = discover(await cluster.read(), {}).workloads
    assert {worker.current.compute.limit for worker in after.workers} == {25.0}
    assert after.original.compute.limit == 20.0
    assert after.status["workerCount"] == 5
    assert after.replicas == 3
    (deployment,) = [item for item in (await cluster.read()).owners if item["kind"] == "Deployment"]
    assert deployment["spec"]["replicas"] == 3
    assert deployment["spec"]["template"]["metadata"]["annotations"] == ANNOTATIONS


async def test_a_pod_that_was_replaced_by_a_namesake_is_not_annotated(cluster: KubeCluster) -> None:
    ref = ref_of((await cluster.read()).pods[0])

    with pytest.raises(ConflictError):
        await cluster.write(Annotate(replace(ref, uid="00000000-0000-0000-0000-000000000000"), {"a": "b"}))


async def test_a_status_that_the_schema_refuses_is_the_clusters_error_and_no_conflict(cluster: KubeCluster) -> None:
    (workload,) = (await cluster.read()).workloads

    with pytest.raises(ClusterError, match="422") as caught:
        await cluster.write(WriteStatus(ref_of(workload), {"conditions": [REFUSED]}))
    assert not isinstance(caught.value, ConflictError)


async def test_a_token_that_nobody_knows_is_an_error_never_an_empty_cluster(server: ApiServer, tmp_path: Path) -> None:
    kubeconfig = json.loads(server.kubeconfig.read_text())
    kubeconfig["users"][0]["user"]["token"] = "nobody"
    (tmp_path / "kubeconfig").write_text(json.dumps(kubeconfig))
    cluster = await KubeCluster.connect(tmp_path / "kubeconfig", FixedClock())

    with pytest.raises(ClusterError, match="401"):
        await cluster.read()
    await cluster.close()
