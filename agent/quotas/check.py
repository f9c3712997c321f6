"""The quota document at the node's door: what is accepted, what is refused and why; pure.

A refusal changes nothing and names what is wrong with the numbers. Neighbours: `server` decodes the body and answers
with the refusal, `store` keeps the accepted document, `loop` puts it into force.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from autoscaler.contract.quota import DeviceQuota, QuotaDocument, Refusal, WorkerQuota

TFLOPS_TOLERANCE_RATIO: Final = 1e-6
"""A ceiling may pass the capacity by this much: the controller's figures went through decimal text."""

_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_AMOUNTS: Final = ("tflops_request", "tflops_limit", "vram_request_bytes", "vram_limit_bytes")


class Denial(StrEnum):
    """Why a document was refused; the value is the `error` of the answer."""

    MALFORMED = "Malformed"
    TOO_LARGE = "TooLarge"
    OTHER_NODE = "OtherNode"
    STALE = "StaleGeneration"
    CONFLICT = "GenerationConflict"
    INVALID = "InvalidQuota"
    NOT_STORED = "NotStored"
    UNAUTHENTICATED = "Unauthenticated"
    FORBIDDEN = "Forbidden"
    NOT_JUDGED = "NotJudged"
    TOO_MANY = "TooManyRequests"
    TOO_SLOW = "TooSlow"


HTTP_STATUS: Final = {
    Denial.MALFORMED: 400,
    Denial.TOO_LARGE: 413,
    Denial.OTHER_NODE: 409,
    Denial.STALE: 409,
    Denial.CONFLICT: 409,
    Denial.INVALID: 422,
    Denial.NOT_STORED: 503,
    Denial.UNAUTHENTICATED: 401,
    Denial.FORBIDDEN: 403,
    Denial.NOT_JUDGED: 503,
    Denial.TOO_MANY: 429,
    Denial.TOO_SLOW: 408,
}


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one device of this node has; None for what is not known: the TFLOPs of its model, the VRAM of a lost one."""

    vram_total_bytes: int | None
    tflops: float | None = None


def check_document(
    document: QuotaDocument, node: str, in_force: QuotaDocument | None, devices: Mapping[str, Capacity]
) -> Refusal | None:
    """Return why the document must not be taken, or None when it may.

    The very document that is in force is taken again (a repeated PUT is harmless); the same epoch and generation with
    other content is not. All that is wrong with the content is listed, not only the first.
    """
    if document.node != node:
        return refuse(Denial.OTHER_NODE, f"the document is for node {document.node!r}, this is {node!r}", in_force)
    stale = _order(document, in_force)
    if stale is not None:
        return stale
    problems = [*_identity(document), *(text for entry in document.quotas for text in _entry(entry, devices))]
    problems += _requests(document, devices)
    return refuse(Denial.INVALID, "; ".join(problems), in_force) if problems else None


def refuse(denial: Denial, message: str, in_force: QuotaDocument | None) -> Refusal:
    """Return the answer's body; it carries the epoch and generation in force, so that a sender can catch up."""
    epoch, generation = (in_force.epoch, in_force.generation) if in_force is not None else (0, 0)
    return Refusal(error=denial.value, message=message, epoch=epoch, generation=generation)


def _order(document: QuotaDocument, in_force: QuotaDocument | None) -> Refusal | None:
    if in_force is None:
        return None
    new, old = (document.epoch, document.generation), (in_force.epoch, in_force.generation)
    if new < old:
        return refuse(Denial.STALE, f"epoch {new[0]}, generation {new[1]} is older than {old[0]}, {old[1]}", in_force)
    if new == old and document != in_force:
        return refuse(Denial.CONFLICT, f"epoch {new[0]}, generation {new[1]} is in force with other content", in_force)
    return None


def _identity(document: QuotaDocument) -> Iterator[str]:
    if document.epoch < 0 or document.generation < 0:
        yield f"epoch {document.epoch} and generation {document.generation} must not be negative"
    seen: set[tuple[str, str, str]] = set()
    for entry in document.quotas:
        for text in (entry.pod_uid, entry.container, *(quota.uuid for quota in entry.devices)):
            if text and not _NAME.fullmatch(text):
                yield f"{text[:80]!r} is not a name of letters, digits, '.', '_' and '-'"
        if not entry.pod_uid:
            yield f"pod {entry.pod!r} has no pod_uid"
        for quota in entry.devices:
            key = (entry.pod_uid, entry.container, quota.uuid)
            if key in seen:
                yield f"{_where(entry, quota)}: listed twice"
            seen.add(key)


def _entry(entry: WorkerQuota, devices: Mapping[str, Capacity]) -> Iterator[str]:
    for quota in entry.devices:
        where = _where(entry, quota)
        broken = [name for name in _AMOUNTS if not math.isfinite(getattr(quota, name)) or getattr(quota, name) < 0]
        if broken:
            yield from (f"{where}: {name} is {getattr(quota, name)}, must be 0 or more" for name in broken)
            continue
        for request, limit in (("tflops_request", "tflops_limit"), ("vram_request_bytes", "vram_limit_bytes")):
            if getattr(quota, request) > getattr(quota, limit):
                yield f"{where}: {request} {getattr(quota, request)} is over {limit} {getattr(quota, limit)}"
        yield from _ceilings(where, quota, devices.get(quota.uuid))


def _ceilings(where: str, quota: DeviceQuota, device: Capacity | None) -> Iterator[str]:
    if device is None:
        yield f"{where}: this node has no such device"
        return
    if device.vram_total_bytes is not None and quota.vram_limit_bytes > device.vram_total_bytes:
        yield f"{where}: vram_limit_bytes {quota.vram_limit_bytes} is over the device's {device.vram_total_bytes}"
    if device.tflops is not None and quota.tflops_limit > device.tflops * (1 + TFLOPS_TOLERANCE_RATIO):
        yield f"{where}: tflops_limit {quota.tflops_limit:g} is over the device's {device.tflops:g}"


def _requests(document: QuotaDocument, devices: Mapping[str, Capacity]) -> Iterator[str]:
    requested: dict[str, int] = {}
    for entry in document.quotas:
        for quota in entry.devices:
            requested[quota.uuid] = requested.get(quota.uuid, 0) + max(0, quota.vram_request_bytes)
    for uuid, total in requested.items():
        installed_bytes = devices[uuid].vram_total_bytes if uuid in devices else None
        if installed_bytes is not None and total > installed_bytes:
            yield f"device {uuid}: VRAM requests of {total} bytes are over the device's {installed_bytes}"


def _where(entry: WorkerQuota, quota: DeviceQuota) -> str:
    name = f"{entry.namespace}/{entry.pod}" + (f"/{entry.container}" if entry.container else "")
    return f"{name} on {quota.uuid}"
