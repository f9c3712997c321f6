"""From a tick to who is frozen: joins what was measured with what is limited, and tells the freezer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.enforce.freeze import Freezer
from agent.govern.pool import Share
from agent.govern.preempt import Stop, Use, preempt
from agent.model.applied import Applied
from agent.model.samples import Attribution, NodeSample, WorkerKey
from autoscaler.contract.keys import EFFECTIVE_NOW


class Preempting:
    """Keeps who is stopped; without it nobody ever is."""

    def __init__(self, freezer: Freezer) -> None:
        self._freezer = freezer
        self._stops: dict[tuple[str, str], Stop] = {}
        freezer.recover()

    def turn(
        self,
        sample: NodeSample,
        attribution: Attribution,
        shares: Sequence[Share],
        applied: Mapping[WorkerKey, Applied],
        tflops: Mapping[str, float],
    ) -> None:
        """Stop and let go, once a tick."""
        uses = {key: use for key, use in attribution.by_key.items() if use.uuid in tflops}
        known = {
            key: Use(
                None if use.compute_ratio is None else use.compute_ratio * tflops[use.uuid],
                is_limited=key in applied and applied[key].effect in EFFECTIVE_NOW,
            )
            for key, use in uses.items()
        }
        busy = {
            device.uuid: (device.compute_ratio, tflops[device.uuid])
            for device in sample.devices
            if device.compute_ratio is not None and device.uuid in tflops
        }
        self._stops = preempt(self._stops, shares, known, busy, sample.at)
        self._freezer.set(frozenset(name for name, stop in self._stops.items() if stop.is_on))

    def close(self) -> None:
        """Let everybody go."""
        self._freezer.set(frozenset())
