"""The memory that TensorFusion's limiter shares with the node, version 2: offsets as data.

Rust's `#[repr(C)] enum SharedDeviceState::V2` (vgpu.rs, crates/utils/src/shared_memory) and Go's
`rustSharedDeviceStateV2Layout` (tensor-fusion, pkg/hypervisor/worker/state/soft_limiter_shm.go). Bytes, seconds since
the epoch, tokens; `up_limit` is percent of the device. A slot's place is the device's NVML index.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.enforce.mapped import LayoutError, MappedFile

FILE_NAME: Final = "shm"
SIZE: Final = 35504
VERSION_2: Final = 1
"""The enum's discriminant."""
UNLIMITED_BYTES: Final = 2**62
"""A VRAM limit of this or more is none."""

DISCRIMINANT: Final = 0
DEVICES: Final = 8
DEVICE_STRIDE: Final = 136
MAX_DEVICES: Final = 16
DEVICE_COUNT: Final = 2184
HEARTBEAT: Final = 2192
PIDS: Final = 2200

UUID: Final = 0
UUID_BYTES: Final = 64
UP_LIMIT: Final = 64
MEM_LIMIT: Final = 72
TOTAL_CUDA_CORES: Final = 80
POD_MEMORY_USED: Final = 88
REFILL_RATE: Final = 96
CAPACITY: Final = 104
TOKENS: Final = 112
LAST_UPDATE: Final = 120
IS_ACTIVE: Final = 128


class LiveSlot(ctypes.Structure):
    """A device's entry as one view, for what is read and written many times a second."""

    up_limit: int
    mem_limit: int
    pod_memory_used: int
    refill_rate: float
    capacity: float
    tokens: float
    last_update: float
    is_active: int

    _fields_ = (
        ("uuid", ctypes.c_ubyte * UUID_BYTES),
        ("up_limit", ctypes.c_uint32),
        ("mem_limit", ctypes.c_uint64),
        ("total_cuda_cores", ctypes.c_uint32),
        ("pod_memory_used", ctypes.c_uint64),
        ("refill_rate", ctypes.c_double),
        ("capacity", ctypes.c_double),
        ("tokens", ctypes.c_double),
        ("last_update", ctypes.c_double),
        ("is_active", ctypes.c_uint32),
    )

    def put_use(self, vram_bytes: int) -> None:
        """Store what the worker holds."""
        self.pod_memory_used = vram_bytes

    def put_refill(self, rate: float, capacity: float) -> None:
        """Store how the bucket is refilled, one after the other."""
        self.refill_rate, self.capacity = rate, capacity


_LIMITS: Final = struct.Struct(f"{UUID_BYTES}sI4xQ")
"""What begins a device's entry: its UUID, the compute limit, the VRAM limit."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One device's entry in a mapped file; the views are of the file's own memory."""

    file: MappedFile
    index: int

    @property
    def _base(self) -> int:
        return DEVICES + self.index * DEVICE_STRIDE

    @property
    def uuid(self) -> str:
        """The device's UUID as written."""
        return self.file.text(self._base + UUID, UUID_BYTES)

    @property
    def name(self) -> bytes:
        """The UUID's whole field."""
        return self.file.raw(self._base + UUID, UUID_BYTES)

    def put_name(self, field: bytes) -> None:
        """Write the UUID's whole field."""
        self.file.put_raw(self._base + UUID, field)

    def live(self) -> LiveSlot:
        """Return the view of all fields; the file stays mapped as long as it lives."""
        return self.file.view(LiveSlot, self._base)

    def limits(self) -> ctypes.Array[ctypes.c_char]:
        """Return a view whose `raw` is a copy of what says whose limits these are and how high: for `parsed_limits`."""
        return self.file.window(self._base + UUID, _LIMITS.size)

    def u32(self, offset: int) -> int:
        """Read one of the 32-bit fields."""
        return self.file.u32(self._base + offset).value

    def u64(self, offset: int) -> int:
        """Read one of the 64-bit fields."""
        return self.file.u64(self._base + offset).value

    def f64(self, offset: int) -> float:
        """Read one of the double fields."""
        return self.file.f64(self._base + offset).value

    def put_u32(self, offset: int, value: int) -> None:
        """Store one of the 32-bit fields."""
        self.file.u32(self._base + offset).value = value

    def put_u64(self, offset: int, value: int) -> None:
        """Store one of the 64-bit fields."""
        self.file.u64(self._base + offset).value = value

    def put_f64(self, offset: int, value: float) -> None:
        """Store one of the double fields."""
        self.file.f64(self._base + offset).value = value


def parsed_limits(limits: bytes) -> tuple[bytes, int, int]:
    """Return the UUID's whole field, the compute limit (percent) and the VRAM limit (bytes) of a copy."""
    name, percent, limit_bytes = _LIMITS.unpack(limits)
    return name, percent, limit_bytes


def open_state(path: Path) -> MappedFile:
    """Return the mapped file.

    Raises:
        LayoutError: its size or version is not the one that is known here.
        OSError: it can't be opened.
    """
    # The table of pids is the limiter's own.
    file = MappedFile(path, SIZE, PIDS)
    found = file.u32(DISCRIMINANT).value
    if found != VERSION_2:
        file.close()
        raise LayoutError(f"{path} is of version {found + 1}, only version 2 is known")
    return file


def slots_of(file: MappedFile) -> dict[str, Slot]:
    """Return the active slots by their device's UUID in lower case; the first of two of one name."""
    found: dict[str, Slot] = {}
    for index in range(MAX_DEVICES):
        slot = Slot(file, index)
        if slot.u32(IS_ACTIVE) and slot.uuid:
            found.setdefault(slot.uuid.lower(), slot)
    return found


def slots_named(file: MappedFile, uuids: Iterable[str]) -> dict[str, Slot]:
    """Return the active slots by UUID as it is written in `uuids`, else as the file has it."""
    named = {uuid.lower(): uuid for uuid in uuids}
    return {named.get(uuid, slot.uuid): slot for uuid, slot in slots_of(file).items()}


def add_slot(file: MappedFile, index: int, uuid: str) -> Slot | None:
    """Return the slot of a device, made unlimited until a quota comes; None where another device has its place."""
    if not 0 <= index < MAX_DEVICES:
        return None
    slot = Slot(file, index)
    if slot.u32(IS_ACTIVE) and slot.uuid:
        return None
    file.put_text(DEVICES + index * DEVICE_STRIDE + UUID, UUID_BYTES, uuid)
    slot.put_u32(UP_LIMIT, 100)
    slot.put_u64(MEM_LIMIT, UNLIMITED_BYTES)
    slot.put_u32(IS_ACTIVE, 1)
    file.u32(DEVICE_COUNT).value += 1
    return slot


def create_state(path: Path, devices: Mapping[int, str], now: float) -> None:
    """Make a file with one slot per device, by NVML index, unlimited until a quota comes; it appears complete.

    Raises:
        OSError: it exists already, or can't be written.
    """
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, SIZE)
        # Whoever runs in the pod, under whatever user, takes tokens here.
        os.fchmod(descriptor, 0o666)
    finally:
        os.close(descriptor)
    with MappedFile(temporary, SIZE) as file:
        for index, uuid in devices.items():
            add_slot(file, index, uuid)
        file.u64(HEARTBEAT).value = int(now)
        file.u32(DISCRIMINANT).value = VERSION_2
    os.link(temporary, path)
    temporary.unlink()
