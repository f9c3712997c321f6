"""The pods of this node as its kubelet has them: a watch over a unix socket, begun anew every five minutes.

What was known stays until a new watch has told all pods. A socket that is absent is not asked, and costs a look at its
path now and then. Neighbours: `table` keeps the pods, `agent.kubelet.pods` asks, `followed` says when the kubelet has
been silent for so long that others are asked.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Final

import structlog

from agent.kubelet.pods import EventKind, PodEvent, watch_pods
from agent.kubelet.sockets import KubeletError, why_absent
from agent.model.exits import Exit
from agent.pods.spec import KnownPod
from agent.pods.table import Listing, PodTable

_log = structlog.get_logger(__name__)
SYNC_SECONDS: Final = 10.0
"""A kubelet that has not told all its pods after so long is taken for hung."""
WATCH_SECONDS: Final = 300.0
"""A watch is begun anew after so long: that finds a kubelet that hangs, and what was missed."""
GRACE_SECONDS: Final = 60.0
"""A kubelet that was followed may be away for so long (it is being restarted) before others are asked."""
FIRST_PAUSE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 30.0


class LocalPods:
    """A source of pods; `run` is its task, `pods` and `exits` are asked from the tick's thread."""

    def __init__(self, socket: Path, node: str) -> None:
        """Take where the socket of the kubelet's Pods API is."""
        self._socket, self._table = socket, PodTable(node)
        self._follows = False
        self._silent_from = math.inf

    def pods(self) -> Mapping[str, KnownPod] | None:
        """Return the worker pods by UID; None before the kubelet has told all."""
        return self._table.pods()

    def exits(self) -> tuple[Exit, ...]:
        """Return how containers ended last, as far as the kubelet tells."""
        return self._table.exits()

    def is_silent(self, now: float) -> bool:
        """Return whether others should be asked at `now`, a time of the event loop."""
        return now >= self._silent_from

    async def run(self) -> None:
        """Follow the pods until cancelled; what goes wrong is told once and tried again, ever more slowly."""
        loop = asyncio.get_running_loop()
        pause, complaint = FIRST_PAUSE_SECONDS, ""
        while True:
            begun = loop.time()
            try:
                await self._follow()
                problem = ""
            except KubeletError as error:
                problem = str(error)
            if loop.time() - begun > LONGEST_PAUSE_SECONDS:
                pause, complaint = FIRST_PAUSE_SECONDS, ""
            if problem:
                self._lost(problem, complaint)
                complaint = problem
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _follow(self) -> None:
        """Watch until it is time to begin anew.

        Raises:
            KubeletError: the watch can't be begun, or broke off.
        """
        if why := why_absent(self._socket):
            raise KubeletError(why)
        is_synced = False
        try:
            async with asyncio.timeout(SYNC_SECONDS) as limit, aclosing(watch_pods(self._socket)) as events:
                first = Listing()
                async for event in events:
                    if event.kind is not EventKind.SYNCED:
                        _tell(self._table if is_synced else first, event)
                    elif not is_synced:
                        is_synced = True
                        self._found(first)
                        limit.reschedule(asyncio.get_running_loop().time() + WATCH_SECONDS)
        except TimeoutError as error:
            if not is_synced:
                raise KubeletError(f"{self._socket}: not all pods were told within {SYNC_SECONDS:g} s") from error

    def _found(self, listing: Listing) -> None:
        self._table.replace(listing)
        if not self._follows:
            _log.info("pods_followed", source=str(self._socket), pods=len(listing.entries))
        self._follows, self._silent_from = True, math.inf

    def _lost(self, problem: str, complaint: str) -> None:
        if self._silent_from == math.inf:
            grace = GRACE_SECONDS if self._follows else 0.0
            self._silent_from = asyncio.get_running_loop().time() + grace
        self._follows = False
        # A node whose kubelet has no such socket is no trouble, as long as there never was one.
        if problem != complaint and (self._table.pods() is not None or not why_absent(self._socket)):
            _log.warning("kubelet_not_followed", error=problem, then="what was known stays; it is tried again")


def _tell(pods: PodTable | Listing, event: PodEvent) -> None:
    if event.kind is EventKind.DELETED:
        pods.drop(event.pod)
    else:
        pods.take(event.pod)
