"""The older history of workloads that appeared after the fleet's was read: each one's own, once, a few parts a pass.

Prometheus may have days of a workload that is new here: a layer was switched on later, its row of the checkpoint is
lost, its object was made anew. Its history is read backwards, so that one that is really new costs two empty parts; and
after the live read, which it never delays. What failed is tried again, at most three times. One whose owners took the
name of others begins clean: what Prometheus has under it is theirs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from autoscaler.errors import HistoryError
from autoscaler.model.usage import Usage, Window, WorkloadKey
from autoscaler.model.workload import ObjectRef, Workload
from autoscaler.ports import History
from autoscaler.read.catchup import Reach

PARTS_PER_PASS: Final = 4
QUIET_PARTS: Final = 2
"""So many parts without a sample, one after the other, and there is nothing older."""
MAX_FAILURES: Final = 3
MAX_REMEMBERED: Final = 100_000

Identity = tuple[WorkloadKey, str]
"""A workload's key and the UID of its object."""


@dataclass(slots=True)
class _Reading:
    """One workload under way: `parts` not read yet, the newest first, and `found`, the newest first too."""

    identity: Identity
    until: float
    parts: deque[Window]
    found: list[Usage] = field(default_factory=list)
    quiet: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Older:
    """A workload's whole history up to the last bin that the fleet has learnt, in order of time."""

    identity: Identity
    usages: tuple[Usage, ...]

    def is_of(self, key: WorkloadKey, uid: str) -> bool:
        """Tell whether it is a workload's; one that had no object yet is the same once it has one."""
        return self.identity in {(key, uid), (key, "")}


class Backfill:
    """Reads what is older than the fleet's last bin when a workload appeared; `read` goes on where it stopped."""

    def __init__(self, history: History, reach: Reach) -> None:
        self._history = history
        self._reach = reach
        self._waiting: deque[_Reading] = deque()
        self._asked: dict[Identity, None] = {}
        self._owners: dict[WorkloadKey, tuple[ObjectRef, ...]] = {}
        self._namesakes: set[WorkloadKey] = set()

    def meet(self, workloads: Iterable[Workload]) -> None:
        """Remember who bears which name: one whose owners are all others than before is only a namesake."""
        for workload in workloads:
            known, owners = self._owners.get(workload.key), workload.owners
            if not owners or known is owners:
                continue
            self._owners[workload.key] = owners
            if known is not None and not {one.uid for one in known} & {one.uid for one in owners}:
                self._namesakes.add(workload.key)
        while len(self._owners) > MAX_REMEMBERED:
            key = next(iter(self._owners))
            del self._owners[key]
            self._namesakes.discard(key)

    def notice(self, appeared: Iterable[Identity], until: float) -> None:
        """Queue workloads that nothing is known of; `until` is the end of the last bin that was learnt before them."""
        window = self._reach.due(until + self._reach.settled_seconds, None)
        for identity in appeared:
            if identity[0] in self._namesakes:
                continue
            # An object that comes later than its workload has a UID then; it is the same one.
            if identity in self._asked or (identity[0], "") in self._asked or not window.bins:
                continue
            self._asked[identity] = None
            self._waiting.append(_Reading(identity, until, deque(reversed(self._history.parts(window)))))
        while len(self._asked) > MAX_REMEMBERED:
            del self._asked[next(iter(self._asked))]

    async def read(self, until: float) -> Older | None:
        """Read some parts; return the workload whose history is complete up to `until`, None while none is.

        Raises:
            HistoryError: history can't be read now; the workload under way is tried again, or given up.

        """
        for _ in range(PARTS_PER_PASS):
            if not self._waiting:
                return None
            reading = self._waiting[0]
            try:
                if reading.parts and reading.quiet < QUIET_PARTS:
                    await self._read_part(reading)
                    continue
                return await self._complete(reading, until)
            except HistoryError:
                reading.failures += 1
                if reading.failures >= MAX_FAILURES:
                    self._waiting.popleft()
                raise
        return None

    async def _read_part(self, reading: _Reading) -> None:
        usage = await self._history.only(reading.identity[0]).read(reading.parts[0])
        reading.parts.popleft()
        if _is_empty(usage, reading.identity[0]):
            reading.quiet += 1
        else:
            reading.quiet = 0
            reading.found.append(usage)

    async def _complete(self, reading: _Reading, until: float) -> Older | None:
        """Return everything in order, with what was learnt meanwhile; None where there was nothing older."""
        newer: list[Usage] = []
        if reading.found and until > reading.until:
            window = Window(reading.until, until, self._reach.bin_seconds)
            only = self._history.only(reading.identity[0])
            newer = [await only.read(part) for part in self._history.parts(window)]
        self._waiting.popleft()
        return Older(reading.identity, (*reversed(reading.found), *newer)) if reading.found else None


def _is_empty(usage: Usage, key: WorkloadKey) -> bool:
    """Tell whether nothing is known of a workload."""
    return key not in usage.keys or bool(np.isnan(usage.peak[:, usage.keys.index(key)]).all())
