"""The quota document and its answers, as the agent's HTTP API carries them.

Whole-node and idempotent: a document lists every quota of the node. `(epoch, generation)` orders documents; an agent
refuses an older one. What a reply calls `applied` is only what the backend acknowledged. `gc=False` where a
fleet's pass makes hundreds of thousands: frozen structs of strings and numbers can't form cycles.
"""

from __future__ import annotations

from typing import Final

import msgspec

from autoscaler.contract.keys import Effect, QoS

MAX_BODY_BYTES: Final = 4 * 1024 * 1024
QUOTAS_PATH: Final = "/v1/quotas"
DEVICES_PATH: Final = "/v1/devices"


class DeviceQuota(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """What one worker may use on one device: FP16 TFLOPs and bytes; request is guaranteed, limit is the ceiling."""

    uuid: str
    tflops_request: float
    tflops_limit: float
    vram_request_bytes: int
    vram_limit_bytes: int


class WorkerQuota(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """The quotas of one worker, found by its pod's UID (and container, where a pod has several workers)."""

    pod_uid: str
    namespace: str
    pod: str
    workload: str
    qos: QoS
    devices: tuple[DeviceQuota, ...]
    container: str = ""


class QuotaDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All quotas of one node."""

    epoch: int
    generation: int
    node: str
    quotas: tuple[WorkerQuota, ...]


class Observed(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What the node sees: the limits in force and live use; None where nothing can tell."""

    tflops_limit: float | None = None
    vram_limit_bytes: int | None = None
    tflops_used: float | None = None
    vram_used_bytes: int | None = None


class DeviceStatus(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One worker on one device: what is wanted, whether it is in force, and what was seen.

    `desired` is absent for a worker that no document has named yet. `reason` is empty when applied.
    """

    uuid: str
    applied: bool
    effect: Effect
    observed: Observed
    desired: DeviceQuota | None = None
    reason: str = ""


class WorkerStatus(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One worker as the node knows it; `qos` is None from an agent that does not tell it."""

    pod_uid: str
    namespace: str
    pod: str
    workload: str
    devices: tuple[DeviceStatus, ...]
    container: str = ""
    qos: QoS | None = None


class QuotaStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """Answer to PUT and GET /v1/quotas: every worker of the node, desired and observed."""

    node: str
    epoch: int
    generation: int
    workers: tuple[WorkerStatus, ...]


class Refusal(msgspec.Struct, frozen=True, omit_defaults=True):
    """Body of a 4xx answer: nothing was changed, and why. `epoch` and `generation` are those in force."""

    error: str
    message: str
    epoch: int = 0
    generation: int = 0


class DeviceInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """One GPU or MIG instance of the node; `tflops` is None for an unknown model, `healthy` False for a lost one.

    `reason` says why it is lost, or what a healthy one does not tell.
    """

    uuid: str
    model: str
    vram_total_bytes: int
    tflops: float | None = None
    vram_used_bytes: int | None = None
    healthy: bool = True
    reason: str = ""


class DevicesStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """Answer to GET /v1/devices: capacity, and the backends that can enforce here."""

    node: str
    devices: tuple[DeviceInfo, ...]
    backends: tuple[str, ...] = ()
