"""What is around a pod that is born: from watches, an owner younger than them by name, and nothing while all is silent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import kmock as scripted
import pytest
import stamina
from kubernetes.aio import client

from autoscaler.admission.lookup import WatchedLookup
from autoscaler.admission.pods import Place, Surroundings, pod_of
from autoscaler.admission.review import Review
from autoscaler.contract import keys
from autoscaler.kube.client import KubeClient
from autoscaler.kube.patience import Patience
from autoscaler.model.usage import WorkloadKey
from tests.autoscaler.admission_cases import ON, OWN, pod

# Only what a test scripts is answered: nothing is emulated.
pytestmark = pytest.mark.kmock(cls=scripted.RawHandler)

WORKLOADS = "/apis/tensor-fusion.ai/v1/tensorfusionworkloads"
PROFILES = "/apis/tensor-fusion.ai/v1/workloadprofiles"
REPLICA_SETS = "/apis/apps/v1/replicasets"
REPLICA_SET = "/apis/apps/v1/namespaces/prod/replicasets/chat-5d8f7b6c9d"
DEPLOYMENTS = "/apis/apps/v1/deployments"
PODS = "/api/v1/pods"
QUICK = Patience(first_retry_seconds=0.002, longest_retry_seconds=0.02, stale_seconds=60.0)
CHAT = Place(WorkloadKey("prod", "chat"), "Deployment prod/chat")


def item(name: str, uid: str = "", above: tuple[str, str, str] | None = None, **more: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "namespace": "prod", "uid": uid or f"{name}-uid", "resourceVersion": "7"}
    if above is not None:
        kind, owner, owner_uid = above
        metadata["ownerReferences"] = [
            {"apiVersion": "apps/v1", "kind": kind, "name": owner, "uid": owner_uid, "controller": True}
        ]
    return {"metadata": {**metadata, **more.pop("metadata", {})}, **more}


DEPLOYMENT = item("chat", "d-uid")
REPLICAS = item("chat-5d8f7b6c9d", "rs-uid", ("Deployment", "chat", "d-uid"))


async def living() -> AsyncIterator[bytes]:
    while True:
        yield b"\n"
        await asyncio.sleep(0.02)


def collection(*items: dict[str, Any]) -> Callable[[scripted.Request], scripted.Response]:
    """Answer lists with these, and watches with nothing, for ever."""

    def answer(request: scripted.Request) -> scripted.Response:
        if request.params.get("watch") == "true":
            return scripted.Response(status=200, payload=living())
        return scripted.Response(status=200, payload={"metadata": {"resourceVersion": "10"}, "items": list(items)})

    return answer


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    with stamina.set_testing(True, attempts=2, cap=True):
        yield


@pytest.fixture
async def lookups(kmock: Any) -> AsyncIterator[Callable[..., Any]]:
    """Return a lookup that follows what is scripted; all that is not scripted is empty and quiet."""
    kmock["get"] << collection()
    configuration = client.Configuration(host=str(kmock.url).rstrip("/"))
    made: list[WatchedLookup] = []
    clients = [KubeClient(client.ApiClient(configuration), 5.0), KubeClient(client.ApiClient(configuration), 1.0)]

    async def following(*, ready: bool = True, **scripts: Any) -> WatchedLookup:
        for path, answer in scripts.get("paths", {}).items():
            kmock["get", path] ** 1 << answer
        lookup = WatchedLookup(*clients, QUICK)
        made.append(lookup)
        lookup.follow()
        deadline = time.monotonic() + 20.0
        while ready and lookup.lack():
            assert time.monotonic() < deadline, lookup.lack()
            await asyncio.sleep(0.005)
        return lookup

    yield following
    for lookup in made:
        await lookup.close()
    for one in clients:
        await one.close()


def read(manifest: dict[str, Any]) -> Any:
    return pod_of(Review("u", "CREATE", "prod", "", manifest))


async def test_everything_is_found_by_the_pods_owner_and_its_annotations(lookups: Any) -> None:
    workload, profile = item("chat", status={"workerCount": 1}), item("small", spec={"qos": "high"})
    lookup = await lookups(
        paths={
            DEPLOYMENTS: collection(DEPLOYMENT),
            REPLICA_SETS: collection(REPLICAS),
            WORKLOADS: collection(workload, item("other")),
            PROFILES: collection(profile),
        }
    )
    around = await lookup.around(read(pod(OWN | ON | {keys.WORKLOAD_PROFILE: "small"})))
    assert (around.place, around.complete, around.has_workers) == (CHAT, True, False)
    assert around.workload is not None
    assert around.profile is not None
    assert (around.workload["metadata"]["uid"], around.profile["spec"]) == ("chat-uid", {"qos": "high"})


async def test_an_owner_that_is_younger_than_its_watch_is_asked_for_once_for_all_its_pods(
    kmock: Any, lookups: Any
) -> None:
    asked = []

    def named(request: scripted.Request) -> scripted.Response:
        asked.append(request)
        return scripted.Response(status=200, payload=REPLICAS)

    lookup = await lookups(paths={DEPLOYMENTS: collection(DEPLOYMENT), REPLICA_SET: named})
    found = await asyncio.gather(*(lookup.around(read(pod())) for _ in range(50)))
    assert {around.place for around in found} == {CHAT}
    assert all(around.complete for around in found)
    assert len(asked) == 1


@pytest.mark.parametrize(
    "answer",
    [
        scripted.Response(status=404, payload={"message": "not found"}),
        scripted.Response(status=403, payload={"message": "not allowed"}),
        scripted.Response(status=200, payload=item("chat-5d8f7b6c9d", "another-uid")),
    ],
)
async def test_without_its_owner_a_pod_is_judged_alone_and_nothing_is_known_of_its_workload(
    lookups: Any, answer: scripted.Response
) -> None:
    lookup = await lookups(paths={REPLICA_SET: answer})
    around = await lookup.around(read(pod()))
    assert not around.complete
    assert around.place == Place(WorkloadKey("prod", "chat-5d8f7b6c9d-"), "Pod prod/chat-5d8f7b6c9d-")


async def test_an_answer_that_does_not_come_holds_a_pod_no_longer_than_the_budget(lookups: Any) -> None:
    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    lookup = await lookups(paths={REPLICA_SET: lambda: scripted.Response(status=200, payload=never())})
    begun = time.monotonic()
    around = await lookup.around(read(pod()))
    assert not around.complete
    assert time.monotonic() - begun < 10.0


async def test_while_a_kind_can_not_be_listed_nothing_is_known_and_it_says_which(lookups: Any) -> None:
    refused = scripted.Response(status=403, payload={"message": "forbidden for a test"})
    lookup = await lookups(ready=False, paths={WORKLOADS: refused, DEPLOYMENTS: collection(DEPLOYMENT)})
    deadline = time.monotonic() + 20.0
    while lookup.lack() != "TensorFusionWorkload: not listed yet":
        assert time.monotonic() < deadline, lookup.lack()
        await asyncio.sleep(0.005)
    around = await lookup.around(read(pod(OWN | {keys.WORKLOAD: "chat"})))
    assert not around.complete
    assert around.place == Place(WorkloadKey("prod", "chat"), "Pod prod/chat-5d8f7b6c9d-")


async def test_worker_pods_of_the_workload_are_noticed_and_a_workload_that_is_being_deleted_is_none(
    lookups: Any,
) -> None:
    worker = item("chat-worker", metadata={"labels": {keys.WORKLOAD: "chat"}})
    ended = item("done-worker", metadata={"labels": {keys.WORKLOAD: "done"}}, status={"phase": "Failed"})
    ending = item("chat", metadata={"deletionTimestamp": "2027-01-15T08:00:00Z"})
    lookup = await lookups(
        paths={
            DEPLOYMENTS: collection(DEPLOYMENT),
            REPLICA_SETS: collection(REPLICAS),
            PODS: collection(worker, ended),
            WORKLOADS: collection(ending),
        }
    )
    around = await lookup.around(read(pod()))
    assert (around.has_workers, around.workload) == (True, None)
    assert not (await lookup.around(read(pod(OWN | {keys.WORKLOAD: "done"})))).has_workers
    assert not (await lookup.around(read(pod(labels={keys.WORKLOAD: "chat"})))).has_workers


async def test_a_pod_that_takes_no_part_belongs_nowhere(lookups: Any) -> None:
    lookup = await lookups()
    stranger = pod()
    stranger["metadata"]["labels"] = {"app": "chat"}
    assert await lookup.around(read(stranger)) == Surroundings(complete=False)
