"""A fleet for the engine's benchmark, drawn from a seed: workloads on devices, agents in memory, use that moves."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from autoscaler.contract.keys import Effect, QoS
from autoscaler.contract.quota import (
    DeviceInfo,
    DevicesStatus,
    DeviceStatus,
    Observed,
    QuotaDocument,
    QuotaStatus,
    WorkerStatus,
)
from autoscaler.gateways.agents_memory import MemoryAgents
from autoscaler.model.config import Configuration, LimitsPolicy, Mode, ReplicasPolicy, RequestsPolicy
from autoscaler.model.quantity import parse_amount
from autoscaler.model.resources import GIB, Amount, Amounts, Resource
from autoscaler.model.snapshot import NodeState, Snapshot
from autoscaler.model.steps import Annotate, ClusterWrite, WriteStatus
from autoscaler.model.usage import Usage, Window, WorkloadKey, censored
from autoscaler.model.workload import ClusterView, Discovered, ObjectRef, Worker, Workload

START = 1_800_000_000.0
STEP_SECONDS = 60.0
WORKERS_PER_DEVICE, DEVICES_PER_NODE = 10, 8
CAPACITY_TFLOPS, CAPACITY_BYTES = 989.0, 80 * GIB
MOVING_RATIO = 0.03
"""Workloads whose demand jumps in a pass."""
BORN = Amounts(Amount(40.0, 80.0), Amount(5 * GIB, 7 * GIB))
ANNOTATIONS = {
    "tensor-fusion.ai/tflops-request": (Resource.COMPUTE, "request"),
    "tensor-fusion.ai/tflops-limit": (Resource.COMPUTE, "limit"),
    "tensor-fusion.ai/vram-request": (Resource.VRAM, "request"),
    "tensor-fusion.ai/vram-limit": (Resource.VRAM, "limit"),
}


class TimedAgents(MemoryAgents):
    """Agents in memory that keep apart what they cost themselves."""

    cpu_seconds = 0.0

    async def push(self, document: QuotaDocument) -> QuotaStatus:
        began = time.process_time()
        try:
            return await super().push(document)
        finally:
            self.cpu_seconds += time.process_time() - began


class EngineWorld:
    """Workloads, agents and demand; a Clock and a Cluster whose writes are what the workers hold next."""

    def __init__(self, workloads: int, workers: int, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.at = START
        self.workers = workers
        places = self.random.permutation(workloads * workers) // WORKERS_PER_DEVICE
        self.devices = int(places.max()) + 1
        self.nodes = tuple(f"node-{node}" for node in range(-(-self.devices // DEVICES_PER_NODE)))
        self.agents = TimedAgents(self._device_status(number) for number in range(len(self.nodes)))
        self.workloads = [self._workload(row, places[row * workers : (row + 1) * workers]) for row in range(workloads)]
        self.row_of = {worker.ref.uid: row for row, load in enumerate(self.workloads) for worker in load.workers}
        self.row_of |= {load.ref.uid: row for row, load in enumerate(self.workloads)}
        self.keys = tuple(load.key for load in self.workloads)
        self.written: dict[int, list[Annotate | WriteStatus]] = {}
        shape = (len(Resource), workloads)
        scale = np.array([[BORN.compute.request], [BORN.vram.request]])
        self.demand = scale * self.random.lognormal(-0.7, 0.5, shape)

    def now(self) -> float:
        return self.at

    async def read(self) -> ClusterView:
        raise NotImplementedError("the benchmark hands workloads over resolved")

    async def write(self, write: ClusterWrite) -> None:
        if isinstance(write, Annotate | WriteStatus):
            self.written.setdefault(self.row_of[write.ref.uid], []).append(write)

    async def close(self) -> None:
        """Hold nothing."""

    def stir(self) -> None:
        """Let a minute go by, in which the demand of a few workloads jumps."""
        self.at += STEP_SECONDS
        moving = self.random.random(self.demand.shape[1]) < MOVING_RATIO
        factor = self.random.lognormal(0.0, 0.7, (len(Resource), int(moving.sum())))
        most = np.array([[4 * BORN.compute.limit], [1.2 * BORN.vram.limit]])
        self.demand[:, moving] = np.clip(self.demand[:, moving] * factor, 0.01 * most, most)

    def usage(self, bins: int = 1) -> Usage:
        """Return the last `bins` bins as meters show them: clipped at the limits in force."""
        current = (load.current for load in self.workloads)
        limits = np.array([(held.compute.limit, held.vram.limit) for held in current]).T[:, :, None]
        noise = self.random.normal(1.0, 0.03, (*self.demand.shape, bins))
        peak = np.minimum(self.demand[:, :, None] * noise, limits)
        ceiling = np.broadcast_to(limits, peak.shape)
        clipped = censored(peak, ceiling, np.full(peak.shape, np.nan), np.zeros(peak.shape))
        count = np.full(peak.shape[1:], self.workers, dtype=np.float32)
        return Usage(
            window=Window(self.at - bins * STEP_SECONDS, self.at, STEP_SECONDS),
            keys=self.keys,
            peak=peak.astype(np.float32),
            total=(peak * self.workers).astype(np.float32),
            ceiling=ceiling.astype(np.float32),
            clipped=clipped,
            ooms=np.zeros_like(count),
            workers=count,
            last_seen=np.full(len(self.keys), self.at),
        )

    def snapshot(self, nodes: Mapping[str, NodeState]) -> Snapshot:
        """Return this moment; only workloads that were written to are new objects."""
        for row, writes in self.written.items():
            self.workloads[row] = _after(self.workloads[row], writes)
        self.written.clear()
        return Snapshot(self.at, Discovered(tuple(self.workloads)), nodes)

    def _device_status(self, node: int) -> DevicesStatus:
        numbers = range(node * DEVICES_PER_NODE, min(self.devices, (node + 1) * DEVICES_PER_NODE))
        devices = (
            DeviceInfo(f"GPU-{number}", "NVIDIA H100 80GB HBM3", CAPACITY_BYTES, CAPACITY_TFLOPS) for number in numbers
        )
        return DevicesStatus(self.nodes[node], tuple(devices))

    def _workload(self, row: int, places: np.ndarray) -> Workload:
        key = WorkloadKey(f"team-{row % 50}", f"load-{row}")
        config = Configuration(
            amounts=BORN,
            qos=list(QoS)[int(self.random.integers(len(QoS)))],
            requests=RequestsPolicy(Mode.ON, percentile=0.9 if row % 20 == 0 else None),
            limits=LimitsPolicy(Mode.ON, percentile=0.99 if row % 20 == 1 else None),
            replicas_policy=ReplicasPolicy(Mode.RECOMMEND),
        )
        return Workload(
            key=key,
            ref=ObjectRef("tensor-fusion.ai/v1", "TensorFusionWorkload", *key, uid=f"w-{row}"),
            config=config,
            original=BORN,
            current=BORN,
            workers=tuple(self._worker(key, row, number, int(device)) for number, device in enumerate(places)),
            replicas=len(places),
            created_at=START - 86_400.0,
        )

    def _worker(self, key: WorkloadKey, row: int, number: int, device: int) -> Worker:
        node, uuid, uid = self.nodes[device // DEVICES_PER_NODE], f"GPU-{device}", f"p-{row}-{number}"
        ref = ObjectRef("v1", "Pod", key.namespace, f"{key.name}-{number}", uid=uid)
        status = DeviceStatus(uuid, False, Effect.IMMEDIATE, Observed(vram_used_bytes=GIB, tflops_used=5.0))
        self.agents.start_worker(node, WorkerStatus(uid, key.namespace, ref.name, key.name, (status,)))
        return Worker(ref, node, BORN, ready=True, devices=(uuid,))


def _after(workload: Workload, writes: list[Annotate | WriteStatus]) -> Workload:
    texts = {write.ref.uid: write.annotations for write in writes if isinstance(write, Annotate)}
    status = next((write.status for write in writes if isinstance(write, WriteStatus)), workload.status)
    workers = tuple(
        replace(worker, current=_amounts(worker.current, texts[worker.ref.uid])) if worker.ref.uid in texts else worker
        for worker in workload.workers
    )
    return replace(workload, workers=workers, current=workers[0].current, status=status)


def _amounts(held: Amounts, annotations: Mapping[str, str | None]) -> Amounts:
    changed: dict[Resource, dict[str, float]] = {resource: {} for resource in Resource}
    for key, (resource, side) in ANNOTATIONS.items():
        text = annotations.get(key)
        if text is not None:
            changed[resource][side] = parse_amount(resource, text)
    return Amounts(*(replace(held[resource], **changed[resource]) for resource in Resource))
