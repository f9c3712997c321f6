"""Who runs now, as the agents' own series say it: workers, their figures in force, service level and devices; pure.

With it a fleet can be laid out from Prometheus alone, no cluster asked. Neighbours: `prometheus` asks for the series,
`discovery` makes workloads of cluster objects instead.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from autoscaler.contract import metrics
from autoscaler.contract.keys import Effect, QoS
from autoscaler.contract.quota import DeviceInfo, DeviceStatus, Observed, QuotaStatus, WorkerStatus
from autoscaler.model.config import Configuration
from autoscaler.model.profile import API_VERSION
from autoscaler.model.resources import Amount, Amounts
from autoscaler.model.snapshot import NodeState
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import ObjectRef, Worker, Workload
from autoscaler.read.membership import WORKLOAD_KIND
from autoscaler.read.samples import Identity, identity_of

Points = Sequence[tuple[Mapping[str, str], float]]
Answers = Mapping[str, Points]
"""Labels and value of each series, by metric."""

AMOUNTS: Final = (
    metrics.WORKER_TFLOPS_REQUEST.name,
    metrics.WORKER_TFLOPS_LIMIT.name,
    metrics.WORKER_VRAM_REQUEST.name,
    metrics.WORKER_VRAM_LIMIT.name,
)
SERIES: Final = (
    *AMOUNTS,
    metrics.WORKER_VRAM_USED.name,
    metrics.WORKER_INFO.name,
    metrics.DEVICE_COMPUTE_CAPACITY.name,
    metrics.DEVICE_VRAM_TOTAL.name,
    metrics.DEVICE_INFO.name,
)
"""What is asked for."""
UNSET: Final = 1e-9
"""Stands for a figure that nobody set: under any that can be meant."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What runs: workloads whose configuration is what their series tell, and the nodes with devices and live use."""

    workloads: tuple[Workload, ...]
    nodes: Mapping[str, NodeState]


@dataclass(slots=True)
class _Seen:
    """One worker on one device."""

    amounts: list[float]
    used: float = math.nan
    info: Mapping[str, str] | None = None


def inventory_of(answers: Answers, now: float) -> Inventory:
    """Return what the series of this moment tell; those without a workload's name are ignored."""
    seen = _workers(answers)
    nodes = _nodes(answers, seen)
    by_workload: dict[WorkloadKey, dict[Identity, _Seen]] = defaultdict(dict)
    for identity, worker in seen.items():
        by_workload[WorkloadKey(identity.namespace, identity.workload)][identity] = worker
    workloads = tuple(_workload(key, by_workload[key], now) for key in sorted(by_workload))
    return Inventory(workloads, nodes)


def _workers(answers: Answers) -> dict[Identity, _Seen]:
    seen: dict[Identity, _Seen] = {}
    for place, name in enumerate(AMOUNTS):
        for identity, value, _ in _of_workers(answers.get(name, ())):
            amounts = seen.setdefault(identity, _Seen([math.nan] * len(AMOUNTS))).amounts
            # Two scrapes of one agent may report the same worker.
            amounts[place] = value if math.isnan(amounts[place]) else max(amounts[place], value)
    for identity, value, _ in _of_workers(answers.get(metrics.WORKER_VRAM_USED.name, ())):
        seen.setdefault(identity, _Seen([math.nan] * len(AMOUNTS))).used = value
    for identity, _, labels in _of_workers(answers.get(metrics.WORKER_INFO.name, ())):
        seen.setdefault(identity, _Seen([math.nan] * len(AMOUNTS))).info = labels
    return seen


def _of_workers(points: Points) -> Iterable[tuple[Identity, float, Mapping[str, str]]]:
    for labels, value in points:
        identity = identity_of(labels)
        if identity.workload and math.isfinite(value) and value >= 0:
            yield identity, value, labels


def _workload(key: WorkloadKey, seen: Mapping[Identity, _Seen], now: float) -> Workload:
    pods: dict[str, dict[Identity, _Seen]] = defaultdict(dict)
    for identity, worker in seen.items():
        pods[identity.pod][identity] = worker
    workers = tuple(_worker(key, pod, pods[pod]) for pod in sorted(pods))
    current = _largest(worker.amounts for worker in seen.values())
    info = [worker.info for worker in seen.values() if worker.info is not None]
    config = Configuration(
        amounts=current,
        qos=_qos(info),
        gpu_count=max(len({identity.gpu_uuid for identity in devices}) for devices in pods.values()),
        gpu_model=next((model for labels in info if (model := _label(labels, "gpu_model"))), ""),
    )
    return Workload(
        key=key,
        ref=ObjectRef(API_VERSION, WORKLOAD_KIND, *key),
        config=config,
        original=current,
        current=current,
        workers=workers,
        replicas=len(workers),
        created_at=now,
    )


