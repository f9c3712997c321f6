"""NVML's calls that fill an array, read in one go: hundreds of rows a tick.

pynvml asks for the size first and makes an object of every row, which costs more than all the rest of a tick. Here the
array is kept from call to call, so the driver is asked once, and only when it does not fit a second time. Neighbour:
`calls` makes these calls like all others.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from struct import Struct
from typing import Any, Final

import pynvml

_FIRST_ROWS: Final = 64
_TRIES: Final = 3
_PROCESS: Final = Struct("I4xQ8x")
"""pid, bytes used; then the ids of its MIG instances, which the device it was asked of tells."""
_SAMPLE: Final = Struct("I4xQI12x")
"""pid, end of the period in µs since the epoch, SM percent; then memory, encoder and decoder."""
if _PROCESS.size != ctypes.sizeof(pynvml.c_nvmlProcessInfo_v3_t):
    raise ImportError("nvidia-ml-py has another layout of a running process")
if _SAMPLE.size != ctypes.sizeof(pynvml.c_nvmlProcessUtilizationSample_t):
    raise ImportError("nvidia-ml-py has another layout of a utilization sample")


class Arrays:
    """The calls of one source, by name; each raises NVMLError as NVML says."""

    def __init__(self) -> None:
        self._samples, self._processes = _Array(_SAMPLE), _Array(_PROCESS)
        names = ("Compute", "MPSCompute", "Graphics")
        self.calls: dict[str, Callable[..., Any]] = {
            "nvmlDeviceGetProcessUtilization": self._utilization,
            **{name: _of(self._running, name) for name in map("nvmlDeviceGet{}RunningProcesses_v3".format, names)},
        }

    def _utilization(self, handle: Any, since_us: int) -> tuple[tuple[int, ...], ...]:
        """Return pid, end of the period in µs and SM percent of every sample since a time."""
        function, since = _function("nvmlDeviceGetProcessUtilization"), ctypes.c_ulonglong(since_us)
        return tuple(self._samples.filled(lambda array, count: function(handle, array, count, since)))

    def _running(self, name: str, handle: Any) -> dict[int, int | None]:
        """Return the processes with their memory in bytes, None where the driver can't tell."""
        function = _function(name)
        rows = self._processes.filled(lambda array, count: function(handle, count, array))
        unknown = pynvml.NVML_VALUE_NOT_AVAILABLE_ulonglong.value
        return {pid: None if used_bytes == unknown else used_bytes for pid, used_bytes in rows}


class _Array:
    """Room for rows, made larger when a call needs more."""

    def __init__(self, layout: Struct) -> None:
        self._layout = layout
        self._make_room(_FIRST_ROWS)

    def filled(self, call: Callable[[Any, Any], int]) -> Iterator[tuple[int, ...]]:
        """Call with the array and the count of rows that it has room for; return the rows that were filled."""
        code = pynvml.NVML_ERROR_INSUFFICIENT_SIZE
        for _ in range(_TRIES):
            count, needed = ctypes.c_uint(self._room), ctypes.c_uint(0)
            code = call(self._bytes, ctypes.byref(count))
            if code != pynvml.NVML_ERROR_INSUFFICIENT_SIZE:
                break
            call(None, ctypes.byref(needed))
            # Twice as many, as processes start while they are counted.
            self._make_room(max(self._room, 2 * needed.value))
        if code != pynvml.NVML_SUCCESS:
            raise pynvml.NVMLError(code)
        return self._layout.iter_unpack(memoryview(self._bytes)[: count.value * self._layout.size])

    def _make_room(self, rows: int) -> None:
        self._room, self._bytes = rows, ctypes.create_string_buffer(self._layout.size * rows)


def _of(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    return lambda handle: call(name, handle)


def _function(name: str) -> Any:
    if pynvml.nvmlLib is None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
    try:
        return getattr(pynvml.nvmlLib, name)
    except AttributeError:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND) from None
