"""The pods of this node from whoever tells: its kubelet where it does, else the API server.

Never both at once: while the kubelet tells, the API server is not asked at all. Neighbours: `local`, `watch`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from agent.model.exits import Exit
from agent.pods.local import LocalPods
from agent.pods.spec import KnownPod
from agent.pods.watch import PodWatch

CHECK_SECONDS: Final = 1.0


class FollowedPods:
    """A source of pods; `run` is its task, `pods` and `exits` are asked from the tick's thread."""

    def __init__(self, local: LocalPods | None, watch: Callable[[], PodWatch] | None) -> None:
        """Take the kubelet's pods, and what makes a watch of the API server's; None where there is none."""
        self._local, self._make = local, watch
        self._watch: PodWatch | None = None

    def pods(self) -> Mapping[str, KnownPod] | None:
        """Return the worker pods by UID; what the kubelet last told stays until the API server has told its own."""
        watch = self._watch
        told = watch.pods() if watch is not None else None
        return told if told is not None or self._local is None else self._local.pods()

    def exits(self) -> tuple[Exit, ...]:
        """Return how containers ended last."""
        watch = self._watch
        if watch is not None and watch.pods() is not None:
            return watch.exits()
        return self._local.exits() if self._local is not None else ()

    async def run(self) -> None:
        """Follow the pods until cancelled."""
        tasks = [] if self._local is None else [asyncio.create_task(self._local.run())]
        if self._make is not None:
            tasks.append(asyncio.create_task(self._fall_back(self._make)))
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _fall_back(self, make: Callable[[], PodWatch]) -> None:
        """Watch the API server's while the kubelet tells nothing."""
        while True:
            await self._until(silent=True)
            # A new one each time: what an old one knew is old.
            watch = self._watch = make()
            task = asyncio.create_task(watch.run())
            try:
                await self._until(silent=False)
            finally:
                self._watch = None
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _until(self, *, silent: bool) -> None:
        loop = asyncio.get_running_loop()
        while True:
            # Looked at again and again: silence is a matter of time, which no event tells.
            if (self._local is None or self._local.is_silent(loop.time())) is silent:
                return
            await asyncio.sleep(CHECK_SECONDS)
