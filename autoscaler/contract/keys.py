"""Annotation and label keys under `tensor-fusion.ai/`, and the closed sets of their values."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

DOMAIN: Final = "tensor-fusion.ai"
PREFIX: Final = f"{DOMAIN}/"
FIELD_MANAGER: Final = "tensor-fusion-autoscaler"

TFLOPS_REQUEST: Final = PREFIX + "tflops-request"
TFLOPS_LIMIT: Final = PREFIX + "tflops-limit"
VRAM_REQUEST: Final = PREFIX + "vram-request"
VRAM_LIMIT: Final = PREFIX + "vram-limit"
QOS: Final = PREFIX + "qos"
GPU_COUNT: Final = PREFIX + "gpu-count"
GPU_MODEL: Final = PREFIX + "gpu-model"
GPU_IDS: Final = PREFIX + "gpu-ids"
GPU_POOL: Final = PREFIX + "gpupool"
REPLICAS: Final = PREFIX + "replicas"
AUTO_REQUESTS: Final = PREFIX + "auto-requests"
AUTO_LIMITS: Final = PREFIX + "auto-limits"
AUTO_REPLICAS: Final = PREFIX + "auto-replicas"
WORKLOAD_PROFILE: Final = PREFIX + "workload-profile"
WORKLOAD: Final = PREFIX + "workload"
GENERATE_WORKLOAD: Final = PREFIX + "generate-workload"
INJECT_CONTAINER: Final = PREFIX + "inject-container"
IS_LOCAL_GPU: Final = PREFIX + "is-local-gpu"
NO_STANDALONE_WORKER_MODE: Final = PREFIX + "no-standalone-worker-mode"
ENABLED: Final = PREFIX + "enabled"

# Newer TensorFusion releases.
AUTOSCALE: Final = PREFIX + "autoscale"
AUTOSCALE_TARGET: Final = PREFIX + "autoscale-target"
AUTO_RESOURCES: Final = PREFIX + "auto-resources"
ISOLATION: Final = PREFIX + "isolation"
DEDICATED_GPU: Final = PREFIX + "dedicated-gpu"

# Ours.
AUTOSCALING_PAUSED: Final = PREFIX + "autoscaling-paused"
AUTOSCALING_REVERT: Final = PREFIX + "autoscaling-revert"
AUTOSCALING_ORIGINAL: Final = PREFIX + "autoscaling-original"
AUTOSCALING_APPLIED: Final = PREFIX + "autoscaling-applied"
"""On a worker: the amounts that were last written to it here. One that differs was changed by somebody else."""
AUTOSCALING_ADOPTED: Final = PREFIX + "autoscaling-adopted"
"""On a TensorFusionWorkload: figures that somebody else set and that count as the user's own since."""
AUTOSCALING_BORN: Final = PREFIX + "autoscaling-born"
"""On a pod: which workload's decision gave it the figures that it was born with."""
MODEL_PARAMS: Final = PREFIX + "model-params"
MODEL_PRECISION: Final = PREFIX + "model-precision"
MODEL_CONTEXT: Final = PREFIX + "model-context"
MODEL_USERS: Final = PREFIX + "model-users"


class QoS(StrEnum):
    """Service level; the order of the members is the order in which they give when a device is short."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


class Effect(StrEnum):
    """When a new quota becomes effective on a running worker; reported by the backend, never assumed."""

    IMMEDIATE = "immediate"
    NEXT_ALLOC = "next_alloc"
    NEXT_PROCESS = "next_process"
    RESTART = "restart"
    UNSUPPORTED = "unsupported"


EFFECTIVE_NOW: Final = frozenset({Effect.IMMEDIATE, Effect.NEXT_ALLOC})
"""Effect classes that reach a worker which is already running."""
