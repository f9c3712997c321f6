"""TensorFusion's limiter: limits and tokens in the memory it shares with the node, live for running workers.

The file lies at `<root>/<namespace>/<pod>/shm`. Where the limiter's folder is there and no file in it, it is made here;
where somebody else keeps its heartbeat, it is only read: two that steer one bucket would fight. The heartbeat and the
refill have a thread of their own: a limiter that hears nothing for two seconds lets everything through, or nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from agent.enforce.actuator import Part, Surroundings, each_part
from agent.enforce.backend import Capabilities
from agent.enforce.bucket import Bucket
from agent.enforce.heartbeat import Ownership
from agent.enforce.mapped import LayoutError, MappedFile, is_name
from agent.enforce.tfshm_layout import (
    DEVICE_COUNT,
    DISCRIMINANT,
    FILE_NAME,
    HEARTBEAT,
    MEM_LIMIT,
    UNLIMITED_BYTES,
    VERSION_2,
    add_slot,
    create_state,
    open_state,
    slots_named,
    slots_of,
)
from agent.model.applied import Applied
from agent.model.samples import Worker, WorkerKey
from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import DeviceQuota, Observed

_log = structlog.get_logger(__name__)
REFILL_SECONDS: Final = 0.2
"""Well under the two seconds of silence that the limiter bears, and under its bucket's half second."""


@dataclass(slots=True)
class _File:
    """One pod's file, whom it serves, and the buckets by device UUID."""

    mapped: MappedFile
    worker: Worker
    buckets: dict[str, Bucket] = field(default_factory=dict)


