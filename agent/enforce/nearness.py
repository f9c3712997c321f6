"""Workers near their VRAM limit: what they hold is read again between two ticks, and told to who judges by it.

A limiter that goes by the use it was told last lets a burst through until it is told more. So while such a worker is
near its limit, its device's memory is looked at several times a second (microseconds), and where it moved, its
processes are listed (milliseconds, under a lock of the driver). Nobody near, nothing read; and the looks never take
more than their share of the time. Neighbours: `loop` gives the lock, `run` the pace.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol, runtime_checkable

import structlog

from agent.enforce.live import LastUse
from agent.model.applied import Applied
from agent.model.samples import MovingMemory, ProcessDirectory, WorkerKey

NEAR_RATIO: Final = 0.85
"""Of the limit: the last seventh of it is what frameworks take in one step of growth."""
NEAR_BYTES: Final = 1 << 30
"""Of head-room: one allocation of a caching allocator or of a model's largest weights; on small limits half of them."""
BUDGET_RATIO: Final = 0.03
"""Of the time: the driver's lock is everybody's, the tenants' launches wait for it too."""
_log = structlog.get_logger(__name__)


@runtime_checkable
class HearingBackend(Protocol):
    """A backend that knows whose limiter goes by the use it is told."""

    def heeds(self, key: WorkerKey) -> bool:
        """Return whether the worker's VRAM is judged by what was told."""
        ...

    def tell_use(self, key: WorkerKey, vram_bytes: int) -> None:
        """Tell what a worker holds; one that is not held any more is left alone. An OSError is the caller's."""
        ...


def is_near(used_bytes: int | None, limit_bytes: int | None) -> bool:
    """Return whether a worker that holds anything is close to its limit, or past it."""
    if not used_bytes or not limit_bytes:
        return False
    head_room = max((1.0 - NEAR_RATIO) * limit_bytes, min(NEAR_BYTES, limit_bytes / 2))
    return limit_bytes - used_bytes <= head_room


class Nearness:
    """One node's; `timer` is in seconds and measures what a look costs."""

    def __init__(
        self,
        memory: MovingMemory,
        directory: ProcessDirectory,
        backend: HearingBackend,
        live_use: LastUse,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._memory, self._directory, self._backend, self._live_use = memory, directory, backend, live_use
        self._timer = timer
        self._heeding: dict[str, frozenset[WorkerKey]] = {}
        self._rested_at = float("-inf")

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices, by UUID, on which somebody is near; the one that was looked at longest ago first."""
        return tuple(self._heeding)

    @property
    def is_resting(self) -> bool:
        """Whether the last look was so dear that the next one has to wait."""
        return self._timer() < self._rested_at

    def note(self, applied: Mapping[WorkerKey, Applied]) -> None:
        """Take what is in force and in use after a tick."""
        near = {
            key[2]
            for key, one in applied.items()
            if is_near(one.observed.vram_used_bytes, one.observed.vram_limit_bytes) and self._backend.heeds(key)
        }
        # Those that were looked at longest ago stay in front.
        order = dict.fromkeys((*(uuid for uuid in self._heeding if uuid in near), *sorted(near)))
        heeding: dict[str, list[WorkerKey]] = {uuid: [] for uuid in order}
        for key in applied if near else ():
            if key[2] in heeding and self._backend.heeds(key):
                heeding[key[2]].append(key)
        self._heeding = {uuid: frozenset(keys) for uuid, keys in heeding.items()}

    def look(self, uuid: str) -> None:
        """Look at a device's memory, and where it moved tell for every worker there what it holds."""
        keys = self._heeding.pop(uuid, None)
        if keys is None:
            return
        self._heeding[uuid] = keys
        started = self._timer()
        used_by_pid = self._memory.moved_memory(uuid)
        ended = self._timer()
        self._rested_at = ended + (ended - started) * (1.0 / BUDGET_RATIO - 1.0)
        if used_by_pid is None:
            return
        for key, used_bytes in self._held(uuid, keys, used_by_pid.items()).items():
            self._live_use.note(key, used_bytes)
            try:
                self._backend.tell_use(key, used_bytes)
            except OSError as error:
                _log.warning("use_not_told", worker=key, error=str(error), then="it is told at the next tick")

    def _held(
        self, uuid: str, keys: frozenset[WorkerKey], used_by_pid: Iterable[tuple[int, int | None]]
    ) -> dict[WorkerKey, int]:
        """Return what each worker holds; none that has no process here, or one whose memory is not known."""
        held: dict[WorkerKey, int] = {}
        unknown = set()
        for pid, used_bytes in used_by_pid:
            worker = self._directory.worker_of(pid)
            if worker is None or (key := (*worker.id, uuid)) not in keys:
                continue
            if used_bytes is None:
                unknown.add(key)
            held[key] = held.get(key, 0) + (used_bytes or 0)
        return {key: used_bytes for key, used_bytes in held.items() if key not in unknown}
