"""Metric families that the agent exports and the controller reads: one table, as data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class MetricType(StrEnum):
    """Prometheus metric types in use."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Metric:
    """One family: its name as scraped (counters with `_total`), its type, HELP text and labels."""

    name: str
    type: MetricType
    help: str
    labels: tuple[str, ...]


WORKER_LABELS: Final = ("namespace", "workload", "pod", "container", "node", "gpu_uuid")
DEVICE_LABELS: Final = ("node", "gpu_uuid")
AGENT_LABELS: Final = ("node",)

_SHARE = "time share of the SMs as NVML reports it, not achieved FLOPs"
_W = "tensor_fusion_worker_"
_D = "tensor_fusion_device_"
_A = "tensor_fusion_agent_"


def _worker(suffix: str, kind: MetricType, text: str, *extra: str) -> Metric:
    return Metric(_W + suffix, kind, text, WORKER_LABELS + extra)


def _device(suffix: str, kind: MetricType, text: str, *extra: str) -> Metric:
    return Metric(_D + suffix, kind, text, DEVICE_LABELS + extra)


def _agent(suffix: str, kind: MetricType, text: str, *extra: str) -> Metric:
    return Metric(_A + suffix, kind, text, AGENT_LABELS + extra)


_G, _C, _H, _I = MetricType.GAUGE, MetricType.COUNTER, MetricType.HISTOGRAM, MetricType.INFO

WORKER_COMPUTE_UTILIZATION = _worker(
    "compute_utilization_ratio", _G, f"Share of the device this worker used, 0..1 ({_SHARE})."
)
WORKER_COMPUTE_USED = _worker(
    "compute_used_tflops", _G, f"Utilization times the device's dense FP16 TFLOPs ({_SHARE})."
)
WORKER_COMPUTE_SECONDS = _worker(
    "compute_seconds_total",
    _C,
    f"Integral of the utilization ratio over time ({_SHARE}); survives scrape gaps.",
)
WORKER_VRAM_USED = _worker("vram_used_bytes", _G, "Device memory held by this worker now.")
WORKER_VRAM_PEAK = _worker("vram_peak_bytes", _G, "Highest device memory held since the last scrape.")
WORKER_TFLOPS_REQUEST = _worker("tflops_request", _G, "Guaranteed FP16 TFLOPs on this device.")
WORKER_TFLOPS_LIMIT = _worker("tflops_limit", _G, "Ceiling in FP16 TFLOPs on this device.")
WORKER_VRAM_REQUEST = _worker("vram_request_bytes", _G, "Guaranteed device memory.")
WORKER_VRAM_LIMIT = _worker("vram_limit_bytes", _G, "Ceiling of device memory.")
WORKER_EFFECTIVE_TFLOPS_LIMIT = _worker(
    "effective_tflops_limit",
    _G,
    "TFLOPs limit in force on the running worker, as its backend acknowledged it.",
)
WORKER_EFFECTIVE_VRAM_LIMIT = _worker(
    "effective_vram_limit_bytes",
    _G,
    "VRAM limit in force on the running worker, as its backend acknowledged it.",
)
WORKER_THROTTLED_SECONDS = _worker(
    "throttled_seconds_total",
    _C,
    "Seconds during which the limit held the worker back; absent where no backend can tell.",
)
WORKER_OOM = _worker(
    "oom_total", _C, "Out-of-memory events, by how they were seen; absent where nothing can tell.", "source"
)
WORKER_QUOTA_GENERATION = _worker("quota_generation", _G, "Generation of the newest quota document received.")
WORKER_QUOTA_APPLIED_GENERATION = _worker(
    "quota_applied_generation", _G, "Generation of the newest quota document in force on this worker."
)
WORKER_BURST_CREDIT = _worker(
    "burst_credit_tflop_seconds",
    _G,
    "What this worker saved up under its request and may spend above it; absent for levels whose bursts need none.",
)
WORKER_LIMIT_BYPASSED = _worker(
    "limit_bypassed",
    _G,
    "1 while use has been above an effective limit for 10 s; absent where no limit reaches the running worker.",
)
WORKER_COMPUTE_BEYOND_LIMIT = _worker(
    "compute_beyond_limit_seconds_total",
    _C,
    "The part of compute_seconds_total that went beyond an effective limit, which is no evidence of demand.",
)
WORKER_VRAM_BEYOND_LIMIT = _worker(
    "vram_beyond_limit_peak_bytes",
    _G,
    "Highest part of the device memory held since the last scrape that went beyond an effective limit.",
)
WORKER_SAMPLE_AGE = _worker("sample_age_seconds", _G, "Age of the measurement behind this worker's series.")
WORKER_INFO = _worker("info", _G, "Facts about the worker; always 1.", "qos", "backend", "gpu_model", "pod_uid")

