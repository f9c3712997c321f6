"""One device measured through NVML: memory, its own utilization, and that of its processes.

A device is a GPU or a MIG instance; what it cannot tell is None. Neighbours: `source` keeps the devices and their
health, `processes` lists who is on one, `mig` finds the instances of a GPU and their utilization.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import starmap
from statistics import fmean
from typing import Any, Final

import pynvml

from agent.model.samples import DeviceSample
from agent.nvml.calls import Calls, LostError
from agent.nvml.mig import Instance, instance_ratio
from agent.nvml.processes import Listed, list_memory, list_processes, uses_of
from agent.utilization import UtilizationSample, UtilizationWindow

GROWN_RATIO: Final = 0.01
"""Of the device: so much more memory in use than at the last list is somebody's, who may be at its limit."""
MOVED_SECONDS: Final = 1.0
"""Processes come to work and rest many times a second: that alone is no reason for two lists in a second."""
_EARLY_SECONDS: Final = 0.05
"""A tick that comes this early is meant for the moment."""


@dataclass(frozen=True, slots=True)
class Tick:
    """One tick: its time (seconds since the epoch), and the seconds between two process lists."""

    now: float
    list_seconds: float


@dataclass(slots=True)
class Device:
    """What is remembered of one device between ticks; `listed` is None while its process list is unknown.

    `index` is the GPU's; `instance` is set for a MIG instance. `rows` are the last tick's samples as the driver gave
    them.
    """

    index: int
    window: UtilizationWindow
    handle: Any = None
    uuid: str = ""
    model: str = ""
    vram_total_bytes: int = 0
    instance: Instance | None = None
    sampled_at: float | None = None
    missing: set[str] = field(default_factory=set)
    listed: Listed | None = None
    listed_at: float = 0.0
    listed_bytes: int | None = None
    rows: tuple[UtilizationSample, ...] = ()


def is_within(since: float, seconds: float) -> bool:
    """Return whether so many seconds are not over yet; they are where the clock was set back, or a tick comes early."""
    return 0.0 <= since < seconds - _EARLY_SECONDS


def measure(calls: Calls, device: Device, tick: Tick) -> DeviceSample:
    """Return what the device shows at this tick.

    Raises:
        LostError: it cannot be read, and why.
        NVMLError: the driver was reloaded.
    """
    used_bytes = _memory(calls, device)
    if not device.vram_total_bytes:
        raise LostError("does not say how much memory it has")
    compute_ratio, note = _device_ratio(calls, device, tick.now)
    ratios = _process_ratios(calls, device, tick.now, busy=bool(compute_ratio))
    if compute_ratio is not None and ratios:
        # Momentary or coarse as its figure may be, a device was busy at least as long as its busiest process.
        compute_ratio = max(compute_ratio, *ratios.values())
    _list(calls, device, tick, frozenset(ratios or ()), used_bytes)
    processes, hidden = uses_of(ratios, device.listed, is_idle=compute_ratio == 0)
    return DeviceSample(
        device.index,
        device.uuid,
        device.model,
        device.window.last_seen_us(round(tick.now * 1e6)) / 1e6 if device.window.held() else tick.now,
        device.vram_total_bytes,
        used_bytes,
        compute_ratio,
        mig_fraction=device.instance.fraction if device.instance is not None else 1.0,
        processes=processes,
        processes_known=device.listed is not None,
        note=note or hidden,
    )


def moved_memory(calls: Calls, device: Device) -> Mapping[int, int | None] | None:
    """Return the memory of each process where the device's moved since they were listed; None where it did not.

    The next tick sees it too. What is asked for is what a look between two ticks may cost.

    Raises:
        LostError: the device cannot be read, and why.
        NVMLError: the driver was reloaded.
    """
    used_bytes = _memory(calls, device)
    if device.listed is None or used_bytes is None or used_bytes == device.listed_bytes:
        return None
    listed = list_memory(calls, device, device.listed)
    if listed is None:
        return None
    device.listed, device.listed_bytes = listed, used_bytes
    return listed.vram_by_pid


def _memory(calls: Calls, device: Device) -> int | None:
    """Read used and total bytes: the second version counts what the driver reserved apart from use."""
    memory = calls.ask(device, "nvmlDeviceGetMemoryInfo", pynvml.nvmlMemory_v2, feature="memory_v2")
    if memory is None:
        memory = calls.ask(device, "nvmlDeviceGetMemoryInfo", feature="memory")
    if memory is None or memory.total == pynvml.NVML_VALUE_NOT_AVAILABLE_ulonglong.value:
        return None
    device.vram_total_bytes = memory.total
    return int(memory.used) if memory.used <= memory.total else None


def _device_ratio(calls: Calls, device: Device, now: float) -> tuple[float | None, str]:
    """Return the mean since the last tick where the driver keeps samples, else its figure of this moment; why not."""
    if device.instance is not None:
        return instance_ratio(calls, device, device.instance, now)
    since, device.sampled_at = device.sampled_at, now
    if since is not None:
        kept = calls.ask(device, "nvmlDeviceGetSamples", pynvml.NVML_GPU_UTILIZATION_SAMPLES, round(since * 1e6))
        rows = [row for row in (kept[1] if kept else ()) if since < row.timeStamp / 1e6 <= now + 1]
        percents = [row.sampleValue.uiVal for row in rows if row.sampleValue.uiVal <= 100]
        if percents:
            return fmean(percents) / 100, ""
    rates = calls.ask(device, "nvmlDeviceGetUtilizationRates")
    return (rates.gpu / 100 if rates is not None and rates.gpu <= 100 else None), ""


def _process_ratios(calls: Calls, device: Device, now: float, *, busy: bool) -> Mapping[int, float] | None:
    """Return the ratio of each active process; None where the device tells of none, as MIG instances do."""
    device.rows = ()
    if device.instance is not None:
        return None
    now_us = round(now * 1e6)
    since_us = device.window.last_seen_us(now_us)
    rows = calls.ask(device, "nvmlDeviceGetProcessUtilization", since_us, idle=())
    if "nvmlDeviceGetProcessUtilization" in device.missing:
        return None
    if rows is not None:
        device.rows = tuple(starmap(UtilizationSample, rows))
    return device.window.take(None if rows is None else device.rows, now_us, busy=busy)


def _list(calls: Calls, device: Device, tick: Tick, active: frozenset[int], used_bytes: int | None) -> None:
    """List the processes where it is time to, sooner where something moved; `used_bytes` is the device's memory in use.

    At once: a process that no list has, or memory that grew by as much as limits are coarse. Within a second: others
    are active than before. A look at the device's memory costs microseconds, a list milliseconds.
    """
    before, since = device.listed, tick.now - device.listed_at
    if before is not None and is_within(since, tick.list_seconds):
        unknown = active - before.vram_by_pid.keys()
        grown = (used_bytes or 0) - (device.listed_bytes or 0) >= GROWN_RATIO * device.vram_total_bytes
        moved = active != before.active and not is_within(since, MOVED_SECONDS)
        if not (grown or moved or unknown - before.active):
            return
    device.listed = list_processes(calls, device, tick.now, active, before)
    device.listed_at, device.listed_bytes = tick.now, used_bytes
