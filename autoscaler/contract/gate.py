"""The gate between a worker's VRAM request and its published ceiling: head-room is lent to work, not to idleness.

Peaks of VRAM almost never start from idle, so the ceiling is in force only while a worker is active and for a while
after; between, memory just sits there as cache and the effective limit falls to the guarantee. Both programs need the
rule: the node runs it on every sample of a device that is short of memory; a replay runs it to know what both would do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from autoscaler.contract.keys import QoS

ACTIVE_COMPUTE_RATIO: Final = 0.005
"""Compute above this share of the largest seen is work."""
ACTIVE_VRAM_RATIO: Final = 0.01
"""VRAM that moved by more than this share is work."""
REFERENCE_DECAY: Final = 0.99999
"""Per minute."""
HOLD_SECONDS: Final = 90.0
"""The ceiling outlasts work by this much: jumps follow activity within a minute, or not at all."""
HEADROOM_RATIO: Final = 1.05
"""Over what is held."""
WAKING_RATIO: Final = 1.15
"""An idle worker's first step back into work is rarely larger than this."""
OF_CEILING_RATIO: Final = 0.6
"""Nor does it pass this share of what the worker's bursts need, where the request has cooled to what is held."""
LEAST_BYTES: Final = 250.0 * 2**20
RAISE_RATIO: Final = 1.05
LOWER_RATIO: Final = 0.90
NEAR_RATIO: Final = 0.96

UNGATED: Final = frozenset({QoS.CRITICAL})
"""Levels whose head-room is a reserve of their own, never lent."""


@dataclass(slots=True)
class Gate:
    """What the gate knows of one worker on one device; compute in any one unit, VRAM in bytes, times in seconds."""

    effective_bytes: float
    reference: float = 0.0
    vram_bytes: float | None = None
    active_at: float = float("-inf")
    seen_at: float | None = None

    def sample(self, at: float, compute: float, vram_bytes: float, *, oom: bool = False) -> None:
        """Take one metered sample: the largest compute and VRAM since the one before."""
        elapsed = 0.0 if self.seen_at is None else at - self.seen_at
        before = vram_bytes if self.vram_bytes is None else self.vram_bytes
        self.reference = max(compute, self.reference * REFERENCE_DECAY ** (elapsed / 60.0))
        moved = vram_bytes != before and abs(vram_bytes - before) > ACTIVE_VRAM_RATIO * max(vram_bytes, before)
        if oom or moved or compute > ACTIVE_COMPUTE_RATIO * self.reference:
            self.active_at = at
        self.vram_bytes, self.seen_at = vram_bytes, at

    def limit(self, at: float, request_bytes: float, ceiling_bytes: float) -> float:
        """Return the effective limit in bytes: the ceiling while there is work, else little over what is held.

        Only the idle level has a dead band. The ceiling has one of its own already: held against a second one, a limit
        would stay over the ceiling where it fell, and under it where it rose.
        """
        live = self.vram_bytes or 0.0
        most = max(ceiling_bytes, HEADROOM_RATIO * live, LEAST_BYTES)
        if at - self.active_at <= HOLD_SECONDS:
            self.effective_bytes = most
            return most
        wanted = min(max(request_bytes, WAKING_RATIO * live, OF_CEILING_RATIO * ceiling_bytes, LEAST_BYTES), most)
        effective = self.effective_bytes
        near = live > NEAR_RATIO * effective
        if near or wanted > RAISE_RATIO * effective or wanted < LOWER_RATIO * effective:
            self.effective_bytes = wanted
        self.effective_bytes = min(self.effective_bytes, most)
        return self.effective_bytes