def _worker(key: WorkloadKey, pod: str, devices: Mapping[Identity, _Seen]) -> Worker:
    first = next(iter(devices))
    uid = _uid(first, devices[first])
    return Worker(
        ref=ObjectRef("v1", "Pod", key.namespace, pod, uid=uid),
        node=first.node,
        current=_largest(worker.amounts for worker in devices.values()),
        ready=True,
        container=first.container,
        devices=tuple(sorted({identity.gpu_uuid for identity in devices})),
    )


def _largest(amounts: Iterable[Sequence[float]]) -> Amounts:
    """Return the largest figure of each kind; one of a pair stands for the other, a pair that is unknown is UNSET."""
    known = [
        max((one for one in column if not math.isnan(one)), default=math.nan) for column in zip(*amounts, strict=True)
    ]
    pairs = (known[:2], known[2:])
    return Amounts(*(Amount(*_completed(request, limit)) for request, limit in pairs))


def _completed(request: float, limit: float) -> tuple[float, float]:
    """Return both of a pair; what is absent, or zero, is the other one."""
    if not request > 0:
        request = limit
    if not limit > 0:
        limit = request
    return (request, limit) if request > 0 else (UNSET, UNSET)


def _qos(info: Iterable[Mapping[str, str]]) -> QoS:
    """Return the highest service level that a worker tells; medium, the default, where none does."""
    levels = [level for labels in info for level in QoS if _label(labels, "qos") == level]
    return max(levels, key=list(QoS).index, default=QoS.MEDIUM)


def _nodes(answers: Answers, seen: Mapping[Identity, _Seen]) -> dict[str, NodeState]:
    total = _by_device(answers.get(metrics.DEVICE_VRAM_TOTAL.name, ()))
    tflops = _by_device(answers.get(metrics.DEVICE_COMPUTE_CAPACITY.name, ()))
    facts = answers.get(metrics.DEVICE_INFO.name, ())
    models = {identity_of(labels).gpu_uuid: _label(labels, "gpu_model") for labels, _ in facts}
    devices: dict[str, list[DeviceInfo]] = defaultdict(list)
    for (node, uuid), size in total.items():
        devices[node].append(DeviceInfo(uuid, models.get(uuid, ""), int(size), tflops.get((node, uuid))))
    statuses: dict[str, list[WorkerStatus]] = defaultdict(list)
    for identity, worker in seen.items():
        statuses[identity.node].append(_status(identity, worker))
    return {
        node: NodeState(node, tuple(devices[node]), QuotaStatus(node, 0, 0, tuple(statuses[node])))
        for node in sorted({*devices, *statuses})
    }


def _by_device(points: Points) -> dict[tuple[str, str], float]:
    """Return the figure of each device by node and UUID; none, where it is no measurement."""
    found = {}
    for labels, value in points:
        identity = identity_of(labels)
        if identity.gpu_uuid and 0 < value < math.inf:
            found[identity.node, identity.gpu_uuid] = value
    return found


def _status(identity: Identity, worker: _Seen) -> WorkerStatus:
    used = None if math.isnan(worker.used) else int(worker.used)
    device = DeviceStatus(identity.gpu_uuid, True, Effect.IMMEDIATE, Observed(vram_used_bytes=used))
    return WorkerStatus(
        pod_uid=_uid(identity, worker),
        namespace=identity.namespace,
        pod=identity.pod,
        workload=identity.workload,
        devices=(device,),
        container=identity.container,
    )


def _uid(identity: Identity, worker: _Seen) -> str:
    """Return the pod's UID; its name where the agent does not tell it."""
    return _label(worker.info or {}, "pod_uid") or f"{identity.namespace}/{identity.pod}"


def _label(labels: Mapping[str, str], name: str) -> str:
    return labels.get(f"exported_{name}") or labels.get(name, "")
