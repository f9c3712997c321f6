"""Govern: what every worker wants and holds becomes the limits that are put into force; pure.

Requests are guaranteed. Between its request and its limit a worker gets what the device has left, critical first.
The sum of effective VRAM limits never passes a device; compute ceilings may overcommit, because time can be shared
again in the next moment and memory cannot. Neighbours: `attribute` says what is in use, `enforce` applies the shares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import msgspec

from agent.govern.divide import guaranteed, levels_of, raise_by_level
from agent.model.applied import Applied
from agent.model.samples import Attribution, NodeSample, Worker, WorkerId, WorkerKey
from autoscaler.contract.quota import DeviceQuota, Observed, QuotaDocument

_GIB: Final = 1 << 30
_ANY: Final = 1 << 62
_NO_GATES: Final[Mapping[WorkerKey, int]] = MappingProxyType({})


class Claim(msgspec.Struct, frozen=True, gc=False):
    """What one worker is meant to have on one device, and the device memory it holds (None: not known)."""

    worker: Worker
    quota: DeviceQuota
    vram_used_bytes: int | None = None
    working_bytes: int = _ANY
    """What it may need now for what it does now (see `activity`); its limit while it works."""


@dataclass(frozen=True, slots=True)
class Room:
    """Memory of one device; `vram_unattributed_bytes` belongs to no claim and is never lent."""

    vram_total_bytes: int
    vram_unattributed_bytes: int = 0


class Share(msgspec.Struct, frozen=True, gc=False):
    """The limits to put into force; `quota` is what was asked, `effective` what can be given, `reason` why less."""

    worker: Worker
    quota: DeviceQuota
    effective: DeviceQuota
    reason: str = ""


class Layout(msgspec.Struct, frozen=True):
    """Who claims what where, by key in order; it changes only with what it was made from, so it is kept over ticks.

    `present` are the workers that are known, those that only a document names too; `by_device` are the numbers of the
    places on each device.
    """

    source: tuple[object, ...]
    places: Mapping[WorkerKey, tuple[Worker, DeviceQuota]]
    present: frozenset[WorkerId]
    by_device: Mapping[str, Sequence[int]]


def lay_out(
    document: QuotaDocument | None,
    workers: Sequence[Worker],
    attribution: Attribution,
    previous: Layout | None = None,
) -> Layout:
    """Return one place per worker and device: from the document where it names the worker, else from its birth.

    A document's entry without container means the pod's only worker. A worker that only a document knows has a place
    too, so that its limits stand before its first process starts. `previous` is returned where nothing changed.
    """
    at_work = [(use.worker, use.uuid) for use in attribution.uses]
    source = (document, workers, attribution.seen, at_work)
    if previous is not None and previous.source == source:
        return previous
    known = {worker.id: worker for worker in workers}
    known.update((worker.id, worker) for worker, _ in at_work if worker.id not in known)
    on = {name: set(worker.devices) for name, worker in known.items()}
    for pod_uid, container, uuid in attribution.seen.union((*worker.id, uuid) for worker, uuid in at_work):
        on.setdefault((pod_uid, container), set()).add(uuid)
    found: dict[WorkerKey, tuple[Worker, DeviceQuota]] = {}
    named: set[WorkerId] = set()
    for worker, quotas in _documented(document, known):
        named.add(worker.id)
        found.update(((*worker.id, quota.uuid), (worker, quota)) for quota in quotas)
    for name, worker in known.items():
        if worker.born is not None and name not in named:
            born = worker.born
            found.update(((*name, uuid), (worker, msgspec.structs.replace(born, uuid=uuid))) for uuid in on[name])
    present = frozenset(worker.id for worker in workers) | {key[:2] for key in found}
    keys = sorted(found)
    by_device: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        by_device.setdefault(key[2], []).append(place)
    return Layout(source, {key: found[key] for key in keys}, present, by_device)


def claims(
    layout: Layout, attribution: Attribution, working_bytes: Mapping[WorkerKey, int] = _NO_GATES
) -> tuple[Claim, ...]:
    """Return one claim per place, with the memory that the worker holds there and what it may need for its work."""
    uses = attribution.by_key
    return tuple(
        [
            Claim(worker, quota, use.vram_bytes if (use := uses.get(key)) else None, working_bytes.get(key, _ANY))
            for key, (worker, quota) in layout.places.items()
        ]
    )


def within_limits(
    wanted: tuple[Claim, ...],
    applied: Mapping[WorkerKey, Applied],
    observe: Callable[[Worker, str], Observed],
    *,
    forced: bool = False,
) -> tuple[Claim, ...]:
    """Return the claims with no more memory held than a limit let them have: what was taken past it was never granted.

    What is held already may be kept, so the limit in force counts where it is above the one that is asked for.
    `applied` has it as of the last tick; of a worker that is new there, `observe` tells what an earlier run left.
    `forced`: nothing above the limit that is asked for may be kept.
    """
    if all((claim.vram_used_bytes or 0) <= claim.quota.vram_limit_bytes for claim in wanted):
        return wanted
    if forced:
        return tuple([_holding(claim, claim.quota.vram_limit_bytes) for claim in wanted])
    return tuple([_within_limits(claim, applied, observe) for claim in wanted])


def _within_limits(
    claim: Claim, applied: Mapping[WorkerKey, Applied], observe: Callable[[Worker, str], Observed]
) -> Claim:
    used, asked, uuid = claim.vram_used_bytes or 0, claim.quota.vram_limit_bytes, claim.quota.uuid
    if used <= asked:
        return claim
    before = applied.get((*claim.worker.id, uuid))
    in_force = (before.observed if before is not None else observe(claim.worker, uuid)).vram_limit_bytes
    return claim if in_force is None else _holding(claim, max(asked, in_force))


def _holding(claim: Claim, most_bytes: int) -> Claim:
    used = claim.vram_used_bytes
    return claim if used is None or used <= most_bytes else msgspec.structs.replace(claim, vram_used_bytes=most_bytes)


def _documented(
    document: QuotaDocument | None, known: Mapping[WorkerId, Worker]
) -> Iterable[tuple[Worker, tuple[DeviceQuota, ...]]]:
    if document is None:
        return
    only: dict[str, list[Worker]] = {}
    for worker in known.values():
        only.setdefault(worker.pod_uid, []).append(worker)
    for entry in document.quotas:
        alone = only.get(entry.pod_uid, ())
        name = alone[0].container if not entry.container and len(alone) == 1 else entry.container
        yield Worker(entry.pod_uid, entry.namespace, entry.pod, name, entry.workload, entry.qos), entry.devices


def govern(wanted: Sequence[Claim], room_of: Mapping[str, Room]) -> tuple[Share, ...]:
    """Return the shares of all claims, in the claims' order; a device without a room gets its claims unchanged.

    Per device, each step only with what the one before left: what is in use, then requests, then the head-room that
    work needs, then limits; all but the first by QoS, critical first, and inside a level so that the largest surplus
    gives first. A device with room for every limit gives them all. No result depends on the order of the claims.
    """
    return Pool().govern(wanted, room_of)


class Pool:
    """Governs as `govern` does, tick after tick; a device on which nothing moved keeps its shares."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[list[Claim], Room | None, tuple[Share, ...]]] = {}

    def govern(self, wanted: Sequence[Claim], room_of: Mapping[str, Room]) -> tuple[Share, ...]:
        """Return the shares of all claims, in the claims' order."""
        by_device: dict[str, list[int]] = {}
        for place, claim in enumerate(wanted):
            by_device.setdefault(claim.quota.uuid, []).append(place)
        before, self._kept = self._kept, {}
        shares: dict[int, Share] = {}
        for uuid, places in by_device.items():
            claimed, room = [wanted[place] for place in places], room_of.get(uuid)
            kept = before.get(uuid)
            if kept is None or kept[1] != room or kept[0] != claimed:
                kept = claimed, room, _shared(claimed, room)
            self._kept[uuid] = kept
            shares.update(zip(places, kept[2], strict=True))
        return tuple([shares[place] for place in range(len(wanted))])


