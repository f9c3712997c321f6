"""What a worker's use tells of its demand while a device is shared: who may have been kept from its guarantee.

Use is censored twice: by the worker's own limit, and by the others where the device is full. And it is old news: a
limit acts a moment after it is written, and a sample speaks of a moment before it is read. So a worker is held against
the lowest limit that may have been acting, and one that was short keeps its claim until a sample shows what it does
with it. Pure but for what is remembered from tick to tick. Neighbours: `lending` asks, `timeshare` divides by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from agent.govern.pool import Layout
from agent.govern.timeshare import AT_WORK_RATIO, GROWTH_RATIO, SATURATED_RATIO, Metered
from autoscaler.contract.quota import DeviceQuota

FULL_RATIO: Final = 0.95
"""Of the device: busier than this, nobody's use tells what it would have used."""
LAG_SECONDS: Final = 1.5
"""So long after a limit was written a sample speaks wholly of the time under it: it acts with the next refill (.2 s),
and a sample covers a tick or a period of the driver, and may be as old."""
PEAK_HALF_LIFE_SECONDS: Final = 30.0
PEAK_RATIO: Final = 1.15
"""Over the highest use lately: use wavers, and inside its known range that is no news."""


class Pressure:
    """One node's; forgets who is gone."""

    def __init__(self) -> None:
        self._at = 0.0
        self._layout: Layout | None = None
        self._pasts: list[_Past] = []

    def metered(
        self, at: float, layout: Layout, metered: Sequence[Metered | None], tflops: Mapping[str, float]
    ) -> list[Metered | None]:
        """Return what was seen at each place with what it may have been kept from; `at` in seconds since the epoch."""
        pasts = self._places(layout)
        decay, self._at = 0.5 ** (max(0.0, at - self._at) / PEAK_HALF_LIFE_SECONDS), at
        judged = list(metered)
        quotas = [quota for _, quota in layout.places.values()]
        for uuid, places in layout.by_device.items():
            seen = [place for place in places if metered[place] is not None and uuid in tflops]
            crew = [(pasts[place], quotas[place], one) for place in seen if (one := metered[place])]
            for place, one in zip(seen, _judged(crew, at, decay, tflops.get(uuid, 0.0)), strict=True):
                judged[place] = one
        for place, one in enumerate(metered):
            if one is None:
                pasts[place] = _Past()
        return judged

    def note(self, rooms: Sequence[float | None]) -> None:
        """Take what the division left at each place, in TFLOPs; None where nothing was divided."""
        for past, room in zip(self._pasts, rooms, strict=True):
            past.room = room

    def _places(self, layout: Layout) -> list[_Past]:
        if self._layout is not layout:
            known = dict(zip(self._layout.places, self._pasts, strict=True)) if self._layout is not None else {}
            self._layout, self._pasts = layout, [known.get(key) or _Past() for key in layout.places]
        return self._pasts


@dataclass(slots=True)
class _Past:
    """What is remembered of one worker on one device: TFLOPs (None: not known), and until when it holds.

    `lowest` is the lowest limit that may be acting, `room` what the last division left.
    """

    used: float | None = None
    peak: float = 0.0
    room: float | None = None
    lowest: float = 0.0
    lowest_until: float = 0.0
    claims_until: float = 0.0


_Crew: TypeAlias = Sequence[tuple[_Past, DeviceQuota, Metered]]
"""The workers of one device."""


def _judged(crew: _Crew, at: float, decay: float, capacity: float) -> list[Metered]:
    """Return what was seen of a device's workers with what they may have been kept from; remember it."""
    # Use that is not known may be all that is allowed.
    amounts = [quota.tflops_limit if one.tflops_used is None else one.tflops_used for _, quota, one in crew]
    work = AT_WORK_RATIO * capacity
    rising = [amount > work and _rises(past, amount) for (past, _, _), amount in zip(crew, amounts, strict=True)]
    short = _short(crew, amounts, rising, capacity)
    judged = []
    for (past, quota, one), amount, rises, is_short in zip(crew, amounts, rising, short, strict=True):
        if is_short:
            past.claims_until = at + LAG_SECONDS
        elif past.claims_until and not _holds(past.claims_until, at):
            past.claims_until = 0.0
        limit = quota.tflops_limit if one.effective_tflops is None else one.effective_tflops
        if limit <= past.lowest or not _holds(past.lowest_until, at):
            past.lowest, past.lowest_until = limit, at + LAG_SECONDS
        peak = decay * past.peak
        past.used, past.peak = amount, max(amount, peak)
        request, claims = quota.tflops_request, past.claims_until > 0.0
        least = request if claims else min(request, PEAK_RATIO * past.peak) if amount else 0.0
        judged.append(Metered(one.tflops_used, past.lowest, one.is_movable, least, claims, rises))
    return judged


def _short(crew: _Crew, amounts: Sequence[float], rising: Sequence[bool], capacity: float) -> list[bool]:
    """Return who works under its request, and may have been kept there by others or be on its way up.

    Who was left room in the last division is judged by that: below it, its use was its own choice. Unless somebody
    who was at rest then has taken more than was kept for it.
    """
    work = AT_WORK_RATIO * capacity
    is_full = sum(amounts) >= FULL_RATIO * capacity
    rooms = [past.room for past, _, _ in crew]
    if any(room is not None and amount > room + work for room, amount in zip(rooms, amounts, strict=True)):
        rooms = [None] * len(rooms)
    return [
        work <= amount < quota.tflops_request
        and (rises or is_full if room is None else amount >= SATURATED_RATIO * room)
        for (_, quota, _), room, amount, rises in zip(crew, rooms, amounts, rising, strict=True)
    ]


def _rises(past: _Past, amount: float) -> bool:
    """Return whether a worker at work does more than use wavers: much more than just before, and than lately."""
    return not past.used or (amount > GROWTH_RATIO * past.used and amount > past.peak)


def _holds(until: float, at: float) -> bool:
    # A clock that was set back would have it hold until it is where it was.
    return 0.0 < until - at <= LAG_SECONDS
