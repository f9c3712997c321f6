"""The backend for nodes where nothing can be enforced: it reports live use, and every quota as unsupported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agent.enforce.backend import Capabilities, LiveUse
from agent.model.applied import Applied
from agent.model.samples import Worker, WorkerKey
from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import DeviceQuota, Observed

_REASON: Final = "Unsupported: the observe backend measures and changes no limits"


class ObserveBackend:
    """Watches only; no quota is ever called applied."""

    name = "observe"

    def __init__(self, live_use: LiveUse) -> None:
        self._live_use = live_use

    def probe(self) -> Capabilities:
        """Return that nothing is supported."""
        return Capabilities(Effect.UNSUPPORTED, Effect.UNSUPPORTED, _REASON)

    def observe(self, worker: Worker, uuid: str) -> Observed:
        """Return live use; the limits in force are not known."""
        return self._live_use(worker, uuid)

    def apply(self, worker: Worker, quota: DeviceQuota) -> Applied:
        """Refuse, always."""
        return Applied(Effect.UNSUPPORTED, self._live_use(worker, quota.uuid), _REASON)

    def in_force(self) -> Mapping[WorkerKey, int]:
        """Return nothing."""
        return {}

    def release(self, key: WorkerKey) -> None:
        """Do nothing: nothing was put into force."""

    def turn(self, now: float) -> None:
        """Do nothing: nothing is steered."""

    def restored(self) -> int:
        """Return 0: nobody changes what is not there to be changed."""
        return 0

    def serves(self, key: WorkerKey) -> str:  # noqa: ARG002  it is the same for all
        """Return its name."""
        return self.name

    def close(self) -> None:
        """Do nothing: nothing runs."""
