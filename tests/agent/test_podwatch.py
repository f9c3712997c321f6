"""Following the node's pods: lists and watches as an API server answers them, and deaths at the VRAM limit."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from agent.evidence.ooms import Ooms
from agent.kubeapi import ApiAddress, KubeApi
from agent.model.exits import Exit
from agent.pods import watch as podwatch
from agent.pods.watch import PodWatch
from autoscaler.contract import keys
from autoscaler.contract.quota import Observed

NODE = "node-a"


def pod(name: str, version: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "uid": f"uid-{name}",
            "name": name,
            "namespace": "chat",
            "resourceVersion": str(version),
            "labels": {keys.ENABLED: "true", "pod-template-hash": "5d4f"},
            "annotations": {keys.TFLOPS_LIMIT: "20", keys.VRAM_LIMIT: "8Gi"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "web-5d4f", "controller": True}],
        },
        "spec": {"nodeName": NODE, "containers": [{"name": "main"}, {"name": "side"}]},
        "status": {"containerStatuses": [{"name": "main", "containerID": "containerd://" + "ab" * 32}]},
        **changes,
    }


class Server:
    """A list, then one script of lines per watch; a number ends a watch with that status before it begins."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.watches: list[list[dict[str, Any] | str] | int] = []
        self.lists = 0
        self.queries: list[dict[str, str]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.queries.append(dict(request.query))
        if "watch" not in request.query:
            self.lists += 1
            return web.json_response({"metadata": {"resourceVersion": "10"}, "items": self.items})
        script = self.watches.pop(0) if self.watches else None
        if isinstance(script, int):
            return web.json_response({"message": "gone"}, status=script)
        response = web.StreamResponse()
        await response.prepare(request)
        for line in script or ():
            await response.write((line if isinstance(line, str) else json.dumps(line)).encode() + b"\n")
        if script is None:
            await asyncio.Event().wait()
        return response


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Server, PodWatch]]:
    scripted = Server()
    app = web.Application()
    app.router.add_get("/api/v1/pods", scripted.answer)
    (tmp_path / "token").write_text("t")
    monkeypatch.setattr(podwatch, "FIRST_PAUSE_SECONDS", 0.01)
    async with TestServer(app) as running:
        api = KubeApi(ApiAddress(str(running.make_url("")).rstrip("/"), tmp_path / "token", None))
        yield scripted, PodWatch(api, NODE)
        await api.close()


Followed = tuple[Server, PodWatch]


async def until(watch: PodWatch, holds: Callable[[], bool]) -> None:
    task = asyncio.create_task(watch.run())
    deadline = time.monotonic() + 20
    try:
        while not holds():
            assert time.monotonic() < deadline
            assert not task.done(), task
            await asyncio.sleep(0.01)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def names(watch: PodWatch) -> set[str]:
    return {worker.pod for known in (watch.pods() or {}).values() for worker in known.workers}


def event(kind: str, item: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "object": item}


async def test_pods_are_listed_for_this_node_and_followed_from_there(server: Followed) -> None:
    scripted, watch = server
    assert watch.pods() is None
    scripted.items = [pod("a")]
    scripted.watches = [[event("ADDED", pod("b", 11)), event("DELETED", pod("a", 12))]]
    await until(watch, lambda: names(watch) == {"b"})
    assert scripted.queries[0]["fieldSelector"] == f"spec.nodeName={NODE}"
    assert scripted.queries[1]["resourceVersion"] == "10"
    (known,) = (watch.pods() or {}).values()
    main = known.worker_in("ab" * 32)
    assert main is not None
    assert (main.workload, main.container, main.born is not None) == ("web", "main", True)


async def test_a_watch_goes_on_where_the_last_bookmark_was(server: Followed) -> None:
    scripted, watch = server
    scripted.watches = [[event("BOOKMARK", {"metadata": {"resourceVersion": "77"}})], None]
    await until(watch, lambda: len(scripted.queries) >= 3)
    assert scripted.queries[2]["resourceVersion"] == "77"
    assert scripted.lists == 1


@pytest.mark.parametrize("script", [410, [{"type": "ERROR", "object": {"code": 410}}]], ids=["by status", "by event"])
async def test_a_place_that_is_forgotten_is_listed_again(server: Followed, script: Any) -> None:
    scripted, watch = server
    scripted.items = [pod("a")]
    scripted.watches = [script]
    await until(watch, lambda: scripted.lists == 2 and names(watch) == {"a"})


@pytest.mark.parametrize("script", [500, ['{"type": "ADDED", "obj'], 403])
async def test_what_breaks_a_watch_takes_no_pod_away(server: Followed, script: Any) -> None:
    scripted, watch = server
    scripted.items = [pod("a")]
    scripted.watches = [script, script]
    seen: list[set[str]] = []

    def again() -> bool:
        if watch.pods() is not None:
            seen.append(names(watch))
        return scripted.lists >= 2

    await until(watch, again)
    assert all(one == {"a"} for one in seen)


async def test_how_containers_ended_is_known(server: Followed) -> None:
    scripted, watch = server
    ended = {"terminated": {"exitCode": 137, "finishedAt": "2026-11-22T10:00:00Z"}}
    scripted.items = [pod("a", status={"containerStatuses": [{"name": "main", "lastState": ended}]})]
    await until(watch, lambda: bool(watch.exits()))
    assert watch.exits() == (Exit("uid-a", "main", 137, "2026-11-22T10:00:00Z"),)


KEY = ("uid-a", "main", "GPU-0")
ENDED_AT = 1_795_341_600.0


def died(ooms: Ooms, *, used: int = 96, near_at: float = ENDED_AT - 5, code: int = 1) -> int:
    ooms.tick(near_at, {KEY: Observed(vram_limit_bytes=100, vram_used_bytes=used)}, ())
    one = Exit("uid-a", "main", code, "2026-11-22T10:00:00Z")
    assert one.at == ENDED_AT
    for later in (1.0, 2.0):
        ooms.tick(ENDED_AT + later, {KEY: Observed(vram_limit_bytes=100, vram_used_bytes=0)}, (one,))
    return ooms.counts([KEY])[*KEY, "exit"]


def test_a_failed_container_whose_worker_was_at_its_limit_died_of_memory_once() -> None:
    assert died(Ooms()) == 1


@pytest.mark.parametrize(
    "otherwise", [{"used": 90}, {"near_at": ENDED_AT - 11}, {"code": 0}], ids=["below", "long before", "succeeded"]
)
def test_any_other_end_is_none(otherwise: dict[str, Any]) -> None:
    assert died(Ooms(), **otherwise) == 0


@pytest.mark.parametrize(
    "seen", [Observed(vram_used_bytes=96), Observed(vram_limit_bytes=100), Observed(0.0, 0, 0.0, 0)]
)
def test_where_nothing_can_tell_there_is_no_count(seen: Observed) -> None:
    ooms = Ooms()
    ooms.tick(ENDED_AT - 5, {KEY: seen}, ())
    ooms.tick(ENDED_AT + 1, {KEY: seen}, (Exit("uid-a", "main", 1, "2026-11-22T10:00:00Z"),))
    assert ooms.counts([KEY]) == {}


def test_who_left_is_forgotten() -> None:
    ooms = Ooms()
    died(ooms)
    assert ooms.counts([]) == {}
    assert ooms.counts([KEY]) == {}
