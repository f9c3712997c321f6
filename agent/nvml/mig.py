"""MIG: the instances of a GPU as devices of their own, with the share of the GPU that each one is.

Neither the utilization of a MIG instance nor that of its processes is told the ordinary way. GPUs since Hopper tell
the GPU instance's by GPM: the share of its SMs that were busy between two samples, which are kept from tick to tick.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import pynvml

from agent.nvml.calls import Asked, Calls

GPM_APART_SECONDS: Final = 0.1
"""Two samples closer than this say nothing."""
_HIGHEST_PERCENT: Final = 100.5
"""GPM counts in fractions, so a whole device may come out a little above 100."""
_CORES_PER_SM: Final = {(8, 0): 64}
"""By CUDA capability; 128 on all others that have MIG."""


@dataclass(slots=True)
class Instance:
    """A MIG instance's place: its GPU's handle and UUID, the ids of its GPU and compute instance, its share of the GPU.

    A share of 0 is not known; `is_exact` tells that it was counted in SMs, not guessed by slices. `mates` counts the
    compute instances of its GPU instance, itself included. `gpm` holds the last sample of GPM.
    """

    gpu: Any
    gpu_uuid: str
    gi: int
    fraction: float
    is_exact: bool = False
    mates: int = 1
    has_gpm: bool | None = None
    gpm: Any = None
    gpm_at: float = 0.0
    ratio: float | None = None


@dataclass(slots=True)
class Found:
    """An instance as NVML lists it: its handle, UUID and place."""

    handle: Any
    uuid: str
    instance: Instance
    missing: set[str] = field(default_factory=set)


def is_divided(calls: Calls, gpu: Asked) -> bool:
    """Return whether a GPU is in MIG mode now.

    Raises:
        LostError, UnansweredError: the GPU is not there any more, or does not say.
    """
    mode = calls.insist(gpu, "nvmlDeviceGetMigMode")
    return mode is not None and mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE


def find_instances(calls: Calls, gpu: Asked, gpu_uuid: str) -> tuple[Found, ...]:
    """Return the MIG instances of a GPU; one that goes away meanwhile is left out.

    Raises:
        LostError, UnansweredError: the GPU is not there any more, or does not say.
    """
    slots = calls.insist(gpu, "nvmlDeviceGetMaxMigDeviceCount") or 0
    sms = _sms(calls, gpu)
    found = []
    for slot in range(slots):
        handle = calls.insist(gpu, "nvmlDeviceGetMigDeviceHandleByIndex", slot)
        one = _found(calls, handle, Instance(gpu.handle, gpu_uuid, -1, 0.0)) if handle is not None else None
        if one is not None:
            one.instance.fraction, one.instance.is_exact = _fraction(calls, one, sms, slots)
            found.append(one)
    mates = Counter(one.instance.gi for one in found)
    for one in found:
        one.instance.mates = mates[one.instance.gi]
    return tuple(found)


def instance_ratio(calls: Calls, device: Asked, instance: Instance, now: float) -> tuple[float | None, str]:
    """Return the share of the instance's SMs that were busy since the last tick, or None and why it is not known."""
    if instance.mates > 1:
        return None, f"MIG: GPM measures the GPU instance, which {instance.mates} compute instances share"
    if not _has_gpm(calls, device, instance):
        return None, "MIG: utilization needs GPM, which GPUs before Hopper and older drivers do not have"
    if instance.gpm is not None and 0 <= now - instance.gpm_at < GPM_APART_SECONDS:
        return instance.ratio, ""
    fresh = _taken(calls, device, instance)
    if fresh is None:
        return None, "MIG: GPM gave no sample"
    before, instance.gpm, instance.gpm_at = instance.gpm, fresh, now
    if before is None:
        return None, ""  # It takes two samples to tell anything.
    instance.ratio = _busy(calls, device, before, fresh)
    _free(calls, before)
    return instance.ratio, "" if instance.ratio is not None else "MIG: GPM gave no figure"


def forget(calls: Calls, instance: Instance) -> None:
    """Give back what GPM holds for an instance."""
    gpm, instance.gpm = instance.gpm, None
    _free(calls, gpm)


def _found(calls: Calls, handle: Any, instance: Instance) -> Found | None:
    one = Found(handle, "", instance)
    uuid = calls.ask(one, "nvmlDeviceGetUUID")
    gi = calls.ask(one, "nvmlDeviceGetGpuInstanceId")
    if uuid is None or gi is None:
        return None
    one.uuid, instance.gi = uuid, gi
    return one


def _sms(calls: Calls, gpu: Asked) -> float | None:
    """Return how many SMs the whole GPU has; MIG leaves some of them to nobody, so its slices add up to less."""
    cores = calls.ask(gpu, "nvmlDeviceGetNumGpuCores")
    capability = calls.ask(gpu, "nvmlDeviceGetCudaComputeCapability")
    return cores / _CORES_PER_SM.get(tuple(capability), 128) if cores and capability is not None else None


def _fraction(calls: Calls, one: Found, sms: float | None, slots: int) -> tuple[float, bool]:
    """Return the instance's share of the GPU's SMs, else of its slices, else 0.0; and whether it is the first."""
    attributes = calls.ask(one, "nvmlDeviceGetAttributes")
    if attributes is None:
        return 0.0, False
    if sms and attributes.multiprocessorCount:
        return min(1.0, int(attributes.multiprocessorCount) / sms), True
    return min(1.0, max(int(attributes.computeInstanceSliceCount), 1) / max(slots, 1)), False


def _has_gpm(calls: Calls, device: Asked, instance: Instance) -> bool:
    """Return whether the GPU tells by GPM; it is asked until it answers once."""
    if instance.has_gpm is None:
        support = calls.tell(device, "nvmlGpmQueryDeviceSupport", instance.gpu)
        if support is not None:
            instance.has_gpm = bool(support.isSupportedDevice)
    return bool(instance.has_gpm)


def _taken(calls: Calls, device: Asked, instance: Instance) -> Any:
    """Return a sample of the instance's counters, None where there is none to be had."""
    fresh, taken = calls.tell(device, "nvmlGpmSampleAlloc"), None
    if fresh is None:
        return None
    try:
        taken = calls.tell(device, "nvmlGpmMigSampleGet", instance.gpu, instance.gi, fresh)
    finally:
        # Whatever became of the call, what was allocated is given back.
        if taken is None:
            _free(calls, fresh)
    return None if taken is None else fresh


def _busy(calls: Calls, device: Asked, before: Any, after: Any) -> float | None:
    asked = pynvml.c_nvmlGpmMetricsGet_t()
    asked.version, asked.numMetrics = pynvml.NVML_GPM_METRICS_GET_VERSION, 1
    asked.sample1, asked.sample2 = before, after
    asked.metrics[0].metricId = pynvml.NVML_GPM_METRIC_SM_UTIL
    if calls.tell(device, "nvmlGpmMetricsGet", asked) is None or asked.metrics[0].nvmlReturn != pynvml.NVML_SUCCESS:
        return None
    percent = float(asked.metrics[0].value)
    if not math.isfinite(percent) or percent < 0:
        return None
    if percent > _HIGHEST_PERCENT:
        calls.dropped["over_100_percent"] += 1
        return None
    return min(1.0, percent / 100)


def _free(calls: Calls, sample: Any) -> None:
    if sample is None:
        return
    try:
        calls.call("nvmlGpmSampleFree", sample)
    except pynvml.NVMLError:
        # Counted by `call`. The library was shut down under it, and took the sample along.
        return
