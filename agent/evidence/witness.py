"""What a tick tells beyond measurements: who was held back, who died of memory, who goes around a limit.

A simulation is a witness of its own; on a real node backends, container exits and the figures themselves are asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from agent.evidence.bypass import Bypass
from agent.evidence.ooms import Ooms
from agent.model.applied import Applied
from agent.model.beyond import Beyond
from agent.model.exits import Exit
from agent.model.samples import NodeSample, WorkerKey

Throttled = Mapping[WorkerKey, bool | None]
"""Whether the limit held each worker back since the last tick; None or no entry where nothing can tell."""


class Witness(Protocol):
    """Who can tell what a device does not show: being throttled, and dying of memory."""

    def throttled(self) -> Throttled:
        """Return whether the limit held each worker back at the last sample."""
        ...

    def ooms(self) -> Mapping[tuple[str, str, str, str], int]:
        """Return the total by worker, device and source."""
        ...


class Signs:
    """Reads the signs of each tick; each of its sources may be missing."""

    def __init__(
        self,
        witness: Witness | None = None,
        exits: Callable[[], tuple[Exit, ...]] | None = None,
        throttled: Callable[[], Throttled] | None = None,
    ) -> None:
        self._witness, self._exits = witness, exits
        self._throttled = witness.throttled if witness is not None else throttled
        self._ooms, self._bypass = Ooms(), Bypass()

    def tick(
        self,
        now: float,
        applied: Mapping[WorkerKey, Applied],
        sample: NodeSample,
        tflops_of: Callable[[str], float | None],
    ) -> None:
        """Take a tick: what is in force and in use on every device, at `now` in seconds since the epoch."""
        if self._exits is not None:
            self._ooms.tick(now, {key: one.observed for key, one in applied.items()}, self._exits())
        devices = {one.uuid: (tflops_of(one.uuid), one.vram_total_bytes) for one in sample.devices if one.healthy}
        self._bypass.tick(now, applied, devices)

    def throttled(self) -> Throttled:
        """Return who was held back since the last tick."""
        return self._throttled() if self._throttled is not None else {}

    def ooms(self, applied: Mapping[WorkerKey, Applied]) -> Mapping[tuple[str, str, str, str], int]:
        """Return the deaths by worker, device and source."""
        return self._witness.ooms() if self._witness is not None else self._ooms.counts(applied)

    def bypassed(self) -> Mapping[WorkerKey, bool]:
        """Return whether each worker goes around a limit, no entry where none is effective."""
        return self._bypass.found()

    def beyond(self) -> Mapping[WorkerKey, Beyond]:
        """Return what each worker uses beyond a limit now, no entry where nothing is."""
        return self._bypass.beyond()

    def bypasses(self) -> Mapping[WorkerKey, str]:
        """Return what to say of each worker that does."""
        return self._bypass.reasons()
