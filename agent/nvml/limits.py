"""The driver's memory limits by cgroup (r615 and later), through NVML; the kernel enforces them.

`nvmlDeviceSetMemoryLimits_v1` writes what becomes the cgroup's dmem.min (soft) and dmem.max (hard), and keeps the
books of its ancestors. It needs root, a cgroup that is a container's leaf, and a kernel with the dmem controller.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pynvml

from agent.model.limits import CgroupLimits, LimitError, NoLimitsError, OldDriverError
from agent.nvml.calls import Calls

_WHY: Final = {
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "the driver is older than r615",
    pynvml.NVML_ERROR_NOT_SUPPORTED: "the kernel has no dmem controller for this cgroup, or the device is MIG's",
    pynvml.NVML_ERROR_NO_PERMISSION: "setting memory limits needs root",
    pynvml.NVML_ERROR_INVALID_ARGUMENT: "soft <= hard <= device memory does not hold",
    pynvml.NVML_ERROR_OPERATING_SYSTEM: "the kernel refused",
}
_KINDS: Final[Mapping[int, type[LimitError]]] = {
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: OldDriverError,
    pynvml.NVML_ERROR_NOT_SUPPORTED: NoLimitsError,
}


class NvmlMemoryLimits:
    """Reads and writes by device UUID; NVML is initialized by the device source, or here where nobody did."""

    def __init__(self, calls: Calls | None = None) -> None:
        """Take the calls of the device source, so that these are timed and counted with its own."""
        self._calls = calls or Calls(time.perf_counter)

    def devices(self) -> tuple[str, ...]:
        """Return the UUIDs of the devices that answer; one that is lost is left out.

        Raises:
            LimitError: the driver can't be asked.
        """
        try:
            count = self._initialized("nvmlDeviceGetCount")
        except pynvml.NVMLError as error:
            raise LimitError(str(error)) from error
        found = []
        for index in range(count):
            try:
                handle = self._calls.call("nvmlDeviceGetHandleByIndex", index)
                found.append(str(self._calls.call("nvmlDeviceGetUUID", handle)))
            except pynvml.NVMLError:
                continue  # Whoever measures tells of a lost device.
        return tuple(found)

    def read(self, uuid: str, cgroup: Path) -> CgroupLimits:
        """Return what is in force; a cgroup without a hard limit has None.

        Raises:
            LimitError: there are no such limits here, and why.
        """
        asked = pynvml.c_nvmlGetMemoryLimits_v1_t()
        asked.nameSpace = str(cgroup).encode()
        try:
            self._calls.call("nvmlDeviceGetMemoryLimits_v1", self._handle(uuid), asked)
        except pynvml.NVMLError as error:
            raise _refused(error, cgroup) from error
        hard = None if asked.hardLimit == pynvml.NVML_DEVICE_MEMORY_LIMIT_MAX else int(asked.hardLimit)
        return CgroupLimits(int(asked.softLimit), hard, int(asked.currentUsed))

    def write(self, uuid: str, cgroup: Path, soft_bytes: int, hard_bytes: int | None) -> None:
        """Set both limits of a cgroup.

        Raises:
            LimitError: the driver refused, and why.
        """
        wanted = pynvml.c_nvmlSetMemoryLimits_v1_t()
        wanted.nameSpace = str(cgroup).encode()
        wanted.softLimit = soft_bytes
        wanted.hardLimit = pynvml.NVML_DEVICE_MEMORY_LIMIT_MAX if hard_bytes is None else hard_bytes
        try:
            self._calls.call("nvmlDeviceSetMemoryLimits_v1", self._handle(uuid), wanted)
        except pynvml.NVMLError as error:
            raise _refused(error, cgroup) from error

    def _handle(self, uuid: str) -> object:
        return self._initialized("nvmlDeviceGetHandleByUUID", uuid.encode())

    def _initialized(self, name: str, *args: object) -> Any:
        try:
            # Before the first sample it is nobody's failure that the library was not taken up.
            return self._calls.call(name, *args, quiet=(pynvml.NVML_ERROR_UNINITIALIZED,))
        except pynvml.NVMLError_Uninitialized:
            self._calls.call("nvmlInit")
            return self._calls.call(name, *args)


def _refused(error: pynvml.NVMLError, cgroup: Path) -> LimitError:
    why = _WHY.get(error.value, str(error))
    kind = _KINDS.get(error.value, LimitError)
    return kind(why if kind is OldDriverError else f"{cgroup}: {why}")
