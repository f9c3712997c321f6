"""Node agents in memory, with the rules of real ones: for tests, and wherever a node has to be imagined."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import msgspec

from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import (
    DeviceInfo,
    DeviceQuota,
    DevicesStatus,
    DeviceStatus,
    Observed,
    QuotaDocument,
    QuotaStatus,
    WorkerQuota,
    WorkerStatus,
)
from autoscaler.errors import NodeError, RefusedError
from autoscaler.model.snapshot import NodeState

Place = tuple[str, str, str]
"""Pod UID, container, device UUID."""


class MemoryAgents:
    """The Enforcement port without a network.

    Documents take effect as real agents let them: one for another node, of an older generation, for an unknown device,
    or over a device's memory is refused and changes nothing. `pushed` are the documents that were accepted, in order.
    """

    def __init__(self, nodes: Iterable[DevicesStatus], effect: Effect = Effect.IMMEDIATE) -> None:
        self._devices = {node.node: {device.uuid: device for device in node.devices} for node in nodes}
        self._effect = effect
        self._workers: dict[str, dict[Place, DeviceStatus]] = {node: {} for node in self._devices}
        self._names: dict[tuple[str, str], WorkerStatus] = {}
        self._documents: dict[str, QuotaDocument] = {}
        self._away: dict[str, str] = {}
        self._refusing: dict[str, str] = {}
        self._last: dict[str, NodeState] = {}
        self.pushed: list[QuotaDocument] = []

    def start_worker(self, node: str, worker: WorkerStatus) -> None:
        """Let a worker run on a node, as the agent found it there."""
        self._names[worker.pod_uid, worker.container] = worker
        for device in worker.devices:
            self._workers[node][worker.pod_uid, worker.container, device.uuid] = device

    def go_away(self, node: str, reason: str = "connection refused") -> None:
        """Let the node's agent not answer any more."""
        self._away[node] = reason

    def come_back(self, node: str) -> None:
        """Let the node's agent answer again, with all that it had."""
        self._away.pop(node, None)

    def refuse(self, node: str, message: str) -> None:
        """Let the node's agent refuse every document; an empty message ends that."""
        self._refusing[node] = message

    async def read(self, nodes: tuple[str, ...]) -> Mapping[str, NodeState]:
        """Return what each node has; one that is away keeps its last state, with the reason."""
        return {node: self._state(node) for node in nodes}

    async def push(self, document: QuotaDocument) -> QuotaStatus:
        """Put a document into force.

        Raises:
            RefusedError: it breaks a rule, or the node was told to refuse; nothing changed.
            NodeError: the node is away.

        """
        node = document.node
        if self._absence(node):
            raise NodeError(f"{node}: {self._absence(node)}")
        problem = self._refusing.get(node) or self._problem(document)
        if problem:
            raise RefusedError(f"{node}: {problem}")
        self._documents[node] = document
        self._apply(document)
        self.pushed.append(document)
        return self._status(node)

    async def close(self) -> None:
        """Nothing is held open."""

    def _state(self, node: str) -> NodeState:
        absence = self._absence(node)
        if absence:
            return replace(self._last.get(node, NodeState(node)), error=absence)
        state = NodeState(node, tuple(self._devices[node].values()), self._status(node))
        self._last[node] = state
        return state

    def _absence(self, node: str) -> str:
        return self._away.get(node, "" if node in self._devices else "no such node")

    def _status(self, node: str) -> QuotaStatus:
        document = self._documents.get(node)
        grouped: dict[tuple[str, str], list[DeviceStatus]] = {}
        for (uid, container, _), device in self._workers[node].items():
            grouped.setdefault((uid, container), []).append(device)
        workers = (msgspec.structs.replace(self._names[key], devices=tuple(found)) for key, found in grouped.items())
        epoch, generation = (document.epoch, document.generation) if document is not None else (0, 0)
        return QuotaStatus(node, epoch, generation, tuple(workers))

    def _problem(self, document: QuotaDocument) -> str:
        current = self._documents.get(document.node)
        if current is not None:
            new, old = (document.epoch, document.generation), (current.epoch, current.generation)
            if new < old or (new == old and document != current):
                return f"StaleGeneration: {new[0]}, {new[1]} is not newer than {old[0]}, {old[1]}"
        devices = self._devices[document.node]
        requested: dict[str, int] = {}
        for quota in (quota for worker in document.quotas for quota in worker.devices):
            requested[quota.uuid] = requested.get(quota.uuid, 0) + quota.vram_request_bytes
            problem = _over(quota, devices.get(quota.uuid))
            if problem:
                return f"InvalidQuota: {problem}"
        for uuid, total in requested.items():
            if total > devices[uuid].vram_total_bytes:
                return (
                    f"InvalidQuota: VRAM requests of {total} bytes are over {uuid}'s {devices[uuid].vram_total_bytes}"
                )
        return ""

    def _apply(self, document: QuotaDocument) -> None:
        running = self._workers[document.node]
        wanted = {
            (worker.pod_uid, worker.container, quota.uuid): (worker, quota)
            for worker in document.quotas
            for quota in worker.devices
        }
        for place, (worker, quota) in wanted.items():
            running[place] = self._enforced(quota, running.get(place))
            self._names.setdefault(place[:2], _named(worker))
        for place, device in list(running.items()):
            if place not in wanted:
                running[place] = msgspec.structs.replace(device, desired=None)

    def _enforced(self, quota: DeviceQuota, before: DeviceStatus | None) -> DeviceStatus:
        observed = before.observed if before is not None else Observed()
        if self._effect is Effect.UNSUPPORTED:
            reason = "nothing enforces quotas here"
            return DeviceStatus(quota.uuid, False, self._effect, observed, quota, reason)
        observed = msgspec.structs.replace(
            observed, tflops_limit=quota.tflops_limit, vram_limit_bytes=quota.vram_limit_bytes
        )
        return DeviceStatus(quota.uuid, True, self._effect, observed, quota)


def _over(quota: DeviceQuota, device: DeviceInfo | None) -> str:
    if device is None:
        return f"no device {quota.uuid}"
    if quota.vram_limit_bytes > device.vram_total_bytes:
        return f"vram_limit_bytes {quota.vram_limit_bytes} is over {device.uuid}'s {device.vram_total_bytes}"
    if device.tflops is not None and quota.tflops_limit > device.tflops * (1 + 1e-6):
        return f"tflops_limit {quota.tflops_limit:g} is over {device.uuid}'s {device.tflops:g}"
    return ""


def _named(worker: WorkerQuota) -> WorkerStatus:
    return WorkerStatus(worker.pod_uid, worker.namespace, worker.pod, worker.workload, (), worker.container, worker.qos)
