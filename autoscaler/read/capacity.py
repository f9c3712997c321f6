"""What the cluster's GPUs have and who else holds them: from the agents, TensorFusion's GPU objects, and pods; pure.

An agent that answers knows its devices best. Where none does, TensorFusion's GPU objects stand in. What others hold is
counted once per pod, at the most that anybody tells: quotas that its node was told, the pod's annotations, the GPU
object's `runningApps`. What a GPU object has reserved beyond those that it names belongs to somebody, too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from autoscaler.contract import keys
from autoscaler.contract.quota import DeviceInfo
from autoscaler.model.inventory import Device, Inventory, Pair
from autoscaler.model.quantity import parse_amount
from autoscaler.model.resources import SPECS, Amount, Amounts, Resource
from autoscaler.model.snapshot import NodeState
from autoscaler.model.workload import EMPTY, ClusterView, Manifest, Workload
from autoscaler.read.workers import devices_of, make_worker, statuses_by_pod

HOSTNAME: Final = "kubernetes.io/hostname"
_NOTHING: Final = Amounts(Amount(0.0, 0.0), Amount(0.0, 0.0))
_WORKING: Final = frozenset({"", "Running"})
_OF_TENSOR_FUSION: Final = frozenset({"", "tensor-fusion", keys.DOMAIN})
_ENDED: Final = frozenset({"Succeeded", "Failed"})
_GPU_LABELS: Final = ("nvidia.com/gpu.present", keys.GPU_POOL)

Booked = dict[str, dict[str, Pair]]
"""By device (lower case), then by who: requests there."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU object: the device, what is reserved on it, and by whom, by pod UID."""

    device: Device
    reserved: Pair
    pods: Mapping[str, Pair]


def read_inventory(view: ClusterView, nodes: Mapping[str, NodeState], workloads: Iterable[Workload]) -> Inventory:
    """Return the devices of all nodes, and what others than these workloads hold there."""
    pools = {_name(node): _labels(node).get(keys.GPU_POOL, "") for node in view.nodes}
    gpus = list(_gpus(view))
    devices = tuple(_devices(nodes, gpus, pools))
    covered = {one.node for one in devices} | {name for name, state in nodes.items() if state.reachable}
    sighted = [_name(node) for node in view.nodes if _shows_gpus(node)]
    foreign = _foreign(view, nodes, gpus, tuple(workloads))
    return Inventory(
        devices=devices,
        foreign={one.info.uuid: pair for one in devices if any(pair := foreign.get(one.info.uuid.lower(), (0.0, 0.0)))},
        is_whole=bool(view.nodes) and covered.issuperset(sighted) and covered.issuperset(nodes),
    )


def _devices(nodes: Mapping[str, NodeState], gpus: list[Gpu], pools: Mapping[str, str]) -> Iterator[Device]:
    """Yield what agents tell, completed by GPU objects, then what only those tell."""
    objects = {gpu.device.info.uuid.lower(): gpu.device for gpu in gpus}
    answering = {node for node, state in nodes.items() if state.reachable and state.devices}
    told: set[str] = set()
    for node, state in nodes.items():
        for info in state.devices:
            known = objects.get(info.uuid.lower())
            told.add(info.uuid.lower())
            if known is None:
                yield Device(info, node, pools.get(node, ""))
            else:
                tflops = known.info.tflops if info.tflops is None else info.tflops
                yield replace(known, info=msgspec.structs.replace(info, tflops=tflops), node=node)
    for uuid, device in objects.items():
        if uuid not in told and device.node not in answering:
            yield device if device.pool else replace(device, pool=pools.get(device.node, ""))


def _gpus(view: ClusterView) -> Iterator[Gpu]:
    hosts = {_labels(node).get(HOSTNAME, _name(node)): _name(node) for node in view.nodes}
    for manifest in view.gpus:
        status = manifest.get("status") or EMPTY
        capacity = _pair(status.get("capacity"))
        uuid = str(status.get("uuid") or _name(manifest))
        if capacity is None:
            continue
        host = str((status.get("nodeSelector") or EMPTY).get(HOSTNAME, ""))
        free = _pair(status.get("available")) or capacity
        info = DeviceInfo(uuid, str(status.get("gpuModel") or ""), int(capacity[1]), capacity[0] or None)
        is_usable = str(status.get("phase") or "") in _WORKING and str(status.get("usedBy") or "") in _OF_TENSOR_FUSION
        yield Gpu(
            device=Device(info, hosts.get(host, host), _labels(manifest).get(keys.GPU_POOL, ""), is_usable),
            reserved=(max(capacity[0] - free[0], 0.0), max(capacity[1] - free[1], 0.0)),
            pods=dict(_running(status)),
        )


