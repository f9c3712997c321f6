"""Sharing a device's time when it is short: guarantees first, then work, by QoS and credit; pure.

Compute ceilings overcommit, because time comes back. While everyone's demand fits into the device, every ceiling
stands. When it does not, what is asked for inside the requests is served first and the rest is divided, critical first;
whoever is not at work keeps its ceiling, and takes part in the division with its first active sample. Nobody's
effective limit is ever below its request: a guarantee is there at once, and the bursts make room in the next tick.
TFLOPs are FP16, dense; figures are counted in thousandths of one where they are divided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from agent.divide import levels_of, raise_by_level
from agent.govern import Share, id_of
from agent.report import WorkerKey
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


@dataclass(frozen=True, slots=True)
class Credit:
    """What one worker may burst on a device, in TFLOP-seconds; `spent` until enough was saved up again."""

    tflop_seconds: float
    spent: bool = False


@dataclass(frozen=True, slots=True)
class Metered:
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
    return Credit(saved, spent=saved <= 0.0 or (before.spent and saved < ENOUGH_SECONDS * request))


def share_time(
    shares: Sequence[Share],
    metered: Mapping[WorkerKey, Metered],
    credit_of: Mapping[WorkerKey, Credit],
    tflops: Mapping[str, float],
) -> tuple[Share, ...]:
    """Return the shares with the compute limits that can stand together, in order.

    `metered` has an entry for each worker whose limit can be moved while it runs; the others, and devices whose
    `tflops` are not known, are left as they are.
    """
    effective = [share.effective.tflops_limit for share in shares]
    by_device: dict[str, list[int]] = {}
    for place, share in enumerate(shares):
        if _key(share) in metered:
            by_device.setdefault(share.quota.uuid, []).append(place)
    for uuid, places in by_device.items():
        if uuid in tflops:
            own = [shares[place] for place in places]
            for place, limit in zip(places, _divide(own, metered, credit_of, tflops[uuid]), strict=True):
                effective[place] = limit
    return tuple(map(_with_limit, shares, effective))


def _divide(
    shares: Sequence[Share], metered: Mapping[WorkerKey, Metered], credit_of: Mapping[WorkerKey, Credit], total: float
) -> list[float]:
    ceilings = [_ceiling(share, credit_of.get(_key(share))) for share in shares]
    wants = [_wanted(metered[_key(share)], share, ceiling) for share, ceiling in zip(shares, ceilings, strict=True)]
    if sum(wants) <= total:
        return ceilings
    requests = [share.quota.tflops_request for share in shares]
    levels = levels_of([share.worker.qos for share in shares])
    inside = list(map(min, wants, requests))
    on_credit = [
        want if _has_credit(share, credit_of) else least
        for want, least, share in zip(wants, inside, shares, strict=True)
    ]
    divided = bases = [0] * len(shares)
    for targets in (inside, on_credit, wants):
        divided = raise_by_level(levels, divided, bases, list(map(_whole, targets)), _whole(total))
        bases = list(map(min, divided, map(_whole, requests)))
    step = STEP_RATIO * total
    return [
        # Not at work above its request: nothing to divide, and free to start.
        ceiling if want <= request else max(min(part / _MILLI // step * step, ceiling), min(request, ceiling))
        for ceiling, want, request, part in zip(ceilings, wants, requests, divided, strict=True)
    ]


def _ceiling(share: Share, credit: Credit | None) -> float:
    """Return the limit a worker may have on a device with room: for some, bursts need credit."""
    limit, request = share.quota.tflops_limit, share.quota.tflops_request
    poor = share.worker.qos in ONLY_ON_CREDIT and credit is not None and credit.spent
    return min(request, limit) if poor and request > 0.0 else limit


def _wanted(metered: Metered, share: Share, ceiling: float) -> float:
    used = metered.tflops_used
    if used is None:
        return ceiling
    under = share.quota.tflops_limit if metered.effective_tflops is None else metered.effective_tflops
    if used >= SATURATED_RATIO * under:
        return ceiling
    return min(ceiling, GROWTH_RATIO * used)


def _has_credit(share: Share, credit_of: Mapping[WorkerKey, Credit]) -> bool:
    credit = credit_of.get(_key(share))
    return credit is None or not credit.spent


def _with_limit(share: Share, limit: float) -> Share:
    if limit == share.effective.tflops_limit:
        return share
    effective = msgspec.structs.replace(share.effective, tflops_limit=limit)
    return msgspec.structs.replace(share, effective=effective)


def _key(share: Share) -> WorkerKey:
    return (*id_of(share.worker), share.quota.uuid)


def _whole(tflops: float) -> int:
    return int(tflops * _MILLI)
