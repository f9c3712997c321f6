"""One worker's tokens on one device: refilled a few times a second, steered once a second.

The worker takes tokens by compare-and-swap at the same time. A refill is a load and a store of our own, so what it
takes within that microsecond it gets back: a few tokens an hour, and no store is ever torn. The limiter only ever
takes: tokens that appear, or are no number, were put there by somebody who wants more than its limit.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from agent.enforce.steer import BURST_SECONDS, RATE_MAX, RATE_MIN, Metered, Pull, Steering, held_back, pull, steer
from agent.enforce.tfshm_layout import (
    IS_ACTIVE,
    MEM_LIMIT,
    UNLIMITED_BYTES,
    UP_LIMIT,
    LiveSlot,
    Slot,
    parsed_limits,
)

NEVER_UNLIMITED: Final = 99
"""Percent. At 100 the limiter stops looking for a minute, and a new limit would reach it only then."""
OVERDRAFT_TOKENS: Final = 10.0
"""The dearest launch: what a limiter can owe; more than that is no price to learn from."""
STEP_SECONDS: Final = 0.9
"""A driver may publish a period of a second over several ticks, and refills fall unevenly into half a one: what was
taken and what was used are compared over a second, tick by tick added up."""
UNHINDERED_TOKENS: Final = RATE_MAX * BURST_SECONDS
_Seen: TypeAlias = tuple[float | None, float]
"""Utilization and tokens, as they were seen in a tick in which none were taken."""


@dataclass(slots=True)
class Bucket:
    """`ratio` is the share of the device in force (None: no limit was set), `vram_bytes` the VRAM limit likewise.

    `name` is the device's UUID as it stood in the slot when it was taken up. `pulls` are how the worker pulled at its
    compute limit in the last two steps. Hundreds of workers idle at a time, so what is found as it was left costs a
    look and no more.
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
    seen_at: float = 0.0
    used: float | None = 0.0
    """Utilization times seconds since the last step, None where a part of it is not known."""
    pulls: tuple[Pull, ...] = ()
    _live: LiveSlot = field(init=False)
    _limits: ctypes.Array[ctypes.c_char] = field(init=False)
    _full: float = UNHINDERED_TOKENS
    """The most tokens the bucket may hold now."""
    _right: bytes = b""
    """The slot's limits as they were found right last; none since a limit was changed."""
    _at_rest: _Seen | None = None
    """What was metered in a step that changed nothing, so that the same again would change nothing either."""
    _held: bool | None = None

    def __post_init__(self) -> None:
        """Remember whose slot it is: a limiter that doesn't find its device there has no limit."""
        self._live, self._limits = self.slot.live(), self.slot.limits()
        self.name = self.name or self.slot.name

    def limit_compute(self, ratio: float, tflops: float) -> None:
        """Put a compute limit into force: the refill moves to the new share at once, at the price that is known."""
        price = self.steering.price
        if self.ratio is not None and price is not None:
            rate = min(max(self.steering.rate * ratio / max(self.ratio, 1e-3), RATE_MIN), RATE_MAX)
            self.steering = Steering(rate, price, self.steering.trim)
        self.ratio, self.tflops = ratio, tflops
        self._right, self._at_rest = b"", None
        self.slot.put_u32(UP_LIMIT, self._percent)
        self._publish()

    def limit_vram(self, limit_bytes: int) -> None:
        """Put a VRAM limit into force."""
        self.vram_bytes, self._right = limit_bytes, b""
        self.slot.put_u64(MEM_LIMIT, limit_bytes)

    @property
    def vram_limit_bytes(self) -> int:
        """The VRAM limit as it stands in the file."""
        return self._live.mem_limit

    @property
    def promised_bytes(self) -> int:
        """The VRAM that a worker may count on: what stands in the file, or what is put back there in a moment."""
        found, ours = self._live.mem_limit, self.vram_bytes
        if ours is None or found == ours:
            return found
        return ours if found >= UNLIMITED_BYTES else max(found, ours)

    def tell_use(self, vram_bytes: int) -> None:
        """Tell the limiter what the worker holds: it judges allocations by it."""
        if self._live.pod_memory_used != vram_bytes:
            self._live.put_use(vram_bytes)

    def refill(self, at: float, now: float) -> bool:
        """Add the tokens since the last refill; `at` is monotonic, `now` what the file is told (both seconds).

        Returns whether it was full and untouched: then it takes in nothing, whatever the time since.
        """
        live = self._live
        found = live.tokens
        is_idle = found == self.left == self._full
        if not is_idle:
            filled = self._filled(found, at)
            if filled != found:
                live.tokens = filled
            self.left = filled
        live.last_update = now
        self.refilled_at = at
        return is_idle

    def steer(self, utilization: float | None, at: float) -> None:
        """Take one tick's utilization of this worker (0..1, None: not known); a step is made of a second of them."""
        since, seen_at, self.seen_at = self.metered_at, self.seen_at, at
        used = None if self.used is None or utilization is None else self.used + utilization * (at - seen_at)
        if since is not None and self.ratio is not None and 0.0 < at - since < STEP_SECONDS:
            self.used = used
            return
        self.metered_at, self.used = at, 0.0
        taken, self.taken = self.taken, 0.0
        if since is None or at <= since or self.ratio is None:
            return
        utilization = None if used is None else used / (at - since)
        found = self._live.tokens
        # Nobody took or forged any: the next step depends on these two alone.
        seen = (utilization, found) if not taken and found == self.left else None
        if seen is None or seen != self._at_rest:
            full = self.steering.capacity
            metered = Metered(utilization, taken / (at - since), self._believed(found) / full)
            self._at_rest = seen if not self._step(metered) else None
        self._publish()

    def put_right(self) -> int:
        """Write again what is not as it was written; return how many limits that were."""
        wrong = 0
        found = self._limits.raw
        if found != self._right:
            wrong = self._put_limits_right(found)
            self._right = found if not wrong else b""
        if not self._live.is_active:
            self.slot.put_u32(IS_ACTIVE, 1)
            wrong += 1
        if self.forged:
            self.forged = False
            wrong += 1
        return wrong

    @property
    def throttled(self) -> bool | None:
        """Whether the limit held the worker back lately, None where nothing is known of it."""
        return False if self.ratio is not None and self.ratio >= 1.0 else self._held

    def _filled(self, found: float, at: float) -> float:
        """Return the tokens after a refill, and count those that were taken since the last."""
        tokens, elapsed = found, 0.0
        if self.refilled_at is not None:
            tokens = self._believed(found)
            self.taken += max(0.0, self.left - tokens)
            elapsed = min(max(at - self.refilled_at, 0.0), 1.0)
        elif not math.isfinite(found):
            tokens = 0.0
        if self._unhindered:
            return UNHINDERED_TOKENS
        return min(max(tokens, 0.0) + self.steering.rate * elapsed, self._full)

    def _step(self, metered: Metered) -> bool:
        """Steer by one tick's figures; return whether anything became another by it."""
        assert self.ratio is not None
        before = self.pulls, self.steering
        self.pulls = (*self.pulls[-1:], pull(self.steering, self.ratio, metered))
        self.steering = steer(self.steering, self.ratio, metered)
        self._held = held_back(self.pulls)
        return before != (self.pulls, self.steering)

    def _put_limits_right(self, found: bytes) -> int:
        """Judge a copy of the slot's limits, as the tenant may write between two looks; return how many were wrong."""
        name, percent, limit_bytes = parsed_limits(found)
        wrong = 0
        if self.ratio is not None and percent != self._percent:
            self.slot.put_u32(UP_LIMIT, self._percent)
            wrong += 1
        if self.vram_bytes is not None and limit_bytes != self.vram_bytes:
            self.slot.put_u64(MEM_LIMIT, self.vram_bytes)
            wrong += 1
        if name != self.name:
            self.slot.put_name(self.name)
            wrong += 1
        return wrong

    def _believed(self, tokens: float) -> float:
        """Return the tokens that can be: none that nobody put there; below 0 is where a limiter may get in a race."""
        if not math.isfinite(tokens) or tokens > self.left:
            self.forged = True
            return self.left
        return max(tokens, -self.left - OVERDRAFT_TOKENS)

    @property
    def _unhindered(self) -> bool:
        return self.ratio is None or self.ratio >= 1.0

    @property
    def _percent(self) -> int:
        return min(max(round((self.ratio or 0.0) * 100), 1), NEVER_UNLIMITED)

    def _publish(self) -> None:
        """Show the refill and the capacity, where the file does not; nobody but readers depends on them."""
        is_free = self._unhindered
        rate = RATE_MAX if is_free else self.steering.rate
        full = self._full = UNHINDERED_TOKENS if is_free else self.steering.capacity
        live = self._live
        if live.refill_rate != rate or live.capacity != full:
            live.put_refill(rate, full)
