"""Nouns of the node: frozen data between the stages, and the Protocols of the two outside worlds (devices, pods).

Units: ratios 0..1, bytes, seconds since the epoch, dense FP16 TFLOPs. None is "not known", never zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import msgspec

from autoscaler.contract.keys import QoS
from autoscaler.contract.quota import DeviceQuota

WorkerId: TypeAlias = tuple[str, str]
"""(pod_uid, container) of a worker."""

WorkerKey: TypeAlias = tuple[str, str, str]
"""(pod_uid, container, device UUID): a worker on one of its devices."""


class ProcessUse(msgspec.Struct, frozen=True, gc=False):
    """One process on one device. `compute_ratio` is None when the device could not say (not when idle: that is 0)."""

    pid: int
    compute_ratio: float | None
    vram_bytes: int | None


@dataclass(frozen=True, slots=True)
class DeviceSample:
    """One device at one moment; health apart from data, so that a lost GPU stops only its own series.

    `sampled_at` is the time of the newest measurement behind the figures. `processes_known` is False when the device
    cannot list its processes: then no absence from `processes` means idle. `note` says what a healthy one does not
    tell, and why.
    """

    index: int
    uuid: str
    model: str
    sampled_at: float
    vram_total_bytes: int
    vram_used_bytes: int | None = None
    compute_ratio: float | None = None
    mig_fraction: float = 1.0
    processes: tuple[ProcessUse, ...] = ()
    healthy: bool = True
    reason: str = ""
    processes_known: bool = True
    note: str = ""


@dataclass(frozen=True, slots=True)
class NodeSample:
    """All devices at one tick."""

    at: float
    devices: tuple[DeviceSample, ...]
    driver_version: str = ""


@dataclass(frozen=True, slots=True)
class Worker:
    """A vGPU worker: one container of one pod, and the figures it was born with (from its annotations), if any."""

    pod_uid: str
    namespace: str
    pod: str
    container: str
    workload: str
    qos: QoS = QoS.MEDIUM
    born: DeviceQuota | None = None
    """Amounts from the pod's annotations, valid for any device of the worker; its `uuid` is empty."""
    devices: tuple[str, ...] = ()
    """UUIDs of the devices it is bound to, where that is known before it uses them."""

    @property
    def id(self) -> WorkerId:
        """Its identity on its node."""
        return self.pod_uid, self.container


class WorkerUse(msgspec.Struct, frozen=True, gc=False):
    """What one worker used on one device in one tick; a struct, because each tick makes hundreds."""

    worker: Worker
    uuid: str
    sampled_at: float
    compute_ratio: float | None
    vram_bytes: int | None


@dataclass(frozen=True, slots=True)
class Unattributed:
    """What no known worker used on one device."""

    uuid: str
    compute_ratio: float | None
    vram_bytes: int | None


@dataclass(frozen=True, slots=True)
class Attribution:
    """A tick's use by worker and device; uses and unattributed sum up to each device's own figure.

    `seen` holds (pod_uid, container, uuid) of every known worker that was on a device before, idle ones too.
    """

    at: float
    uses: tuple[WorkerUse, ...]
    unattributed: tuple[Unattributed, ...]
    seen: frozenset[WorkerKey] = frozenset()
    by_key: Mapping[WorkerKey, WorkerUse] = field(init=False, repr=False, compare=False)
    """The uses by (pod_uid, container, uuid), made once for everyone in a tick."""

    def __post_init__(self) -> None:
        """Index the uses."""
        keyed = {(use.worker.pod_uid, use.worker.container, use.uuid): use for use in self.uses}
        object.__setattr__(self, "by_key", keyed)


class DeviceSource(Protocol):
    """Where samples come from: NVML, or a simulation."""

    def sample(self, now: float) -> NodeSample:
        """Return all devices; a failing device is returned unhealthy, an unusable driver raises SourceError."""
        ...

    def close(self) -> None:
        """Release the driver."""
        ...


@runtime_checkable
class MovingMemory(Protocol):
    """A source that can tell a device's memory between two samples; most cannot."""

    def moved_memory(self, uuid: str) -> Mapping[int, int | None] | None:
        """Return what each process on a device holds, in bytes, where that moved since it was read last; else None."""
        ...


class ProcessDirectory(Protocol):
    """Who a process belongs to."""

    def worker_of(self, pid: int) -> Worker | None:
        """Return the worker of a host process, None when it belongs to none."""
        ...

    def workers(self) -> tuple[Worker, ...]:
        """Return every worker that is known on this node, idle ones too."""
        ...


class SourceError(Exception):
    """The device source as a whole cannot be used: no driver, no library, no permission."""
