"""The Protocol of one way to hold real workers to one or both of their limits; `chosen` puts several together.

An actuator looks at the worker before it promises anything: `reach` says, for this worker on this device, when a new
limit would arrive. Neighbours: one module an actuator beside this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from agent.enforce.backend import Capabilities, LiveUse
from agent.model.applied import Applied
from agent.model.limits import LimitError, MemoryLimits
from agent.model.samples import Worker, WorkerKey
from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import DeviceQuota, Observed


class Part(StrEnum):
    """What is limited; an actuator may serve one of them or both."""

    COMPUTE = "compute"
    VRAM = "vram"


BOTH: Final = frozenset(Part)
SLOWEST_LAST: Final = (Effect.IMMEDIATE, Effect.NEXT_ALLOC, Effect.NEXT_PROCESS, Effect.RESTART, Effect.UNSUPPORTED)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What actuators stand in: live use, each device's FP16 TFLOPs and NVML index (None: not known), the host's places.

    `shrink_below_use`: a VRAM limit may go below what is in use; the worker's next allocation then fails.
    `state_dir` keeps what an actuator must remember over a restart of the agent.
    """

    live_use: LiveUse
    tflops_of: Callable[[str], float | None]
    index_of: Callable[[str], int | None]
    state_dir: Path
    cgroup_of: Callable[[Worker], str] = lambda _worker: ""
    memory_limits: MemoryLimits | None = None
    cgroup_root: Path = Path("/sys/fs/cgroup")
    tfshm_root: Path = Path("/run/tensor-fusion/shm")
    hamicore_root: Path = Path("/usr/local/vgpu/containers")
    mps_root: Path = Path("/run/tensor-fusion/mps")
    shrink_below_use: bool = False
    options: Mapping[str, str] = field(default_factory=dict)

    def share_of(self, quota: DeviceQuota) -> float:
        """Return a compute limit as a share of its device, 0..1.

        Raises:
            LimitError: the device's TFLOPs are not known.
        """
        capacity = self.tflops_of(quota.uuid)
        if not capacity:
            reason = f"the TFLOPs of {quota.uuid} are not known, so {quota.tflops_limit:g} is no share"
            raise LimitError(f"UnknownModel: {reason}")
        return min(quota.tflops_limit / capacity, 1.0)

    def check_use(self, quota: DeviceQuota, used_bytes: int | None, standing_bytes: int | None = None) -> None:
        """Let a VRAM limit pass that is not below what is in use, or may be, or not below the one that stands.

        Raises:
            LimitError: it is, and nobody forced it.
        """
        takes_nothing = standing_bytes is not None and quota.vram_limit_bytes >= standing_bytes
        if used_bytes is None or self.shrink_below_use or takes_nothing:
            return
        if quota.vram_limit_bytes < used_bytes:
            raise LimitError(f"VRAMInUse: a limit of {quota.vram_limit_bytes} bytes is below the {used_bytes} in use")


def each_part(parts: Iterable[Part], limit: Callable[[Part], None]) -> str:
    """Set one part after the other, whatever becomes of the one before; return what kept any from being set."""
    reasons = []
    for part in sorted(parts):
        try:
            limit(part)
        except LimitError as error:
            reasons.append(str(error))
    return "; ".join(reasons)


class Actuator(Protocol):
    """One way to hold running workers to their limits. An OSError of any call is the caller's to report."""

    @property
    def name(self) -> str:
        """Return the name it is chosen by."""
        ...

    def probe(self) -> Capabilities:
        """Return what it can do on this node at best, and why not more."""
        ...

    def reach(self, worker: Worker, uuid: str) -> Capabilities:
        """Return when a limit would arrive at this worker on this device; take up what is in force there already."""
        ...

    def observe(self, worker: Worker, uuid: str) -> Observed:
        """Return the limits read back where they are kept; None for what it does not hold. No live use."""
        ...

    def apply(self, worker: Worker, quota: DeviceQuota, parts: frozenset[Part]) -> Applied:
        """Put these parts of the quota into force on its device, or say why not; the other part is left as it is."""
        ...

    def in_force(self) -> Mapping[WorkerKey, int]:
        """Return every VRAM limit in bytes it holds, those that an earlier run of the agent left included."""
        ...

    def release(self, key: WorkerKey) -> None:
        """Let go of a worker that left the device."""
        ...

    def turn(self, now: float) -> None:
        """Do what each tick asks for: steer towards the limits in force, put right what others changed."""
        ...

    def restored(self) -> int:
        """Return how often something that somebody else had changed was put right."""
        ...

    def close(self) -> None:
        """Stop working; what is in force stays."""
        ...


@runtime_checkable
class HeedsToldUse(Protocol):
    """An actuator whose limiter judges allocations by the use it was told last; the others see it for themselves."""

    def tell_use(self, key: WorkerKey, vram_bytes: int) -> None:
        """Tell what a worker holds on a device; one that is not held here any more is left alone."""
        ...


@runtime_checkable
class TellsThrottling(Protocol):
    """An actuator that also knows whom it holds back; most cannot tell."""

    def throttled(self) -> Mapping[WorkerKey, bool | None]:
        """Return whether the compute limit held each worker back in the last tick, None where it was not seen."""
        ...
