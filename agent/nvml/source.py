"""NVML as a device source; only `nvml*` modules import pynvml.

Each device has its health apart from its data: a lost GPU is reported with the reason and probed again, the others go
on. A GPU in MIG mode is sampled as its instances. Neighbours: `devices` measures one device, `calls` times
and counts what is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pynvml
import structlog

from agent.model.report import SourceStats
from agent.model.samples import DeviceSample, DeviceSource, NodeSample, SourceError
from agent.nvml.calls import RELOADED, Calls, LostError, UnansweredError
from agent.nvml.devices import Device, Tick, is_within, measure, moved_memory
from agent.nvml.limits import NvmlMemoryLimits
from agent.nvml.mig import find_instances, forget, is_divided
from agent.utilization import UtilizationSample, UtilizationWindow

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Gpu:
    """A GPU and its health; `parts` are its MIG instances by UUID, None while it is undivided or not `is_known`."""

    whole: Device
    parts: dict[str, Device] | None = None
    is_known: bool = False
    looked_at: float | None = None
    lost_reason: str = ""
    lost_at: float = 0.0

    @property
    def devices(self) -> tuple[Device, ...]:
        """What is sampled of it: itself or its instances."""
        return (self.whole,) if self.parts is None else tuple(self.parts.values())


class NvmlSource(DeviceSource):
    """Samples all GPUs of the node; one instance per process, for NVML's state is the process's."""

    def __init__(
        self,
        list_seconds: float = 5.0,
        reprobe_seconds: float = 5.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Take the seconds between two process lists, between two probes of a lost device, and a clock in seconds."""
        self._list_seconds = list_seconds
        self._reprobe_seconds = reprobe_seconds
        self._calls = Calls(clock)
        self._gpus: list[_Gpu] | None = None
        self._driver_version = ""
        self._is_fresh = False
        self._suspect = -1
        self._told_twins: set[tuple[str, int]] = set()
        self._told_notes: dict[str, str] = {}

    def sample(self, now: float) -> NodeSample:
        """Return all devices at `now` (seconds since the epoch, the clock the driver stamps samples with).

        Raises:
            SourceError: no library, no driver, no permission; the next call tries again from the start.
        """
        try:
            return self._sample_all(now)
        except RELOADED:
            # The driver was reloaded under us: handles are void, so everything starts over, once.
            self.close()
        self._is_fresh = True
        try:
            sample = self._sample_all(now)
        except pynvml.NVMLError as error:
            self.close()
            raise SourceError(f"NVML: {error}") from error
        finally:
            self._is_fresh = False
        if sample.devices and not any(device.healthy for device in sample.devices):
            self.close()
            raise SourceError(f"NVML: {sample.devices[0].reason}")
        return sample

    def rows(self) -> Mapping[str, tuple[UtilizationSample, ...]]:
        """Return the last tick's utilization samples by device UUID, as the driver gave them."""
        return {device.uuid: device.rows for gpu in self._gpus or () for device in gpu.devices}

    def stats(self) -> SourceStats:
        """Return the durations, errors and dropped samples since the start."""
        return self._calls.stats()

    def moved_memory(self, uuid: str) -> Mapping[int, int | None] | None:
        """Return what each process on a device holds, in bytes, where that moved since it was read last; else None.

        A device that fails here is the next tick's to tell of.
        """
        for gpu in self._gpus or ():
            for device in gpu.devices:
                if device.uuid == uuid and device.handle is not None and not gpu.lost_reason:
                    try:
                        return moved_memory(self._calls, device)
                    except (LostError, *RELOADED):
                        return None
        return None

    def memory_limits(self) -> NvmlMemoryLimits:
        """Return the driver's memory limits by cgroup; their calls are counted with those of the samples."""
        return NvmlMemoryLimits(self._calls)

    def close(self) -> None:
        """Release the driver; a later sample takes it up again."""
        if self._gpus is None:
            return
        gpus, self._gpus = self._gpus, None
        try:
            for gpu in gpus:
                self._forget_parts(gpu)
            self._calls.call("nvmlShutdown")
        except pynvml.NVMLError as error:
            _log.debug("nvml_shutdown_failed", error=str(error))

    def _sample_all(self, now: float) -> NodeSample:
        gpus = self._gpus if self._gpus is not None else self._open()
        tick = Tick(now, self._list_seconds)
        owners: dict[str, int] = {}
        samples = []
        for sample in (one for gpu in gpus for one in self._sample(gpu, tick)):
            if sample.uuid and owners.setdefault(sample.uuid, sample.index) != sample.index:
                samples.append(self._twin(sample, owners[sample.uuid]))
            else:
                samples.append(sample)
                self._tell_note(sample)
        return NodeSample(now, tuple(samples), self._driver_version)

    def _open(self) -> list[_Gpu]:
        try:
            self._calls.call("nvmlInit")
            self._gpus = []
            self._driver_version = self._version()
            count = self._calls.call("nvmlDeviceGetCount")
        except pynvml.NVMLError as error:
            self.close()
            raise SourceError(f"NVML: {error}") from error
        self._gpus = [_Gpu(Device(index, self._window())) for index in range(count)]
        return self._gpus

    def _version(self) -> str:
        """Return the driver's version, "" where it does not tell: nothing else hangs on it."""
        try:
            return str(self._calls.call("nvmlSystemGetDriverVersion"))
        except RELOADED:
            raise
        except pynvml.NVMLError:
            return ""  # Counted by `call`.

    def _window(self) -> UtilizationWindow:
        return UtilizationWindow(self._calls.dropped)

    def _sample(self, gpu: _Gpu, tick: Tick) -> tuple[DeviceSample, ...]:
        if gpu.lost_reason and is_within(tick.now - gpu.lost_at, self._reprobe_seconds):
            return _unhealthy(gpu, tick.now)
        try:
            if gpu.whole.handle is None:
                self._identify(gpu.whole)
            self._divide(gpu, tick.now)
            samples = tuple(self._measured(gpu, tick))
        except LostError as lost:
            self._lose(gpu, str(lost), tick.now)
            return _unhealthy(gpu, tick.now)
        except RELOADED as error:
            if not self._is_alone(gpu):
                self._suspect = gpu.whole.index
                raise
            self._lose(gpu, f"the driver says of this device alone: {error}", tick.now)
            return _unhealthy(gpu, tick.now)
        if gpu.lost_reason:
            _log.info("device_back", index=gpu.whole.index, uuid=gpu.whole.uuid)
            gpu.lost_reason = ""
        return samples

    def _is_alone(self, gpu: _Gpu) -> bool:
        """Return whether this device alone says that there is no driver.

        It does where the driver was taken up just now, or was so because of this device before, and others answer.
        """
        again = bool(gpu.lost_reason) or self._suspect == gpu.whole.index
        others = (other for other in self._gpus or () if other is not gpu)
        return self._is_fresh or (again and any(not other.lost_reason for other in others))

    def _measured(self, gpu: _Gpu, tick: Tick) -> Iterator[DeviceSample]:
        if gpu.parts is None:
            yield measure(self._calls, gpu.whole, tick)
            return
        if not gpu.parts:
            yield _unread(gpu.whole, tick.now, "MIG mode is on, and there is no instance")
        for part in gpu.parts.values():
            try:
                yield measure(self._calls, part, tick)
            except LostError as lost:
                # The instance may have been removed, or the GPU with it: the next look tells.
                gpu.looked_at = None
                yield _unread(part, tick.now, str(lost))

    def _divide(self, gpu: _Gpu, now: float) -> None:
        """Look whether the GPU is divided now, and into which instances; those that stayed go on as they were."""
        if gpu.looked_at is not None and is_within(now - gpu.looked_at, self._list_seconds):
            return
        try:
            divided = is_divided(self._calls, gpu.whole)
            instances = find_instances(self._calls, gpu.whole, gpu.whole.uuid) if divided else ()
        except UnansweredError as error:
            if not gpu.is_known or any(device.handle is None for device in gpu.devices):
                raise LostError(f"does not say whether or how it is divided: {error}") from error
            return  # It goes on as it was, and is asked again at the next tick.
        gpu.looked_at, gpu.is_known = now, True
        if not divided:
            self._forget_parts(gpu)
            return
        known, gpu.parts = gpu.parts or {}, {}
        for found in instances:
            part = known.pop(found.uuid, None)
            if part is None or part.instance is None or part.instance.gi != found.instance.gi:
                if not found.instance.fraction:
                    continue  # How large it is has to be known before anything is said of it.
                part = Device(gpu.whole.index, self._window(), uuid=found.uuid, model=gpu.whole.model)
                part.instance = found.instance
            if found.instance.is_exact and not part.instance.is_exact:
                part.instance.fraction, part.instance.is_exact = found.instance.fraction, True
            part.handle, part.instance.mates = found.handle, found.instance.mates
            gpu.parts[found.uuid] = part
        for gone in known.values():
            if gone.instance is not None:
                forget(self._calls, gone.instance)

    def _forget_parts(self, gpu: _Gpu) -> None:
        for part in (gpu.parts or {}).values():
            if part.instance is not None:
                forget(self._calls, part.instance)
        gpu.parts = None

    def _lose(self, gpu: _Gpu, reason: str, now: float) -> None:
        if not gpu.lost_reason:
            _log.warning("device_lost", index=gpu.whole.index, uuid=gpu.whole.uuid, reason=reason)
        gpu.lost_reason = reason
        gpu.lost_at, gpu.looked_at = now, None
        for device in (gpu.whole, *gpu.devices):
            device.handle, device.listed, device.rows = None, None, ()
            device.missing.clear()
            device.window = self._window()
            if device.instance is not None:
                forget(self._calls, device.instance)

    def _identify(self, device: Device) -> None:
        try:
            device.handle = self._calls.call("nvmlDeviceGetHandleByIndex", device.index)
            device.uuid = self._calls.call("nvmlDeviceGetUUID", device.handle)
            device.model = self._calls.call("nvmlDeviceGetName", device.handle)
        except RELOADED:
            raise
        except pynvml.NVMLError as error:
            raise LostError(f"cannot be identified: {error}") from error

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

    def _tell_note(self, sample: DeviceSample) -> None:
        """Warn once of what a device does not tell."""
        if sample.note and self._told_notes.get(sample.uuid) != sample.note:
            self._told_notes[sample.uuid] = sample.note
            _log.warning("device_tells_less", uuid=sample.uuid, index=sample.index, reason=sample.note)


def _unhealthy(gpu: _Gpu, now: float) -> tuple[DeviceSample, ...]:
    return tuple(_unread(device, now, gpu.lost_reason) for device in gpu.devices or (gpu.whole,))


def _unread(device: Device, now: float, reason: str) -> DeviceSample:
    return DeviceSample(
        device.index, device.uuid, device.model, now, device.vram_total_bytes, healthy=False, reason=reason
    )