def _shared(wanted: Sequence[Claim], room: Room | None) -> tuple[Share, ...]:
    limits = [claim.quota.vram_limit_bytes for claim in wanted] if room is None else _divide(wanted, room)
    return tuple(map(_share, wanted, limits))


def rooms(sample: NodeSample, wanted: Sequence[Claim]) -> dict[str, Room]:
    """Return the room of every healthy device: its memory, and what is held there by none of the claims."""
    held: dict[str, int] = {}
    for claim in wanted:
        held[claim.quota.uuid] = held.get(claim.quota.uuid, 0) + (claim.vram_used_bytes or 0)
    return {
        device.uuid: Room(device.vram_total_bytes, max(0, (device.vram_used_bytes or 0) - held.get(device.uuid, 0)))
        for device in sample.devices
        if device.healthy
    }


def _divide(wanted: Sequence[Claim], room: Room) -> list[int]:
    limits = [claim.quota.vram_limit_bytes for claim in wanted]
    used = [claim.vram_used_bytes or 0 for claim in wanted]
    lendable = room.vram_total_bytes - room.vram_unattributed_bytes
    enough = list(map(max, limits, used))
    if sum(enough) <= lendable:
        return enough
    requests = [min(claim.quota.vram_request_bytes, claim.quota.vram_limit_bytes) for claim in wanted]
    levels = levels_of([claim.worker.qos for claim in wanted])
    shares = guaranteed(levels, used, requests, room.vram_total_bytes)
    # Head-room goes to work before it goes to whoever might work next.
    working = [min(claim.working_bytes, claim.quota.vram_limit_bytes) for claim in wanted]
    for targets in (working, limits):
        # Surplus counts from the request, or from the share where even the request fell short.
        shares = raise_by_level(levels, shares, list(map(min, requests, shares)), targets, lendable)
    return shares


def _share(claim: Claim, vram_bytes: int) -> Share:
    quota, used = claim.quota, claim.vram_used_bytes or 0
    if vram_bytes == quota.vram_limit_bytes:
        return Share(claim.worker, quota, quota)
    effective = msgspec.structs.replace(quota, vram_limit_bytes=vram_bytes)
    reason = ""
    if vram_bytes < min(quota.vram_request_bytes, quota.vram_limit_bytes):
        reason = f"RequestShort: {_gib(vram_bytes)} of the requested {_gib(quota.vram_request_bytes)} are free"
    elif vram_bytes > quota.vram_limit_bytes:
        reason = f"VRAMInUse: {_gib(used)} in use pass the limit of {_gib(quota.vram_limit_bytes)}; held until freed"
    return Share(claim.worker, quota, effective, reason)


def _gib(amount_bytes: int) -> str:
    return f"{amount_bytes / _GIB:.2f} GiB"
