"""From a worker pod and its node's agent to a Worker: what it holds now, where it runs, whether it is ready; pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from autoscaler.contract import keys
from autoscaler.contract.keys import PREFIX
from autoscaler.contract.quota import WorkerStatus
from autoscaler.errors import Problem
from autoscaler.model.quantity import BYTES_ALLOWED, TFLOPS_ALLOWED, parse_amount
from autoscaler.model.resources import Amount, Amounts, Resource
from autoscaler.model.snapshot import NodeState
from autoscaler.model.workload import EMPTY, Manifest, Worker, ref_of

AMOUNT_KEYS: Final = (
    (Resource.COMPUTE, keys.TFLOPS_REQUEST, TFLOPS_ALLOWED),
    (Resource.COMPUTE, keys.TFLOPS_LIMIT, TFLOPS_ALLOWED),
    (Resource.VRAM, keys.VRAM_REQUEST, BYTES_ALLOWED),
    (Resource.VRAM, keys.VRAM_LIMIT, BYTES_ALLOWED),
)
_NOTED: Final = re.compile(r'\{"replicas":\s*"?([0-9]{1,6})"?\}')
Texts = tuple[str | None, str | None, str | None, str | None]


def statuses_by_pod(nodes: Iterable[NodeState]) -> dict[str, tuple[WorkerStatus, ...]]:
    """Return what the agents tell about each pod, by pod UID."""
    found: dict[str, tuple[WorkerStatus, ...]] = {}
    for node in nodes:
        for worker in node.quotas.workers if node.quotas is not None else ():
            found[worker.pod_uid] = (*found.get(worker.pod_uid, ()), worker)
    return found


def devices_of(pod: Manifest, statuses: tuple[WorkerStatus, ...]) -> tuple[str, ...]:
    """Return the UUIDs of the devices a worker runs on: as its agent sees them, else as its annotation says."""
    if statuses:
        seen = tuple(dict.fromkeys(device.uuid for status in statuses for device in status.devices))
        if seen:
            return seen
    listed = (pod["metadata"].get("annotations") or EMPTY).get(keys.GPU_IDS)
    return () if listed is None else _listed(listed)


def container_of(statuses: tuple[WorkerStatus, ...]) -> str:
    """Return the container that the agent knows the worker by, empty when there is not exactly one."""
    return statuses[0].container if len(statuses) == 1 else ""


def noted_replicas(workload: Manifest) -> int | None:
    """Return the count that was noted on a workload's object before a rule by the clock moved it, None: none was."""
    text = ((workload.get("metadata") or EMPTY).get("annotations") or EMPTY).get(keys.AUTOSCALING_ORIGINAL, "")
    found = _NOTED.fullmatch(text)
    return None if found is None else int(found[1])


def make_worker(pod: Manifest, devices: tuple[str, ...], container: str, otherwise: Amounts) -> Worker:
    """Return the worker; amounts that its annotations don't tell are the workload's (`otherwise`)."""
    metadata = pod["metadata"]
    annotations = metadata.get("annotations") or EMPTY
    node = (pod.get("spec") or EMPTY).get("nodeName") or ""
    phase = (pod.get("status") or EMPTY).get("phase")
    return Worker(
        ref=ref_of(pod),
        node=node,
        current=_current(annotations, otherwise),
        ready=_ready(pod, node),
        pending=not node or phase == "Pending",
        container=container,
        devices=devices,
        annotations={key: value for key, value in annotations.items() if key.startswith(PREFIX)},
        born_at=seconds_of(metadata.get("creationTimestamp")),
    )


def amount_problems(worker: Worker) -> tuple[Problem, ...]:
    """Return the amounts in a worker's annotations that can't be read."""
    texts = _texts(worker.annotations)
    values = _amounts(texts)
    if None not in values:
        return ()
    source = f"Pod {worker.ref.namespace}/{worker.ref.name}"
    return tuple(
        Problem(key, text, allowed, source)
        for (_, key, allowed), text, value in zip(AMOUNT_KEYS, texts, values, strict=True)
        if text is not None and value is None
    )


def _current(annotations: Mapping[str, str], otherwise: Amounts) -> Amounts:
    """Return the amounts that a worker's annotations state; one of a pair stands for the other."""
    return _completed(_texts(annotations), otherwise)


@lru_cache(maxsize=16_384)
def _completed(texts: Texts, otherwise: Amounts) -> Amounts:
    values = _amounts(texts)
    amounts = []
    for resource in Resource:
        request, limit = values[2 * resource : 2 * resource + 2]
        stated = limit if request is None else request
        if stated is None:
            amounts.append(otherwise[resource])
        else:
            amounts.append(Amount(stated, stated if limit is None else limit))
    return Amounts(*amounts)


@lru_cache(maxsize=16_384)
def _amounts(texts: Texts) -> tuple[float | None, ...]:
    """Return the four amounts in the order of AMOUNT_KEYS; None for one that is absent or can't be read."""
    values: list[float | None] = []
    for (resource, _, _), text in zip(AMOUNT_KEYS, texts, strict=True):
        try:
            values.append(None if text is None else parse_amount(resource, text.strip()))
        except ValueError:
            values.append(None)
    return tuple(values)


def _texts(annotations: Mapping[str, str]) -> Texts:
    get = annotations.get
    return get(keys.TFLOPS_REQUEST), get(keys.TFLOPS_LIMIT), get(keys.VRAM_REQUEST), get(keys.VRAM_LIMIT)


@lru_cache(maxsize=16_384)
def _listed(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _ready(pod: Manifest, node: str) -> bool:
    """Tell whether the worker works; a folder's pod without any status does when it has a node."""
    if pod["metadata"].get("deletionTimestamp"):
        return False
    status = pod.get("status")
    if not status:
        return bool(node)
    if status.get("phase") not in {None, "Running"}:
        return False
    conditions = status.get("conditions") or ()
    return all(condition.get("status") == "True" for condition in conditions if condition.get("type") == "Ready")


@lru_cache(maxsize=65_536)
def seconds_of(text: object) -> float:
    """Return an RFC 3339 time as seconds since the epoch, NaN for what is none."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return math.nan
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
