"""The controller's passes on a real API server: Deployments whose pods run on imagined nodes, with agents in memory.

No kubelet runs, so pods are bound and reported as running here. Time is a clock set by hand, use is ingested as agents
would expose it. Only one namespace is seen, so that tests on one server don't meet.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from autoscaler.contract import keys
from autoscaler.contract.keys import PREFIX, Effect
from autoscaler.contract.quota import DeviceInfo, DevicesStatus, DeviceStatus, Observed, WorkerStatus
from autoscaler.controller import Controller, World
from autoscaler.errors import ClusterError, HistoryError
from autoscaler.gateways.agents_memory import MemoryAgents
from autoscaler.kube.client import MERGE_PATCH, KubeClient, StatusError
from autoscaler.kube.cluster import KubeCluster
from autoscaler.model.steps import ClusterWrite
from autoscaler.model.usage import Usage, Window, WorkloadKey
from autoscaler.model.workload import ClusterView
from autoscaler.read.memory import MemoryHistory
from autoscaler.report.metrics import ControllerMetrics
from autoscaler.report.writer import Passed
from autoscaler.settings import Settings
from tests.e2e.apiserver import ApiServer

GIB = 2**30
MODEL = "NVIDIA H100 80GB HBM3"
DEADLINE_SECONDS = 120.0
Found = TypeVar("Found")
Json = dict[str, Any]
AMOUNTS = {"tflops-request": "10", "tflops-limit": "20", "vram-request": "4Gi", "vram-limit": "8Gi"}
OURS = "/apis/tensor-fusion.ai/v1"


@dataclass
class HandClock:
    """A clock that stands still between two minutes."""

    at: float = field(default_factory=lambda: time.time() // 60 * 60 - 3600)

    def now(self) -> float:
        return self.at


@dataclass
class Here:
    """A cluster of which only one namespace, and the nodes of that name, are seen; counts its writes."""

    inner: KubeCluster
    namespace: str
    writes: list[ClusterWrite] = field(default_factory=list)
    fails: str = ""
    """The kind of write that fails; empty: none does."""

    async def read(self) -> ClusterView:
        view = await self.inner.read()
        mine = {
            name: tuple(one for one in getattr(view, name) if one["metadata"].get("namespace") == self.namespace)
            for name in ("profiles", "workloads", "pods", "owners", "quotas", "scalers", "budgets")
        }
        whole = {
            name: tuple(one for one in getattr(view, name) if one["metadata"]["name"].startswith(self.namespace))
            for name in ("nodes", "gpus")
        }
        return replace(view, **mine, **whole)

    async def write(self, write: ClusterWrite) -> None:
        if type(write).__name__ == self.fails:
            raise ClusterError("the API server answered 500: etcd is not there")
        self.writes.append(write)
        await self.inner.write(write)

    async def secret(self, namespace: str, name: str) -> Mapping[str, str]:
        return await self.inner.secret(namespace, name)

    async def close(self) -> None:
        await self.inner.close()


@dataclass
class BreakableHistory:
    """The history in memory, with a switch."""

    inner: MemoryHistory = field(default_factory=lambda: MemoryHistory(60.0, 86400.0))
    broken: str = ""

    def parts(self, window: Window) -> tuple[Window, ...]:
        return self.inner.parts(window)

    async def read(self, window: Window) -> Usage:
        if self.broken:
            raise HistoryError(self.broken)
        return await self.inner.read(window)

    def only(self, key: WorkloadKey) -> BreakableHistory:
        return self

    async def close(self) -> None:
        await self.inner.close()


@dataclass
class Town:
    """A namespace with a controller; one GPU on one node unless told otherwise."""

    server: ApiServer
    namespace: str
    client: KubeClient
    devices: tuple[DeviceInfo, ...] = (DeviceInfo("GPU-0", MODEL, 80 * GIB, 989.0),)
    clock: HandClock = field(default_factory=HandClock)
    history: BreakableHistory = field(default_factory=BreakableHistory)
    spent: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.node = f"{self.namespace}-node"
        self.agents = MemoryAgents([DevicesStatus(self.node, self.devices)])
        self.here = Here(KubeCluster(self.client, self.clock), self.namespace)
        self.controller = self.start()

    def start(self) -> Controller:
        """Return a controller that knows nothing yet, on the same cluster."""
        self.here = Here(KubeCluster(self.client, self.clock), self.namespace)
        settings = Settings(scrape_interval_seconds=60, settle_seconds=0, history_seconds=86400)
        self.controller = Controller(
            World(self.clock, self.history, self.here, self.agents), settings, ControllerMetrics()
        )
        return self.controller

    async def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Json:
        """Ask the server; a PATCH is a merge patch."""
        if method == "PATCH":
            return await self.client.request(method, path, {}, body, MERGE_PATCH)
        return await self.client.request(method, path, {}, body)

    def path(self, plural: str, name: str = "", root: str = OURS) -> str:
        """Return the path of an object of this namespace."""
        return f"{root}/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")

    async def add_node(self, name: str = "", **labels: str) -> None:
        """Make a node that has a GPU."""
        marks = {key.replace("__", "/").replace("_", "-"): value for key, value in labels.items()}
        body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name or self.node, "labels": marks}}
        await self.request("POST", "/api/v1/nodes", body)

    async def close(self) -> None:
        """Take away what no namespace's deletion takes."""
        for node in (await self.client.request("GET", "/api/v1/nodes"))["items"]:
            if node["metadata"]["name"].startswith(self.namespace):
                await self.request("DELETE", f"/api/v1/nodes/{node['metadata']['name']}")
        await self.here.close()
        await self.client.close()

    async def profile(self, name: str, **spec: Any) -> None:
        """Make a profile."""
        body = {
            "apiVersion": "tensor-fusion.ai/v1",
            "kind": "WorkloadProfile",
            "metadata": {"name": name},
            "spec": spec,
        }
        await self.request("POST", self.path("workloadprofiles"), body)

    async def deploy(
        self, name: str = "llm", *, containers: tuple[str, ...] = ("main",), workers: int = 1, **more: str
    ) -> None:
        """Make a Deployment with annotations (`_` for `-`; an empty one is left out) and start its pods."""
        chosen = AMOUNTS | {key.replace("_", "-"): value for key, value in more.items()}
        marks = {PREFIX + key: value for key, value in chosen.items() if value}
        labels = {"app": name, keys.ENABLED: "true"}
        spec = {"containers": [{"name": one, "image": "python:3"} for one in containers]}
        template = {"metadata": {"labels": labels, "annotations": marks}, "spec": spec}
        body = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name},
            "spec": {"replicas": workers, "selector": {"matchLabels": {"app": name}}, "template": template},
        }
        await self.request("POST", self.path("deployments", root="/apis/apps/v1"), body)
        await self.run_pods(name, workers)

    async def run_pods(self, name: str, count: int) -> list[Json]:
        """Wait for a Deployment's pods, put those that wait on the node, and report them as running."""

        async def all_there() -> list[Json] | None:
            pods = await self.pods(name)
            return pods if len(pods) >= count else None

        pods = await until(f"{count} pods of {name}", all_there)
        for place, pod in enumerate(pods):
            if not pod["spec"].get("nodeName"):
                await self._run(pod, name, self.devices[place % len(self.devices)].uuid)
        return await self.pods(name)

    async def _run(self, pod: Json, workload: str, uuid: str) -> None:
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        target = {"apiVersion": "v1", "kind": "Node", "name": self.node}
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
        await self.request("POST", self.path("pods", name, "/api/v1") + "/binding", binding)
        ready = [{"type": "Ready", "status": "True"}]
        status = {"status": {"phase": "Running", "conditions": ready}}
        await self.request("PATCH", self.path("pods", name, "/api/v1") + "/status", status)
        device = DeviceStatus(uuid, False, Effect.IMMEDIATE, Observed(vram_used_bytes=2 * GIB))
        self.agents.start_worker(self.node, WorkerStatus(uid, self.namespace, name, workload, (device,)))

    async def pods(self, name: str) -> list[Json]:
        """Return a Deployment's pods, by name."""
        path, query = self.path("pods", root="/api/v1"), {"labelSelector": f"app={name}"}
        found = (await self.client.request("GET", path, query))["items"]
        return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))

    async def annotate(self, name: str, **more: str | None) -> None:
        """Change annotations of a Deployment's pod template; its pods stay as they are until it rolls out."""
        marks = {PREFIX + key.replace("_", "-"): value for key, value in more.items()}
        body = {"spec": {"paused": True, "template": {"metadata": {"annotations": marks}}}}
        await self.request("PATCH", self.path("deployments", name, "/apis/apps/v1"), body)

    async def workload(self, name: str = "llm") -> Json:
        """Return a TensorFusionWorkload; an empty object where there is none."""
        try:
            return await self.request("GET", self.path("tensorfusionworkloads", name))
        except StatusError as error:
            if error.status == 404:
                return {}
            raise

    async def events(self, kind: str, name: str = "llm") -> list[Json]:
        """Return the events about an object, the oldest first."""
        found = (await self.request("GET", self.path("events", root="/apis/events.k8s.io/v1")))["items"]
        mine = [one for one in found if (one["regarding"]["kind"], one["regarding"]["name"]) == (kind, name)]
        return sorted(mine, key=lambda one: str(one["eventTime"]))

    async def run_pass(self) -> Passed:
        """Run one pass of the controller."""
        return await self.controller.run_pass()

    async def minutes(self, count: int, tflops: float = 5.0, vram_gib: float = 2.0, name: str = "llm") -> None:
        """Let time pass minute by minute with this demand, each with a pass."""
        for _ in range(count):
            self.clock.at += 60
            await self._scrape(name, tflops, vram_gib)
            await self.run_pass()

    async def _scrape(self, workload: str, tflops: float, vram_gib: float) -> None:
        capacity = self.devices[0].tflops or 1.0
        lines = [f'tensor_fusion_device_compute_capacity_tflops{{node="{self.node}",gpu_uuid="GPU-0"}} {capacity}']
        for pod in await self.pods(workload):
            name, marks = pod["metadata"]["name"], pod["metadata"].get("annotations") or {}
            limit = float(marks.get(keys.TFLOPS_LIMIT, AMOUNTS["tflops-limit"]))
            self.spent[name] = self.spent.get(name, 0.0) + 60 * min(tflops, limit) / capacity
            labels = (
                f'namespace="{self.namespace}",workload="{workload}",pod="{name}",container="main",'
                f'node="{self.node}",gpu_uuid="GPU-0"'
            )
            lines += [
                f"tensor_fusion_worker_compute_seconds_total{{{labels}}} {self.spent[name]!r}",
                f"tensor_fusion_worker_vram_peak_bytes{{{labels}}} {vram_gib * GIB!r}",
                f"tensor_fusion_worker_effective_tflops_limit{{{labels}}} {limit}",
                f"tensor_fusion_worker_effective_vram_limit_bytes{{{labels}}} {8 * GIB}",
            ]
        self.history.inner.ingest(self.clock.at, "\n".join(lines) + "\n")


def conditions(workload: Json) -> dict[str, Json]:
    """Return an object's conditions by type."""
    return {str(one["type"]): one for one in (workload.get("status") or {}).get("conditions") or ()}


def marks(pod: Json) -> dict[str, str]:
    """Return a pod's annotations of ours, without the prefix."""
    found = pod["metadata"].get("annotations") or {}
    return {key.removeprefix(PREFIX): value for key, value in found.items() if key.startswith(PREFIX)}


async def until(said: str, condition: Callable[[], Awaitable[Found | None]]) -> Found:
    """Return the condition's first result; fail when there is none in time."""
    end = time.monotonic() + DEADLINE_SECONDS
    while True:
        found = await condition()
        if found is not None:
            return found
        assert time.monotonic() < end, f"within {DEADLINE_SECONDS:g} s never: {said}"
        await asyncio.sleep(0.1)
