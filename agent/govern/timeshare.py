"""Sharing a device's time when it is short: guarantees first, then work, by QoS and credit; pure.

Compute ceilings overcommit, because time comes back. While everyone's demand fits into the device, every ceiling
stands. When it does not, what is asked for inside the requests is served first and the rest is divided, critical first;
whoever is not at work keeps its ceiling, and takes part in the division with its first active sample. Nobody's
effective limit is ever below its request: a guarantee is there at once, and the bursts make room in the next tick.
TFLOPs are FP16, dense; figures are counted in thousandths of one where they are divided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from agent.govern.divide import levels_of, raise_by_level
from agent.govern.pool import Share
from autoscaler.contract.keys import QoS

SATURATED_RATIO: Final = 0.9
"""A worker that uses this much of its effective limit may want any more."""
GROWTH_RATIO: Final = 1.3
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
    """One worker on one device in one tick: TFLOPs used (None: not known), and the limit it was under (None: none)."""

    tflops_used: float | None
    effective_tflops: float | None


def accrue(before: Credit | None, share: Share, tflops_used: float | None, seconds: float) -> Credit | None:
    """Return the credit after a tick: earned under the request, spent above it; None for levels without credit."""
    if share.worker.qos not in CREDITED:
        return None
    request = share.quota.tflops_request
    if before is None:
        return Credit(FIRST_CREDIT_SECONDS * request)
    if tflops_used is None:
        return before
    saved = before.tflop_seconds + (request - tflops_used) * seconds
    saved = min(max(saved, 0.0), MOST_CREDIT_SECONDS * request)
    spent = saved <= 0.0 or (before.spent and saved < ENOUGH_SECONDS * request)
    # Most workers are as rich as they can be: nothing new is made for them.
    return before if saved == before.tflop_seconds and spent == before.spent else Credit(saved, spent)


def share_time(
    shares: Sequence[Share],
    metered: Sequence[Metered | None],
    credit_of: Sequence[Credit | None],
    tflops: Mapping[str, float],
) -> tuple[Share, ...]:
    """Return the shares with the compute limits that can stand together, in order.

    `metered` and `credit_of` go with the shares. Those without a metering (their limit can't be moved while they run),
    and devices whose `tflops` are not known, are left as they are.
    """
    by_device: dict[str, list[int]] = {}
    for place, share in enumerate(shares):
        if metered[place] is not None:
            by_device.setdefault(share.quota.uuid, []).append(place)
    after = list(shares)
    for uuid, places in by_device.items():
        if uuid in tflops:
            crew = [_Member(shares[place], one, credit_of[place]) for place in places if (one := metered[place])]
            for place, limit in zip(places, _divide(crew, tflops[uuid]), strict=True):
                after[place] = _with_limit(shares[place], limit)
    return tuple(after)


class _Member(msgspec.Struct, frozen=True, gc=False):
    """One worker in a device's division."""

    share: Share
    metered: Metered
    credit: Credit | None

    @property
    def ceiling(self) -> float:
        """The limit it may have on a device with room: for some, bursts need credit."""
        limit, request = self.share.quota.tflops_limit, self.share.quota.tflops_request
        is_poor = self.credit is not None and self.credit.spent and self.share.worker.qos in ONLY_ON_CREDIT
        return min(request, limit) if is_poor and request > 0.0 else limit

    def wants(self, ceiling: float) -> float:
        """What it may use in the next tick, if it is let."""
        used, under = self.metered.tflops_used, self.metered.effective_tflops
        if used is None or used >= SATURATED_RATIO * (self.share.quota.tflops_limit if under is None else under):
            return ceiling
        return min(ceiling, GROWTH_RATIO * used)


def _divide(crew: Sequence[_Member], total: float) -> list[float]:
    ceilings = [one.ceiling for one in crew]
    wants = [one.wants(ceiling) for one, ceiling in zip(crew, ceilings, strict=True)]
    if sum(wants) <= total:
        return ceilings
    requests = [one.share.quota.tflops_request for one in crew]
    levels = levels_of([one.share.worker.qos for one in crew])
    inside = list(map(min, wants, requests))
    on_credit = [
        least if one.credit is not None and one.credit.spent else want
        for one, want, least in zip(crew, wants, inside, strict=True)
    ]
    divided = bases = [0] * len(crew)
    for targets in (inside, on_credit, wants):
        divided = raise_by_level(levels, divided, bases, list(map(_whole, targets)), _whole(total))
        bases = list(map(min, divided, map(_whole, requests)))
    step = STEP_RATIO * total
    return [
        # Not at work above its request: nothing to divide, and free to start.
        ceiling if want <= request else max(min(part / _MILLI // step * step, ceiling), min(request, ceiling))
        for ceiling, want, request, part in zip(ceilings, wants, requests, divided, strict=True)
    ]


def _with_limit(share: Share, limit: float) -> Share:
    if limit == share.effective.tflops_limit:
        return share
    effective = msgspec.structs.replace(share.effective, tflops_limit=limit)
    return msgspec.structs.replace(share, effective=effective)


def _whole(tflops: float) -> int:
    return int(tflops * _MILLI)
