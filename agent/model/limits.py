"""The Protocol of the driver's memory limits by cgroup: `nvml` speaks it, the dmem actuator uses it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class LimitError(OSError):
    """A limit can't be set as asked; the text says why."""


class NoLimitsError(LimitError):
    """There are no limits for this cgroup; the text says why."""


class OldDriverError(LimitError):
    """The driver has no such limits, for whatever cgroup; the text says why."""


@dataclass(frozen=True, slots=True)
class CgroupLimits:
    """A cgroup's limits and use on one device, in bytes; `hard_bytes` None: no limit."""

    soft_bytes: int
    hard_bytes: int | None
    used_bytes: int


class MemoryLimits(Protocol):
    """The driver's memory limits by cgroup and device; `cgroup` is the full path of its directory."""

    def devices(self) -> tuple[str, ...]:
        """Return the UUIDs of the devices whose memory could be limited.

        Raises:
            LimitError: the driver can't be asked.
        """
        ...

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
