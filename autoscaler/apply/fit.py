"""What the devices of one node have room for, and what has to wait for a shrink; pure.

Three steps, each leaving the figure where it was rather than letting a document be refused: ceilings against the
device, growth against shrinks that are not in force yet, Σ VRAM requests against the device. Neighbour: `plan`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter, gt
from typing import Final, NamedTuple

import msgspec

from autoscaler.contract.keys import Effect, QoS
from autoscaler.contract.quota import DeviceInfo, DeviceQuota, DeviceStatus, Observed, WorkerQuota, WorkerStatus
from autoscaler.model.quantity import format_amount
from autoscaler.model.resources import Resource

_RANK: Final = {qos: rank for rank, qos in enumerate(reversed(QoS))}


class Key(NamedTuple):
    """A worker's place on one device."""

    pod_uid: str
    container: str
    uuid: str


class Standing(NamedTuple):
    """What a node was told about one place, and what it says of it."""

    worker: WorkerStatus
    device: DeviceStatus
    desired: DeviceQuota


@dataclass(frozen=True, slots=True)
class Held:
    """What a worker does not get on a device (empty: on any of its devices), and why: `Reason: sentence`."""

    pod_uid: str
    uuid: str
    reason: str


class _Figures(NamedTuple):
    """Where the figures of one resource stand in the contract's structs."""

    resource: Resource
    request: str
    limit: str
    in_force: Callable[[Observed], float | None]
    capacity: Callable[[DeviceInfo], float | None]


_FIGURES: Final = (
    _Figures(
        Resource.COMPUTE, "tflops_request", "tflops_limit", lambda seen: seen.tflops_limit, lambda device: device.tflops
    ),
    _Figures(
        Resource.VRAM,
        "vram_request_bytes",
        "vram_limit_bytes",
        lambda seen: seen.vram_limit_bytes,
        lambda device: device.vram_total_bytes,
    ),
)
_NAMES: Final = tuple(name for figures in _FIGURES for name in (figures.request, figures.limit))
_LIMITS: Final = attrgetter(*(figures.limit for figures in _FIGURES))
_NO_ROOM: Final = (-math.inf,) * len(_FIGURES)

Wanted = Mapping[Key, tuple[WorkerQuota, DeviceQuota]]
Content = dict[Key, DeviceQuota]


def fit(
    wanted: Wanted, standing: Mapping[Key, Standing], devices: Mapping[str, DeviceInfo]
) -> tuple[Content, tuple[Held, ...]]:
    """Return the part of `wanted` that the node can be told now, and what was held back.

    The result is always acceptable to the node: every ceiling and Σ VRAM requests are within the device.
    """
    held: list[Held] = []
    content: Content = {}
    for key, (_, quota) in wanted.items():
        told = standing[key].desired if key in standing else None
        capped = _capped(key, quota, devices.get(key.uuid), held)
        if capped is not None:
            content[key] = capped
        elif told is not None and key.uuid in devices:
            content[key] = told
    content = _after_shrinks(content, standing, held)
    if _fits(content, devices):
        return content, tuple(held)
    order = sorted(content, key=lambda key: (_RANK[wanted[key][0].qos], key))
    fitted = _fitted({key: content[key] for key in order}, standing, devices, held)
    return {key: fitted[key] for key in wanted if key in fitted}, tuple(held)


def shrinks_and_grows(current: Mapping[Key, DeviceQuota], target: Mapping[Key, DeviceQuota]) -> bool:
    """Tell whether on one device one worker's figure of a resource shrinks while another's grows.

    A worker that is told nothing any more does not shrink (its pod is gone, nobody would acknowledge), one that is
    new grows.
    """
    shrinking, growing = set(), set()
    for key, quota in target.items():
        old = current.get(key)
        if old == quota:
            continue
        for figures in _FIGURES:
            place = key.uuid, figures.resource
            if old is None or _grows(figures, old, quota):
                growing.add(place)
            if old is not None and _grows(figures, quota, old):
                shrinking.add(place)
    return bool(shrinking & growing)


def smaller(current: Mapping[Key, DeviceQuota], target: Mapping[Key, DeviceQuota]) -> Content:
    """Return the elementwise minimum: every shrink, and no growth yet; workers that are new wait."""
    return {key: _minimum(current[key], quota) for key, quota in target.items() if key in current}


def room_of(devices: Iterable[DeviceInfo]) -> dict[str, tuple[float, ...]]:
    """Return how high a ceiling may be on each device, by UUID: one figure a resource, infinite where not known."""
    return {
        device.uuid: tuple(math.inf if size is None else size for size in (one.capacity(device) for one in _FIGURES))
        for device in devices
    }


def over_devices(quotas: Iterable[DeviceQuota], room: Mapping[str, tuple[float, ...]]) -> set[str]:
    """Return the UUIDs of quotas with a ceiling over their device, or with a device that has no room at all."""
    return {quota.uuid for quota in quotas if any(map(gt, _LIMITS(quota), room.get(quota.uuid, _NO_ROOM)))}


