"""Workloads, decisions and nodes with round numbers, for the tests of apply and report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from autoscaler.contract.keys import Effect, QoS
from autoscaler.contract.quota import (
    DeviceInfo,
    DeviceQuota,
    DeviceStatus,
    Observed,
    QuotaDocument,
    QuotaStatus,
    WorkerQuota,
    WorkerStatus,
)
from autoscaler.errors import NodeError, RefusedError
from autoscaler.model.config import Configuration, Mode
from autoscaler.model.decision import Decision, Field, FieldDecision
from autoscaler.model.reasons import Cause, Verdict
from autoscaler.model.resources import GIB, Amount, Amounts
from autoscaler.model.snapshot import NodeState
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import ObjectRef, Worker, Workload

NOW = 1_800_000_000.0
KEY = WorkloadKey("prod", "chat")
GPU = "GPU-a"
NODE = "node-1"


def amounts(tflops=(10.0, 20.0), vram_gib=(4.0, 4.0)) -> Amounts:
    return Amounts(Amount(*tflops), Amount(vram_gib[0] * GIB, vram_gib[1] * GIB))


def pod(name: str) -> ObjectRef:
    return ObjectRef("v1", "Pod", KEY.namespace, name, uid=f"uid-{name}")


def worker(name="chat-0", current=None, **more: Any) -> Worker:
    settings = {"node": NODE, "ready": True, "devices": (GPU,)} | more
    return Worker(pod(name), current=current or amounts(), **settings)


def workload(workers=None, current=None, **more: Any) -> Workload:
    held = current or amounts()
    crew = (worker(current=held), worker("chat-1", held)) if workers is None else workers
    settings: dict[str, Any] = {
        "key": KEY,
        "ref": ObjectRef("tensor-fusion.ai/v1", "TensorFusionWorkload", *KEY, uid="uid-tfw"),
        "config": Configuration(amounts=amounts()),
        "original": amounts(),
        "current": held,
        "workers": crew,
        "replicas": len(crew),
        "created_at": NOW - 86_400,
        "generation": 3,
        "owners": (ObjectRef("apps/v1", "Deployment", KEY.namespace, KEY.name, uid="uid-deploy"),),
    }
    owners = (settings | more)["owners"]
    scalable = owners[0] if len(owners) == 1 and owners[0].kind == "Deployment" else None
    return Workload(**({"scale_target": scalable} | settings | more))


def figure(field: Field, current: float, wanted: float, **more: Any) -> FieldDecision:
    settings: dict[str, Any] = {
        "mode": Mode.ON,
        "uncapped": wanted,
        "allowed": wanted,
        "lower_bound": math.nan,
        "upper_bound": math.nan,
        "cause": Cause.UNCHANGED if wanted == current else Cause.RAISED,
        "verdict": Verdict.PASSED,
        "inputs": {},
    }
    return FieldDecision(field=field, current=current, wanted=wanted, **(settings | more))


def decision(changes: Mapping[Field, FieldDecision | float] | None = None, held: Amounts | None = None) -> Decision:
    """Every figure stays, but for `changes`: a wanted figure that passed, or a whole FieldDecision."""
    now = held or amounts()
    current = (now.compute.request, now.compute.limit, now.vram.request, now.vram.limit, 2.0)
    fields = []
    for field in Field:
        change = (changes or {}).get(field, current[field])
        fields.append(change if isinstance(change, FieldDecision) else figure(field, current[field], change))
    return Decision(KEY, NOW, tuple(fields), samples=1440, span_seconds=86_400.0)


def quota(name: str, vram=(4.0, 4.0), tflops=(10.0, 20.0), qos=QoS.MEDIUM, uuid=GPU) -> WorkerQuota:
    device = DeviceQuota(uuid, *tflops, *(round(gib * GIB) for gib in vram))
    return WorkerQuota(f"uid-{name}", KEY.namespace, name, KEY.name, qos, (device,))


def device(vram_gib=24.0, tflops=100.0, uuid=GPU) -> DeviceInfo:
    return DeviceInfo(uuid, "NVIDIA Test", round(vram_gib * GIB), tflops)


class Agent:
    """A node's agent in memory: takes whole documents, refuses what a real one refuses, applies what `stuck` lets it."""

    def __init__(self, node=NODE, devices=(), effect=Effect.IMMEDIATE) -> None:
        self.node, self.devices, self.effect = node, devices or (device(),), effect
        self.document = QuotaDocument(0, 0, node, ())
        self.received: list[QuotaDocument] = []
        self.in_force: dict[tuple[str, str], DeviceQuota] = {}
        self.stuck: set[str] = set()
        self.error: Exception | None = None

    def state(self) -> NodeState:
        return NodeState(self.node, self.devices, self.status())

    def put(self, document: QuotaDocument) -> QuotaStatus:
        if self.error is not None:
            raise self.error
        if (document.epoch, document.generation) < (self.document.epoch, self.document.generation):
            raise RefusedError("StaleGeneration")
        totals = {info.uuid: info for info in self.devices}
        requested = dict.fromkeys(totals, 0)
        for entry in document.quotas:
            for one in entry.devices:
                info = totals[one.uuid]
                requested[one.uuid] += one.vram_request_bytes
                if one.vram_limit_bytes > info.vram_total_bytes or one.tflops_limit > info.tflops:
                    raise RefusedError("InvalidQuota: ceiling over the device")
        if any(total > totals[uuid].vram_total_bytes for uuid, total in requested.items()):
            raise RefusedError("InvalidQuota: VRAM requests over the device")
        self.received.append(document)
        self.document = document
        self.settle()
        return self.status()

    def settle(self) -> None:
        named = {(entry.pod_uid, one.uuid) for entry in self.document.quotas for one in entry.devices}
        self.in_force = {key: held for key, held in self.in_force.items() if key in named}
        for entry in self.document.quotas:
            if entry.pod_uid not in self.stuck:
                self.in_force.update({(entry.pod_uid, one.uuid): one for one in entry.devices})

    def status(self) -> QuotaStatus:
        workers = tuple(
            WorkerStatus(
                entry.pod_uid,
                entry.namespace,
                entry.pod,
                entry.workload,
                tuple(self._device(entry, one) for one in entry.devices),
                entry.container,
                entry.qos,
            )
            for entry in self.document.quotas
        )
        return QuotaStatus(self.node, self.document.epoch, self.document.generation, workers)

    def _device(self, entry: WorkerQuota, one: DeviceQuota) -> DeviceStatus:
        held = self.in_force.get((entry.pod_uid, one.uuid))
        applied = held == one and self.effect is not Effect.UNSUPPORTED
        seen = Observed() if held is None else Observed(held.tflops_limit, held.vram_limit_bytes)
        return DeviceStatus(one.uuid, applied, self.effect, seen, one, "" if applied else "Stuck: not in force")


def told(*quotas, agent=None):
    """An agent that was told these quotas."""
    agent = agent or Agent()
    agent.put(QuotaDocument(1, agent.document.generation + 1, agent.node, quotas))
    return agent


class Agents:
    """The Enforcement port over agents in memory."""

    def __init__(self, *agents: Agent) -> None:
        self.by_node = {agent.node: agent for agent in agents}

    def states(self) -> dict[str, NodeState]:
        return {node: agent.state() for node, agent in self.by_node.items()}

    async def read(self, nodes: tuple[str, ...]) -> Mapping[str, NodeState]:
        return {node: self.by_node[node].state() for node in nodes}

    async def push(self, document: QuotaDocument) -> QuotaStatus:
        if document.node not in self.by_node:
            raise NodeError("connection refused")
        return self.by_node[document.node].put(document)

    async def close(self) -> None:
        return None


def retold(state: NodeState, **changes: Any) -> NodeState:
    """The node's state with its quotas' fields replaced."""
    return replace(state, quotas=msgspec.structs.replace(state.quotas, **changes))
