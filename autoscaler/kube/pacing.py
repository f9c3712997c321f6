"""How fast requests may be made: a token bucket that everybody who talks to one API server shares.

An average rate with a burst, and one pause for all: when the server tells one request to come back later, the others
would only make it worse. Neighbour: `client` takes a token for every attempt, watches included (once).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, Protocol


class Pace(Protocol):
    """When the next request may go."""

    async def turn(self) -> None:
        """Return when the caller may make one request."""
        ...

    def pause(self, seconds: float) -> None:
        """Let nobody go for so long from now."""
        ...


class TokenBucket:
    """`qps` requests a second on average, `burst` of them at once; waiters go in the order in which they came.

    `monotonic` gives seconds that never go back, `sleep` waits for seconds.
    """

    def __init__(
        self,
        qps: float,
        burst: int,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._seconds_each = 1.0 / qps
        self._burst_seconds = (burst - 1) * self._seconds_each
        self._monotonic, self._sleep = monotonic, sleep
        self._spent_until = -float("inf")
        """When the bucket is full again, had nobody taken anything since."""
        self._paused_until = -float("inf")

    async def turn(self) -> None:
        """Return when the caller may make one request; who waited through a pause takes a place behind it."""
        while True:
            wait = self._reserve()
            if wait <= 0:
                return
            await self._sleep(wait)
            if self._monotonic() >= self._paused_until:
                return

    def pause(self, seconds: float) -> None:
        """Let nobody go for so long; afterwards the bucket is empty, so that not all who waited go at once."""
        self._paused_until = max(self._paused_until, self._monotonic() + seconds)
        self._spent_until = max(self._spent_until, self._paused_until + self._burst_seconds)

    def _reserve(self) -> float:
        """Take the next place and return the seconds until it comes."""
        now = self._monotonic()
        spent_until = max(self._spent_until, now)
        self._spent_until = spent_until + self._seconds_each
        return spent_until - self._burst_seconds - now


class _Unpaced:
    async def turn(self) -> None:
        """Let everybody go."""

    def pause(self, seconds: float) -> None:
        """Pause nobody: who was told to wait still does."""


UNPACED: Final[Pace] = _Unpaced()
"""For what must not wait behind others (the lease), and for tests."""
