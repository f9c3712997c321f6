"""Owners of kinds that nobody told us of, by scripted answers: what is asked, how often, and every way to be refused."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import kmock as scripted
import pytest
import stamina
from kubernetes.aio import client

from autoscaler.errors import ClusterError, ConflictError
from autoscaler.kube.client import KubeClient
from autoscaler.kube.cluster import KubeCluster
from autoscaler.kube.owners import KIND_SECONDS, REFRESH_SECONDS, OtherOwners
from autoscaler.model.steps import Own, Scale
from autoscaler.model.workload import ClusterView, Manifest, ObjectRef

# Only what a test scripts is answered: nothing is emulated.
pytestmark = pytest.mark.kmock(cls=scripted.RawHandler)

API = "/apis/argoproj.io/v1alpha1"
ROLLOUT = f"{API}/namespaces/lab/rollouts/chat"
SCALE = f"{ROLLOUT}/scale"
REF = ObjectRef("argoproj.io/v1alpha1", "Rollout", "lab", "chat", "uid-r", "7")
TFW = "/apis/tensor-fusion.ai/v1/namespaces/lab/tensorfusionworkloads/chat"


@dataclass
class Watch:
    at: float = 100.0

    def __call__(self) -> float:
        return self.at

    def now(self) -> float:
        return self.at


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    with stamina.set_testing(True, attempts=2, cap=True):
        yield


@pytest.fixture
async def kube(kmock: Any) -> AsyncIterator[KubeClient]:
    made = KubeClient(client.ApiClient(client.Configuration(host=str(kmock.url).rstrip("/"))), 5.0)
    yield made
    await made.close()


@pytest.fixture
def clock() -> Watch:
    return Watch()


@pytest.fixture
def owners(kube: KubeClient, clock: Watch) -> OtherOwners:
    return OtherOwners(kube, clock)


def answer(payload: Any = None, status: int = 200) -> scripted.Response:
    return scripted.Response(status=status, payload=payload or {})


def refused(status: int) -> scripted.Response:
    return answer({"message": "the server says why"}, status)


def reference(api_version: str, kind: str, name: str, uid: str) -> list[dict[str, Any]]:
    return [{"apiVersion": api_version, "kind": kind, "name": name, "uid": uid, "controller": True}]


def item(kind: str, name: str, uid: str, owned: list[dict[str, Any]]) -> Manifest:
    metadata = {"name": name, "namespace": "lab", "uid": uid, "resourceVersion": "1", "ownerReferences": owned}
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata}


VIEW = ClusterView(
    pods=(item("Pod", "chat-0", "uid-p", reference("apps/v1", "ReplicaSet", "chat-7f", "uid-s")),),
    owners=(item("ReplicaSet", "chat-7f", "uid-s", reference("argoproj.io/v1alpha1", "Rollout", "chat", "uid-r")),),
)
RESOURCES = {
    "resources": [
        {"name": "rollouts", "kind": "Rollout", "namespaced": True},
        {"name": "rollouts/scale", "kind": "Scale", "namespaced": True},
    ]
}
OBJECT: dict[str, Any] = {
    "metadata": {"name": "chat", "namespace": "lab", "uid": "uid-r", "resourceVersion": "7", "managedFields": [1]},
    "spec": {"template": {"metadata": {"labels": {"a": "b"}}, "spec": {"volumes": [1], "containers": [{"name": "m"}]}}},
    "status": {"updatedReplicas": 2, "canary": {"weights": 1}},
}


def serve(kmock: Any, **answers: scripted.Response) -> None:
    kmock["get", API] << answers.get("kinds", answer(RESOURCES))
    kmock["get", ROLLOUT] << answers.get("rollout", answer(OBJECT))
    kmock["get", SCALE] << answers.get("scale", answer({"spec": {"replicas": 4}, "status": {"replicas": 3}}))


async def added(owners: OtherOwners, view: ClusterView = VIEW) -> Manifest:
    after = await owners.beside(view)
    (one,) = after.owners[len(view.owners) :]
    return one


async def test_the_owner_is_read_with_its_scale_and_without_what_nobody_reads(kmock: Any, owners: OtherOwners) -> None:
    serve(kmock)

    found = await added(owners)

    assert (found["apiVersion"], found["kind"], found["metadata"]["uid"]) == (
        "argoproj.io/v1alpha1",
        "Rollout",
        "uid-r",
    )
    assert found["scale"] == {"spec": {"replicas": 4}, "status": {"replicas": 3}}
    assert found["spec"]["template"] == {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "m"}]}}
    assert found["status"] == {"updatedReplicas": 2}
    assert "managedFields" not in found["metadata"]
    assert owners.path(REF, "scale") == SCALE


async def test_a_view_without_such_owners_is_asked_for_nothing_and_stays_the_same(owners: OtherOwners) -> None:
    pods = (
        item("Pod", "bare", "uid-1", []),
        item("Pod", "gone", "uid-2", reference("apps/v1", "ReplicaSet", "gone", "uid-g")),
        item("Pod", "worker", "uid-3", reference("tensor-fusion.ai/v1", "TensorFusionWorkload", "chat", "uid-w")),
        item("Pod", "static", "uid-4", reference("v1", "Node", "node-1", "uid-n")),
    )
    view = ClusterView(pods=pods)
    assert await owners.beside(view) is view


async def test_what_is_fresh_is_not_asked_for_again_and_an_unchanged_one_not_for_its_scale(
    kmock: Any, owners: OtherOwners, clock: Watch
) -> None:
    serve(kmock)
    first = await added(owners)
    assert await added(owners) is first
    assert len(kmock["get", ROLLOUT]) == 1

    clock.at += REFRESH_SECONDS
    assert await added(owners) is first
    owners.forget(REF)
    assert await added(owners) == first

    assert (len(kmock["get", API]), len(kmock["get", ROLLOUT]), len(kmock["get", SCALE])) == (1, 3, 2)


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ({"kinds": refused(404)}, "is of an API that is not served here (argoproj.io/v1alpha1)"),
        ({"kinds": answer({"resources": []})}, "is of a kind that argoproj.io/v1alpha1 does not serve"),
        ({"kinds": refused(403)}, "can't be read: the API server answered 403: the server says why"),
        ({"rollout": refused(403)}, "can't be read: the API server answered 403: the server says why"),
        ({"rollout": refused(404)}, "can't be read: the API server answered 404: the server says why"),
        ({"rollout": answer({**OBJECT, "metadata": {"name": "chat", "uid": "other"}})}, "was replaced by another one"),
        ({"scale": refused(403)}, "has a scale subresource that can't be read: the API server answered 403"),
        ({"scale": refused(500)}, "has a scale subresource that can't be read: the API server answered 500"),
        ({"kinds": answer({"resources": RESOURCES["resources"][:1]})}, "has no scale subresource"),
    ],
)
async def test_what_can_not_be_had_stands_there_with_the_reason(
    kmock: Any, owners: OtherOwners, answers: dict[str, scripted.Response], why: str
) -> None:
    serve(kmock, **answers)

    found = await added(owners)

    assert found["metadata"]["name"] == "chat"
    assert "scale" not in found
    assert str(found["unscalable"]).startswith(why)


async def test_a_scale_that_never_answers_well_is_asked_once_a_look(kmock: Any, owners: OtherOwners) -> None:
    serve(kmock, scale=refused(500))
    await added(owners)
    assert len(kmock["get", SCALE]) == 1


async def test_a_server_that_is_away_leaves_what_was_last_known(unused_tcp_port: int, clock: Watch) -> None:
    nobody = KubeClient(client.ApiClient(client.Configuration(host=f"http://127.0.0.1:{unused_tcp_port}")), 1.0)
    found = await added(OtherOwners(nobody, clock))
    await nobody.close()
    assert str(found["unscalable"]).startswith("is away: ")


async def test_a_kind_that_was_not_served_is_looked_for_again_after_a_while(
    kmock: Any, owners: OtherOwners, clock: Watch
) -> None:
    serve(kmock, kinds=refused(404))
    await added(owners)
    clock.at += KIND_SECONDS
    await added(owners)
    assert len(kmock["get", API]) == 2


async def test_an_owner_above_the_owner_is_followed_to_the_top(kmock: Any, owners: OtherOwners) -> None:
    above = {
        **OBJECT,
        "metadata": {**OBJECT["metadata"], "ownerReferences": reference("x.io/v1", "App", "all", "uid-a")},
    }
    serve(kmock, rollout=answer(above))
    kmock["get", "/apis/x.io/v1"] << answer({"resources": [{"name": "apps", "kind": "App", "namespaced": True}]})
    kmock["get", "/apis/x.io/v1/namespaces/lab/apps/all"] << answer({"metadata": {"name": "all", "uid": "uid-a"}})

    after = await owners.beside(VIEW)

    assert [one["kind"] for one in after.owners] == ["ReplicaSet", "Rollout", "App"]


# Writing


@pytest.fixture
def cluster(kube: KubeClient) -> KubeCluster:
    return KubeCluster(kube, Watch())


async def test_it_is_scaled_through_its_scale_under_the_version_that_was_looked_at(
    kmock: Any, cluster: KubeCluster
) -> None:
    scale = {"metadata": {"uid": "uid-r", "resourceVersion": "9"}, "spec": {"replicas": 4}}
    serve(kmock, scale=answer(scale))
    kmock["patch", SCALE] << answer({**scale, "spec": {"replicas": 5}})
    await cluster._owners.beside(VIEW)

    await cluster.write(Scale(REF, 5))

    (request,) = kmock["patch", SCALE]
    assert request.data == {"metadata": {"resourceVersion": "9"}, "spec": {"replicas": 5}}


async def test_one_that_was_replaced_is_not_scaled(kmock: Any, cluster: KubeCluster) -> None:
    serve(kmock, scale=answer({"metadata": {"uid": "other", "resourceVersion": "9"}, "spec": {"replicas": 4}}))
    await cluster._owners.beside(VIEW)
    with pytest.raises(ConflictError, match="replaced"):
        await cluster.write(Scale(REF, 5))
    assert len(kmock["patch", SCALE]) == 0


async def test_owners_are_put_on_record_in_the_version_that_was_read(kmock: Any, cluster: KubeCluster) -> None:
    workload = ObjectRef("tensor-fusion.ai/v1", "TensorFusionWorkload", "lab", "chat", "uid-w", "5")
    kmock["patch", TFW] << answer({"metadata": {"resourceVersion": "6"}})

    await cluster.write(Own(workload, (REF,)))

    (request,) = kmock["patch", TFW]
    owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": "chat", "uid": "uid-r"}
    assert request.data == {"metadata": {"uid": "uid-w", "resourceVersion": "5", "ownerReferences": [owner]}}


@pytest.mark.parametrize(("status", "error"), [(409, ConflictError), (403, ClusterError)])
async def test_a_record_that_changed_is_a_conflict_and_one_that_is_refused_is_not(
    kmock: Any, cluster: KubeCluster, status: int, error: type[Exception]
) -> None:
    kmock["patch", TFW] << refused(status)
    workload = ObjectRef("tensor-fusion.ai/v1", "TensorFusionWorkload", "lab", "chat", "uid-w", "5")
    with pytest.raises(error) as caught:
        await cluster.write(Own(workload, (REF,)))
    assert isinstance(caught.value, ConflictError) is (status == 409)
