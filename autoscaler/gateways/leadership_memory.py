"""Leadership without a cluster: for tests, and wherever a leader has to be imagined."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from autoscaler.errors import LeadershipLostError


class MemoryLeadership:
    """The Leadership port in memory: leads while `granted`, and not after `deposed`, until it is granted again.

    `terms` counts the terms that were led; the next one has the number `terms` + 1.
    """

    def __init__(self) -> None:
        self.granted, self._deposed = asyncio.Event(), asyncio.Event()
        self.terms = 0
        self.holder = "another"

    def grant(self) -> None:
        """Let this process lead as soon as it applies."""
        self._deposed.clear()
        self.granted.set()

    def depose(self) -> None:
        """Let another process lead."""
        self.granted.clear()
        self._deposed.set()

    async def lead(
        self, work: Callable[[int], Awaitable[None]], stop: asyncio.Event, saw: Callable[[str, str], None]
    ) -> None:
        """Stand by until granted, then run `work`.

        Raises:
            LeadershipLostError: it was deposed while it led.

        """
        saw(self.holder, "")
        await _first(self.granted.wait(), stop.wait())
        if stop.is_set():
            return
        self.terms += 1
        task = asyncio.ensure_future(work(self.terms))
        try:
            await _first(task, self._deposed.wait())
        finally:
            task.cancel()
            await asyncio.wait({task})
        if task.cancelled():
            raise LeadershipLostError(f"{self.holder} leads")
        task.result()

    async def confirm(self) -> None:
        """Return at once.

        Raises:
            LeadershipLostError: it is not granted.

        """
        if not self.granted.is_set():
            raise LeadershipLostError(f"{self.holder} leads")

    async def close(self) -> None:
        """Nothing is held open."""


async def _first(*waited: Awaitable[object]) -> None:
    """Return when one of them is done; the others are cancelled, unless they are tasks of someone else."""
    own = [asyncio.ensure_future(one) for one in waited]
    try:
        await asyncio.wait(own, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one, given in zip(own, waited, strict=True):
            if one is not given:
                one.cancel()
