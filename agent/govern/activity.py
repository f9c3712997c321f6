"""Who works and who only holds memory: what each worker may need for its work now, by the contract's gate.

Where a device has room for every limit, nobody asks. Where it has not, head-room goes to work first: a worker that has
been idle for a while counts with little over what it holds, and with its limit again on its first active sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from agent.govern.pool import Layout
from agent.model.samples import Attribution, WorkerKey
from autoscaler.contract.gate import UNGATED, Gate

_Gated: TypeAlias = tuple[WorkerKey, float, float]
"""A place, with its request and its limit in bytes."""


class Activity:
    """One gate per worker and device; forgets who is gone."""

    def __init__(self) -> None:
        self._gates: dict[WorkerKey, Gate] = {}
        self._source: tuple[Layout, Mapping[str, int]] | None = None
        self._gated: tuple[_Gated, ...] = ()

    def working_bytes(
        self, layout: Layout, attribution: Attribution, totals: Mapping[str, int]
    ) -> Mapping[WorkerKey, int]:
        """Take a tick and return, by place, the VRAM in bytes that work may need; no entry means up to the limit.

        A worker is taken to work when it is first seen, and while nothing tells what it does; on a device with room
        for every limit nobody is looked at.
        """
        now, uses, before = attribution.at, attribution.by_key, self._gates
        self._gates = {}
        found: dict[WorkerKey, int] = {}
        for key, request_bytes, limit_bytes in self._places(layout, totals):
            use = uses.get(key)
            if use is None or use.vram_bytes is None or use.compute_ratio is None:
                continue
            gate = before.get(key) or Gate(limit_bytes, active_at=now)
            # A clock that was set back would have it at work until it is where it was.
            gate.active_at = min(gate.active_at, now)
            gate.sample(now, use.compute_ratio, float(use.vram_bytes))
            self._gates[key] = gate
            found[key] = int(gate.limit(now, request_bytes, limit_bytes))
        return found

    def _places(self, layout: Layout, totals: Mapping[str, int]) -> tuple[_Gated, ...]:
        """Return who is gated, on devices whose limits pass their memory; looked for only where a layout is new."""
        if self._source is None or self._source[0] is not layout or self._source[1] != totals:
            self._source, crowded = (layout, totals), _crowded(layout, totals)
            self._gated = tuple(
                (key, float(quota.vram_request_bytes), float(quota.vram_limit_bytes))
                for key, (worker, quota) in layout.places.items()
                if key[2] in crowded and worker.qos not in UNGATED
            )
        return self._gated


def _crowded(layout: Layout, totals: Mapping[str, int]) -> frozenset[str]:
    """Return the devices whose limits pass their memory, `totals` in bytes."""
    limits: dict[str, int] = {}
    for key, (_, quota) in layout.places.items():
        limits[key[2]] = limits.get(key[2], 0) + quota.vram_limit_bytes
    return frozenset(uuid for uuid, limit in limits.items() if limit > totals.get(uuid, 0))