class TfshmActuator:
    """Holds workers whose pods carry TensorFusion's limiter; `clock` is monotonic, `wall` the epoch's seconds."""

    name = "tfshm"

    def __init__(
        self,
        around: Surroundings,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,  # noqa: TID251  the file's heartbeat is in wall time
    ) -> None:
        self._around, self._clock, self._wall = around, clock, wall
        self._ownership = Ownership(around.state_dir, clock, wall)
        self._files: dict[Path, _File] = {}
        self._restored = 0
        self._others: dict[WorkerKey, int] = {}
        self._paths: dict[tuple[str, str], Path] = {}
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._keeper: threading.Thread | None = None

    def probe(self) -> Capabilities:
        """Return whether limiters share memory with this node; take up what an earlier run owned."""
        root = self._around.tfshm_root
        if not root.is_dir():
            return Capabilities(Effect.UNSUPPORTED, Effect.UNSUPPORTED, f"{root} is not there: no limiter is installed")
        self._ownership.load()
        return Capabilities(Effect.IMMEDIATE, Effect.NEXT_ALLOC)

    def reach(self, worker: Worker, uuid: str) -> Capabilities:
        """Return whether the worker's limiter listens to this agent."""
        with self._lock:
            reason = self._adopt(worker, uuid)
        if reason:
            return Capabilities(Effect.UNSUPPORTED, Effect.UNSUPPORTED, reason)
        return Capabilities(Effect.IMMEDIATE, Effect.NEXT_ALLOC)

    def observe(self, worker: Worker, uuid: str) -> Observed:
        """Return the limits in the file."""
        with self._lock:
            bucket = self._bucket(worker, uuid)
            if bucket is None:
                return Observed()
            limit_bytes = bucket.vram_limit_bytes
            return Observed(bucket.tflops, limit_bytes if limit_bytes < UNLIMITED_BYTES else None)

    def apply(self, worker: Worker, quota: DeviceQuota, parts: frozenset[Part]) -> Applied:
        """Write the limits; compute acts within half a second, VRAM at the next allocation."""
        effect = Effect.NEXT_ALLOC if Part.VRAM in parts else Effect.IMMEDIATE
        with self._lock:
            reason = self._adopt(worker, quota.uuid)
            bucket = self._bucket(worker, quota.uuid)
            if bucket is None:
                return Applied(Effect.UNSUPPORTED, Observed(), f"Unsupported: tfshm: {reason}")
            self._put_right(self._path(worker), quota.uuid, bucket)
            reason = each_part(parts, lambda part: self._limit(bucket, worker, quota, part))
            observed = self.observe(worker, quota.uuid)
        return Applied(effect, observed, reason)

    def in_force(self) -> Mapping[WorkerKey, int]:
        """Return the VRAM limits in all files, those that others keep as they were last seen; none promises nothing.

        What a tenant wrote over a limit is put right again, so that the limit still counts.
        """
        with self._lock:
            found = {
                (*file.worker.id, uuid): bucket.promised_bytes
                for file in self._files.values()
                for uuid, bucket in file.buckets.items()
            }
            found = self._others | found
        return {key: limit_bytes for key, limit_bytes in found.items() if limit_bytes < UNLIMITED_BYTES}

    def release(self, key: WorkerKey) -> None:
        """Leave a file alone when its last device was let go; the limits in it stay."""
        with self._lock:
            self._others.pop(key, None)
            for path, file in list(self._files.items()):
                if file.worker.id == key[:2]:
                    file.buckets.pop(key[2], None)
                    if not file.buckets:
                        self._drop(path)

    def turn(self, now: float) -> None:  # noqa: ARG002  the files' clock is this actuator's own
        """Tell every limiter what its worker holds, steer its tokens, put right what a tenant changed."""
        with self._lock:
            for path, file in list(self._files.items()):
                if not file.mapped.is_current():
                    _log.warning("limiter_file_replaced", path=str(path), then="it is looked at afresh")
                    self._drop(path)
                    continue
                self._put_head_right(file)
                for uuid, bucket in file.buckets.items():
                    self._turn(file, uuid, bucket)
            self._ownership.save()
            self._beat()

    def throttled(self) -> Mapping[WorkerKey, bool | None]:
        """Return whether the compute limit held each worker back in the last tick."""
        with self._lock:
            return {
                (*file.worker.id, uuid): bucket.throttled
                for file in self._files.values()
                for uuid, bucket in file.buckets.items()
            }

    def restored(self) -> int:
        """Return how many limits were written again because somebody else had changed them."""
        return self._restored

    def close(self) -> None:
        """Stop the heartbeat; the limits stay."""
        self._stop.set()
        if self._keeper is not None:
            self._keeper.join()
        with self._lock:
            for path in list(self._files):
                self._drop(path)
            self._ownership.save()

    def keep(self) -> None:
        """Beat and refill, once, everywhere; a file that was cut or replaced is the next tick's matter."""
        at, wall = self._clock(), self._wall()
        with self._lock:
            for file in self._files.values():
                file.mapped.u64(HEARTBEAT).value = int(wall)
                for bucket in file.buckets.values():
                    bucket.refill(at, wall)

    def _turn(self, file: _File, uuid: str, bucket: Bucket) -> None:
        use, capacity = self._around.live_use(file.worker, uuid), self._around.tflops_of(uuid)
        ratio = use.tflops_used / capacity if use.tflops_used is not None and capacity else None
        bucket.steer(ratio, self._clock())
        if use.vram_used_bytes is not None:
            bucket.tell_use(use.vram_used_bytes)
        self._put_right(file.mapped.path, uuid, bucket)

    def _put_head_right(self, file: _File) -> None:
        """Have the file be of the known version, with no fewer devices than are limited in it."""
        for offset, least in ((DISCRIMINANT, VERSION_2), (DEVICE_COUNT, len(file.buckets))):
            found = file.mapped.u32(offset)
            if found.value < least or (found.value > least and offset == DISCRIMINANT):
                found.value = least
                self._restored += 1
                _log.warning("limits_restored", path=str(file.mapped.path), device="", changed=1)

    def _put_right(self, path: Path, uuid: str, bucket: Bucket) -> None:
        """Undo what a tenant changed before anything new is put over it, so that it is counted and told."""
        wrong = bucket.put_right()
        if wrong:
            self._restored += wrong
            _log.warning("limits_restored", path=str(path), device=uuid, changed=wrong)

    def _limit(self, bucket: Bucket, worker: Worker, quota: DeviceQuota, part: Part) -> None:
        """Put one part into force, or raise LimitError with why not."""
        if part is Part.COMPUTE:
            bucket.limit_compute(self._around.share_of(quota), quota.tflops_limit)
            return
        self._around.check_use(quota, self._around.live_use(worker, quota.uuid).vram_used_bytes)
        bucket.limit_vram(quota.vram_limit_bytes)

    def _path(self, worker: Worker) -> Path:
        # Asked for several times a tick for each worker, and slow to put together.
        name = worker.namespace, worker.pod
        path = self._paths.get(name)
        if path is None:
            path = self._paths[name] = self._around.tfshm_root / worker.namespace / worker.pod / FILE_NAME
        return path

    def _bucket(self, worker: Worker, uuid: str) -> Bucket | None:
        file = self._files.get(self._path(worker))
        return None if file is None or file.worker.id != worker.id else file.buckets.get(uuid)

    def _adopt(self, worker: Worker, uuid: str) -> str:
        """Take the worker's slot on a device into keeping; return why it can't be."""
        path = self._path(worker)
        if not (is_name(worker.namespace) and is_name(worker.pod)):
            return f"{worker.namespace}/{worker.pod} is no pod's name"
        try:
            file: _File | str | None = self._files.get(path)
            if isinstance(file, _File) and not file.mapped.is_current():
                self._drop(path)
                file = None
            file = file or self._take(path, worker, uuid)
        except FileNotFoundError:
            return f"no limiter's folder at {path.parent}"
        except (OSError, LayoutError) as error:
            return str(error)
        return file if isinstance(file, str) else self._settle(file, worker, uuid)

    def _take(self, path: Path, worker: Worker, uuid: str) -> _File | str:
        """Open (or make) a file and begin to keep it; return why it is somebody else's."""
        if not path.exists():
            self._make(path, {*worker.devices, uuid})
        mapped = open_state(path)
        stranger = self._ownership.stranger(path, mapped.u64(HEARTBEAT).value)
        held = {(*worker.id, uuid): slot.u64(MEM_LIMIT) for uuid, slot in slots_named(mapped, worker.devices).items()}
        if stranger:
            mapped.close()
            self._others |= held
            return stranger
        for key in held:
            self._others.pop(key, None)
        file = self._files[path] = _File(mapped, worker)
        self._ownership.own(path, owned=True)
        self._beat()
        return file

    def _beat(self) -> None:
        """Have the heartbeat run wherever there is a file to keep."""
        if self._files and not self._stop.is_set() and (self._keeper is None or not self._keeper.is_alive()):
            self._keeper = threading.Thread(target=self._keep_on, name="tfshm", daemon=True)
            self._keeper.start()

    def _settle(self, file: _File, worker: Worker, uuid: str) -> str:
        """Begin to keep a device's slot of a file; return why not. A device that came later gets a slot now."""
        if file.worker.id != worker.id:
            return f"{file.mapped.path} serves container {file.worker.container!r} of this pod"
        if uuid not in file.buckets:
            index = self._around.index_of(uuid)
            slot = slots_of(file.mapped).get(uuid.lower())
            if slot is None and index is not None:
                slot = add_slot(file.mapped, index, uuid)
            if slot is None:
                return f"{file.mapped.path} has no slot for {uuid}"
            file.buckets[uuid] = Bucket(slot)
        return ""

    def _make(self, path: Path, devices: set[str]) -> None:
        placed = {index: uuid for uuid in devices if (index := self._around.index_of(uuid)) is not None}
        if not placed:
            raise LayoutError(f"{path} is not there, and the driver's indices of its devices are not known yet")
        create_state(path, placed, self._wall())
        self._ownership.own(path, owned=True)

    def _drop(self, path: Path) -> None:
        file = self._files.pop(path)
        self._paths.pop((file.worker.namespace, file.worker.pod), None)
        file.buckets.clear()
        file.mapped.close()
        if not path.exists():
            self._ownership.own(path, owned=False)

    def _keep_on(self) -> None:
        while not self._stop.wait(REFILL_SECONDS):
            self.keep()
