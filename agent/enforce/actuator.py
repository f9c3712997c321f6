"""The Protocol of one way to hold real workers to one or both of their limits; `chosen` puts several together.

An actuator looks at the worker before it promises anything: `reach` says, for this worker on this device, when a new
limit would arrive. Neighbours: one module an actuator beside this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

from agent.enforce.backend import Applied, Capabilities, LiveUse
from agent.report import WorkerKey
from agent.samples import Worker
from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import DeviceQuota, Observed


class LimitError(OSError):
    """The driver refused a memory limit; the text says why."""


@dataclass(frozen=True, slots=True)
class CgroupLimits:
    """A cgroup's limits and use on one device, in bytes; `hard_bytes` None: no limit."""

    soft_bytes: int
    hard_bytes: int | None
    used_bytes: int


class MemoryLimits(Protocol):
    """The driver's memory limits by cgroup and device; `cgroup` is the full path of its directory."""

    def read(self, uuid: str, cgroup: Path) -> CgroupLimits:
        """Return what is in force.

        Raises:
            LimitError: there are none here, or not for this cgroup.
        """
        ...

    def write(self, uuid: str, cgroup: Path, soft_bytes: int, hard_bytes: int | None) -> None:
        """Set both limits.

        Raises:
            LimitError: the driver refused.
        """
        ...


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
    proc_root: Path = Path("/proc")
    cgroup_root: Path = Path("/sys/fs/cgroup")
    tfshm_root: Path = Path("/run/tensor-fusion/shm")
    hamicore_root: Path = Path("/usr/local/vgpu/containers")
    mps_root: Path = Path("/run/tensor-fusion/mps")
    shrink_below_use: bool = False
    options: Mapping[str, str] = field(default_factory=dict)


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
