"""Sharing a device's time when it is short: guarantees first, then work, by QoS and credit; pure.

Compute ceilings overcommit, because time comes back. While everyone's demand fits into the device, every ceiling
stands. When it does not, what is asked for inside the requests is served first and the rest is divided, critical first;
whoever is not at work keeps its ceiling, and takes part in the division with its first active sample. Nobody's
effective limit is ever below its request: a guarantee is there at once, and the bursts make room in the next tick.
Who may have been kept from it by others counts with all its request, so a guarantee is back after one tick (`pressure`
tells who).
TFLOPs are FP16, dense; figures are counted in thousandths of one where they are divided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import msgspec

from agent.govern.divide import levels_of, raise_by_level
from agent.govern.pool import Share
from autoscaler.contract.keys import QoS

SATURATED_RATIO: Final = 0.9
"""A worker that uses this much of its effective limit may want any more."""
GROWTH_RATIO: Final = 1.3
AT_WORK_RATIO: Final = 0.01
"""Of the device: the driver counts in percent, and less is a beat of the heart."""
STEP_RATIO: Final = 0.01
"""Of the device: smaller moves of a limit are not worth a write."""
CREDITED: Final = frozenset({QoS.LOW, QoS.MEDIUM})
"""Levels that earn credits under their request and spend them above it."""
ONLY_ON_CREDIT: Final = frozenset({QoS.LOW})
"""Levels whose bursts need credit; medium's come after those that have some."""
MOST_CREDIT_SECONDS: Final = 600.0
"""Of its request: what a worker can save up."""
FIRST_CREDIT_SECONDS: Final = 60.0
ENOUGH_SECONDS: Final = 10.0
"""Of its request: once spent, credit counts again from here on, so that a burst does not stutter."""
_MILLI: Final = 1000.0


class Credit(msgspec.Struct, frozen=True, gc=False):
    """What one worker may burst on a device, in TFLOP-seconds; `spent` until enough was saved up again."""

    tflop_seconds: float
    spent: bool = False


class Metered(msgspec.Struct, frozen=True, gc=False):
    """One worker on one device in one tick: TFLOPs used (None: not known), and the limit it was under (None: none).

    The limit of one that is not `is_movable` can't be changed while it runs: it takes its part, and the others what
    remains. `least_tflops` is kept for it whatever it used; one that `claims` its request may have been kept from it,
    and of one that `rises` nobody knows how far.
    """

    tflops_used: float | None
    effective_tflops: float | None
    is_movable: bool = True
    least_tflops: float = 0.0
    claims: bool = False
    rises: bool = False


def accrue(before: Credit | None, share: Share, tflops_used: float | None, seconds: float) -> Credit | None:
    """Return the credit after a tick: earned under the request, spent above it; None for levels without credit."""
    if share.worker.qos not in CREDITED:
        return None
    request = share.quota.tflops_request
    if before is None:
        return Credit(FIRST_CREDIT_SECONDS * request)
    if tflops_used is None:
        return before
    saved, most = before.tflop_seconds + (request - tflops_used) * seconds, MOST_CREDIT_SECONDS * request
    saved = most if saved > most else max(saved, 0.0)
    spent = saved <= 0.0 or (before.spent and saved < ENOUGH_SECONDS * request)
    # Most workers are as rich as they can be: nothing new is made for them.
    return before if saved == before.tflop_seconds and spent == before.spent else Credit(saved, spent)


