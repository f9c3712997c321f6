"""Who works and who only holds memory: what each worker may need for its work now, by the contract's gate.

Where a device has room for every limit, nobody asks. Where it has not, head-room goes to work first: a worker that has
been idle for a while counts with little over what it holds, and with its limit again on its first active sample.
"""

from __future__ import annotations

from collections.abc import Mapping

from agent.govern.pool import Layout
from agent.model.samples import Attribution, WorkerKey
from autoscaler.contract.gate import UNGATED, Gate


class Activity:
    """One gate per worker and device; forgets who is gone."""

    def __init__(self) -> None:
        self._gates: dict[WorkerKey, Gate] = {}

    def working_bytes(
        self, layout: Layout, attribution: Attribution, totals: Mapping[str, int]
    ) -> Mapping[WorkerKey, int]:
        """Take a tick and return, by place, the VRAM in bytes that work may need; no entry means up to the limit.

        A worker is taken to work when it is first seen, and while nothing tells what it does; on a device with room
        for every limit nobody is looked at.
        """
        now, crowded = attribution.at, self._crowded(layout, totals)
        if not crowded:
            self._gates = {}
            return {}
        uses = attribution.by_key
        kept: dict[WorkerKey, Gate] = {}
        found: dict[WorkerKey, int] = {}
        for key, (worker, quota) in layout.places.items():
            use = uses.get(key)
            if key[2] not in crowded:
                continue
            if worker.qos in UNGATED or use is None or use.vram_bytes is None or use.compute_ratio is None:
                continue
            gate = self._gates.get(key) or Gate(float(quota.vram_limit_bytes), active_at=now)
            # A clock that was set back would have it at work until it is where it was.
            gate.active_at = min(gate.active_at, now)
            gate.sample(now, use.compute_ratio, float(use.vram_bytes))
            kept[key] = gate
            found[key] = int(gate.limit(now, float(quota.vram_request_bytes), float(quota.vram_limit_bytes)))
        self._gates = kept
        return found

    @staticmethod
    def _crowded(layout: Layout, totals: Mapping[str, int]) -> frozenset[str]:
        """Return the devices whose limits pass their memory, `totals` in bytes."""
        limits: dict[str, int] = {}
        for key, (_, quota) in layout.places.items():
            limits[key[2]] = limits.get(key[2], 0) + quota.vram_limit_bytes
        return frozenset(uuid for uuid, limit in limits.items() if limit > totals.get(uuid, 0))
