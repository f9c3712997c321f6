"""One worker's tokens on one device: refilled a few times a second, steered once a tick.

The worker takes tokens by compare-and-swap at the same time. A refill is a load and a store of our own, so what it
takes within that microsecond it gets back: a few tokens an hour, and no store is ever torn. The limiter only ever
takes: tokens that appear, or are no number, were put there by somebody who wants more than its limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from agent.enforce.steer import BURST_SECONDS, RATE_MAX, RATE_MIN, Metered, Pull, Steering, held_back, pull, steer
from agent.enforce.tfshm_layout import (
    CAPACITY,
    IS_ACTIVE,
    LAST_UPDATE,
    MEM_LIMIT,
    POD_MEMORY_USED,
    REFILL_RATE,
    TOKENS,
    UNLIMITED_BYTES,
    UP_LIMIT,
    Slot,
)

NEVER_UNLIMITED: Final = 99
"""Percent. At 100 the limiter stops looking for a minute, and a new limit would reach it only then."""
OVERDRAFT_TOKENS: Final = 10.0
"""The dearest launch: what a limiter can owe; more than that is no price to learn from."""
UNHINDERED_TOKENS: Final = RATE_MAX * BURST_SECONDS


@dataclass(slots=True)
class Bucket:
    """`ratio` is the share of the device in force (None: no limit was set), `vram_bytes` the VRAM limit likewise.

    `name` is the device's UUID as it stood in the slot when it was taken up. `pulls` are how the worker pulled at its
    compute limit in the last two ticks.
    """

    slot: Slot
    name: bytes = b""
    ratio: float | None = None
    tflops: float | None = None
    vram_bytes: int | None = None
    steering: Steering = field(default_factory=Steering)
    refilled_at: float | None = None
    left: float = 0.0
    taken: float = 0.0
    forged: bool = False
    metered_at: float | None = None
    pulls: tuple[Pull, ...] = ()

    def __post_init__(self) -> None:
        """Remember whose slot it is: a limiter that doesn't find its device there has no limit."""
        self.name = self.name or self.slot.name

    def limit_compute(self, ratio: float, tflops: float) -> None:
        """Put a compute limit into force: the refill moves to the new share at once, at the price that is known."""
        price = self.steering.price
        if self.ratio is not None and price is not None:
            rate = min(max(self.steering.rate * ratio / max(self.ratio, 1e-3), RATE_MIN), RATE_MAX)
            self.steering = Steering(rate, price, self.steering.trim)
        self.ratio, self.tflops = ratio, tflops
        self.slot.put_u32(UP_LIMIT, self._percent)
        self._publish()

    def limit_vram(self, limit_bytes: int) -> None:
        """Put a VRAM limit into force."""
        self.vram_bytes = limit_bytes
        self.slot.put_u64(MEM_LIMIT, limit_bytes)

    @property
    def vram_limit_bytes(self) -> int:
        """The VRAM limit as it stands in the file."""
        return self.slot.u64(MEM_LIMIT)

    @property
    def promised_bytes(self) -> int:
        """The VRAM that a worker may count on: what stands in the file, or what is put back there in a moment."""
        found, ours = self.vram_limit_bytes, self.vram_bytes
        if ours is None:
            return found
        return ours if found >= UNLIMITED_BYTES else max(found, ours)

    def tell_use(self, vram_bytes: int) -> None:
        """Tell the limiter what the worker holds: it judges allocations by it."""
        self.slot.put_u64(POD_MEMORY_USED, vram_bytes)

    def refill(self, at: float, now: float) -> None:
        """Add the tokens since the last refill; `at` is monotonic, `now` what the file is told (both seconds)."""
        found = self.slot.f64(TOKENS)
        tokens = found
        if self.refilled_at is not None:
            tokens = self._believed(found)
            self.taken += max(0.0, self.left - tokens)
        elif not math.isfinite(found):
            tokens = 0.0
        elapsed = 0.0 if self.refilled_at is None else min(max(at - self.refilled_at, 0.0), 1.0)
        if self._unhindered:
            filled = UNHINDERED_TOKENS
        else:
            filled = min(max(tokens, 0.0) + self.steering.rate * elapsed, self.steering.capacity)
        if filled != found:
            self.slot.put_f64(TOKENS, filled)
        self.slot.put_f64(LAST_UPDATE, now)
        self.left, self.refilled_at = filled, at

    def steer(self, utilization: float | None, at: float) -> None:
        """Take one tick's utilization of this worker (0..1, None: not known)."""
        since, self.metered_at = self.metered_at, at
        taken, self.taken = self.taken, 0.0
        if since is None or at <= since or self.ratio is None:
            return
        metered = Metered(
            utilization, taken / (at - since), self._believed(self.slot.f64(TOKENS)) / self.steering.capacity
        )
        self.pulls = (*self.pulls[-1:], pull(self.steering, self.ratio, metered))
        self.steering = steer(self.steering, self.ratio, metered)
        self._publish()

    def put_right(self) -> int:
        """Write again what is not as it was written; return how many limits that were."""
        wrong = 0
        if self.ratio is not None and self.slot.u32(UP_LIMIT) != self._percent:
            self.slot.put_u32(UP_LIMIT, self._percent)
            wrong += 1
        if self.vram_bytes is not None and self.slot.u64(MEM_LIMIT) != self.vram_bytes:
            self.slot.put_u64(MEM_LIMIT, self.vram_bytes)
            wrong += 1
        if not self.slot.u32(IS_ACTIVE):
            self.slot.put_u32(IS_ACTIVE, 1)
            wrong += 1
        if self.slot.name != self.name:
            self.slot.put_name(self.name)
            wrong += 1
        if self.forged:
            self.forged = False
            wrong += 1
        return wrong

    def _believed(self, tokens: float) -> float:
        """Return the tokens that can be: none that nobody put there; below 0 is where a limiter may get in a race."""
        if not math.isfinite(tokens) or tokens > self.left:
            self.forged = True
            return self.left
        return max(tokens, -self.left - OVERDRAFT_TOKENS)

    @property
    def throttled(self) -> bool | None:
        """Whether the limit held the worker back lately, None where nothing is known of it."""
        return False if self.ratio is not None and self.ratio >= 1.0 else held_back(self.pulls)

    @property
    def _unhindered(self) -> bool:
        return self.ratio is None or self.ratio >= 1.0

    @property
    def _percent(self) -> int:
        return min(max(round((self.ratio or 0.0) * 100), 1), NEVER_UNLIMITED)

    def _publish(self) -> None:
        self.slot.put_f64(REFILL_RATE, RATE_MAX if self._unhindered else self.steering.rate)
        self.slot.put_f64(CAPACITY, UNHINDERED_TOKENS if self._unhindered else self.steering.capacity)
