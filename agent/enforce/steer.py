"""Steering a token bucket so that a worker's own utilization meets its limit; pure.

What a token is worth differs by kernel: a launch costs .1 to 10 tokens whatever it computes. So the price of
utilization is learnt (tokens per second for the whole device), and the refill is the limit's share of that price,
trimmed by what is still missing. It is fed the worker's own utilization: fed the device's, workers throttle their
neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

RATE_MIN: Final = 1.0
"""Tokens per second. Upstream's controller has 10: a worker of few and large kernels can't be held at a tenth by it."""
RATE_MAX: Final = 200_000.0
"""Tokens per second, as upstream's controller has it."""
RATE_START: Final = 100.0
BURST_SECONDS: Final = 0.5
CAPACITY_MIN: Final = 20.0
"""The dearest launch costs 10: less would starve it."""
LEAST_RATIO: Final = 0.02
"""Below this, utilization says nothing about the price of a token: the driver counts in percent."""
SURE_RATIO: Final = 0.1
FEELER_FACTOR: Final = 3.0
PRICE_WEIGHT: Final = 0.5
TRIM_GAIN: Final = 0.25
TRIM_MOST: Final = 0.25
SETTLED_RATIO: Final = 0.15
HELD_RATIO: Final = 0.9
DRY_RATIO: Final = 0.5
"""Fuller than this share of its capacity, the bucket does not hold the worker back."""


class Steering(msgspec.Struct, frozen=True, gc=False):
    """The state of one bucket: refill in tokens per second, price in tokens per second of the whole device, trim."""

    rate: float = RATE_START
    price: float | None = None
    trim: float = 0.0

    @property
    def capacity(self) -> float:
        """The most tokens the bucket may hold."""
        return max(CAPACITY_MIN, self.rate * BURST_SECONDS)


class Metered(msgspec.Struct, frozen=True, gc=False):
    """What was metered since the last step.

    The worker's utilization of the device (0..1, None: not known), the tokens it took per second, and how full its
    bucket was at the end (0..1).
    """

    utilization: float | None
    taken_per_second: float
    fullness: float


class Pull(msgspec.Struct, frozen=True, gc=False):
    """A step of a worker: what it took of its refill, what it used of its limit (1: all; None: not known).

    `fullness` as in `Metered`.
    """

    of_refill: float
    of_limit: float | None
    fullness: float


def steer(before: Steering, target: float, metered: Metered) -> Steering:
    """Return the steering towards `target` (share of the device, 0..1); without a measurement nothing is changed.

    While nothing is known of the price, a bucket that runs dry is opened threefold per step. A worker that asks for
    less than it may have keeps the price it had.
    """
    used, is_dry = metered.utilization, metered.fullness < DRY_RATIO
    if used is None:
        return before
    price = before.price
    if used >= LEAST_RATIO and metered.taken_per_second > 0.0:
        seen = metered.taken_per_second / used
        price = seen if price is None else (1 - PRICE_WEIGHT) * price + PRICE_WEIGHT * seen
    if price is None or used < LEAST_RATIO:
        rate = before.rate * FEELER_FACTOR if is_dry and metered.taken_per_second > 0.0 else before.rate
        ceiling = RATE_MAX if price is None else target * price * (1 + before.trim)
        return Steering(_bounded(min(rate, ceiling)), price, before.trim)
    wanted = target * price * (1 + before.trim)
    # Off the limit by its own choice, or because the refill was another one just now: nothing to trim.
    is_settled = abs(before.rate - wanted) <= SETTLED_RATIO * wanted
    missing = target - used if is_settled and (is_dry or used > target) else 0.0
    trim = min(max(before.trim + TRIM_GAIN * missing, -TRIM_MOST), TRIM_MOST)
    rate = target * price * (1 + trim)
    # A price seen in a few percent is a rough one: it is approached, not jumped to.
    ceiling = before.rate * FEELER_FACTOR if used < SURE_RATIO else RATE_MAX
    return Steering(_bounded(min(rate, ceiling)), price, trim)


def pull(before: Steering, target: float, metered: Metered) -> Pull:
    """Return how a worker pulled at its limit in one step; `target` is the limit's share of the device (0..1)."""
    of_limit = None if metered.utilization is None else metered.utilization / max(target, 1e-3)
    return Pull(metered.taken_per_second / before.rate, of_limit, metered.fullness)


def held_back(pulls: Sequence[Pull]) -> bool | None:
    """Return whether the limit, and nothing else, kept the worker from more; None where its use is not known.

    Over these steps it took its tokens as fast as they came, left none, and used what it may: .9 of each. A worker
    below its share whose bucket ran dry waits for steering, not for a limit. One step says nothing: refills and the
    driver's samples are not in step, so what was taken in one shows as used in the next.
    """
    count, of_refill, of_limit, is_dry = len(pulls), 0.0, 0.0, True
    for one in pulls:
        if one.of_limit is None:
            return None
        of_refill += one.of_refill
        of_limit += one.of_limit
        is_dry = is_dry and one.fullness < DRY_RATIO
    if count < 2:
        return None
    return is_dry and of_refill / count >= HELD_RATIO and of_limit / count >= HELD_RATIO


def _bounded(rate: float) -> float:
    return min(max(rate, RATE_MIN), RATE_MAX)
