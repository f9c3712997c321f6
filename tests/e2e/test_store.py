"""The store on a real API server: what happens is seen, what is cut or expired is made up for, lists come in pages."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import structlog

from autoscaler.contract import keys
from autoscaler.errors import ClusterError
from autoscaler.kube.client import KubeClient
from autoscaler.kube.follow import Follower
from autoscaler.kube.kinds import BY_KIND
from autoscaler.kube.patience import Patience
from autoscaler.kube.shelf import Shelf
from autoscaler.kube.store import Store
from autoscaler.model.workload import ClusterView, Manifest
from tests.e2e.apiserver import ApiServer, missing_manager_reason, missing_reason

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing_reason()), reason=missing_reason() or "a server can be started"),
]

PATIENCE = Patience(first_retry_seconds=0.1, longest_retry_seconds=1.0, seed="test")
MERGE = "application/merge-patch+json"
MANY = 1_100
LABELS = ({keys.ENABLED: "true"}, {keys.WORKLOAD: "chat"}, {keys.ENABLED: "true", keys.WORKLOAD: "chat"}, {"app": "x"})
AT_ONCE = 16


@pytest.fixture
async def kube(cluster: ApiServer) -> AsyncIterator[KubeClient]:
    made = await KubeClient.connect(cluster.kubeconfig)
    yield made
    await made.close()


@pytest.fixture
async def store(kube: KubeClient) -> AsyncIterator[Store]:
    made = Store(kube, PATIENCE)
    yield made
    await made.close()


def pod(namespace: str, name: str, **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels or {keys.ENABLED: "true"}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "python", "image": "python:3"}]},
    }


def deployment(namespace: str, replicas: int) -> dict[str, Any]:
    labels = {"app": "chat", keys.ENABLED: "true"}
    template = {
        "metadata": {"labels": labels, "annotations": {keys.TFLOPS_REQUEST: "10"}},
        "spec": {"containers": [{"name": "python", "image": "python:3"}]},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "chat", "namespace": namespace},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "chat"}}, "template": template},
    }


async def create(kube: KubeClient, manifest: dict[str, Any]) -> dict[str, Any]:
    path = BY_KIND[manifest["kind"]].path(manifest["metadata"]["namespace"])
    return await kube.request("POST", path, body=manifest)


def of(namespace: str, items: tuple[Manifest, ...]) -> dict[str, Manifest]:
    return {item["metadata"]["name"]: item for item in items if item["metadata"].get("namespace") == namespace}


async def read_until(store: Store, met: Callable[[ClusterView], bool], seconds: float = 60.0) -> ClusterView:
    deadline = time.monotonic() + seconds
    while not met(view := await store.read()):
        assert time.monotonic() < deadline, "it was not seen in time"
        await asyncio.sleep(0.05)
    return view


async def test_what_is_created_changed_and_deleted_is_seen_and_what_is_not_stays_the_same_object(
    kube: KubeClient, store: Store, namespace: str
) -> None:
    for name in ("a", "b"):
        await create(kube, pod(namespace, name))
    before = of(namespace, (await store.read()).pods)

    await create(kube, pod(namespace, "c", **{keys.WORKLOAD: "chat"}))
    await create(kube, pod(namespace, "unlabelled", app="other"))
    path = BY_KIND["Pod"].path(namespace, "b")
    await kube.request("PATCH", path, body={"metadata": {"annotations": {keys.QOS: "high"}}}, content_type=MERGE)
    view = await read_until(store, lambda view: {"a", "b", "c"} <= of(namespace, view.pods).keys())
    view = await read_until(store, lambda view: "annotations" in of(namespace, view.pods)["b"]["metadata"])
    found = of(namespace, view.pods)
    assert found.keys() == {"a", "b", "c"}
    assert found["a"] is before["a"]

    await kube.request("DELETE", path)
    await kube.request(
        "PATCH",
        BY_KIND["Pod"].path(namespace, "a"),
        body={"metadata": {"labels": {keys.ENABLED: None}}},
        content_type=MERGE,
    )
    await read_until(store, lambda view: of(namespace, view.pods).keys() == {"c"})


@pytest.mark.skipif(bool(missing_manager_reason()), reason=missing_manager_reason() or "Deployments make pods")
async def test_a_new_deployments_pods_come_with_all_their_owners_and_go_with_them(
    kube: KubeClient, store: Store, namespace: str
) -> None:
    await store.read()
    await create(kube, deployment(namespace, 3))

    def has_pods(view: ClusterView) -> bool:
        known = {owner["metadata"]["uid"] for owner in view.owners}
        pods = of(namespace, view.pods).values()
        # In no view is a pod without its ReplicaSet, or that without its Deployment.
        for item in (*pods, *of(namespace, view.owners).values()):
            assert {one["uid"] for one in item["metadata"].get("ownerReferences") or ()} <= known
        return len(pods) == 3

    view = await read_until(store, has_pods)
    owners = {owner["kind"]: owner for owner in of(namespace, view.owners).values()}
    (step, top) = owners["ReplicaSet"], owners["Deployment"]
    assert "template" not in step["spec"]
    assert top["spec"]["template"]["metadata"]["annotations"] == {keys.TFLOPS_REQUEST: "10"}
    assert top["spec"]["template"]["spec"]["containers"] == [{"name": "python", "image": "python:3"}]

    await kube.request("DELETE", BY_KIND["Deployment"].path(namespace, "chat"))
    await read_until(store, lambda view: not of(namespace, view.pods) and not of(namespace, view.owners))


async def test_more_than_a_thousand_pods_are_listed_in_pages_and_followed(
    kube: KubeClient, store: Store, namespace: str
) -> None:
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with turns:
            await create(kube, pod(namespace, f"p-{number}"))

    await asyncio.gather(*(one(number) for number in range(MANY)))
    assert kube.page < MANY

    found = of(namespace, (await store.read()).pods)
    assert found.keys() == {f"p-{number}" for number in range(MANY)}

    await kube.request("DELETE", BY_KIND["Pod"].path(namespace), {"labelSelector": f"{keys.ENABLED}=true"})
    await read_until(store, lambda view: not of(namespace, view.pods), 120.0)


async def test_a_place_that_the_server_has_forgotten_is_made_up_for_by_a_list(kube: KubeClient, namespace: str) -> None:
    shelf = Shelf(BY_KIND["TensorFusionWorkload"])
    follower = Follower(kube, shelf, {})
    await follower.list(PATIENCE)
    metadata = {"name": "chat", "namespace": namespace}
    kind = {"apiVersion": "tensor-fusion.ai/v1", "kind": "TensorFusionWorkload"}
    await create(kube, {**kind, "metadata": metadata, "spec": {"resources": {"requests": {"tflops": "1"}}}})
    follower.version = "1"  # from before the kind was known: as after a night without the server

    news = asyncio.Event()
    with structlog.testing.capture_logs() as logs:
        task = asyncio.create_task(follower.run(PATIENCE, news.set))
        try:
            async with asyncio.timeout(60):
                while "chat" not in of(namespace, shelf.items):
                    news.clear()
                    await news.wait()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    (again,) = logs
    assert again["event"] == "cluster_listed_again"
    assert "410" in again["why"]


async def test_connections_that_are_cut_lose_nothing_and_take_nothing_away(
    cluster: ApiServer, kube: KubeClient, namespace: str, tmp_path: Path
) -> None:
    async with CuttingProxy(cluster).serve() as proxy:
        through = await KubeClient.connect(proxy.kubeconfig(cluster, tmp_path))
        store = Store(through, PATIENCE)
        try:
            await create(kube, pod(namespace, "a"))
            kept = of(namespace, (await store.read()).pods)["a"]
            for round_ in range(3):
                proxy.cut()
                await create(kube, pod(namespace, f"b-{round_}"))
                view = await read_until(store, lambda view, name=f"b-{round_}": name in of(namespace, view.pods))
                assert of(namespace, view.pods)["a"] is kept
        finally:
            await store.close()
            await through.close()


async def test_after_any_mix_of_changes_and_cuts_the_store_has_what_a_list_says(
    cluster: ApiServer, kube: KubeClient, namespace: str, tmp_path: Path
) -> None:
    draw = random.Random(7)
    path = BY_KIND["Pod"].path
    async with CuttingProxy(cluster).serve() as proxy:
        through = await KubeClient.connect(proxy.kubeconfig(cluster, tmp_path))
        store = Store(through, PATIENCE)
        try:
            await store.read()
            there: set[str] = set()
            for step in range(80):
                name = f"p-{draw.randrange(12)}"
                if step % 10 == 9:
                    proxy.cut()
                if name not in there:
                    await create(kube, pod(namespace, name, **draw.choice(LABELS)))
                    there.add(name)
                elif draw.random() < 0.4:
                    await kube.request("DELETE", path(namespace, name))
                    there.discard(name)
                else:
                    labels = {keys.ENABLED: None, keys.WORKLOAD: None, **draw.choice(LABELS)}
                    body = {"metadata": {"labels": labels, "annotations": {keys.REPLICAS: str(step)}}}
                    await kube.request("PATCH", path(namespace, name), body=body, content_type=MERGE)
            listed = of(namespace, (await Store(kube).read()).pods)
            assert listed
            await read_until(store, lambda view: of(namespace, view.pods) == listed)
        finally:
            await store.close()
            await through.close()


async def test_a_server_that_stays_away_is_an_error_in_the_end_and_no_empty_cluster(
    cluster: ApiServer, kube: KubeClient, namespace: str, tmp_path: Path
) -> None:
    await create(kube, pod(namespace, "a"))
    proxy = CuttingProxy(cluster)
    async with proxy.serve():
        through = await KubeClient.connect(proxy.kubeconfig(cluster, tmp_path), timeout_seconds=1.0)
        impatient = Patience(stale_seconds=3.0, catch_up_seconds=0.2, longest_retry_seconds=0.5)
        store = Store(through, impatient)
        await store.read()
    proxy.cut()
    try:
        with pytest.raises(ClusterError, match="was last heard of"):
            await read_until(store, lambda view: not of(namespace, view.pods))
    finally:
        await store.close()
        await through.close()


class CuttingProxy:
    """Passes bytes on to the server, and cuts all connections when told to."""

    def __init__(self, server: ApiServer) -> None:
        address = urlsplit(server.url)
        self._host, self._target = str(address.hostname), int(address.port or 443)
        self._open: set[asyncio.StreamWriter] = set()
        self.port = 0

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[CuttingProxy]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    def cut(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    def kubeconfig(self, server: ApiServer, folder: Path) -> Path:
        """Return a kubeconfig that leads through this."""
        answer = server.run("config", "view", "--minify", "--raw", "-o", "json")
        text = json.loads(answer.stdout)
        text["clusters"][0]["cluster"]["server"] = f"https://{self._host}:{self.port}"
        (folder / "kubeconfig").write_text(json.dumps(text))
        return folder / "kubeconfig"

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward, away = await asyncio.open_connection(self._host, self._target)
        self._open |= {writer, away}
        await asyncio.gather(_pipe(reader, away), _pipe(onward, writer))
        self._open -= {writer, away}


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(65_536):
            writer.write(piece)
            await writer.drain()
    writer.close()


async def test_an_account_without_rights_is_told_which_to_allow(
    cluster: ApiServer, namespace: str, tmp_path: Path
) -> None:
    assert cluster.run("create", "serviceaccount", "nobody", "-n", namespace).returncode == 0
    token = cluster.run("create", "token", "nobody", "-n", namespace)
    assert token.returncode == 0, token.stderr
    text = json.loads(cluster.run("config", "view", "--minify", "--raw", "-o", "json").stdout)
    text["users"][0]["user"] = {"token": token.stdout.strip()}
    (tmp_path / "kubeconfig").write_text(json.dumps(text))
    kube = await KubeClient.connect(tmp_path / "kubeconfig")

    with pytest.raises(ClusterError, match=r'answered 403: .*allow this account to list pods of the API group ""'):
        await Store(kube).read()
    await kube.close()
