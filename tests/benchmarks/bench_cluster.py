"""What the cluster's objects cost: `python -m tests.benchmarks.bench_cluster [--quick]`.

A server on loopback, in a process of its own, serves pods about as long as real ones (7 KB: environment, volumes, managed
fields, container statuses), half clients and half workers, ten a workload, with Deployments, three ReplicaSets each,
and nodes. Measured in a fresh process: list and trim of all, what stays in memory above the program with its client
loaded, a reading while nothing happens, and readings while pods change.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

import psutil
from aiohttp import web

from autoscaler.contract import keys
from autoscaler.kube.client import PAGE, KubeClient
from autoscaler.kube.patience import Patience
from autoscaler.kube.store import POD_SELECTORS, Store
from tests.benchmarks.bench_engine import alone, table
from tests.benchmarks.bench_reading import peak_bytes

SIZES = ((1_000, 100), (10_000, 1_000))
NODES, REVISIONS = 200, 3
QUIET_READS = 1_000
CHANGES = 2_000
BOOKMARK_SECONDS = 1.0
SELECTORS = tuple(POD_SELECTORS)
EMPTY = b'{"kind": "List", "metadata": {"resourceVersion": "1000"}, "items": []}'


def metadata(name: str, number: int, labels: dict[str, str], annotations: dict[str, str]) -> dict[str, Any]:
    fields = {f"f:field-{n}": {"f:value": {}, ".": {}} for n in range(40)}
    return {
        "name": name,
        "namespace": f"team-{number % 20}",
        "uid": f"{number:08x}-0000-4000-8000-000000000000",
        "resourceVersion": str(100 + number),
        "generation": 1,
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": labels,
        "annotations": annotations,
        "managedFields": [{"manager": "kube-controller-manager", "operation": "Update", "fieldsV1": fields}],
    }


def reference(kind: str, name: str, number: int) -> list[dict[str, Any]]:
    uid = f"{number:08x}-0000-4000-8000-000000000000"
    return [
        {
            "apiVersion": "apps/v1",
            "kind": kind,
            "name": name,
            "uid": uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]


def figures(number: int) -> dict[str, str]:
    return {
        keys.TFLOPS_REQUEST: f"{10 + number % 7}",
        keys.TFLOPS_LIMIT: f"{20 + number % 7}",
        keys.VRAM_REQUEST: "4Gi",
        keys.VRAM_LIMIT: "8Gi",
        keys.QOS: "high",
        keys.GPU_IDS: f"GPU-{number // 8:08x}-0000-4000-8000-000000000000",
        "cni.projectcalico.org/podIP": f"10.0.{number % 250}.{number // 250 % 250}/32",
    }


def container() -> dict[str, Any]:
    return {
        "name": "python",
        "image": "registry.example.com/team/serving:1.2.3",
        "env": [{"name": f"SETTING_{n}", "value": "x" * 32} for n in range(30)],
        "volumeMounts": [{"name": f"volume-{n}", "mountPath": f"/mnt/{n}"} for n in range(6)],
        "resources": {"limits": {"cpu": "4", "memory": "16Gi"}, "requests": {"cpu": "2", "memory": "8Gi"}},
    }


def pod(number: int, version: int | None = None) -> dict[str, Any]:
    owner = number // 10
    mine = {keys.WORKLOAD: f"load-{owner}"} if number % 2 else {keys.ENABLED: "true"}
    name = f"load-{owner}-7d9c5b6f8-{number:05x}"
    body = metadata(
        name, 10_000_000 + number, {"app": f"load-{owner}", "pod-template-hash": "7d9c5b6f8", **mine}, figures(number)
    )
    body["namespace"] = f"team-{owner % 20}"
    body["ownerReferences"] = reference("ReplicaSet", f"load-{owner}-7d9c5b6f8", 2_000_000 + owner * REVISIONS)
    body["resourceVersion"] = str(version or 100)
    status = {
        "phase": "Running",
        "podIP": "10.0.0.1",
        "conditions": [
            {"type": kind, "status": "True", "lastProbeTime": None, "lastTransitionTime": "2026-01-01T00:00:10Z"}
            for kind in ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
        ],
        "containerStatuses": [{"name": "python", "image": "x" * 60, "imageID": "x" * 100, "containerID": "x" * 80}],
    }
    spec = {
        "nodeName": f"node-{number % NODES}",
        "containers": [container()],
        "volumes": [{"name": f"volume-{n}", "configMap": {"name": f"config-{n}"}} for n in range(6)],
        "tolerations": [{"key": f"key-{n}", "operator": "Exists", "effect": "NoSchedule"} for n in range(4)],
    }
    return {"metadata": body, "spec": spec, "status": status}


def deployment(number: int, kind: str = "Deployment", revision: int = 0) -> dict[str, Any]:
    name = f"load-{number}"
    body = metadata(name, 1_000_000 + number, {"app": name}, {})
    if kind == "ReplicaSet":
        body = metadata(f"{name}-{revision}", 2_000_000 + number * REVISIONS + revision, {"app": name}, {})
        body["ownerReferences"] = reference("Deployment", name, 1_000_000 + number)
    body["namespace"] = f"team-{number % 20}"
    labels = {"app": name, keys.ENABLED: "true"}
    template = {"metadata": {"labels": labels, "annotations": figures(number)}, "spec": {"containers": [container()]}}
    status = {"observedGeneration": 1, "replicas": 10, "updatedReplicas": 10, "availableReplicas": 10}
    spec = {"replicas": 10, "selector": {"matchLabels": {"app": name}}, "template": template}
    return {"metadata": body, "spec": spec, "status": status}


def workload(number: int) -> dict[str, Any]:
    name = f"load-{number}"
    figure = dict.fromkeys(("target", "lowerBound", "upperBound", "uncappedTarget"), "12") | {
        "reason": "WithinTolerance",
        "message": "the target is within 5 % of the current figure" * 2,
    }
    conditions = [
        {
            "type": f"Condition{n}",
            "status": "True",
            "reason": "Applied",
            "message": "10 of 10 workers hold what was decided" * 2,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
            "observedGeneration": 1,
        }
        for n in range(7)
    ]  # fmt: skip
    status = {
        "workerCount": 10,
        "readyWorkers": 10,
        "conditions": conditions,
        "autoscaling": dict.fromkeys(("tflopsRequest", "tflopsLimit", "vramRequest", "vramLimit", "replicas"), figure),
    }
    resources = {"requests": {"tflops": "10", "vram": "4Gi"}, "limits": {"tflops": "20", "vram": "8Gi"}}
    body = metadata(name, 3_000_000 + number, {"app.kubernetes.io/managed-by": "x"}, {})
    body["namespace"] = f"team-{number % 20}"
    return {"metadata": body, "spec": {"replicas": 10, "qos": "high", "resources": resources}, "status": status}


def node(number: int) -> dict[str, Any]:
    name = f"node-{number}"
    body = metadata(name, 4_000_000 + number, {"kubernetes.io/hostname": name}, {})
    images = [{"names": [f"image-{n}@sha256:{n:064x}"], "sizeBytes": n} for n in range(50)]
    return {"metadata": body, "spec": {}, "status": {"capacity": {"cpu": "64"}, "images": images}}


class Server:
    """Lists in pages, and watches that say bookmarks; POST /change sends changed pods to the watches."""

    def __init__(self, pods: int, workloads: int) -> None:
        owners = range(workloads)
        self._items = {
            "pods": [pod(number) for number in range(pods)],
            "tensorfusionworkloads": [workload(number) for number in owners],
            "deployments": [deployment(number) for number in owners],
            "replicasets": [deployment(number, "ReplicaSet", age) for number in owners for age in range(REVISIONS)],
            "nodes": [node(number) for number in range(NODES)],
        }
        self._bodies: dict[tuple[str, ...], bytes] = {}
        self._watches: list[asyncio.Queue[bytes]] = []
        self._version = 1_000

        for plural in self._items:
            for selector in SELECTORS if plural == "pods" else ("",):
                following = "0"
                while following:
                    following = self._render(plural, selector, following)

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/change", self._change)
        app.router.add_get("/{path:.*}", self._get)
        return app

    async def _get(self, request: web.Request) -> web.StreamResponse:
        plural = request.path.rpartition("/")[2]
        selector = request.query.get("labelSelector", "")
        if request.query.get("watch"):
            return await self._watch(request, plural, selector)
        place = (plural, selector, request.query.get("continue", "0"))
        return web.Response(body=self._bodies.get(place, EMPTY), content_type="application/json")

    def _render(self, plural: str, selector: str, start: str) -> str:
        """Render a page and return where the next one begins."""
        key = selector.partition("=")[0]
        items = [item for item in self._items[plural] if not key or key in item["metadata"]["labels"]]
        end = int(start) + PAGE
        following = str(end) if end < len(items) else ""
        told = {"resourceVersion": "1000", "continue": following}
        page = {"kind": "List", "metadata": told, "items": items[int(start) : end]}
        self._bodies[plural, selector, start] = json.dumps(page).encode()
        return following

    async def _watch(self, request: web.Request, plural: str, selector: str) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        if plural == "pods" and selector == keys.WORKLOAD:
            self._watches.append(queue)
        while True:
            try:
                await response.write(await asyncio.wait_for(queue.get(), BOOKMARK_SECONDS))
            except TimeoutError:
                told = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(self._version)}}}
                await response.write(json.dumps(told).encode() + b"\n")

    async def _change(self, request: web.Request) -> web.Response:
        for number in range(1, 2 * int(request.query["count"]), 2):
            self._version += 1
            line = json.dumps({"type": "MODIFIED", "object": pod(number, self._version)}).encode() + b"\n"
            for queue in self._watches:
                queue.put_nowait(line)
        return web.json_response({"metadata": {"resourceVersion": str(self._version), "labels": {keys.WORKLOAD: ""}}})


def serve(pods: int, workloads: int, told: Connection) -> None:
    """Serve until killed; tell the port, once everything is rendered."""

    async def forever() -> None:
        runner = web.AppRunner(Server(pods, workloads).app(), shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        told.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(forever())


async def measure(port: int) -> dict[str, Any]:
    from kubernetes.aio import client

    kube = KubeClient(client.ApiClient(client.Configuration(host=f"http://127.0.0.1:{port}")), 120.0)
    await kube.request("GET", "/api/v1/none")
    store = Store(kube, Patience(seed="benchmark", catch_up_seconds=120.0))
    gc.collect()
    base = psutil.Process().memory_info().rss
    began, cpu = time.perf_counter(), time.process_time()
    view = await store.read()
    result: dict[str, Any] = {"pods": len(view.pods), "workloads": len(view.workloads), "owners": len(view.owners)}
    result |= {"list_seconds": time.perf_counter() - began, "list_cpu_seconds": time.process_time() - cpu}
    del view
    gc.collect()
    result |= {"kept_mb": (psutil.Process().memory_info().rss - base) / 1e6, "peak_mb": (peak_bytes() - base) / 1e6}
    result["quiet_read_us"] = await quiet_read_us(store)
    result |= await change(kube, store, min(CHANGES, result["pods"] // 2))
    await store.close()
    await kube.close()
    return result


async def quiet_read_us(store: Store) -> float:
    await asyncio.sleep(2 * BOOKMARK_SECONDS)  # until every watch is open and has said something
    taken = []
    for _ in range(QUIET_READS):
        began = time.perf_counter()
        await store.read()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e6


async def change(kube: KubeClient, store: Store, count: int) -> dict[str, Any]:
    """Let pods change, and read until the last one is seen."""
    cpu = time.process_time()
    store.wrote(await kube.request("POST", "/change", {"count": str(count)}), "Pod")
    await store.read()
    return {"changes": count, "change_cpu_us": (time.process_time() - cpu) / count * 1e6}


def bench_alone(port: int) -> dict[str, Any]:
    return asyncio.run(measure(port))


def bench_cluster(pods: int, workloads: int) -> dict[str, Any]:
    """Measure one size, server and store each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(pods, workloads, theirs), daemon=True)
    server.start()
    try:
        return alone(bench_alone, ours.recv())
    finally:
        server.kill()
        server.join()


def run(*, quick: bool) -> list[dict[str, Any]]:
    """Return all figures."""
    return [bench_cluster(*size) for size in (SIZES[:1] if quick else SIZES)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,000 pods only")
    print(table(run(quick=parser.parse_args().quick)))


if __name__ == "__main__":
    main()
