"""What a workload's owner wants, resolved and typed: the only form in which the core sees annotations and profiles.

`None` means "not set by anyone": the recommender then takes the default of the workload's QoS. Durations are seconds,
ratios are plain numbers (0.1 for "10%"), compute is FP16 TFLOPs and VRAM bytes, per worker and device.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from autoscaler.contract.keys import QoS
from autoscaler.model.resources import Amounts, Resource
from autoscaler.model.sizing import ModelSize


class Mode(StrEnum):
    """How far a layer may go. What is recommended is shown in every mode; only ON is applied."""

    OFF = "off"
    RECOMMEND = "recommend"
    ON = "on"


ALL_RESOURCES = frozenset(Resource)


@dataclass(frozen=True, slots=True)
class Prediction:
    """The forecast behind a layer."""

    enable: bool = False
    model: str = "auto"
    history_seconds: float | None = None
    horizon_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class RequestsPolicy:
    """Layer 3, the baseline (`autoSetRequests`). `percentile` set selects that percentile of usage."""

    mode: Mode = Mode.OFF
    targets: frozenset[Resource] = ALL_RESOURCES
    percentile: float | None = None
    vram_percentile: float | None = None
    """Only the translated autoSetResources form sets it; None: as `percentile`."""
    buffer_ratio: float | None = None
    update_threshold_ratio: float | None = None
    evaluation_seconds: float | None = None
    aggregation_seconds: float | None = None
    stabilization_seconds: float | None = None
    prediction: Prediction = Prediction()


@dataclass(frozen=True, slots=True)
class LimitsPolicy:
    """Layer 1, the burst ceiling (`autoSetLimits`)."""

    mode: Mode = Mode.OFF
    targets: frozenset[Resource] = ALL_RESOURCES
    percentile: float | None = None
    vram_percentile: float | None = None
    tflops_buffer_ratio: float | None = None
    vram_buffer_ratio: float | None = None
    ignored_delta_ratio: float | None = None
    scale_up_step: float | None = None
    max_ratio_to_requests: float | None = None
    evaluation_seconds: float | None = None
    aggregation_seconds: float | None = None
    stabilization_seconds: float | None = None
    cool_down_seconds: float | None = None
    prediction: Prediction = Prediction()


@dataclass(frozen=True, slots=True)
class Step:
    """How far replicas may move per cool-down: a count, or a ratio of the current count."""

    value: float
    is_ratio: bool = False


@dataclass(frozen=True, slots=True)
class ReplicasPolicy:
    """Layer 2, outward (`autoSetReplicas`)."""

    mode: Mode = Mode.OFF
    target_tflops_ratio: float | None = None
    target_vram_ratio: float | None = None
    evaluation_seconds: float | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None
    scale_up_step: Step | None = None
    scale_down_step: Step | None = None
    scale_up_cool_down_seconds: float | None = None
    scale_down_cool_down_seconds: float | None = None
    stabilization_seconds: float | None = None
    tolerance_ratio: float | None = None
    prediction: Prediction = Prediction()


@dataclass(frozen=True, slots=True)
class Bounds:
    """Absolute and relative limits on what may be recommended; ratios are of the user's own figures.

    Each tuple is indexed by Resource; None is unbounded.
    """

    min_allowed: tuple[float | None, float | None] = (None, None)
    max_allowed: tuple[float | None, float | None] = (None, None)
    min_ratio: tuple[float | None, float | None] = (None, None)
    max_ratio: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True, slots=True)
class CronRule:
    """One scaling rule by the clock; overlaps are settled by priority, then order."""

    name: str
    start: str
    end: str
    time_zone: str = "UTC"
    enable: bool = True
    priority: int = 0
    requests: tuple[float | None, float | None] = (None, None)
    limits: tuple[float | None, float | None] = (None, None)
    replicas: int | None = None


@dataclass(frozen=True, slots=True)
class ExternalScaler:
    """A scaler of the user's own, asked over HTTP(S). An empty `secret_namespace` is the workload's own."""

    url: str
    enable: bool = False
    timeout_seconds: float = 5.0
    interval_seconds: float = 60.0
    initial_delay_seconds: float = 0.0
    secret_name: str = ""
    secret_key: str = ""
    secret_namespace: str = ""


@dataclass(frozen=True, slots=True)
class Pause:
    """What is paused: growth, shrinking or both, for ever or until a moment (seconds since the epoch)."""

    up: bool = False
    down: bool = False
    until: float | None = None


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything a workload's owner decides, after annotation > profile > cluster default > built-in default."""

    amounts: Amounts
    qos: QoS = QoS.MEDIUM
    gpu_count: int = 1
    gpu_model: str = ""
    pool: str = ""
    replicas: int | None = None
    workload: str = ""
    """Name of the shared TensorFusionWorkload; empty: the top owner's name."""
    profile: str = ""
    generate_workload: bool = True
    inject_containers: tuple[str, ...] = ()
    is_local_gpu: bool = False
    no_standalone_worker: bool = False
    isolation: str = "soft"
    dedicated_gpu: bool = False
    requests: RequestsPolicy = RequestsPolicy()
    limits: LimitsPolicy = LimitsPolicy()
    replicas_policy: ReplicasPolicy = ReplicasPolicy()
    cron_rules: tuple[CronRule, ...] = ()
    external: ExternalScaler | None = None
    bounds: Bounds = Bounds()
    initial_delay_seconds: float | None = None
    pause: Pause = Pause()
    revert: bool = False
    model_size: ModelSize | None = None
    gang_members: int = 0
    """Workers that must run together, 0: any number is useful."""
    warnings: tuple[str, ...] = field(default=())
