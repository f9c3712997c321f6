"""Which history to read next: everything once, then only what is new; nothing for a while after a failure."""

from __future__ import annotations

import asyncio
import math
import random  # noqa: TID251  jitter keeps controllers from asking in step; no decision depends on it
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from autoscaler.errors import HistoryError
from autoscaler.model.usage import Usage, Window
from autoscaler.ports import History

MAX_BACK_OFF_SECONDS = 300.0
PARTS_UNDER_WAY = 2
"""The one that is waited for and the next, so that Prometheus does not idle meanwhile."""


@dataclass(frozen=True, slots=True)
class Reach:
    """How history is read: bins of `bin_seconds`, complete once `settled_seconds` old, `history_seconds` back."""

    bin_seconds: float
    settled_seconds: float
    history_seconds: float

    def due(self, now: float, until: float | None) -> Window:
        """Return the window from the last bin read (None: none yet) to the last complete one; it may be empty."""
        end = math.floor((now - self.settled_seconds) / self.bin_seconds) * self.bin_seconds
        oldest = end - math.floor(self.history_seconds / self.bin_seconds) * self.bin_seconds
        start = oldest if until is None else max(oldest, until)
        return Window(min(start, end), end, self.bin_seconds)


@dataclass
class Catchup:
    """Reads what is due, part by part; after a failure it waits twice as long each time, with jitter."""

    history: History
    reach: Reach
    failures: int = 0
    retry_at: float = -math.inf
    error: str = ""
    chance: random.Random = field(default_factory=random.Random)

    async def read(self, now: float, until: float | None) -> AsyncGenerator[Usage, None]:
        """Yield the usage of each part of what is due.

        Raises:
            HistoryError: history can't be read, or is not asked again yet; parts already yielded stand.

        """
        if now < self.retry_at:
            raise HistoryError(f"{self.error} (asked again in {self.retry_at - now:.0f} s)")
        window = self.reach.due(now, until)
        if not window.bins:
            return
        try:
            async with aclosing(self._parts(window)) as parts:
                async for usage in parts:
                    yield usage
        except HistoryError as error:
            wait = min(MAX_BACK_OFF_SECONDS, self.reach.bin_seconds / 4 * 2**self.failures)
            self.failures += 1
            self.retry_at = now + wait * self.chance.uniform(0.5, 1.0)
            self.error = str(error)
            raise
        self.failures, self.retry_at, self.error = 0, -math.inf, ""

    async def _parts(self, window: Window) -> AsyncGenerator[Usage, None]:
        """Yield the usage of each part; while one is joined and learnt, the next is on its way."""
        under_way: deque[asyncio.Task[Usage]] = deque()
        try:
            for part in self.history.parts(window):
                under_way.append(asyncio.create_task(self.history.read(part)))
                if len(under_way) == PARTS_UNDER_WAY:
                    yield await under_way.popleft()
            while under_way:
                yield await under_way.popleft()
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