def share_time(
    shares: Sequence[Share],
    metered: Sequence[Metered | None],
    credit_of: Sequence[Credit | None],
    tflops: Mapping[str, float],
) -> tuple[tuple[Share, ...], list[float | None]]:
    """Return the shares with the compute limits that can stand together, in order, and the room each one was left.

    `metered` and `credit_of` go with the shares, `tflops` is what each device has for them. Shares without a metering,
    and those on devices whose `tflops` are not known, are left as they are. No room is told where nothing was divided.
    """
    by_device: dict[str, list[int]] = {}
    for place, (share, one) in enumerate(zip(shares, metered, strict=True)):
        if one is not None and share.quota.uuid in tflops:
            by_device.setdefault(share.quota.uuid, []).append(place)
    after, room_of = list(shares), _unknown(len(shares))
    for uuid, places in by_device.items():
        crew = [(shares[place], one, credit_of[place]) for place in places if (one := metered[place])]
        limits, rooms = _divide(crew, tflops[uuid])
        for place, (share, one, _), limit, room in zip(places, crew, limits, rooms, strict=True):
            room_of[place] = room
            if one.is_movable and limit != share.effective.tflops_limit:
                effective = msgspec.structs.replace(share.effective, tflops_limit=limit)
                after[place] = msgspec.structs.replace(share, effective=effective)
    return tuple(after), room_of


_Crew: TypeAlias = Sequence[tuple[Share, Metered, Credit | None]]
"""The workers of one device."""


def _ceiling(share: Share, credit: Credit | None) -> float:
    """Return the limit that a worker may have on a device with room: for some, bursts need credit."""
    quota = share.quota
    is_poor = credit is not None and credit.spent and share.worker.qos in ONLY_ON_CREDIT
    return min(quota.tflops_request, quota.tflops_limit) if is_poor and quota.tflops_request > 0 else quota.tflops_limit


def _wants(share: Share, one: Metered, ceiling: float) -> float:
    """Return what a worker may use in the next tick, if it is let."""
    used, under = one.tflops_used, one.effective_tflops
    if used is None or used >= SATURATED_RATIO * (share.quota.tflops_limit if under is None else under):
        return ceiling
    wanted = GROWTH_RATIO * used
    wanted = max(one.least_tflops, wanted)
    return min(ceiling, wanted)


def _divide(crew: _Crew, total: float) -> tuple[list[float], list[float | None]]:
    """Return everyone's limit, and the room that each one was left; no room where all that is wanted fits."""
    ceilings = [_ceiling(share, credit) for share, _, credit in crew]
    wants = [_wants(share, one, ceiling) for (share, one, _), ceiling in zip(crew, ceilings, strict=True)]
    free = total - sum(wants)
    if free >= 0.0:
        if any(one.claims for _, one, _ in crew):
            ceilings = _let_rise(crew, ceilings, [want + free for want in wants])
        return ceilings, _unknown(len(crew))
    requests = [share.quota.tflops_request for share, _, _ in crew]
    levels = levels_of([share.worker.qos for share, _, _ in crew])
    inside = list(map(min, wants, requests))
    on_credit = [
        least if credit is not None and credit.spent else want
        for (_, _, credit), want, least in zip(crew, wants, inside, strict=True)
    ]
    divided = bases = [0] * len(crew)
    for targets in (inside, on_credit, wants):
        divided = raise_by_level(levels, divided, bases, list(map(_whole, targets)), _whole(total))
        bases = list(map(min, divided, map(_whole, requests)))
    step, work = STEP_RATIO * total, AT_WORK_RATIO * total
    limits = [
        # At rest: nothing to divide, and free to start. At work, a burst has to wait for its turn.
        ceiling
        if one.tflops_used is not None and one.tflops_used < work
        else max(min(part / _MILLI // step * step, ceiling), min(request, ceiling))
        for (_, one, _), ceiling, request, part in zip(crew, ceilings, requests, divided, strict=True)
    ]
    return limits, [part / _MILLI for part in divided]


def _let_rise(crew: _Crew, ceilings: list[float], rooms: Sequence[float]) -> list[float]:
    """Return the ceilings where somebody claims its request: who rises gets what is free and no more for a tick."""
    return [
        min(ceiling, max(room, share.quota.tflops_request)) if one.rises else ceiling
        for (share, one, _), ceiling, room in zip(crew, ceilings, rooms, strict=True)
    ]


def _unknown(count: int) -> list[float | None]:
    return [None] * count


def _whole(tflops: float) -> int:
    return int(tflops * _MILLI)
