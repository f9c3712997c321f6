"""NVML as a device source: the only importer of pynvml.

Each device has its health apart from its data: a lost GPU is reported with the reason and probed again, the others go
on. What a driver or GPU cannot tell is None. The costly process lists are read less often than the cheap figures.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Final

import pynvml
import structlog

from agent.report import DurationRecorder, SourceStats
from agent.samples import DeviceSample, DeviceSource, NodeSample, ProcessUse, SourceError
from agent.utilization import UtilizationSample, UtilizationWindow

_log = structlog.get_logger(__name__)

_CODES: Final[Mapping[int, str]] = {
    code: name.removeprefix("NVML_ERROR_").lower()
    for name, code in vars(pynvml).items()
    if name.startswith("NVML_ERROR_") and isinstance(code, int)
}
_LOST: Final = frozenset(
    {
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_RESET_REQUIRED,
        pynvml.NVML_ERROR_GPU_NOT_FOUND,
        pynvml.NVML_ERROR_INSUFFICIENT_POWER,
        pynvml.NVML_ERROR_IRQ_ISSUE,
    }
)
_MISSING: Final = frozenset(
    {
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    }
)
# Not failures of the calls that return samples: nothing newer, or (the wrapper raises its success code) no rows.
_IDLE: Final = frozenset({pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_SUCCESS})
_SAMPLING: Final = frozenset({"nvmlDeviceGetProcessUtilization", "nvmlDeviceGetSamples"})
_RELOADED: Final = (pynvml.NVMLError_Uninitialized, pynvml.NVMLError_DriverNotLoaded)


class _LostError(Exception):
    """This device cannot be read now; the text says why."""


@dataclass(slots=True)
class _Device:
    """What is remembered of one device between ticks; `vram_by_pid` is None while its process list is unknown."""

    index: int
    window: UtilizationWindow
    handle: Any = None
    uuid: str = ""
    model: str = ""
    vram_total_bytes: int = 0
    sampled_at: float | None = None
    missing: set[str] = field(default_factory=set)
    vram_by_pid: dict[int, int | None] | None = None
    active: frozenset[int] = frozenset()
    list_at_tick: int = 0
    lost_reason: str = ""
    retry_at_tick: int = 0


class NvmlSource(DeviceSource):
    """Samples all GPUs of the node; one instance per process, for NVML's state is the process's."""

    def __init__(
        self,
        list_processes_every_ticks: int = 5,
        reprobe_every_ticks: int = 5,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Take ticks between two process lists of a device and between two probes of a lost one; `clock` in seconds."""
        self._list_every_ticks = list_processes_every_ticks
        self._reprobe_every_ticks = reprobe_every_ticks
        self._clock = clock
        self._tick = 0
        self._devices: list[_Device] | None = None
        self._driver_version = ""
        self._durations: defaultdict[str, DurationRecorder] = defaultdict(DurationRecorder)
        self._errors: Counter[tuple[str, str]] = Counter()
        self._dropped: Counter[str] = Counter()
        self._told_twins: set[tuple[str, int]] = set()

    def sample(self, now: float) -> NodeSample:
        """Return all devices at `now` (seconds since the epoch, the clock the driver stamps samples with).

        Raises:
            SourceError: no library, no driver, no permission; the next call tries again from the start.
        """
        self._tick += 1
        try:
            return self._sample_all(now)
        except _RELOADED:
            # The driver was reloaded under us: handles are void, so everything starts over, once.
            self.close()
        try:
            return self._sample_all(now)
        except pynvml.NVMLError as error:
            self.close()
            raise SourceError(f"NVML: {error}") from error

    def stats(self) -> SourceStats:
        """Return the durations, errors and dropped samples since the start."""
        return SourceStats(
            calls={name: recorder.read() for name, recorder in self._durations.items()},
            errors=dict(self._errors),
            dropped=dict(self._dropped),
        )

    def close(self) -> None:
        """Release the driver; a later sample takes it up again."""
        if self._devices is None:
            return
        self._devices = None
        try:
            self._call("nvmlShutdown")
        except pynvml.NVMLError as error:
            _log.debug("nvml_shutdown_failed", error=str(error))

    def _sample_all(self, now: float) -> NodeSample:
        devices = self._devices if self._devices is not None else self._open()
        owners: dict[str, int] = {}
        samples = []
        for device in devices:
            sample = self._sample(device, now)
            if sample.uuid and owners.setdefault(sample.uuid, device.index) != device.index:
                sample = self._twin(sample, owners[sample.uuid])
            samples.append(sample)
        return NodeSample(now, tuple(samples), self._driver_version)

    def _open(self) -> list[_Device]:
        try:
            self._call("nvmlInit")
            self._devices = []
            self._driver_version = self._call("nvmlSystemGetDriverVersion")
            count = self._call("nvmlDeviceGetCount")
        except pynvml.NVMLError as error:
            self.close()
            raise SourceError(f"NVML: {error}") from error
        self._devices = [_Device(index, UtilizationWindow(self._dropped)) for index in range(count)]
        return self._devices

    def _sample(self, device: _Device, now: float) -> DeviceSample:
        if device.lost_reason and self._tick < device.retry_at_tick:
            return _unhealthy(device, now)
        try:
            if device.handle is None:
                self._identify(device)
            sample = self._measure(device, now)
        except _LostError as lost:
            self._lose(device, str(lost))
            return _unhealthy(device, now)
        if device.lost_reason:
            _log.info("device_back", index=device.index, uuid=device.uuid)
            device.lost_reason = ""
        return sample

    def _lose(self, device: _Device, reason: str) -> None:
        if not device.lost_reason:
            _log.warning("device_lost", index=device.index, uuid=device.uuid, reason=reason)
        device.lost_reason, device.handle, device.vram_by_pid = reason, None, None
        device.missing.clear()
        device.window, device.active = UtilizationWindow(self._dropped), frozenset()
        device.retry_at_tick = self._tick + self._reprobe_every_ticks

    def _twin(self, sample: DeviceSample, owner: int) -> DeviceSample:
        reason = f"device {sample.index} has the UUID of device {owner}, {sample.uuid}"
        if (sample.uuid, sample.index) not in self._told_twins:
            self._told_twins.add((sample.uuid, sample.index))
            _log.warning("device_uuid_twice", reason=reason)
        return DeviceSample(
            sample.index,
            sample.uuid,
            sample.model,
            sample.sampled_at,
            sample.vram_total_bytes,
            healthy=False,
            reason=reason,
        )

    def _identify(self, device: _Device) -> None:
        try:
            device.handle = self._call("nvmlDeviceGetHandleByIndex", device.index)
            device.uuid = self._call("nvmlDeviceGetUUID", device.handle)
            device.model = self._call("nvmlDeviceGetName", device.handle)
        except _RELOADED:
            raise
        except pynvml.NVMLError as error:
            raise _LostError(f"cannot be identified: {error}") from error

    def _measure(self, device: _Device, now: float) -> DeviceSample:
        used_bytes = self._memory(device)
        if not device.vram_total_bytes:
            raise _LostError("does not say how much memory it has")
        compute_ratio = self._device_ratio(device, now)
        ratios = self._process_ratios(device, now, busy=bool(compute_ratio))
        if compute_ratio is not None and ratios:
            # Momentary or coarse as its figure may be, a device was busy at least as long as its busiest process.
            compute_ratio = max(compute_ratio, *ratios.values())
        self._list_processes(device, frozenset(ratios or ()))
        return DeviceSample(
            device.index,
            device.uuid,
            device.model,
            device.window.last_seen_us(round(now * 1e6)) / 1e6 if device.window.held() else now,
            device.vram_total_bytes,
            used_bytes,
            compute_ratio,
            processes=_processes(ratios, device.vram_by_pid),
            processes_known=device.vram_by_pid is not None,
        )

    def _memory(self, device: _Device) -> int | None:
        """Read used and total bytes: the second version counts what the driver reserved apart from use."""
        memory = self._ask(device, "nvmlDeviceGetMemoryInfo", pynvml.nvmlMemory_v2, feature="memory_v2")
        if memory is None:
            memory = self._ask(device, "nvmlDeviceGetMemoryInfo", feature="memory")
        if memory is None or memory.total == pynvml.NVML_VALUE_NOT_AVAILABLE_ulonglong.value:
            return None
        device.vram_total_bytes = memory.total
        return int(memory.used) if memory.used <= memory.total else None

    def _device_ratio(self, device: _Device, now: float) -> float | None:
        """Return the mean since the last tick where the driver keeps samples, else its figure of this moment."""
        since, device.sampled_at = device.sampled_at, now
        if since is not None:
            kept = self._ask(device, "nvmlDeviceGetSamples", pynvml.NVML_GPU_UTILIZATION_SAMPLES, round(since * 1e6))
            rows = [row for row in (kept[1] if kept else ()) if since < row.timeStamp / 1e6 <= now + 1]
            percents = [row.sampleValue.uiVal for row in rows if row.sampleValue.uiVal <= 100]
            if percents:
                return fmean(percents) / 100
        rates = self._ask(device, "nvmlDeviceGetUtilizationRates")
        return rates.gpu / 100 if rates is not None and rates.gpu <= 100 else None

    def _process_ratios(self, device: _Device, now: float, *, busy: bool) -> Mapping[int, float] | None:
        now_us = round(now * 1e6)
        since_us = device.window.last_seen_us(now_us)
        rows = self._ask(device, "nvmlDeviceGetProcessUtilization", since_us, idle=())
        if "nvmlDeviceGetProcessUtilization" in device.missing:
            return None
        samples = None if rows is None else [UtilizationSample(r.pid, r.timeStamp, r.smUtil) for r in rows]
        return device.window.take(samples, now_us, busy=busy)

    def _list_processes(self, device: _Device, active: frozenset[int]) -> None:
        if device.vram_by_pid is not None and self._tick < device.list_at_tick and active == device.active:
            return
        compute = self._ask(device, "nvmlDeviceGetComputeRunningProcesses_v3")
        clients = self._ask(device, "nvmlDeviceGetMPSComputeRunningProcesses_v3")
        rows = None if compute is None else [*compute, *(clients or ())]
        device.vram_by_pid = None if rows is None else {row.pid: row.usedGpuMemory for row in rows}
        device.list_at_tick, device.active = self._tick + self._list_every_ticks, active

    def _ask(self, device: _Device, name: str, *args: Any, feature: str = "", idle: Any = None) -> Any:
        """Call a function of a device; None when it can't tell, `idle` when it says that there is nothing to tell."""
        feature = feature or name
        if feature in device.missing:
            return None
        try:
            return self._call(name, device.handle, *args)
        except _RELOADED:
            raise
        except pynvml.NVMLError as error:
            if error.value in _LOST:
                raise _LostError(f"{name}: {_CODES[error.value]}") from error
            if error.value in _MISSING:
                device.missing.add(feature)
            return idle if error.value in _IDLE else None

    def _call(self, name: str, *args: Any) -> Any:
        """Call pynvml; count its time, and its error unless it only says that nothing happened."""
        started = self._clock()
        try:
            return getattr(pynvml, name)(*args)
        except pynvml.NVMLError as error:
            if not (name in _SAMPLING and error.value in _IDLE):
                self._errors[name, _CODES.get(error.value, str(error.value))] += 1
            raise
        finally:
            self._durations[name].observe(self._clock() - started)


def _unhealthy(device: _Device, now: float) -> DeviceSample:
    return DeviceSample(
        device.index, device.uuid, device.model, now, device.vram_total_bytes, healthy=False, reason=device.lost_reason
    )


def _processes(
    ratios: Mapping[int, float] | None, vram_by_pid: Mapping[int, int | None] | None
) -> tuple[ProcessUse, ...]:
    """Join use and memory by process; one that a known list leaves out holds no memory (it has just ended)."""
    listed = vram_by_pid if vram_by_pid is not None else {}
    unlisted = 0 if vram_by_pid is not None else None
    return tuple(
        ProcessUse(pid, None if ratios is None else ratios.get(pid, 0.0), listed.get(pid, unlisted))
        for pid in sorted({*listed, *(ratios or ())})
    )
