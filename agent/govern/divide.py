"""Dividing what a device has among its workers, level by level; pure, in whole units of any one kind.

The same for bytes of memory and for shares of time: what differs is what counts as guaranteed. Inside a level all rise
alike over their bases, so the largest surplus gives first; a higher level is served before a lower one gets anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from autoscaler.contract.keys import QoS

FIRST_IN_LINE: Final = tuple(reversed(QoS))


def levels_of(levels: Sequence[QoS]) -> list[list[int]]:
    """Return the places of each level that occurs, critical first."""
    places = {qos: [place for place, level in enumerate(levels) if level is qos] for qos in FIRST_IN_LINE}
    return [level for level in places.values() if level]


def guaranteed(levels: Sequence[Sequence[int]], held: Sequence[int], requests: Sequence[int], total: int) -> list[int]:
    """Return what nobody may be denied: what is held and the requests; where both pass the total, what is held first.

    Requests are then met by level, as far as the total goes.
    """
    shares = list(map(max, requests, held))
    if sum(shares) <= total:
        return shares
    nothing = [0] * len(held)
    return raise_by_level(levels, rise(nothing, nothing, held, total), nothing, requests, total)


def raise_by_level(
    levels: Sequence[Sequence[int]], shares: Sequence[int], bases: Sequence[int], targets: Sequence[int], total: int
) -> list[int]:
    """Return the shares raised towards the targets, level after level, each with what the one before left."""
    after = list(shares)
    for level in levels:
        free = total - sum(after) + sum(after[place] for place in level)
        own, base, target = ([column[place] for place in level] for column in (after, bases, targets))
        for place, share in zip(level, rise(own, base, target, free), strict=True):
            after[place] = share
    return after


def rise(shares: Sequence[int], bases: Sequence[int], targets: Sequence[int], total: int) -> list[int]:
    """Raise every share to its target, or all to the highest common rise over their bases whose sum fits in total.

    A base is never above its share, so a rise of 0 changes nothing. Less than there are shares may stay unused.
    """
    full = list(map(max, shares, targets))
    if sum(full) <= total:
        return full
    steps = [
        (max(0, share - base), target - base)
        for share, base, target in zip(shares, bases, targets, strict=True)
        if target > share
    ]
    common = _common_rise(steps, total - sum(shares))
    lifted = [min(target, base + common) for base, target in zip(bases, targets, strict=True)]
    return list(map(max, shares, lifted)) if common else list(shares)


def _common_rise(steps: Sequence[tuple[int, int]], free: int) -> int:
    """Return the highest rise for which the parts of it inside every (from, to) step sum up to at most `free`."""
    rise = active = 0
    turns = sorted([(start, 1) for start, _ in steps] + [(end, -1) for _, end in steps])
    for at, change in turns:
        if active * (at - rise) > free:
            break
        free -= active * (at - rise)
        rise, active = at, active + change
    return rise + max(0, free) // active if active else rise
