"""TensorFusion's limiter: limits and tokens in the memory it shares with the node, live for running workers.

The file lies at `<root>/<namespace>/<pod>/shm`. Where the limiter's folder is there and no file in it, it is made here;
where somebody else keeps its heartbeat, it is only read: two that steer one bucket would fight. The heartbeat and the
refill have a thread of their own: a limiter that hears nothing for two seconds lets everything through, or nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import structlog

from agent.enforce.actuator import Part, Surroundings, each_part
from agent.enforce.backend import Capabilities
from agent.enforce.bucket import Bucket
from agent.enforce.heartbeat import Ownership
from agent.enforce.limiter_file import LimiterFile
from agent.enforce.mapped import LayoutError, is_name
from agent.enforce.tfshm_layout import (
    FILE_NAME,
    HEARTBEAT,
    MEM_LIMIT,
    UNLIMITED_BYTES,
    create_state,
    open_state,
    slots_named,
)
from agent.enforce.turnstile import Turnstile
from agent.model.applied import Applied
from agent.model.samples import Worker, WorkerKey
from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import DeviceQuota, Observed

_log = structlog.get_logger(__name__)
REFILL_SECONDS: Final = 0.2
"""Well under the two seconds of silence that the limiter bears, and under its bucket's half second."""
IDLE_TURNS: Final = 2
"""Refills to one of an idle worker's full bucket: still under the half second that it lasts whoever begins to work."""


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
        self._files: dict[tuple[str, str], LimiterFile] = {}
        """By the pod's namespace and name, as its file lies."""
        self._restored = 0
        self._others: dict[WorkerKey, int] = {}
        self._lock = Turnstile()
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
        """Return the limits in the file; without the lock, as the heart's thread changes nothing that is read here."""
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
            file = self._files[_pod(worker)]
            self._restored += file.put_right(quota.uuid, bucket)
            file.is_idle = False  # The next refill is by the new limit.
            reason = each_part(parts, lambda part: self._limit(bucket, worker, quota, part))
            observed = self.observe(worker, quota.uuid)
        return Applied(effect, observed, reason)

    def in_force(self) -> Mapping[WorkerKey, int]:
        """Return the VRAM limits in all files, those that others keep as they were last seen; none promises nothing.

        What a tenant wrote over a limit is put right again, so that the limit still counts.
        """
        with self._lock:
            found = dict(self._others)
            for file in self._files.values():
                for key, bucket in file.buckets.items():
                    found[key] = bucket.promised_bytes
        return {key: limit_bytes for key, limit_bytes in found.items() if limit_bytes < UNLIMITED_BYTES}

    def release(self, key: WorkerKey) -> None:
        """Leave a file alone when its last device was let go; the limits in it stay."""
        with self._lock:
            self._others.pop(key, None)
            for pod, file in list(self._files.items()):
                if file.worker.id == key[:2]:
                    file.buckets.pop(key, None)
                    if not file.buckets:
                        self._drop(pod)

    def turn(self, now: float) -> None:
        """Tell every limiter what its worker holds, steer its tokens, put right what a tenant changed."""
        at = self._clock()
        with self._lock:
            for pod, file in list(self._files.items()):
                if file.was_current(now):
                    self._restored += file.turn(self._around, at)
                else:
                    _log.warning("limiter_file_replaced", path=str(file.path), then="it is looked at afresh")
                    self._drop(pod)
            self._ownership.save()
            self._beat()

    def tell_use(self, key: WorkerKey, vram_bytes: int) -> None:
        """Tell a worker's limiter what it holds: `pod_memory_used`, which nobody else writes."""
        with self._lock:
            for file in self._files.values():
                bucket = file.buckets.get(key)
                if bucket is not None and file.is_current():
                    bucket.tell_use(vram_bytes)

    def throttled(self) -> Mapping[WorkerKey, bool | None]:
        """Return whether the compute limit held each worker back in the last tick."""
        with self._lock:
            return {key: bucket.throttled for file in self._files.values() for key, bucket in file.buckets.items()}

    def restored(self) -> int:
        """Return how many limits were written again because somebody else had changed them."""
        return self._restored

    def close(self) -> None:
        """Stop the heartbeat; the limits stay."""
        self._stop.set()
        if self._keeper is not None:
            self._keeper.join()
        with self._lock:
            for pod in list(self._files):
                self._drop(pod)
            self._ownership.save()

    def keep(self, *, idle: bool = True) -> None:
        """Beat and refill, once; a file that was cut or replaced is the next tick's matter.

        `idle`: everywhere, also where nobody took anything when it was looked at last.
        """
        with self._lock.first():
            at, wall = self._clock(), self._wall()
            for file in self._files.values():
                if idle or not file.is_idle:
                    file.keep(at, wall)

    def _limit(self, bucket: Bucket, worker: Worker, quota: DeviceQuota, part: Part) -> None:
        """Put one part into force, or raise LimitError with why not."""
        if part is Part.COMPUTE:
            bucket.limit_compute(self._around.share_of(quota), quota.tflops_limit)
            return
        used_bytes = self._around.live_use(worker, quota.uuid).vram_used_bytes
        self._around.check_use(quota, used_bytes, bucket.vram_limit_bytes)
        bucket.limit_vram(quota.vram_limit_bytes)

    def _bucket(self, worker: Worker, uuid: str) -> Bucket | None:
        file = self._files.get((worker.namespace, worker.pod))
        return file.buckets.get((worker.pod_uid, worker.container, uuid)) if file is not None else None

    def _adopt(self, worker: Worker, uuid: str) -> str:
        """Take the worker's slot on a device into keeping; return why it can't be."""
        pod = _pod(worker)
        if not all(map(is_name, pod)):
            return f"{worker.namespace}/{worker.pod} is no pod's name"
        file: LimiterFile | str | None = self._files.get(pod)
        path = self._around.tfshm_root.joinpath(*pod, FILE_NAME)
        try:
            if isinstance(file, LimiterFile) and not file.is_current():
                self._drop(pod)
                file = None
            file = file or self._take(path, worker, uuid)
            return file if isinstance(file, str) else file.settle(worker, uuid, self._around.index_of(uuid))
        except FileNotFoundError:
            return f"no limiter's folder at {path.parent}"
        except (OSError, LayoutError) as error:
            return str(error)

    def _take(self, path: Path, worker: Worker, uuid: str) -> LimiterFile | str:
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
        file = self._files[_pod(worker)] = LimiterFile(mapped, worker)
        self._ownership.own(path, owned=True)
        self._beat()
        return file

    def _beat(self) -> None:
        """Have the heartbeat run wherever there is a file to keep."""
        if self._files and not self._stop.is_set() and (self._keeper is None or not self._keeper.is_alive()):
            self._keeper = threading.Thread(target=self._keep_on, name="tfshm", daemon=True)
            self._keeper.start()

    def _make(self, path: Path, devices: set[str]) -> None:
        if not path.parent.is_dir():
            raise FileNotFoundError(path.parent)
        placed = {index: uuid for uuid in devices if (index := self._around.index_of(uuid)) is not None}
        if not placed:
            raise LayoutError(f"{path} is not there, and the driver's indices of its devices are not known yet")
        create_state(path, placed, self._wall())
        self._ownership.own(path, owned=True)

    def _drop(self, pod: tuple[str, str]) -> None:
        file = self._files.pop(pod)
        file.close()
        if not file.path.exists():
            self._ownership.own(file.path, owned=False)

    def _keep_on(self) -> None:
        turn = 0
        while not self._stop.wait(REFILL_SECONDS):
            turn += 1
            self.keep(idle=turn % IDLE_TURNS == 0)


def _pod(worker: Worker) -> tuple[str, str]:
    return worker.namespace, worker.pod
