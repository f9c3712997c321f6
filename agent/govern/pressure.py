"""What a worker's use tells of its demand while a device is shared: who may have been kept from its guarantee.

Use is censored twice: by the worker's own limit, and by the others where the device is full. And it is old news: a
limit acts a moment after it is written, and a sample speaks of a moment before it is read. So a worker is held against
the lowest limit that may have been acting, and one that was short keeps its claim until a sample shows what it does
with it. Pure but for what is remembered from tick to tick. Neighbours: `lending` asks, `timeshare` divides by it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from agent.govern.pool import Share
from agent.govern.timeshare import AT_WORK_RATIO, GROWTH_RATIO, SATURATED_RATIO, Metered
from agent.model.samples import WorkerKey

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
        self._rooms: dict[WorkerKey, float] = {}
        self._used: dict[WorkerKey, float] = {}
        self._peaks: dict[WorkerKey, float] = {}
        self._at = 0.0
        self._lowest: dict[WorkerKey, tuple[float, float]] = {}
        self._claims: dict[WorkerKey, float] = {}

    def metered(
        self, at: float, shares: Mapping[WorkerKey, Share], seen: Sequence[Metered | None], tflops: Mapping[str, float]
    ) -> list[Metered | None]:
        """Return what was seen of each share with what it may have been kept from; `at` in seconds since the epoch."""
        known = {key: one for key, one in zip(shares, seen, strict=True) if one is not None and key[2] in tflops}
        used = {key: _used(shares[key], one) for key, one in known.items()}
        rising = {
            key
            for key, amount in used.items()
            if amount > max(GROWTH_RATIO * self._used.get(key, 0.0), AT_WORK_RATIO * tflops[key[2]])
            and (key not in self._used or amount > self._peaks.get(key, 0.0) or self._used[key] == 0.0)
        }
        short = self._short(shares, used, rising, tflops)
        claims = {key: until for key, until in self._claims.items() if key in known and 0.0 < until - at <= LAG_SECONDS}
        self._claims = claims | dict.fromkeys(short, at + LAG_SECONDS)
        self._used, self._peaks = used, self._decayed(at, used)
        self._lowest = {key: self._held(at, key, shares[key], one) for key, one in known.items()}
        return [
            one if one is None or key not in known
            else self._judged(key, shares[key], one, is_rising=key in rising)
            for key, one in zip(shares, seen, strict=True)
        ]  # fmt: skip

    def note(self, rooms: Mapping[WorkerKey, float]) -> None:
        """Take what the division left to each, in TFLOPs; no entry where nothing was divided."""
        self._rooms = dict(rooms)

    def _judged(self, key: WorkerKey, share: Share, one: Metered, *, is_rising: bool) -> Metered:
        request, claims = share.quota.tflops_request, key in self._claims
        least = request if claims else min(request, PEAK_RATIO * self._peaks[key]) if self._used[key] else 0.0
        return Metered(one.tflops_used, self._lowest[key][0], one.is_movable, least, claims, is_rising)

    def _decayed(self, at: float, used: Mapping[WorkerKey, float]) -> dict[WorkerKey, float]:
        """Return the highest use of each lately, which counts half after half a minute."""
        seconds, self._at = max(0.0, at - self._at), at
        decay = 0.5 ** (seconds / PEAK_HALF_LIFE_SECONDS)
        return {key: max(amount, decay * self._peaks.get(key, 0.0)) for key, amount in used.items()}

    def _held(self, at: float, key: WorkerKey, share: Share, one: Metered) -> tuple[float, float]:
        """Return the lowest limit that may have been acting, and until when it may."""
        limit = share.quota.tflops_limit if one.effective_tflops is None else one.effective_tflops
        before = self._lowest.get(key)
        if before is not None and limit > before[0] and 0.0 < before[1] - at <= LAG_SECONDS:
            return before
        return limit, at + LAG_SECONDS

    def _short(
        self,
        shares: Mapping[WorkerKey, Share],
        used: Mapping[WorkerKey, float],
        rising: Collection[WorkerKey],
        tflops: Mapping[str, float],
    ) -> list[WorkerKey]:
        """Return who works under its request, and may have been kept there by others or be on its way up.

        Who was left room in the last division is judged by that: below it, its use was its own choice. Unless somebody
        who was at rest then has taken more than was kept for it.
        """
        total: dict[str, float] = {}
        overrun = set()
        for key, amount in used.items():
            total[key[2]] = total.get(key[2], 0.0) + amount
            if amount > self._rooms.get(key, amount) + AT_WORK_RATIO * tflops[key[2]]:
                overrun.add(key[2])
        short = []
        for key, amount in used.items():
            capacity = tflops[key[2]]
            if not AT_WORK_RATIO * capacity <= amount < shares[key].quota.tflops_request:
                continue
            room = None if key[2] in overrun else self._rooms.get(key)
            is_open = key in rising or total[key[2]] >= FULL_RATIO * capacity
            if is_open if room is None else amount >= SATURATED_RATIO * room:
                short.append(key)
        return short


def _used(share: Share, one: Metered) -> float:
    """Return the use in TFLOPs; one that is not known may be all that it is allowed."""
    return share.quota.tflops_limit if one.tflops_used is None else one.tflops_used
