"""The Protocol of an enforcement backend, and what it says of itself and of each attempt.

A backend never reports more than it knows: `Applied.effect` tells when the limits reach the running worker, and
`Observed` holds only what was read back. Neighbours: one module a backend beside this one, `transition` drives them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from agent.model.applied import Applied
from agent.model.samples import Worker, WorkerKey
from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import DeviceQuota, Observed

LiveUse = Callable[[Worker, str], Observed]
"""(worker, device UUID) to what it uses there now; the limits in it are None."""


class BackendError(Exception):
    """The backend itself cannot be used here: who runs the node must act."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """When a new limit becomes effective here, by resource; `reason` says why something is unsupported."""

    compute: Effect
    vram: Effect
    reason: str = ""


class Backend(Protocol):
    """One way to hold running workers to their limits."""

    @property
    def name(self) -> str:
        """Return the name it is chosen by."""
        ...

    def probe(self) -> Capabilities:
        """Return what can be enforced here; pick up what an earlier run of the agent left in force.

        Raises:
            BackendError: it cannot work here at all.
        """
        ...

    def observe(self, worker: Worker, uuid: str) -> Observed:
        """Return the limits in force and the live use; None for what cannot be told."""
        ...

    def apply(self, worker: Worker, quota: DeviceQuota) -> Applied:
        """Put the quota's limits into force on its device, or say why not; an OSError is the caller's to report."""
        ...

    def in_force(self) -> Mapping[WorkerKey, int]:
        """Return every VRAM limit in bytes that is in force, those that an earlier run of the agent left included."""
        ...

    def release(self, key: WorkerKey) -> None:
        """Forget the limits of a worker that left the device; an OSError is the caller's to report."""
        ...

    def turn(self, now: float) -> None:
        """Do what each tick asks for beside new limits: steer, put right what others changed."""
        ...

    def restored(self) -> int:
        """Return how many limits were put right, since the start, that somebody else had changed."""
        ...

    def serves(self, key: WorkerKey) -> str:
        """Return the name of what holds a worker on a device."""
        ...

    def close(self) -> None:
        """Stop working; what is in force stays."""
        ...
