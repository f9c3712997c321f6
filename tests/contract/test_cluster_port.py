"""What every implementation of the Cluster port does alike: a folder, and a real API server, listed or followed."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoscaler.errors import ClusterError, ConflictError
from autoscaler.gateways.folder import FolderCluster
from autoscaler.kube.client import KubeClient
from autoscaler.kube.cluster import KubeCluster
from autoscaler.kube.listing import list_whole
from autoscaler.kube.patience import Patience
from autoscaler.model.crd import render_crds
from autoscaler.model.steps import Annotate, CreateObject, Emit, Scale, WriteStatus
from autoscaler.model.workload import ObjectRef, ref_of
from autoscaler.ports import Cluster
from tests.e2e.apiserver import ApiServer, api_server, missing_own_reason

GROUP = "tensor-fusion.ai"
names = (f"case-{number}" for number in itertools.count())


@dataclass
class FixedClock:
    at: float = 1_800_000_000.0

    def now(self) -> float:
        return self.at


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    if missing_own_reason():
        pytest.skip(missing_own_reason())
    with api_server(tmp_path_factory.mktemp("apiserver")) as running:
        for text in render_crds().values():
            applied = running.run("apply", "-f", "-", stdin=text)
            assert applied.returncode == 0, applied.stderr
        established = running.run("wait", "--for=condition=Established", "crd", "--all", "--timeout=240s")
        assert established.returncode == 0, established.stderr
        yield running


@pytest.fixture(params=["folder", "server", "followed"])
async def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cluster]:
    made: Cluster
    if request.param == "folder":
        made = FolderCluster(tmp_path, FixedClock())
    else:
        patience = Patience() if request.param == "followed" else None
        kube = await KubeClient.connect(request.getfixturevalue("server").kubeconfig)
        made = KubeCluster(kube, FixedClock(), patience)
    yield made
    await made.close()


async def events_about(cluster: Cluster, ref: ObjectRef, folder: Path) -> list[dict[str, Any]]:
    if isinstance(cluster, FolderCluster):
        return list(yaml.safe_load_all((folder / "events.yaml").read_text()))
    assert isinstance(cluster, KubeCluster)
    path = "/apis/events.k8s.io/v1/namespaces/default/events"
    items = (await list_whole(cluster._client, path, {}, dict)).items
    return sorted((item for item in items if item["regarding"]["name"] == ref.name), key=lambda item: str(item["note"]))


def workload(name: str) -> dict[str, Any]:
    return {
        "apiVersion": f"{GROUP}/v1",
        "kind": "TensorFusionWorkload",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"replicas": 1, "resources": {"requests": {"tflops": "10", "vram": "4Gi"}}},
    }


async def read_back(cluster: Cluster, name: str) -> tuple[dict[str, Any], ObjectRef]:
    view = await cluster.read()
    (found,) = [item for item in view.workloads if item["metadata"]["name"] == name]
    return dict(found), ref_of(found)


async def test_a_created_object_is_read_back_with_the_metadata_of_a_server(cluster: Cluster) -> None:
    name = next(names)
    await cluster.write(CreateObject(workload(name)))

    found, ref = await read_back(cluster, name)

    assert found["spec"]["resources"]["requests"] == {"tflops": "10", "vram": "4Gi"}
    assert ref.uid
    assert ref.resource_version
    assert found["metadata"]["generation"] == 1
    assert found["metadata"]["creationTimestamp"]


async def test_creating_what_exists_is_a_conflict(cluster: Cluster) -> None:
    name = next(names)
    await cluster.write(CreateObject(workload(name)))

    with pytest.raises(ConflictError):
        await cluster.write(CreateObject(workload(name)))


async def test_annotations_are_merged_and_none_removes_one(cluster: Cluster) -> None:
    name = next(names)
    await cluster.write(CreateObject(workload(name)))
    _, ref = await read_back(cluster, name)
    await cluster.write(Annotate(ref, {"example.com/kept": "1", "example.com/gone": "2"}))

    await cluster.write(Annotate(ref, {"example.com/gone": None, "example.com/new": "3"}))

    found, _ = await read_back(cluster, name)
    assert found["metadata"]["annotations"] == {"example.com/kept": "1", "example.com/new": "3"}


async def test_a_change_of_annotations_raises_the_version_but_not_the_generation(cluster: Cluster) -> None:
    name = next(names)
    await cluster.write(CreateObject(workload(name)))
    before, ref = await read_back(cluster, name)

    await cluster.write(Annotate(ref, {"example.com/key": "1"}))

    after, new_ref = await read_back(cluster, name)
    assert int(new_ref.resource_version) > int(ref.resource_version)
    assert after["metadata"]["generation"] == before["metadata"]["generation"]


async def test_a_write_that_changes_nothing_keeps_the_version(cluster: Cluster) -> None:
    name = next(names)
    await cluster.write(CreateObject(workload(name)))
    _, ref = await read_back(cluster, name)
    await cluster.write(Annotate(ref, {"example.com/key": "1"}))
    await cluster.write(WriteStatus(ref, {"workerCount": 2}))
    _, before = await read_back(cluster, name)

    await cluster.write(Annotate(ref, {"example.com/key": "1", "example.com/absent": None}))
    await cluster.write(WriteStatus(ref, {"workerCount": 2}))

    _, after = await read_back(cluster, name)
    assert after.resource_version == before.resource_version


async def test_a_status_is_replaced_as_a_whole_and_the_spec_stays(cluster: Cluster) -> None:
    name = next(names)
    await cluster.write(CreateObject(workload(name)))
    before, ref = await read_back(cluster, name)
    await cluster.write(WriteStatus(ref, {"workerCount": 1, "readyWorkers": 1}))

    await cluster.write(WriteStatus(ref, {"workerCount": 2}))

    after, _ = await read_back(cluster, name)
    assert after["status"] == {"workerCount": 2}
    assert after["spec"] == before["spec"]
    assert after["metadata"]["generation"] == before["metadata"]["generation"]


async def test_a_status_is_written_though_something_else_of_the_object_changed_meanwhile(cluster: Cluster) -> None:
    name = next(names)
    await cluster.write(CreateObject(workload(name)))
    _, ref = await read_back(cluster, name)
    await cluster.write(Annotate(ref, {"example.com/key": "1"}))

    await cluster.write(WriteStatus(ref, {"workerCount": 2}))

    after, _ = await read_back(cluster, name)
    assert after["status"] == {"workerCount": 2}
    assert after["metadata"]["annotations"] == {"example.com/key": "1"}


async def test_scaling_sets_replicas_and_raises_the_generation(cluster: Cluster) -> None:
    name = next(names)
    await cluster.write(CreateObject(workload(name)))
    before, ref = await read_back(cluster, name)

    await cluster.write(Scale(ref, 3))

    after, _ = await read_back(cluster, name)
    assert after["spec"]["replicas"] == 3
    assert after["metadata"]["generation"] == before["metadata"]["generation"] + 1


@pytest.mark.parametrize("write", ["annotate", "status", "scale"])
async def test_a_write_to_an_object_of_another_uid_is_a_conflict_and_changes_nothing(
    cluster: Cluster, write: str
) -> None:
    name = next(names)
    await cluster.write(CreateObject(workload(name)))
    before, ref = await read_back(cluster, name)
    other = replace(ref, uid="00000000-0000-0000-0000-000000000000", resource_version="1")
    attempts = {
        "annotate": Annotate(other, {"example.com/key": "1"}),
        "status": WriteStatus(other, {"workerCount": 9}),
        "scale": Scale(other, 9),
    }

    with pytest.raises(ConflictError):
        await cluster.write(attempts[write])

    after, _ = await read_back(cluster, name)
    assert after == before


@pytest.mark.parametrize("write", ["annotate", "status", "scale"])
async def test_a_write_to_an_object_that_is_gone_is_a_conflict(cluster: Cluster, write: str) -> None:
    ref = ObjectRef(f"{GROUP}/v1", "TensorFusionWorkload", "default", next(names), uid="1")
    attempts = {
        "annotate": Annotate(ref, {"example.com/key": "1"}),
        "status": WriteStatus(ref, {"workerCount": 9}),
        "scale": Scale(ref, 9),
    }

    with pytest.raises(ConflictError):
        await cluster.write(attempts[write])


async def test_a_negative_count_of_replicas_is_refused(cluster: Cluster) -> None:
    name = next(names)
    await cluster.write(CreateObject(workload(name)))
    _, ref = await read_back(cluster, name)

    with pytest.raises(ClusterError):
        await cluster.write(Scale(ref, -1))


async def test_an_event_that_repeats_is_counted_up_not_listed_twice(cluster: Cluster, tmp_path: Path) -> None:
    name = next(names)
    await cluster.write(CreateObject(workload(name)))
    _, ref = await read_back(cluster, name)

    for message in ("10 -> 12", "10 -> 12", "12 -> 14"):
        await cluster.write(Emit(ref, "ResourceScaledUp", message))

    events = await events_about(cluster, ref, tmp_path)
    assert [(event["note"], event.get("series", {}).get("count", 1)) for event in events] == [
        ("10 -> 12", 2),
        ("12 -> 14", 1),
    ]
    assert all(event["regarding"]["uid"] == ref.uid and event["type"] == "Normal" for event in events)
