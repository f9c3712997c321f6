"""HAMi-core's shared region, version 1.2: VRAM limits live, SM limits for the next process, a freeze by slot status.

The library maps one file per container, `<root>/<pod UID>_<container>/<name>.cache`, and looks at `limit` with every
allocation (and answers cuMemGetInfo and NVML's total with it). `sm_limit` is read once per process, unless the library
was built to read it again. Layout: HAMi-core, src/multiprocess/multiprocess_memory_limit.h, as a compiler lays it out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import structlog

from agent.enforce.actuator import Part, Surroundings, each_part
from agent.enforce.backend import Capabilities
from agent.enforce.mapped import LayoutError, MappedFile
from agent.model.applied import Applied
from agent.model.samples import Worker, WorkerKey
from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import DeviceQuota, Observed

_log = structlog.get_logger(__name__)
SIZE: Final = 2_008_953
"""The region and one byte: the library makes the file that long."""
MAGIC: Final = 19_920_718
VERSION: Final = (1, 2)
MAX_DEVICES: Final = 16
MAX_PROCESSES: Final = 1024

MAGIC_FLAG: Final = 0
MAJOR: Final = 4
MINOR: Final = 8
DEVICE_NUM: Final = 56
UUIDS: Final = 64
UUID_BYTES: Final = 96
LIMIT: Final = 1600
SM_LIMIT: Final = 1728
PROCS: Final = 1856
PROC_STRIDE: Final = 1960
PROC_PID: Final = 0
PROC_STATUS: Final = 1928

RUNNING: Final = 1
FROZEN: Final = 2
"""Any status but 1 makes every hooked call of the process wait."""
UNLIMITED_PERCENT: Final = 100


@dataclass(slots=True)
class _Region:
    """One container's file, and the limits that were written into it by device index.

    `names` are the devices' UUIDs as the library wrote them, read once: afterwards they are the tenant's to change.
    """

    mapped: MappedFile
    worker: Worker
    names: list[str]
    vram_bytes: dict[int, int] = field(default_factory=dict)
    percents: dict[int, int] = field(default_factory=dict)

    @property
    def indices(self) -> dict[str, int]:
        """Return the place of each device by its UUID in lower case."""
        return {name.lower(): index for index, name in enumerate(self.names) if name}


class HamicoreActuator:
    """Holds workers whose containers run under HAMi-core. Option `hamicore.sm_reload`: its SM limit is read live."""

    name = "hamicore"

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._compute = Effect.IMMEDIATE if around.options.get("hamicore.sm_reload") == "true" else Effect.NEXT_PROCESS
        self._regions: dict[tuple[str, str], _Region] = {}
        self._restored = 0

    def probe(self) -> Capabilities:
        """Return whether containers share regions with this node."""
        root = self._around.hamicore_root
        if not root.is_dir():
            return _out(f"{root} is not there: HAMi-core is not installed")
        return Capabilities(self._compute, Effect.NEXT_ALLOC)

    def reach(self, worker: Worker, uuid: str) -> Capabilities:
        """Return whether the worker's container has a region of the known version with this device."""
        try:
            self._index(worker, uuid)
        except (LayoutError, OSError) as error:
            return _out(str(error))
        return Capabilities(self._compute, Effect.NEXT_ALLOC)

    def observe(self, worker: Worker, uuid: str) -> Observed:
        """Return the VRAM limit in the region, and the SM limit where running processes read it."""
        region = self._regions.get(worker.id)
        index = region.indices.get(uuid.lower()) if region is not None else None
        if region is None or index is None:
            return Observed()
        limit_bytes = region.mapped.u64(LIMIT + 8 * index).value
        tflops = None
        capacity = self._around.tflops_of(uuid)
        if self._compute is Effect.IMMEDIATE and capacity is not None and index in region.percents:
            tflops = capacity * region.mapped.u64(SM_LIMIT + 8 * index).value / UNLIMITED_PERCENT
        return Observed(tflops_limit=tflops, vram_limit_bytes=limit_bytes or None)

    def apply(self, worker: Worker, quota: DeviceQuota, parts: frozenset[Part]) -> Applied:
        """Write the limits; what only the next process reads is called so."""
        effect = self._compute if Part.COMPUTE in parts else Effect.NEXT_ALLOC
        try:
            region, index = self._index(worker, quota.uuid)
        except (LayoutError, OSError) as error:
            return Applied(Effect.UNSUPPORTED, Observed(), f"Unsupported: hamicore: {error}")
        self._restore(region)
        reason = each_part(parts, lambda part: self._limit(region, index, quota, part))
        return Applied(effect, self.observe(worker, quota.uuid), reason)

    def in_force(self) -> Mapping[WorkerKey, int]:
        """Return the VRAM limits in all regions that are kept; 0 is none.

        What a tenant wrote over a limit is put right again, so that the limit still counts.
        """
        found = {
            (*region.worker.id, region.names[index]): max(
                region.mapped.u64(LIMIT + 8 * index).value, region.vram_bytes.get(index, 0)
            )
            for region in self._regions.values()
            for index in region.indices.values()
        }
        return {key: limit_bytes for key, limit_bytes in found.items() if limit_bytes}

    def release(self, key: WorkerKey) -> None:
        """Leave a region alone; the limits in it stay for the processes in it."""
        region = self._regions.pop(key[:2], None)
        if region is not None:
            region.mapped.close()

    def turn(self, now: float) -> None:  # noqa: ARG002  what is looked at has no clock
        """Put right what a tenant changed, and let go of regions that were replaced."""
        for name, region in list(self._regions.items()):
            if not region.mapped.is_current():
                _log.warning("region_replaced", path=str(region.mapped.path), then="it is looked at afresh")
                del self._regions[name]
                region.mapped.close()
                continue
            self._restore(region)

    def restored(self) -> int:
        """Return how many limits were written again because somebody else had changed them."""
        return self._restored

    def freeze(self, worker: Worker, *, frozen: bool) -> str:
        """Make every hooked call of the worker's processes wait, or let them go on; return why that can't be."""
        region = self._regions.get(worker.id)
        if region is None:
            return "its region is not known"
        wanted = FROZEN if frozen else RUNNING
        for slot in range(MAX_PROCESSES):
            base = PROCS + PROC_STRIDE * slot
            if region.mapped.i32(base + PROC_PID).value:
                region.mapped.i32(base + PROC_STATUS).value = wanted
        return ""

    def close(self) -> None:
        """Unmap; the limits stay."""
        for region in self._regions.values():
            region.mapped.close()
        self._regions.clear()

    def _restore(self, region: _Region) -> None:
        """Undo what a tenant changed before anything new is put over it, so that it is counted and told."""
        wrong = _put_right(region, LIMIT, region.vram_bytes) + _put_right(region, SM_LIMIT, region.percents)
        if wrong:
            self._restored += wrong
            _log.warning("limits_restored", path=str(region.mapped.path), changed=wrong)

    def _limit(self, region: _Region, index: int, quota: DeviceQuota, part: Part) -> None:
        """Write one part, or raise LimitError with why not."""
        if part is Part.VRAM:
            limit, use = region.mapped.u64(LIMIT + 8 * index), self._around.live_use(region.worker, quota.uuid)
            self._around.check_use(quota, use.vram_used_bytes, limit.value or None)
            region.vram_bytes[index] = limit.value = quota.vram_limit_bytes
            return
        percent = max(math.ceil(self._around.share_of(quota) * UNLIMITED_PERCENT), 1)
        region.percents[index] = percent
        region.mapped.u64(SM_LIMIT + 8 * index).value = percent

    def _index(self, worker: Worker, uuid: str) -> tuple[_Region, int]:
        """Return the worker's region and the device's place in it.

        Raises:
            LayoutError: there is none, or it is of another version, or without the device.
            OSError: it can't be opened.
        """
        region = self._regions.get(worker.id) or self._open(worker)
        index = region.indices.get(uuid.lower())
        if index is None:
            raise LayoutError(f"{region.mapped.path} has no device {uuid}")
        return region, index

    def _open(self, worker: Worker) -> _Region:
        folder = self._around.hamicore_root / f"{worker.pod_uid}_{worker.container}"
        if "/" in worker.pod_uid + worker.container:
            raise LayoutError(f"{worker.pod_uid}_{worker.container} is no container's name")
        files = sorted(folder.glob("*.cache"), key=lambda path: path.lstat().st_mtime)
        if not files:
            raise LayoutError(f"no region in {folder}")
        mapped = MappedFile(files[-1], SIZE)
        try:
            _check(mapped)
        except LayoutError:
            mapped.close()
            raise
        count = min(mapped.u64(DEVICE_NUM).value, MAX_DEVICES)
        names = [mapped.text(UUIDS + UUID_BYTES * index, UUID_BYTES) for index in range(count)]
        region = _Region(mapped, worker, names)
        self._regions[worker.id] = region
        return region


def _check(mapped: MappedFile) -> None:
    """Raise LayoutError for a region that is not ready or of another version: nothing is written into it."""
    found = mapped.i32(MAGIC_FLAG).value
    if found != MAGIC:
        raise LayoutError(f"{mapped.path} is no region yet: it begins with {found}, not {MAGIC}")
    version = (mapped.u32(MAJOR).value, mapped.u32(MINOR).value)
    if version != VERSION:
        raise LayoutError(f"{mapped.path} is of version {version[0]}.{version[1]}, only 1.2 is written to")


def _put_right(region: _Region, offset: int, wanted: Mapping[int, int]) -> int:
    wrong = 0
    for index, value in wanted.items():
        view = region.mapped.u64(offset + 8 * index)
        if view.value != value:
            view.value = value
            wrong += 1
    return wrong


def _out(reason: str) -> Capabilities:
    return Capabilities(Effect.UNSUPPORTED, Effect.UNSUPPORTED, reason)