def _running(status: Manifest) -> Iterator[tuple[str, Pair]]:
    for app in status.get("runningApps") or ():
        for pod in app.get("pods") or ():
            who = str(pod.get("uid") or f"{pod.get('namespace', '')}/{pod.get('name', '')}")
            yield who, _pair(pod.get("requests")) or (0.0, 0.0)


def _foreign(
    view: ClusterView, nodes: Mapping[str, NodeState], gpus: list[Gpu], workloads: tuple[Workload, ...]
) -> Mapping[str, Pair]:
    """Return by device, in lower case, what is requested by others than these workloads."""
    ours = {worker.ref.uid for workload in workloads for worker in workload.workers}
    booked: Booked = defaultdict(dict)
    known = (state.quotas.workers for state in nodes.values() if state.quotas is not None)
    for status in [one for workers in known for one in workers if one.pod_uid not in ours]:
        for one in status.devices:
            if one.desired is not None:
                figures = one.desired.tflops_request, float(one.desired.vram_request_bytes)
                _book(booked, one.uuid, status.pod_uid, figures)
    for uuid, who, pair in _pods(view, nodes, ours):
        _book(booked, uuid, who, pair)
    for gpu in gpus:
        for who, pair in gpu.pods.items():
            if who not in ours:
                _book(booked, gpu.device.info.uuid, who, pair)
    held = _held(workloads) if gpus else {}
    for gpu in gpus:
        _book(booked, gpu.device.info.uuid, "", _unnamed(gpu, held.get(gpu.device.info.uuid.lower(), (0.0, 0.0))))
    return {uuid: _sum(pairs.values()) for uuid, pairs in booked.items()}


def _pods(view: ClusterView, nodes: Mapping[str, NodeState], ours: set[str]) -> Iterator[tuple[str, str, Pair]]:
    """Yield device, pod UID and requests of the pods that belong to no workload of the fleet: broken ones', for one."""
    others = [pod for pod in view.pods if pod["metadata"].get("uid", "") not in ours]
    statuses = statuses_by_pod(nodes.values()) if others else {}
    for pod in others:
        uid = pod["metadata"].get("uid", "")
        if (pod.get("status") or EMPTY).get("phase") in _ENDED:
            continue
        devices = devices_of(pod, statuses.get(uid, ()))
        current = make_worker(pod, devices, "", _NOTHING).current
        for uuid in devices:
            yield uuid, uid, (current.compute.request, current.vram.request)


def _held(workloads: tuple[Workload, ...]) -> Mapping[str, Pair]:
    """Return what the fleet's own workers request on each device, by UUID in lower case."""
    held: dict[str, Pair] = {}
    for workload in workloads:
        for worker in workload.workers:
            figures = worker.current.compute.request, worker.current.vram.request
            for uuid in worker.devices:
                held[uuid.lower()] = _sum((held.get(uuid.lower(), (0.0, 0.0)), figures))
    return held


def _unnamed(gpu: Gpu, held: Pair) -> Pair:
    """Return what a GPU object has reserved for nobody that it names; `held`: by the fleet, where it names no one."""
    named = _sum(gpu.pods.values()) if gpu.pods else held
    return max(gpu.reserved[0] - named[0], 0.0), max(gpu.reserved[1] - named[1], 0.0)


def _book(booked: Booked, uuid: str, who: str, pair: Pair) -> None:
    known = booked[uuid.lower()].get(who, (0.0, 0.0))
    booked[uuid.lower()][who] = max(known[0], pair[0]), max(known[1], pair[1])


def _sum(pairs: Iterable[Pair]) -> Pair:
    listed = list(pairs)
    return sum(pair[0] for pair in listed), sum(pair[1] for pair in listed)


def _pair(amounts: Any) -> Pair | None:
    """Return TFLOPs and bytes of a resource as TensorFusion writes it; None where there is none, 0 for what is not."""
    if not isinstance(amounts, Mapping):
        return None
    compute, vram = (_amount(spec.resource, amounts.get(spec.key)) for spec in SPECS)
    return compute, vram


def _amount(resource: Resource, value: object) -> float:
    try:
        return 0.0 if value is None or str(value) == "0" else float(parse_amount(resource, value))
    except ValueError:
        return 0.0


def _shows_gpus(node: Manifest) -> bool:
    capacity = (node.get("status") or EMPTY).get("capacity") or EMPTY
    labels = _labels(node)
    return any(name.endswith("/gpu") for name in capacity) or any(name in labels for name in _GPU_LABELS)


def _name(manifest: Manifest) -> str:
    return str(manifest["metadata"]["name"])


def _labels(manifest: Manifest) -> Mapping[str, str]:
    return manifest["metadata"].get("labels") or EMPTY
