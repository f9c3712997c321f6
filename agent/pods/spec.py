"""From a pod as the cluster describes it to the workers it holds. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Annotated, Final

import msgspec

from agent.model.samples import Worker
from autoscaler.contract import keys
from autoscaler.contract.keys import QoS
from autoscaler.contract.quantity import parse_quantity
from autoscaler.contract.quota import DeviceQuota

INJECTED_CONTAINER: Final = "inject-lib"
"""The container that only delivers the GPU library; never taken for the user's."""

CONFIG_HASH: Final = "kubernetes.io/config.hash"
"""Annotation with the UID under which the kubelet runs a static pod; the API shows another one."""

_LOWER_UUID: Final = re.compile(r"^(gpu|mig)-")

_Name = Annotated[str, msgspec.Meta(min_length=1)]


class ContainerEntry(msgspec.Struct, frozen=True):
    """A container: its name, and its ID as the runtime gives it, with or without `containerd://`."""

    name: _Name
    id: str = ""


class PodEntry(msgspec.Struct, frozen=True):
    """A pod, as much of it as matters here; `workload` is for sources that know the owner."""

    uid: _Name
    namespace: _Name
    name: _Name
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    containers: tuple[ContainerEntry, ...] = ()
    node: str = ""
    workload: str = ""


@dataclass(frozen=True, slots=True)
class KnownPod:
    """A pod's workers, one a container that may use the GPU, and the names of its containers by ID."""

    workers: tuple[Worker, ...]
    names: Mapping[str, str]

    def worker_in(self, container_id: str) -> Worker | None:
        """Return the worker of a container; a container of unknown ID (it was restarted) is the only worker's."""
        name = self.names.get(container_id)
        if name is None:
            return self.workers[0] if len(self.workers) == 1 else None
        for worker in self.workers:
            if worker.container in (name, ""):
                return worker
        return None


def known_pods(entries: Iterable[tuple[str, PodEntry]], node: str) -> tuple[Mapping[str, KnownPod], tuple[str, ...]]:
    """Return the worker pods of a node by UID, and what is wrong; each entry comes with where it stands.

    `node` empty takes all. A static pod stands under two UIDs; of two entries of one UID the first counts.
    """
    pods: dict[str, KnownPod] = {}
    problems: list[str] = []
    for where, entry in entries:
        if node and entry.node and entry.node != node:
            continue
        pod, wrong = known_pod(entry)
        problems += [f"{where} {entry.namespace}/{entry.name}: {text}" for text in wrong]
        if pod is None:
            continue
        if entry.uid in pods:
            problems.append(f"{where}: UID {entry.uid} stands there twice; the first entry counts")
            continue
        pods |= dict.fromkeys((entry.uid, entry.annotations.get(CONFIG_HASH, entry.uid)), pod)
    return pods, tuple(problems)


def known_pod(entry: PodEntry) -> tuple[KnownPod | None, tuple[str, ...]]:
    """Return the pod's workers, None when it holds none, and what is wrong with its annotations."""
    if keys.WORKLOAD not in entry.labels and entry.labels.get(keys.ENABLED) != "true":
        return None, ()
    problems: list[str] = []
    annotations = entry.annotations
    workload = entry.labels.get(keys.WORKLOAD) or annotations.get(keys.WORKLOAD) or entry.workload or entry.name
    qos, born = _qos(annotations, problems), _born(annotations, problems)
    containers = _containers(entry, problems)
    # Which of several containers got which device the annotation doesn't tell: their use will.
    devices = _devices(annotations) if len(containers) == 1 else ()
    workers = tuple(
        Worker(entry.uid, entry.namespace, entry.name, container, workload, qos, born, devices)
        for container in containers
    )
    names = {container.id.rpartition("://")[2]: container.name for container in entry.containers if container.id}
    return KnownPod(workers, names), tuple(problems)


def _containers(entry: PodEntry, problems: list[str]) -> list[str]:
    """Return the containers that count: those of inject-container that exist, else all; "" when none is listed."""
    present = [container.name for container in entry.containers if container.name != INJECTED_CONTAINER]
    chosen = [name.strip() for name in entry.annotations.get(keys.INJECT_CONTAINER, "").split(",") if name.strip()]
    unknown = [name for name in chosen if present and name not in present]
    if unknown:
        allowed = ", ".join(present)
        problems.append(f"{keys.INJECT_CONTAINER}: no container {', '.join(unknown)}; allowed: {allowed}")
    return list(dict.fromkeys(name for name in chosen if name not in unknown)) or present or [""]


def _devices(annotations: Mapping[str, str]) -> tuple[str, ...]:
    """Return the UUIDs of the devices that the scheduler gave the pod, as the driver writes them.

    TensorFusion names its GPUs by the UUID in lower case, as Kubernetes wants names.
    """
    listed = [part.strip() for part in annotations.get(keys.GPU_IDS, "").split(",")]
    return tuple(dict.fromkeys(_LOWER_UUID.sub(lambda found: found[0].upper(), part) for part in listed if part))


def _qos(annotations: Mapping[str, str], problems: list[str]) -> QoS:
    text = annotations.get(keys.QOS)
    if text is None:
        return QoS.MEDIUM
    try:
        return QoS(text)
    except ValueError:
        problems.append(f"{keys.QOS}: {text!r}; allowed: {', '.join(QoS)}; {QoS.MEDIUM} counts")
        return QoS.MEDIUM


def _born(annotations: Mapping[str, str], problems: list[str]) -> DeviceQuota | None:
    """Return the amounts a pod was born with; a missing request is its limit and the other way round."""
    found = len(problems)
    tflops = _pair(annotations, (keys.TFLOPS_REQUEST, keys.TFLOPS_LIMIT), problems)
    vram = _pair(annotations, (keys.VRAM_REQUEST, keys.VRAM_LIMIT), problems)
    if tflops is None or vram is None or len(problems) > found:
        return None
    size = [int(amount.to_integral_value(ROUND_CEILING)) for amount in vram]
    return DeviceQuota("", float(tflops[0]), float(tflops[1]), size[0], size[1])


def _pair(annotations: Mapping[str, str], pair: tuple[str, str], problems: list[str]) -> tuple[Decimal, Decimal] | None:
    amounts: list[Decimal] = []
    for key in pair:
        text = annotations.get(key) or annotations.get(pair[1] if key == pair[0] else pair[0])
        if text is None:
            return None
        try:
            amounts.append(parse_quantity(text))
        except ValueError as error:
            problems.append(f"{key}: {error}")
            return None
    request, limit = amounts
    if not 0 < request <= limit:
        problems.append(f"{pair[0]}: {request} of {pair[1]} {limit}; allowed: above 0, at most the limit")
    return request, limit
