"""Lists and watches, scripted: what is lost is asked for again, what is old is not served, and nothing vanishes."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import kmock as scripted
import pytest
import stamina
import structlog
from kubernetes.aio import client

from autoscaler.errors import ClusterError
from autoscaler.kube.client import KubeClient
from autoscaler.kube.cluster import KubeCluster
from autoscaler.kube.patience import Patience, patience_of
from autoscaler.kube.store import Store
from autoscaler.model.steps import Annotate, CreateObject, Scale, WriteStatus
from autoscaler.model.workload import ObjectRef, ref_of
from autoscaler.settings import Settings

# Only what a test scripts is answered: nothing is emulated.
pytestmark = pytest.mark.kmock(cls=scripted.RawHandler)

DEPLOYMENTS = "/apis/apps/v1/deployments"
REPLICA_SETS = "/apis/apps/v1/replicasets"
WORKLOADS = "/apis/tensor-fusion.ai/v1/tensorfusionworkloads"
SCALED_OBJECTS = "/apis/keda.sh/v1alpha1/scaledobjects"
PODS = "/api/v1/pods"
SELECTOR = "tensor-fusion.ai/enabled=true"

QUICK = Patience(
    first_retry_seconds=0.002,
    longest_retry_seconds=0.02,
    catch_up_seconds=2.0,
    owner_seconds=0.2,
    stale_seconds=60.0,
    absent_seconds=60.0,
)


def item(name: str, version: int = 1, **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "lab", "uid": name, "resourceVersion": str(version), **metadata}}


def page(*items: dict[str, Any], version: int = 10) -> scripted.Response:
    return scripted.Response(status=200, payload={"metadata": {"resourceVersion": str(version)}, "items": list(items)})


def refusal(status: int, message: str = "the server says why", **headers: str) -> scripted.Response:
    told = {key.replace("_", "-"): value for key, value in headers.items()}
    return scripted.Response(status=status, payload={"message": message}, headers=told)


def event(kind: str, manifest: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": manifest}).encode() + b"\n"


def bookmark(version: int) -> bytes:
    return event("BOOKMARK", {"metadata": {"resourceVersion": str(version)}})


def gone() -> bytes:
    return event("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"})


OPEN = object()
"""A watch that stays open when it has said all."""


def watch(*said: bytes | object) -> Callable[[], AsyncIterator[bytes]]:
    """Return a watch that says this, one after the other; it ends unless the last is OPEN."""

    async def stream() -> AsyncIterator[bytes]:
        yield b""  # the headers go with the first piece
        for one in said:
            if one is OPEN:
                await asyncio.Event().wait()
            elif isinstance(one, asyncio.Event):
                await one.wait()
            else:
                assert isinstance(one, bytes)
                yield one

    return stream


async def living() -> AsyncIterator[bytes]:
    """Say nothing, again and again, as a server does with its bookmarks."""
    while True:
        yield b"\n"
        await asyncio.sleep(0.02)


@dataclass
class Collection:
    """What the server answers to the lists and the watches of a path; the last list for ever, then a living watch."""

    lists: list[scripted.Response] = field(default_factory=lambda: [page()])
    watches: list[Any] = field(default_factory=list)
    listed: int = 0
    watched: list[dict[str, str]] = field(default_factory=list)

    def __call__(self, request: scripted.Request) -> Any:
        if request.params.get("watch") == "true":
            self.watched.append(dict(request.params))
            answer = self.watches.pop(0) if self.watches else living
            # With a status of its own: the tool would give it that of the answer before.
            return answer if isinstance(answer, scripted.Response) else scripted.Response(status=200, payload=answer())
        self.listed += 1
        return self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]

    @property
    def watched_from(self) -> list[str]:
        return [params["resourceVersion"] for params in self.watched]


@dataclass
class FixedClock:
    def now(self) -> float:
        return 1_800_000_000.0


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
def collection(kmock: Any) -> Callable[..., Collection]:
    """Script one path; all that is not scripted is empty and quiet."""
    kmock["get"] << Collection()

    def scripting(path: str, *lists: scripted.Response, watches: list[Any] | None = None) -> Collection:
        made = Collection(list(lists) or [page()], watches or [])
        kmock["get", path] ** 1 << made
        return made

    return scripting


@pytest.fixture
async def followed(kube: KubeClient) -> AsyncIterator[Callable[..., Store]]:
    made: list[Store] = []

    def following(patience: Patience | None = QUICK) -> Store:
        made.append(Store(kube, patience))
        return made[-1]

    yield following
    for store in made:
        await store.close()


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        await asyncio.sleep(0.002)


async def owners_become(store: Store, wanted: dict[str, str]) -> None:
    """Read until the owners are these, by name and version."""
    deadline = time.monotonic() + 20.0
    while (found := await owners(store)) != wanted:
        assert time.monotonic() < deadline, f"{found} did not become {wanted}"
        await asyncio.sleep(0.002)


async def refused(store: Store) -> str:
    """Read until it is refused, and return why."""
    deadline = time.monotonic() + 20.0
    while time.monotonic() < deadline:
        try:
            await store.read()
        except ClusterError as error:
            return str(error)
        await asyncio.sleep(0.002)
    raise AssertionError("it is served for ever")


async def is_waiting(reading: asyncio.Task[Any]) -> bool:
    done, _ = await asyncio.wait({reading}, timeout=0.05)
    return not done


async def owners(store: Store) -> dict[str, str]:
    return {one["metadata"]["name"]: one["metadata"]["resourceVersion"] for one in (await store.read()).owners}


# The way it goes when all is well.


async def test_what_happens_after_the_list_is_told_by_the_watch(collection, followed):
    told = [event("ADDED", item("b", 11)), event("MODIFIED", item("a", 12, labels={"x": "y"}))]
    deployments = collection(DEPLOYMENTS, page(item("a"), item("c")), watches=[watch(*told, OPEN)])
    store = followed()

    assert await owners(store) == {"a": "1", "c": "1"}
    await owners_become(store, {"a": "12", "b": "11", "c": "1"})
    assert deployments.listed == 1
    assert deployments.watched[0]["resourceVersion"] == "10"
    assert deployments.watched[0]["allowWatchBookmarks"] == "true"
    assert 150 <= int(deployments.watched[0]["timeoutSeconds"]) <= 300


async def test_what_is_deleted_goes_and_what_is_left_stays_the_same_objects(collection, followed):
    end = asyncio.Event()
    watches = [watch(end, event("DELETED", item("a", 11)), OPEN)]
    collection(DEPLOYMENTS, page(item("a"), item("b")), watches=watches)
    store = followed()
    before = (await store.read()).owners

    end.set()
    await owners_become(store, {"b": "1"})

    assert (await store.read()).owners[0] is before[1]


async def test_a_quiet_cluster_is_read_without_a_request_and_gives_the_very_same_view(kmock, collection, followed):
    deployments = collection(DEPLOYMENTS, page(item("a")))
    store = followed()
    view = await store.read()
    await until(lambda: len(deployments.watched) == 1)
    asked = len(kmock)

    assert await store.read() is view
    assert len(kmock) == asked


async def test_pods_are_watched_by_each_of_two_labels_and_one_with_both_is_there_once(kmock, collection, followed):
    pods = collection(PODS, page(item("a")))
    store = followed()

    assert len((await store.read()).pods) == 1
    await until(lambda: len(pods.watched) == 2)
    assert {params["labelSelector"] for params in pods.watched} == {SELECTOR, "tensor-fusion.ai/workload"}


async def test_a_watch_that_the_server_ends_goes_on_where_it_was_without_another_list(collection, followed):
    watches = [watch(event("ADDED", item("b", 11))), watch(event("ADDED", item("c", 12)), OPEN)]
    deployments = collection(DEPLOYMENTS, page(item("a")), watches=watches)
    store = followed()

    await owners_become(store, {"a": "1", "b": "11", "c": "12"})
    assert (deployments.listed, deployments.watched_from) == (1, ["10", "11"])


async def test_a_stream_of_bookmarks_moves_the_place_to_go_on_from_and_nothing_else(collection, followed):
    deployments = collection(DEPLOYMENTS, page(item("a")), watches=[watch(bookmark(20), bookmark(30))])
    store = followed()
    before = await store.read()

    await until(lambda: deployments.watched_from == ["10", "30"])
    assert await store.read() is before
    assert deployments.listed == 1


async def test_lines_come_in_whatever_pieces_and_may_be_long(collection, followed):
    long = event("ADDED", item("b", 11, annotations={"tensor-fusion.ai/x": "y" * 300_000}))
    pieces = [long[at : at + 7_919] for at in range(0, len(long), 7_919)]
    collection(DEPLOYMENTS, page(), watches=[watch(*pieces, b"\n", event("ADDED", item("c", 12)), OPEN)])

    await owners_become(followed(), {"b": "11", "c": "12"})


async def test_after_a_while_a_kind_is_listed_again_whatever_its_watch_said(collection, followed):
    deployments = collection(DEPLOYMENTS, page(item("a"), item("missed")), page(item("a", 1), version=20))
    deployments.watches = [watch(bookmark(11))]
    store = followed(replace(QUICK, resync_seconds=0.0))
    await store.read()

    await owners_become(store, {"a": "1"})
    assert deployments.listed >= 2


async def test_a_reader_of_one_shot_lists_and_opens_no_watch(collection, followed):
    deployments = collection(DEPLOYMENTS, page(item("a")), page(item("a"), item("b", 11)))
    store = followed(None)

    assert await owners(store) == {"a": "1"}
    assert await owners(store) == {"a": "1", "b": "11"}
    assert deployments.watched == []


# The ways it fails.


@pytest.mark.parametrize("lost", [lambda: refusal(410, "Expired"), lambda: watch(gone())], ids=["status", "event"])
async def test_a_place_that_expired_is_listed_again_and_what_was_missed_shows(collection, followed, lost):
    lists = page(item("a"), item("b")), page(item("a"), item("c", 15), version=20)
    deployments = collection(DEPLOYMENTS, *lists, watches=[lost()])
    store = followed()
    (kept, _) = (await store.read()).owners

    await owners_become(store, {"a": "1", "c": "15"})
    await until(lambda: deployments.watched_from == ["10", "20"])
    assert (await store.read()).owners[0] is kept


async def test_half_a_line_is_nothing_and_the_next_watch_tells_it_whole(collection, followed):
    whole = event("ADDED", item("b", 11))
    second = event("DELETED", item("a", 12))
    watches = [watch(whole + second[:40]), watch(second, OPEN)]
    deployments = collection(DEPLOYMENTS, page(item("a")), watches=watches)
    store = followed()

    await owners_become(store, {"b": "11"})
    assert (deployments.listed, deployments.watched_from) == (1, ["10", "11"])


@pytest.mark.parametrize("line", [b"404 page not found\n", b"{}\n", b'{"type": "ADDED"}\n', b"\xff\xfe\n"])
async def test_a_line_that_cannot_be_read_is_made_up_for_by_a_list(collection, followed, line):
    lists = page(item("a")), page(item("a"), item("b", 11), version=20)
    deployments = collection(DEPLOYMENTS, *lists, watches=[watch(line, OPEN)])
    store = followed()

    await owners_become(store, {"a": "1", "b": "11"})
    assert deployments.listed == 2


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503, 504])
async def test_a_watch_that_is_refused_for_a_while_takes_nothing_away_and_goes_on(collection, followed, status):
    deployments = collection(DEPLOYMENTS, page(item("a")))
    deployments.watches = [refusal(status)] * 3 + [watch(event("ADDED", item("b", 11)), OPEN)]
    store = followed()

    assert await owners(store) == {"a": "1"}
    await owners_become(store, {"a": "1", "b": "11"})
    assert len(deployments.watched) == 4


async def test_a_watch_whose_place_the_server_keeps_refusing_begins_with_a_list(collection, followed):
    deployments = collection(DEPLOYMENTS, page(item("a"), version=99), page(item("a"), version=5))
    deployments.watches = [refusal(504, "Too large resource version")] * 2
    store = followed()
    await store.read()

    await until(lambda: deployments.watched_from == ["99", "99", "5"])


async def test_a_busy_servers_pause_is_kept_before_the_next_watch(collection, followed):
    deployments = collection(DEPLOYMENTS, page(item("a")), watches=[refusal(429, Retry_After="1")])
    store = followed()
    began = time.monotonic()
    await store.read()

    await until(lambda: len(deployments.watched) == 2)
    assert time.monotonic() - began >= 1.0


async def test_a_watch_that_ends_as_soon_as_it_begins_is_not_asked_for_in_a_tight_loop(collection, followed):
    deployments = collection(DEPLOYMENTS, page(item("a")))
    deployments.watches = [watch()] * 1_000
    store = followed(replace(QUICK, first_retry_seconds=0.4, longest_retry_seconds=0.4))
    await store.read()
    await until(lambda: len(deployments.watched) == 1)
    began = time.monotonic()

    await until(lambda: len(deployments.watched) == 5)

    assert time.monotonic() - began >= 4 * 0.2
    assert deployments.listed == 1


async def test_a_silent_watch_is_taken_for_dead_and_begun_again_where_it_was(collection, followed):
    deployments = collection(DEPLOYMENTS, page(item("a")), watches=[watch(bookmark(20), OPEN)])
    store = followed(replace(QUICK, silence_seconds=1.0))
    await store.read()

    await until(lambda: deployments.watched_from[:2] == ["10", "20"])
    assert deployments.listed == 1
    with structlog.testing.capture_logs() as logs:
        assert await owners(store) == {"a": "1"}
    assert logs == []


async def test_a_connection_that_is_reset_takes_nothing_away(followed, unused_tcp_port):
    server = ResettingServer()
    async with await asyncio.start_server(server.serve, "127.0.0.1", unused_tcp_port):
        kube = KubeClient(client.ApiClient(client.Configuration(host=f"http://127.0.0.1:{unused_tcp_port}")), 5.0)
        store = Store(kube, QUICK)
        try:
            assert await owners(store) == {"a": "1"}
            await until(lambda: server.resets >= 3)
            assert await owners(store) == {"a": "1"}
        finally:
            await store.close()
            await kube.close()


class ResettingServer:
    """Lists Deployments, and cuts its first watches of them off within a line."""

    def __init__(self) -> None:
        self.resets = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split(b" ", 2)[1].decode()
                if "watch=true" not in path:
                    items = [item("a")] if path.startswith(DEPLOYMENTS) else []
                    body = json.dumps({"metadata": {"resourceVersion": "10"}, "items": items}).encode()
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
                    continue
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                if path.startswith(DEPLOYMENTS) and self.resets < 3:
                    half = event("DELETED", item("a", 11))[:30]
                    writer.write(b"%x\r\n%b\r\n" % (len(half), half))
                    await writer.drain()
                    self.resets += 1
                    writer.transport.abort()
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


# What a reader may rely on.


async def test_a_server_that_is_lost_leaves_all_objects_until_they_are_too_old_then_nothing_is_served(
    collection, followed
):
    deployments = collection(DEPLOYMENTS, page(item("a")), refusal(500))
    deployments.watches = [watch(bookmark(11))] + [refusal(500)] * 10_000
    store = followed(replace(QUICK, stale_seconds=2.0, catch_up_seconds=0.01))

    assert await owners(store) == {"a": "1"}
    await until(lambda: len(deployments.watched) >= 3)
    assert await owners(store) == {"a": "1"}
    assert re.fullmatch(r"Deployment was last heard of .* s ago: .* 500: the server says why .*", await refused(store))

    deployments.lists, deployments.watches = [page(item("a"), item("b", 11), version=20)], []
    await until(lambda: deployments.watched_from[-1] == "20")
    assert await owners(store) == {"a": "1", "b": "11"}


@pytest.mark.parametrize("status", [403, 404, 500])
async def test_a_kind_that_was_never_listed_fails_the_reading_and_is_asked_for_again_by_the_next(
    collection, followed, status
):
    collection(DEPLOYMENTS, page(item("a")))
    replica_sets = collection(REPLICA_SETS, refusal(status))
    store = followed()
    with pytest.raises(ClusterError, match=str(status)):
        await store.read()

    replica_sets.lists = [page()]
    assert await owners(store) == {"a": "1"}


async def test_a_missing_right_is_told_with_the_verb_and_the_resource_to_allow(collection, followed):
    collection(REPLICA_SETS, refusal(403, "replicasets.apps is forbidden"))

    with pytest.raises(ClusterError, match=r'is forbidden \(allow .* to list replicasets of the API group "apps"\)'):
        await followed().read()


async def test_a_missing_right_to_watch_is_told_once_and_stops_the_reading_in_the_end(collection, followed):
    deployments = collection(DEPLOYMENTS, page(item("a")))
    deployments.watches = [refusal(403, "no")] * 10_000
    with structlog.testing.capture_logs() as logs:
        store = followed(replace(QUICK, stale_seconds=1.0, catch_up_seconds=0.01))
        assert await owners(store) == {"a": "1"}
        await until(lambda: len(deployments.watched) >= 8)
    assert "allow this account to watch deployments" in await refused(store)
    assert [(one["event"], one["kind"]) for one in logs] == [("cluster_not_heard", "Deployment")]


@pytest.mark.parametrize("answer", [scripted.Response(status=404, payload=b"404 page not found\n"), refusal(403)])
async def test_an_optional_kind_that_is_not_there_is_none_of_it_and_left_alone_for_a_while(
    collection, followed, answer
):
    keda, began = collection(SCALED_OBJECTS, answer), time.monotonic()
    with structlog.testing.capture_logs() as logs:
        store = followed(replace(QUICK, absent_seconds=0.1))
        assert (await store.read()).scalers == ()
        await until(lambda: keda.listed == 4)
        assert (await store.read()).scalers == ()

    assert time.monotonic() - began >= 0.3
    assert keda.watched == []
    assert [one["event"] for one in logs] == (["kind_forbidden"] if answer.status == 403 else [])


async def test_an_optional_kind_that_is_installed_later_is_found(collection, followed):
    keda = collection(SCALED_OBJECTS, refusal(404), refusal(404), page(item("so")))
    store = followed(replace(QUICK, absent_seconds=0.02))
    assert (await store.read()).scalers == ()

    await until(lambda: len(keda.watched) == 1)
    (found,) = (await store.read()).scalers
    assert found["kind"] == "ScaledObject"


async def test_an_optional_kind_that_is_missing_for_a_moment_loses_nothing(collection, followed):
    keda = collection(SCALED_OBJECTS, page(item("so")), refusal(404), refusal(403), page(item("so"), version=20))
    keda.watches = [refusal(410)]
    store = followed()
    (before,) = (await store.read()).scalers

    await until(lambda: len(keda.watched) == 2)
    assert (await store.read()).scalers[0] is before


async def test_an_optional_kind_that_is_missing_for_long_is_gone(collection, followed):
    keda = collection(SCALED_OBJECTS, page(item("so")), refusal(404))
    keda.watches = [refusal(404)] * 1_000
    store = followed(replace(QUICK, vanished_seconds=0.05, catch_up_seconds=0.01))
    assert len((await store.read()).scalers) == 1

    await until(lambda: store._others["ScaledObject"].absent)
    assert (await store.read()).scalers == ()


async def test_the_owner_of_a_new_pod_is_waited_for_since_their_watches_are_not_one(collection, followed):
    owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "late", "uid": "late", "controller": True}
    new_pod, created = event("ADDED", item("p", 12, ownerReferences=[owner])), asyncio.Event()
    collection(PODS, page(), watches=[watch(new_pod, OPEN), watch(new_pod, OPEN)])
    collection(DEPLOYMENTS, page(), watches=[watch(created, event("ADDED", item("late", 11)), OPEN)])
    store = followed(replace(QUICK, owner_seconds=5.0))
    assert (await store.read()).owners == ()
    await until(lambda: len(store._shelves["Pod"]) == 1)

    reading = asyncio.create_task(store.read())
    assert await is_waiting(reading)
    created.set()

    view = await reading
    assert [one["metadata"]["name"] for one in (*view.pods, *view.owners)] == ["p", "late"]


async def test_an_owner_of_another_group_is_not_waited_for(collection, followed):
    owner = {"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "name": "j", "uid": "j", "controller": True}
    collection(PODS, page(), watches=[watch(event("ADDED", item("p", 12, ownerReferences=[owner])), OPEN)])
    store = followed(replace(QUICK, owner_seconds=20.0))
    await store.read()
    await until(lambda: len(store._shelves["Pod"]) == 1)

    async with asyncio.timeout(10.0):
        assert len((await store.read()).pods) == 1


async def test_a_pod_whose_owner_never_comes_is_served_after_a_moment_and_waited_for_once(collection, followed):
    owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "no", "uid": "no", "controller": True}
    new_pod = event("ADDED", item("p", 12, ownerReferences=[owner]))
    collection(PODS, page(), watches=[watch(new_pod, OPEN)])
    store = followed()
    await store.read()
    await until(lambda: len(store._shelves["Pod"]) == 1)

    waits = []
    for _ in range(2):
        began = time.monotonic()
        assert len((await store.read()).pods) == 1
        waits.append(time.monotonic() - began)
    assert waits[0] >= QUICK.owner_seconds > waits[1]


async def test_following_that_breaks_is_an_error_and_begins_anew(collection, followed):
    broken = event("ADDED", {"metadata": {"name": "x", "resourceVersion": "11", "ownerReferences": [7]}})
    collection(DEPLOYMENTS, page(item("a")), page(item("a"), item("b", 12)), watches=[watch(broken, OPEN)])
    store = followed()
    await store.read()
    await until(lambda: any(task.done() for task in store._tasks.values()))

    with pytest.raises(ClusterError, match="Deployment: following it broke"):
        await store.read()
    await owners_become(store, {"a": "1", "b": "12"})


# What this controller wrote itself.

WORKLOAD = ObjectRef("tensor-fusion.ai/v1", "TensorFusionWorkload", "lab", "chat", "chat", "1")
ONE = "/apis/tensor-fusion.ai/v1/namespaces/lab/tensorfusionworkloads/chat"
CREATED = {"apiVersion": WORKLOAD.api_version, "kind": WORKLOAD.kind, "metadata": {"name": "chat", "namespace": "lab"}}


@pytest.fixture
async def cluster(kube: KubeClient) -> AsyncIterator[KubeCluster]:
    made = KubeCluster(kube, FixedClock(), replace(QUICK, catch_up_seconds=1.0))
    yield made
    await made.close()


@pytest.mark.parametrize(
    "write",
    [CreateObject(CREATED), Annotate(WORKLOAD, {"a": "b"}), WriteStatus(WORKLOAD, {}), Scale(WORKLOAD, 3)],
    ids=["create", "annotate", "status", "scale"],
)
async def test_the_next_reading_knows_what_was_written(kmock, collection, cluster, write):
    answer = item("chat", 12) | {"spec": {"replicas": 3}}
    kmock["post"] << scripted.Response(status=201, payload=answer)
    kmock["patch"] << scripted.Response(payload=answer)
    kmock["get", f"{ONE}/scale"] ** 1 << scripted.Response(payload=item("chat") | {"spec": {"replicas": 1}})
    told = asyncio.Event()
    collection(WORKLOADS, page(item("chat")), watches=[watch(told, event("MODIFIED", item("chat", 12)), OPEN)])
    await cluster.read()

    await cluster.write(write)
    reading = asyncio.create_task(cluster.read())
    assert await is_waiting(reading)
    told.set()

    (found,) = (await reading).workloads
    assert found["metadata"]["resourceVersion"] == "12"


@pytest.mark.parametrize(("version", "listed_as"), [(12, 13), (4, 5)], ids=["late", "restored from a backup"])
async def test_a_write_that_the_watch_never_shows_stops_the_reading_and_is_made_up_for_by_a_list(
    kmock, collection, cluster, version, listed_as
):
    kmock["patch"] << scripted.Response(payload=item("chat", 12))
    workloads = collection(WORKLOADS, page(item("chat")), page(item("chat", version), version=listed_as))
    await cluster.read()
    await cluster.write(Annotate(WORKLOAD, {"a": "b"}))

    with pytest.raises(ClusterError, match="the watch does not show what was written"):
        await cluster.read()
    await until(lambda: workloads.watched_from[-1] == str(listed_as))
    (found,) = (await cluster.read()).workloads
    assert ref_of(found).resource_version == str(version)


async def test_a_write_to_a_pod_that_no_selector_matches_any_more_is_not_waited_for(kmock, collection, cluster):
    kmock["patch"] << scripted.Response(payload=item("p", 12))
    collection(PODS, page(item("p")))
    (pod,) = (await cluster.read()).pods

    await cluster.write(Annotate(ref_of(pod), {"a": "b"}))

    async with asyncio.timeout(0.5):
        await cluster.read()


async def test_closing_ends_every_task_and_says_nothing(collection, kube, caplog):
    collection(DEPLOYMENTS, page(item("a")), watches=[refusal(500), watch(bookmark(11), OPEN)])
    store = Store(kube, QUICK)
    await store.read()
    tasks = list(store._tasks.values())
    with structlog.testing.capture_logs() as logs:
        await store.close()
    gc.collect()

    assert len(tasks) == 15
    assert all(task.done() for task in tasks)
    assert [one for one in logs if one["log_level"] != "info"] == []
    assert caplog.records == []


def test_pauses_double_up_to_a_bound_and_differ_between_processes_and_kinds():
    patience = Patience(first_retry_seconds=1.0, longest_retry_seconds=30.0, seed="a")
    pauses = [patience.retry_seconds("pods", failures) for failures in range(1, 200)]

    assert all(0.5 * 2**n <= pause <= 2**n for n, pause in enumerate(pauses[:5]))
    assert all(15.0 <= pause <= 30.0 for pause in pauses[5:])
    assert pauses == [patience.retry_seconds("pods", failures) for failures in range(1, 200)]
    assert pauses != [replace(patience, seed="b").retry_seconds("pods", failures) for failures in range(1, 200)]
    assert patience.share("pods/watch") != patience.share("nodes/watch")


def test_how_the_cluster_is_followed_is_a_setting():
    patience = patience_of(Settings(cluster_stale_seconds=300.0, cluster_resync_seconds=60.0))

    assert (patience.stale_seconds, patience.resync_seconds) == (300.0, 60.0)
    assert patience.seed == patience_of(Settings()).seed != ""