def _minimum(old: DeviceQuota, new: DeviceQuota, names: Iterable[str] = _NAMES) -> DeviceQuota:
    lowered = {name: min(getattr(old, name), getattr(new, name)) for name in names}
    return msgspec.structs.replace(new, **lowered)


def _grows(figures: _Figures, old: DeviceQuota, new: DeviceQuota) -> bool:
    return any(getattr(new, name) > getattr(old, name) for name in (figures.request, figures.limit))


def _capped(key: Key, quota: DeviceQuota, device: DeviceInfo | None, held: list[Held]) -> DeviceQuota | None:
    """Return the quota with its ceilings within the device, None when it can't be told to any node."""
    if device is None:
        held.append(Held(key.pod_uid, key.uuid, f"DeviceUnknown: the node has no device {key.uuid}"))
        return None
    for figures in _FIGURES:
        request, limit = getattr(quota, figures.request), getattr(quota, figures.limit)
        if not (math.isfinite(limit) and 0 <= request <= limit):
            held.append(Held(key.pod_uid, key.uuid, f"InvalidQuota: {figures.request} {request}, limit {limit}"))
            return None
        capacity = figures.capacity(device)
        if capacity is not None and limit > capacity:
            text = f"{format_amount(figures.resource, limit)} is over the device's {_text(figures, capacity)}"
            held.append(Held(key.pod_uid, key.uuid, f"CapacityLimited: {figures.limit} {text}"))
            lowered = {figures.request: min(request, capacity), figures.limit: capacity}
            quota = msgspec.structs.replace(quota, **lowered)
    return quota


def _text(figures: _Figures, value: float) -> str:
    return format_amount(figures.resource, value)


def _after_shrinks(content: Content, standing: Mapping[Key, Standing], held: list[Held]) -> Content:
    """Return the content without growth of a resource on devices where another worker's shrink is not in force."""
    pending = _pending(standing)
    if not pending:
        return content
    allowed: Content = {}
    for key, quota in content.items():
        kept: DeviceQuota | None = quota
        for figures in _FIGURES:
            others = [text for place, text in pending.get((key.uuid, figures.resource), {}).items() if place != key]
            told = standing[key].desired if key in standing else None
            if not others or kept is None or (told is not None and not _grows(figures, told, kept)):
                continue
            held.append(Held(key.pod_uid, key.uuid, f"WaitingForShrink: {others[0]}"))
            kept = None if told is None else _minimum(told, kept, (figures.request, figures.limit))
        if kept is not None:
            allowed[key] = kept
    return allowed


def _pending(standing: Mapping[Key, Standing]) -> dict[tuple[str, Resource], dict[Key, str]]:
    """Return, by device and resource, who may still hold more than it was told.

    Not a worker whose backend supports no limits: it would be waited for until the end of time.
    """
    pending: dict[tuple[str, Resource], dict[Key, str]] = {}
    for key, one in standing.items():
        if one.device.applied or one.device.effect is Effect.UNSUPPORTED:
            continue
        for figures in _FIGURES:
            in_force, limit = figures.in_force(one.device.observed), getattr(one.desired, figures.limit)
            if in_force is not None and in_force <= limit:
                continue
            now = "an unknown limit" if in_force is None else _text(figures, in_force)
            text = f"{one.worker.pod} was told {_text(figures, limit)} and still has {now} ({one.device.reason})"
            pending.setdefault((key.uuid, figures.resource), {})[key] = text
    return pending


def _fits(content: Content, devices: Mapping[str, DeviceInfo]) -> bool:
    """Tell whether Σ VRAM requests is within every device: the usual case, in which nobody comes before others."""
    free = {uuid: device.vram_total_bytes for uuid, device in devices.items()}
    return all(_takes(free, key.uuid, quota.vram_request_bytes) for key, quota in content.items())


def _fitted(
    ordered: Content, standing: Mapping[Key, Standing], devices: Mapping[str, DeviceInfo], held: list[Held]
) -> Content:
    """Return the content whose VRAM requests fit their devices; first everyone keeps what it has, then growth."""
    free = {uuid: device.vram_total_bytes for uuid, device in devices.items()}
    floors = {
        key: min(standing[key].desired.vram_request_bytes, quota.vram_request_bytes)
        for key, quota in ordered.items()
        if key in standing
    }
    floors = {key: floor for key, floor in floors.items() if _takes(free, key.uuid, floor)}
    fitted: Content = {}
    for key, quota in ordered.items():
        floor = floors.get(key, 0)
        if _takes(free, key.uuid, quota.vram_request_bytes - floor):
            fitted[key] = quota
            continue
        wanted, room = (format_amount(Resource.VRAM, size) for size in (quota.vram_request_bytes, free[key.uuid]))
        reason = f"CapacityLimited: a VRAM request of {wanted} needs more than the {room} left on the device"
        held.append(Held(key.pod_uid, key.uuid, reason))
        if key in floors:
            fitted[key] = msgspec.structs.replace(quota, vram_request_bytes=floor)
    return fitted


def _takes(free: dict[str, int], uuid: str, size_bytes: int) -> bool:
    if size_bytes > free[uuid]:
        return False
    free[uuid] -= size_bytes
    return True
