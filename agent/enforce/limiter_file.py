"""One pod's file of TensorFusion's limiter, as it is kept here: its head, its slots, the buckets in them.

Whoever holds it is the only one that writes it, the worker's limiter apart, which takes tokens.
"""

from __future__ import annotations

from typing import Final

import structlog

from agent.enforce.actuator import Surroundings
from agent.enforce.bucket import Bucket
from agent.enforce.mapped import MappedFile
from agent.enforce.tfshm_layout import DEVICE_COUNT, DISCRIMINANT, HEARTBEAT, VERSION_2, add_slot, slots_of
from agent.model.samples import Worker, WorkerKey

_log = structlog.get_logger(__name__)
LOOK_SECONDS: Final = 0.9
"""Time between two looks whether a file is still the one at its path: each tick of a second, not each shorter one."""


class LimiterFile:
    """A file, the worker it serves, and the worker's buckets on its devices."""

    def __init__(self, mapped: MappedFile, worker: Worker) -> None:
        self.path, self.worker = mapped.path, worker
        self.buckets: dict[WorkerKey, Bucket] = {}
        self.is_idle = False
        """Whether nobody took a token before the last refill, and each bucket was full."""
        self._mapped = mapped
        self._version, self._count = mapped.u32(DISCRIMINANT), mapped.u32(DEVICE_COUNT)
        self._heartbeat = mapped.u64(HEARTBEAT)
        self._looked_at: float | None = None

    def is_current(self) -> bool:
        """Tell whether the path still names this file, and the file is whole."""
        return self._mapped.is_current()

    def was_current(self, now: float) -> bool:
        """Tell the same from a look within the last second; a file that was cut is known without one."""
        if self._looked_at is not None and 0.0 <= now - self._looked_at < LOOK_SECONDS:
            return not self._mapped.is_cut
        self._looked_at = now
        return self.is_current()

    def settle(self, worker: Worker, uuid: str, index: int | None) -> str:
        """Begin to keep a device's slot; return why not. A device that came later gets its place (`index`) now."""
        if worker.id != self.worker.id:
            return f"{self.path} serves container {self.worker.container!r} of this pod"
        key = (*worker.id, uuid)
        if key not in self.buckets:
            slot = slots_of(self._mapped).get(uuid.lower())
            if slot is None and index is not None:
                slot = add_slot(self._mapped, index, uuid)
            if slot is None:
                return f"{self.path} has no slot for {uuid}"
            self.buckets[key] = Bucket(slot)
        return ""

    def keep(self, at: float, wall: float) -> None:
        """Beat and refill; `at` is monotonic, `wall` the epoch's seconds."""
        self._heartbeat.value = int(wall)
        is_idle = True
        for bucket in self.buckets.values():
            is_idle = bucket.refill(at, wall) and is_idle
        self.is_idle = is_idle

    def turn(self, around: Surroundings, at: float) -> int:
        """Steer every bucket by what its worker uses; return how much was put right."""
        restored = 0
        if self._version.value != VERSION_2 or self._count.value < len(self.buckets):
            restored = self._put_head_right()
        for key, bucket in self.buckets.items():
            uuid = key[2]
            use, capacity = around.live_use(self.worker, uuid), around.tflops_of(uuid)
            bucket.steer(use.tflops_used / capacity if use.tflops_used is not None and capacity else None, at)
            if use.vram_used_bytes is not None:
                bucket.tell_use(use.vram_used_bytes)
            restored += self.put_right(uuid, bucket)
        return restored

    def put_right(self, uuid: str, bucket: Bucket) -> int:
        """Undo what a tenant changed before anything new is put over it, so that it is counted and told."""
        wrong = bucket.put_right()
        if wrong:
            _log.warning("limits_restored", path=str(self.path), device=uuid, changed=wrong)
        return wrong

    def close(self) -> None:
        """Unmap; what stands in the file stays."""
        self.buckets.clear()
        # The mapping lives as long as its views.
        del self._version, self._count, self._heartbeat
        self._mapped.close()

    def _put_head_right(self) -> int:
        """Have the file be of the known version, with no fewer devices than are limited in it."""
        wrong = 0
        if self._version.value != VERSION_2:
            self._version.value = VERSION_2
            wrong += 1
        if self._count.value < len(self.buckets):
            self._count.value = len(self.buckets)
            wrong += 1
        if wrong:
            _log.warning("limits_restored", path=str(self.path), device="", changed=wrong)
        return wrong