DEVICE_COMPUTE_UTILIZATION = _device("compute_utilization_ratio", _G, "Utilization of the device, 0..1.")
DEVICE_COMPUTE_CAPACITY = _device(
    "compute_capacity_tflops",
    _G,
    "Dense FP16 TFLOPs of the device (times its MIG fraction); absent for unknown models.",
)
DEVICE_VRAM_USED = _device("vram_used_bytes", _G, "Device memory in use.")
DEVICE_VRAM_TOTAL = _device("vram_total_bytes", _G, "Device memory installed.")
DEVICE_UNATTRIBUTED_COMPUTE = _device(
    "unattributed_compute_ratio", _G, "Utilization that belongs to no known worker, 0..1."
)
DEVICE_UNATTRIBUTED_VRAM = _device("unattributed_vram_bytes", _G, "Device memory that belongs to no known worker.")
DEVICE_INFO = _device("info", _G, "Facts about the device; always 1.", "gpu_model", "driver_version")

AGENT_SAMPLE_SECONDS = _agent("sample_seconds", _H, "Time to take one sample of all devices.")
AGENT_NVML_CALL_SECONDS = _agent("nvml_call_seconds", _H, "Time of NVML calls, by call.", "call")
AGENT_NVML_ERRORS = _agent("nvml_errors_total", _C, "Failed NVML calls, by call and error code.", "call", "code")
AGENT_SAMPLES_DROPPED = _agent(
    "samples_dropped_total",
    _C,
    "Utilization samples that were not believed (stale, from the future, over 100 %).",
    "reason",
)
AGENT_APPLY_SECONDS = _agent("apply_seconds", _H, "Time to put one quota document into force.")
AGENT_APPLY = _agent(
    "apply_total",
    _C,
    "Quotas by backend, result (applied, refused; restored: somebody else had changed it) and effect.",
    "backend",
    "result",
    "effect",
)
AGENT_TICK_OVERRUN = _agent("tick_overrun_total", _C, "Ticks that took longer than the tick interval.")
AGENT_CONTACT = _agent(
    "last_controller_contact_seconds", _G, "Seconds since a controller last wrote or read quotas here."
)

WORKER_METRICS: Final = (
    WORKER_COMPUTE_UTILIZATION,
    WORKER_COMPUTE_USED,
    WORKER_COMPUTE_SECONDS,
    WORKER_VRAM_USED,
    WORKER_VRAM_PEAK,
    WORKER_TFLOPS_REQUEST,
    WORKER_TFLOPS_LIMIT,
    WORKER_VRAM_REQUEST,
    WORKER_VRAM_LIMIT,
    WORKER_EFFECTIVE_TFLOPS_LIMIT,
    WORKER_EFFECTIVE_VRAM_LIMIT,
    WORKER_THROTTLED_SECONDS,
    WORKER_OOM,
    WORKER_QUOTA_GENERATION,
    WORKER_QUOTA_APPLIED_GENERATION,
    WORKER_BURST_CREDIT,
    WORKER_LIMIT_BYPASSED,
    WORKER_COMPUTE_BEYOND_LIMIT,
    WORKER_VRAM_BEYOND_LIMIT,
    WORKER_SAMPLE_AGE,
    WORKER_INFO,
)
DEVICE_METRICS: Final = (
    DEVICE_COMPUTE_UTILIZATION,
    DEVICE_COMPUTE_CAPACITY,
    DEVICE_VRAM_USED,
    DEVICE_VRAM_TOTAL,
    DEVICE_UNATTRIBUTED_COMPUTE,
    DEVICE_UNATTRIBUTED_VRAM,
    DEVICE_INFO,
)
AGENT_METRICS: Final = (
    AGENT_SAMPLE_SECONDS,
    AGENT_NVML_CALL_SECONDS,
    AGENT_NVML_ERRORS,
    AGENT_SAMPLES_DROPPED,
    AGENT_APPLY_SECONDS,
    AGENT_APPLY,
    AGENT_TICK_OVERRUN,
    AGENT_CONTACT,
)
