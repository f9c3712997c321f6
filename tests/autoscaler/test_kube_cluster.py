"""The API server's ways to fail, scripted: what is retried, what is a conflict, and that no list is ever half read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kmock as scripted
import pytest
import stamina
from kubernetes.aio import client

from autoscaler.errors import ClusterError, ConflictError, InvalidError
from autoscaler.kube.client import ATTEMPTS, KubeClient, StatusError, UnreachableError, again
from autoscaler.kube.cluster import KubeCluster
from autoscaler.kube.listing import list_whole
from autoscaler.model.steps import Annotate, CreateObject, Emit, Scale, WriteStatus
from autoscaler.model.workload import ObjectRef

# Only what a test scripts is answered: nothing is emulated.
pytestmark = pytest.mark.kmock(cls=scripted.RawHandler)

PODS = "/api/v1/pods"
TFW = "/apis/tensor-fusion.ai/v1/namespaces/lab/tensorfusionworkloads/chat"
POD = ObjectRef("v1", "Pod", "lab", "chat-0", "uid-1", "7")
WORKLOAD = ObjectRef("tensor-fusion.ai/v1", "TensorFusionWorkload", "lab", "chat", "uid-2", "7")
UNTOLD = {"message": "the server says why"}


@dataclass
class SteppedClock:
    at: float = 1_800_000_000.0

    def now(self) -> float:
        self.at += 1
        return self.at


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    with stamina.set_testing(True, attempts=ATTEMPTS, cap=True):
        yield


@pytest.fixture
async def kube(kmock: Any) -> AsyncIterator[KubeClient]:
    made = KubeClient(client.ApiClient(client.Configuration(host=str(kmock.url).rstrip("/"))), 5.0, page=2)
    yield made
    await made.close()


@pytest.fixture
def cluster(kube: KubeClient) -> KubeCluster:
    return KubeCluster(kube, SteppedClock())


def answer(payload: Any = None, status: int = 200, **headers: str) -> scripted.Response:
    return scripted.Response(
        status=status, payload=payload or {}, headers={key.replace("_", "-"): value for key, value in headers.items()}
    )


def in_turn(*answers: scripted.Response) -> Callable[[], scripted.Response]:
    """Return the answers one after the other, the last one for ever."""
    remaining = list(answers)
    return lambda: remaining.pop(0) if len(remaining) > 1 else remaining[0]


def page(*names: str, following: str = "") -> scripted.Response:
    items = [{"metadata": {"name": name, "uid": name}} for name in names]
    return answer({"metadata": {"continue": following}, "items": items})


async def names_of(kube: KubeClient) -> list[str]:
    return [item["metadata"]["name"] for item in (await list_whole(kube, PODS, {}, dict)).items]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_a_list_that_is_refused_is_an_error_with_the_servers_words_and_is_not_asked_again(
    kmock: Any, kube: KubeClient, status: int
) -> None:
    kmock["get", PODS] << answer(UNTOLD, status)

    with pytest.raises(StatusError, match="the server says why") as caught:
        await list_whole(kube, PODS, {}, dict)

    assert caught.value.status == status
    assert len(kmock["get", PODS]) == 1


async def test_a_list_of_several_pages_is_followed_to_its_end(kmock: Any, kube: KubeClient) -> None:
    kmock["get", PODS] << in_turn(page("a", "b", following="x/1"), page("c"))

    assert await names_of(kube) == ["a", "b", "c"]
    assert [request.params for request in kmock["get", PODS]] == [{"limit": "2"}, {"limit": "2", "continue": "x/1"}]


async def test_a_list_that_expires_half_way_starts_over_and_lists_nothing_twice(kmock: Any, kube: KubeClient) -> None:
    expired = answer({"message": "Expired"}, 410)
    kmock["get", PODS] << in_turn(page("a", "b", following="old"), expired, page("a", "b", following="new"), page("c"))

    assert await names_of(kube) == ["a", "b", "c"]


async def test_a_list_that_expires_twice_is_asked_for_without_pages(kmock: Any, kube: KubeClient) -> None:
    expired = answer({"message": "Expired"}, 410)
    kmock["get", PODS] << in_turn(page("a", following="x"), expired, page("a", following="y"), expired, page("a", "b"))

    assert await names_of(kube) == ["a", "b"]
    assert [request.params.get("limit") for request in kmock["get", PODS]] == ["2", "2", "2", "2", None]


async def test_a_list_that_always_expires_is_an_error_in_the_end(kmock: Any, kube: KubeClient) -> None:
    kmock["get", PODS] << answer({"message": "Expired"}, 410)

    with pytest.raises(StatusError, match="Expired"):
        await list_whole(kube, PODS, {}, dict)
    assert len(kmock["get", PODS]) == 3


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_what_the_server_could_not_do_now_is_asked_again(kmock: Any, kube: KubeClient, status: int) -> None:
    kmock["get", PODS] << in_turn(answer(UNTOLD, status), answer(UNTOLD, status), page("a"))

    assert await names_of(kube) == ["a"]


async def test_a_server_that_keeps_failing_is_given_up(kmock: Any, kube: KubeClient) -> None:
    kmock["get", PODS] << answer(UNTOLD, 503)

    with pytest.raises(StatusError, match="503"):
        await list_whole(kube, PODS, {}, dict)
    assert len(kmock["get", PODS]) == ATTEMPTS


async def test_the_pause_that_a_busy_server_asks_for_is_read(kmock: Any, kube: KubeClient) -> None:
    kmock["get", PODS] << answer(UNTOLD, 429, Retry_After="7")

    with pytest.raises(StatusError) as caught:
        await list_whole(kube, PODS, {}, dict)
    assert caught.value.retry_after_seconds == 7.0


@pytest.mark.parametrize(
    ("error", "decision"),
    [
        (StatusError(429, "", 7.0), 7.0),
        (StatusError(429, "", 31.0), False),
        (StatusError(429, ""), True),
        (StatusError(503, "", 0.0), 0.0),
        (StatusError(403, "", 7.0), False),
        (UnreachableError(""), True),
        (ClusterError(""), False),
    ],
)
def test_a_busy_servers_pause_is_honoured_up_to_half_a_minute(error: Exception, decision: bool | float) -> None:
    assert again(error) is decision or again(error) == decision
    assert type(again(error)) is type(decision)


@pytest.mark.parametrize("body", [b'{"items": [', b"[]", b"\xff", b'{"kind": "PodList"}'])
async def test_an_answer_that_is_no_list_is_an_error_never_an_empty_one(
    kmock: Any, kube: KubeClient, body: bytes
) -> None:
    kmock["get", PODS] << body

    with pytest.raises(ClusterError):
        await list_whole(kube, PODS, {}, dict)


async def test_a_server_that_does_not_answer_in_time_is_unreachable(kmock: Any) -> None:
    kmock["get", PODS] << (lambda: asyncio.Event().wait())
    kube = KubeClient(client.ApiClient(client.Configuration(host=str(kmock.url).rstrip("/"))), 0.05)

    with pytest.raises(UnreachableError, match=r"no answer within 0.05 s"):
        await list_whole(kube, PODS, {}, dict)
    await kube.close()


async def test_a_server_that_is_not_there_is_unreachable(unused_tcp_port: int) -> None:
    kube = KubeClient(client.ApiClient(client.Configuration(host=f"http://127.0.0.1:{unused_tcp_port}")))

    with pytest.raises(UnreachableError):
        await list_whole(kube, PODS, {}, dict)
    await kube.close()


async def test_a_kubeconfig_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ClusterError):
        await KubeClient.connect(tmp_path / "absent")


async def test_one_kind_that_cannot_be_read_fails_the_whole_view(kmock: Any, cluster: KubeCluster) -> None:
    kmock["get", "/apis/apps/v1/replicasets"] << answer(UNTOLD, 403)
    kmock["get"] << page()

    with pytest.raises(StatusError, match="403"):
        await cluster.read()


async def test_a_pod_with_both_labels_is_seen_once(kmock: Any, cluster: KubeCluster) -> None:
    kmock["get", PODS] << page("a")
    kmock["get"] << page()

    assert [pod["metadata"]["name"] for pod in (await cluster.read()).pods] == ["a"]
    assert len(kmock["get", PODS]) == 2


async def test_annotations_are_merged_as_our_manager_into_the_object_of_that_uid(
    kmock: Any, cluster: KubeCluster
) -> None:
    kmock["patch"] << answer()

    await cluster.write(Annotate(POD, {"a": "1", "b": None}))

    (request,) = kmock["patch"]
    assert request.url.path == "/api/v1/namespaces/lab/pods/chat-0"
    assert request.params == {"fieldManager": "tensor-fusion-autoscaler"}
    assert request.headers["Content-Type"] == "application/merge-patch+json"
    assert request.data == {"metadata": {"annotations": {"a": "1", "b": None}, "uid": "uid-1"}}


@pytest.mark.parametrize(
    ("status", "message"),
    [(404, "not found"), (409, "modified"), (422, "metadata.uid: Invalid value: field is immutable")],
)
async def test_an_object_that_is_gone_changed_or_replaced_is_a_conflict(
    kmock: Any, cluster: KubeCluster, status: int, message: str
) -> None:
    kmock["patch"] << answer({"message": message}, status)

    with pytest.raises(ConflictError, match=message[:12]):
        await cluster.write(Annotate(POD, {"a": "1"}))
    assert len(kmock["patch"]) == 1


@pytest.mark.parametrize("status", [401, 403, 422])
async def test_a_write_that_is_refused_is_no_conflict(kmock: Any, cluster: KubeCluster, status: int) -> None:
    kmock["patch"] << answer(UNTOLD, status)

    with pytest.raises(ClusterError) as caught:
        await cluster.write(Annotate(POD, {"a": "1"}))
    assert not isinstance(caught.value, ConflictError)


async def test_a_write_that_did_not_arrive_is_sent_again(kmock: Any, cluster: KubeCluster) -> None:
    kmock["patch"] << in_turn(answer(UNTOLD, 503), answer())

    await cluster.write(Annotate(POD, {"a": "1"}))

    assert len(kmock["patch"]) == 2


async def test_creating_what_exists_is_a_conflict(kmock: Any, cluster: KubeCluster) -> None:
    kmock["post"] << answer({"message": "already exists"}, 409)
    manifest = {
        "apiVersion": "tensor-fusion.ai/v1",
        "kind": "TensorFusionWorkload",
        "metadata": {"name": "chat", "namespace": "lab"},
    }

    with pytest.raises(ConflictError):
        await cluster.write(CreateObject(manifest))


async def test_a_status_of_an_old_version_is_applied_to_the_new_one_of_the_same_uid(
    kmock: Any, cluster: KubeCluster
) -> None:
    kmock["patch", f"{TFW}/status"] << in_turn(answer({"message": "modified"}, 409), answer())
    kmock["get", TFW] << answer({"metadata": {"uid": "uid-2", "resourceVersion": "9"}})

    await cluster.write(WriteStatus(WORKLOAD, {"workerCount": 2}))

    requests = list(kmock["patch", f"{TFW}/status"])
    assert [request.data["metadata"]["resourceVersion"] for request in requests] == ["7", "9"]
    assert requests[1].data["status"] == {"workerCount": 2}
    assert requests[1].params == {"fieldManager": "tensor-fusion-autoscaler", "force": "true"}
    assert requests[1].headers["Content-Type"] == "application/apply-patch+yaml"


async def test_a_status_is_not_applied_to_a_namesake(kmock: Any, cluster: KubeCluster) -> None:
    kmock["patch", f"{TFW}/status"] << answer({"message": "modified"}, 409)
    kmock["get", TFW] << answer({"metadata": {"uid": "another", "resourceVersion": "9"}})

    with pytest.raises(ConflictError, match="another"):
        await cluster.write(WriteStatus(WORKLOAD, {"workerCount": 2}))
    assert len(kmock["patch"]) == 1


async def test_scaling_to_what_is_there_writes_nothing(kmock: Any, cluster: KubeCluster) -> None:
    kmock["get"] << answer({"metadata": {"uid": "uid-2", "resourceVersion": "9"}, "spec": {"replicas": 3}})

    await cluster.write(Scale(WORKLOAD, 3))

    assert len(kmock["patch"]) == 0


async def test_scaling_is_guarded_by_the_version_that_was_looked_at(kmock: Any, cluster: KubeCluster) -> None:
    kmock["get"] << answer({"metadata": {"uid": "uid-2", "resourceVersion": "9"}, "spec": {"replicas": 3}})
    kmock["patch"] << answer({"message": "modified"}, 409)

    with pytest.raises(ConflictError):
        await cluster.write(Scale(WORKLOAD, 4))

    (request,) = kmock["patch"]
    assert request.data == {"metadata": {"resourceVersion": "9"}, "spec": {"replicas": 4}}


async def test_an_event_that_repeats_is_counted_up_and_a_forgotten_one_is_made_anew(
    kmock: Any, cluster: KubeCluster
) -> None:
    kmock["post"] << answer(status=201)
    kmock["patch"] << in_turn(answer(), answer(), answer({"message": "not found"}, 404))
    emit = Emit(WORKLOAD, "ResourceScaledUp", "10 -> 12")

    for _ in range(4):
        await cluster.write(emit)

    assert [request.data["series"]["count"] for request in kmock["patch"]] == [2, 3, 4]
    first, second = (request.data for request in kmock["post"])
    assert first["metadata"]["name"] != second["metadata"]["name"]
    assert first["regarding"]["uid"] == "uid-2"


async def test_a_kind_that_is_not_ours_to_write_is_refused_here(cluster: KubeCluster) -> None:
    with pytest.raises(ClusterError, match="Secret"):
        await cluster.write(Annotate(ObjectRef("v1", "Secret", "lab", "s"), {"a": "1"}))


async def test_a_kubeconfig_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ClusterError, match=r"absent is not a file"):
        await KubeClient.connect(tmp_path / "absent")


async def test_a_secret_is_read_by_name_and_a_refusal_shows_no_value(kmock: Any, cluster: KubeCluster) -> None:
    path = "/api/v1/namespaces/lab/secrets/scaler"
    kmock["get", path] << in_turn(
        answer({"metadata": {"name": "scaler"}, "data": {"token": "aHVzaA=="}}), answer(UNTOLD, 403)
    )
    assert await cluster.secret("lab", "scaler") == {"token": "hush"}
    with pytest.raises(ClusterError, match="answered 403: the server says why"):
        await cluster.secret("lab", "scaler")


async def test_an_annotation_is_written_into_the_version_that_it_was_decided_on(
    kmock: Any, cluster: KubeCluster
) -> None:
    kmock["patch"] << answer()

    await cluster.write(Annotate(POD, {"a": "1"}, was={}))

    (request,) = kmock["patch"]
    assert request.data["metadata"]["resourceVersion"] == "7"


@pytest.mark.parametrize(("limit", "written"), [("20", True), ("25", False)])
async def test_a_pod_that_changed_meanwhile_is_annotated_only_while_its_own_annotations_are_the_same(
    kmock: Any, cluster: KubeCluster, limit: str, written: bool
) -> None:
    path = "/api/v1/namespaces/lab/pods/chat-0"
    annotations = {"tensor-fusion.ai/tflops-limit": limit, "example.com/seen": "now"}
    kmock["patch", path] << in_turn(answer({"message": "modified"}, 409), answer())
    kmock["get", path] << answer({"metadata": {"uid": "uid-1", "resourceVersion": "9", "annotations": annotations}})
    write = Annotate(POD, {"a": "1"}, was={"tensor-fusion.ai/tflops-limit": "20"})

    if written:
        await cluster.write(write)
    else:
        with pytest.raises(ConflictError, match="changed meanwhile"):
            await cluster.write(write)

    versions = [request.data["metadata"]["resourceVersion"] for request in kmock["patch", path]]
    assert versions == (["7", "9"] if written else ["7"])


async def test_what_a_definition_cannot_hold_of_a_status_is_left_out_from_then_on(
    kmock: Any, cluster: KubeCluster
) -> None:
    def mistyped(what: str) -> scripted.Response:
        text = "failed to create typed patch object (/chat; tensor-fusion.ai/v1, Kind=TensorFusionWorkload): .status"
        return answer({"message": text + what}, 500)

    kmock["patch", f"{TFW}/status"] << in_turn(
        mistyped(".autoscaling: field not declared in schema"),
        mistyped('.conditions[type="Ready"].observedGeneration: field not declared in schema'),
        mistyped(".workerCount: expected string, got 2"),
        answer({"metadata": {"resourceVersion": "8"}}),
    )
    status = {
        "workerCount": 2,
        "autoscaling": {"applied": "1/1"},
        "conditions": [{"type": "Ready", "observedGeneration": 1}],
    }

    for _ in range(2):
        await cluster.write(WriteStatus(WORKLOAD, status))

    sent = [request.data["status"] for request in kmock["patch", f"{TFW}/status"]]
    assert len(sent) == 4 + 1
    assert sent[-1] == sent[-2] == {"conditions": [{"type": "Ready"}]}


@pytest.mark.parametrize(
    ("status", "message"),
    [(422, "status.phase: Unsupported value"), (500, "failed to create typed patch object (/chat): all is wrong")],
)
async def test_a_status_that_the_server_will_never_take_is_said_to_be_so(
    kmock: Any, cluster: KubeCluster, status: int, message: str
) -> None:
    kmock["patch", f"{TFW}/status"] << answer({"message": message}, status)

    with pytest.raises(InvalidError, match=str(status)):
        await cluster.write(WriteStatus(WORKLOAD, {"workerCount": 2}))

    assert len(kmock["patch"]) == 1


async def test_a_stored_field_of_an_older_definitions_type_is_cleared_once_because_nothing_else_can_be_applied(
    kmock: Any, cluster: KubeCluster
) -> None:
    text = "failed to create typed live object (/chat; x/v1, Kind=T): .status.workerCount: expected string, got 1"
    fine = {"metadata": {"resourceVersion": "9"}}
    kmock["patch", f"{TFW}/status"] << in_turn(answer({"message": text}, 500), answer(fine), answer(fine))

    await cluster.write(WriteStatus(WORKLOAD, {"workerCount": 2}))

    first, clearing, second = kmock["patch", f"{TFW}/status"]
    assert clearing.headers["Content-Type"] == "application/merge-patch+json"
    assert clearing.data == {"metadata": {"resourceVersion": "7"}, "status": {"workerCount": None}}
    assert second.data["metadata"]["resourceVersion"] == "9"
    assert second.data["status"] == first.data["status"] == {"workerCount": 2}


async def test_a_stored_field_that_stays_wrong_or_is_not_ours_is_a_refusal(kmock: Any, cluster: KubeCluster) -> None:
    text = "failed to create typed live object (/chat; x/v1, Kind=T): .status.phase: expected string, got 1"
    kmock["patch", f"{TFW}/status"] << answer({"message": text}, 500)

    with pytest.raises(InvalidError):
        await cluster.write(WriteStatus(WORKLOAD, {"workerCount": 2}))
    assert len(kmock["patch"]) == 1
