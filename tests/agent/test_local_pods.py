"""The node's pods from its kubelet: followed, lost, found again; the API server is asked only while it is silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import structlog.testing
from aiohttp import web
from aiohttp.test_utils import TestServer
from grpclib.const import Status

from agent.kubeapi import ApiAddress, KubeApi
from agent.kubelet.fake import FakeKubelet
from agent.kubelet.pods import EventKind
from agent.kubelet.sockets import PODS
from agent.model.exits import Exit
from agent.pods import followed as following
from agent.pods import local as localpods
from agent.pods.followed import FollowedPods
from agent.pods.local import LocalPods
from agent.pods.watch import PodWatch
from tests.agent.kubelets import NODE, kubelet_in, listening, pod, running, until

Names = Callable[[], set[str]]


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(localpods, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(localpods, "LONGEST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(following, "CHECK_SECONDS", 0.01)


def names_of(source: LocalPods | FollowedPods | PodWatch) -> Names:
    return lambda: {worker.pod for known in (source.pods() or {}).values() for worker in known.workers}


async def test_the_kubelet_tells_the_pods_and_what_becomes_of_them(tmp_path: Path) -> None:
    async with kubelet_in(tmp_path) as kubelet:
        kubelet.tell(EventKind.ADDED, pod("a"))
        local = LocalPods(tmp_path / PODS, NODE)
        assert local.pods() is None
        async with running(local):
            await until(lambda: names_of(local)() == {"a"})
            kubelet.tell(EventKind.ADDED, pod("b"))
            kubelet.tell(EventKind.DELETED, pod("a"))
            await until(lambda: names_of(local)() == {"b"})
    (known,) = (local.pods() or {}).values()
    main = known.worker_in("ab" * 32)
    assert main is not None
    assert (main.workload, main.container, main.born is not None) == ("web", "main", True)


async def test_how_a_container_ended_is_known_from_the_kubelet(tmp_path: Path) -> None:
    dead = pod("a")
    ended = {"terminated": {"exitCode": 137, "finishedAt": "2026-11-22T07:00:00Z"}}
    dead["status"]["containerStatuses"][0]["lastState"] = ended
    async with kubelet_in(tmp_path) as kubelet:
        kubelet.tell(EventKind.ADDED, dead)
        local = LocalPods(tmp_path / PODS, NODE)
        async with running(local):
            await until(lambda: local.exits() == (Exit("uid-a", "main", 137, "2026-11-22T07:00:00Z"),))


async def test_a_restarted_kubelet_is_followed_again_and_its_pods_stay_meanwhile(tmp_path: Path) -> None:
    local = LocalPods(tmp_path / PODS, NODE)
    async with running(local):
        async with kubelet_in(tmp_path) as kubelet:
            kubelet.tell(EventKind.ADDED, pod("a"))
            await until(lambda: names_of(local)() == {"a"})
        seen = set()
        async with kubelet_in(tmp_path) as kubelet:
            kubelet.refuses = Status.FAILED_PRECONDITION
            await until(lambda: bool(kubelet.calls))
            seen |= names_of(local)()
            kubelet.pods = {"uid-b": pod("b")}
            kubelet.refuses = None
            await until(lambda: names_of(local)() == {"b"})
    assert seen == {"a"}


async def test_an_outage_is_told_once(tmp_path: Path) -> None:
    local = LocalPods(tmp_path / PODS, NODE)
    with structlog.testing.capture_logs() as lines:
        async with kubelet_in(tmp_path) as kubelet, running(local):
            kubelet.refuses = Status.UNIMPLEMENTED
            await until(lambda: len(kubelet.calls) >= 5)
    assert [line["event"] for line in lines] == ["kubelet_not_followed"]


async def test_a_node_without_the_socket_is_not_complained_of(tmp_path: Path) -> None:
    local = LocalPods(tmp_path / PODS, NODE)
    with structlog.testing.capture_logs() as lines:
        async with running(local):
            await until(lambda: local.is_silent(asyncio.get_running_loop().time()))
    assert (lines, local.pods()) == ([], None)


async def test_a_kubelet_that_hangs_is_given_up_and_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localpods, "SYNC_SECONDS", 0.05)
    local = LocalPods(tmp_path / PODS, NODE)
    async with kubelet_in(tmp_path) as kubelet, running(local):
        kubelet.hangs = True
        kubelet.tell(EventKind.ADDED, pod("a"))
        await until(lambda: len(kubelet.calls) >= 3)
        assert local.pods() is None
        assert local.is_silent(asyncio.get_running_loop().time())
        kubelet.hangs = False
        await until(lambda: names_of(local)() == {"a"})
        assert not local.is_silent(asyncio.get_running_loop().time())


async def test_a_watch_is_begun_anew_in_time_and_finds_what_was_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localpods, "WATCH_SECONDS", 0.1)
    local = LocalPods(tmp_path / PODS, NODE)
    async with kubelet_in(tmp_path) as kubelet, running(local):
        kubelet.tell(EventKind.ADDED, pod("a"))
        await until(lambda: names_of(local)() == {"a"})
        kubelet.pods = {"uid-b": pod("b")}  # and nobody was told
        await until(lambda: names_of(local)() == {"b"})


async def test_marks_of_others_are_not_kept_and_their_changes_change_nothing(tmp_path: Path) -> None:
    local = LocalPods(tmp_path / PODS, NODE)
    async with kubelet_in(tmp_path) as kubelet, running(local):
        kubelet.tell(EventKind.ADDED, pod("a"))
        await until(lambda: names_of(local)() == {"a"})
        before = local.pods()
        kubelet.tell(EventKind.MODIFIED, pod("a", **{"example.com/large": "x" * 100_000}))
        kubelet.tell(EventKind.DELETED, pod("never-seen"))
        ended = pod("a")
        last = {"terminated": {"exitCode": 1, "finishedAt": "2026-11-22T07:00:00Z"}}
        ended["status"]["containerStatuses"][0]["lastState"] = last
        kubelet.tell(EventKind.MODIFIED, ended)
        await until(lambda: bool(local.exits()))
        assert local.pods() is before


async def test_a_pod_without_a_name_is_left_out_and_the_others_count(tmp_path: Path) -> None:
    local = LocalPods(tmp_path / PODS, NODE)
    async with kubelet_in(tmp_path) as kubelet, running(local):
        broken = pod("", uid="uid-x")
        kubelet.tell(EventKind.ADDED, broken)
        kubelet.tell(EventKind.ADDED, pod("a"))
        await until(lambda: names_of(local)() == {"a"})


# --- the kubelet where it tells, else the API server


class Api:
    """An API server that knows one pod, and counts how often it is asked."""

    def __init__(self) -> None:
        self.lists = 0
        self.open = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            self.lists += 1
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": [pod("from-api")]})
        response = web.StreamResponse()
        await response.prepare(request)
        self.open += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.open -= 1
        return response


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[tuple[Api, Callable[[], PodWatch]]]:
    served = Api()
    app = web.Application()
    app.router.add_get("/api/v1/pods", served.answer)
    (tmp_path / "token").write_text("t")
    async with TestServer(app) as server:
        client = KubeApi(ApiAddress(str(server.make_url("")).rstrip("/"), tmp_path / "token", None))
        yield served, lambda: PodWatch(client, NODE)
        await client.close()


Served = tuple[Api, Callable[[], PodWatch]]


async def test_while_the_kubelet_tells_the_api_server_is_not_asked(tmp_path: Path, api: Served) -> None:
    served, watch = api
    async with kubelet_in(tmp_path) as kubelet:
        kubelet.tell(EventKind.ADDED, pod("from-kubelet"))
        source = FollowedPods(LocalPods(tmp_path / PODS, NODE), watch)
        async with running(source):
            await until(lambda: names_of(source)() == {"from-kubelet"})
            kubelet.tell(EventKind.ADDED, pod("later"))
            await until(lambda: "later" in names_of(source)())
    assert served.lists == 0


@pytest.mark.parametrize("has_kubelet", [True, False])
async def test_without_the_socket_the_api_server_tells(tmp_path: Path, api: Served, has_kubelet: bool) -> None:
    source = FollowedPods(LocalPods(tmp_path / PODS, NODE) if has_kubelet else None, api[1])
    async with running(source):
        await until(lambda: names_of(source)() == {"from-api"})


async def misbehaves(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(bytes(range(256)) * 8)
    writer.close()


async def stays_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


@pytest.mark.parametrize("behaves", [misbehaves, stays_silent])
async def test_beside_a_kubelet_that_tells_nothing_the_api_server_tells(
    tmp_path: Path,
    api: Served,
    monkeypatch: pytest.MonkeyPatch,
    behaves: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> None:
    monkeypatch.setattr(localpods, "SYNC_SECONDS", 0.2)
    source = FollowedPods(LocalPods(tmp_path / PODS, NODE), api[1])
    async with listening(tmp_path / PODS, behaves), running(source):
        await until(lambda: names_of(source)() == {"from-api"})


async def test_a_kubelet_that_is_away_for_long_is_stood_in_for_until_it_is_back(
    tmp_path: Path, api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localpods, "GRACE_SECONDS", 0.3)
    served, watch = api
    source = FollowedPods(LocalPods(tmp_path / PODS, NODE), watch)
    kubelet = FakeKubelet(tmp_path)
    kubelet.tell(EventKind.ADDED, pod("from-kubelet"))
    async with running(source):
        await kubelet.start()
        await until(lambda: names_of(source)() == {"from-kubelet"})
        await kubelet.stop()
        shown = []
        await until(lambda: bool(shown.append(names_of(source)()) or served.open))
        assert [names for names in shown if names not in ({"from-kubelet"}, {"from-api"})] == []
        assert shown[0] == {"from-kubelet"}
        await until(lambda: names_of(source)() == {"from-api"})
        await kubelet.start()
        await until(lambda: names_of(source)() == {"from-kubelet"})
        await until(lambda: served.open == 0)
        await kubelet.stop()
    assert served.lists == 1


async def test_nobody_who_tells_is_no_pods_rather_than_none_here(tmp_path: Path) -> None:
    source = FollowedPods(LocalPods(tmp_path / PODS, NODE), None)
    assert (source.pods(), source.exits()) == (None, ())
