"""Running totals of every worker on every device: what a scrape can't miss, because it adds up between scrapes.

Compute and throttling are integrals over the ticks; the VRAM peak runs from scrape to scrape. Pure in `now`: time comes
with the reports. Neighbours: `agent.export.exporter` feeds it, `agent.export.series` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from agent.model.beyond import Beyond
from agent.model.samples import Attribution, WorkerKey, WorkerUse

FORGET_AFTER_SECONDS: Final = 600.0
"""A worker that comes back within this time (its GPU was lost, say) goes on with its totals."""

MAX_GAP_SECONDS: Final = 120.0
"""Longest time a measurement is taken to speak for; beyond it the agent was not watching, and nothing is known."""

_NOBODY: Final[Mapping[WorkerKey, Beyond]] = {}


@dataclass(slots=True)
class Total:
    """One worker on one device since it was first seen; None until something was measured.

    `vram_peak_bytes` is the highest use since the last scrape; `pending_peak_bytes` that since the last rendering. What
    is beyond a limit is a part of the same, `beyond_seconds` of `compute_seconds`.
    """

    seen_at: float
    compute_seconds: float | None = None
    throttled_seconds: float | None = None
    vram_peak_bytes: int | None = None
    pending_peak_bytes: int | None = None
    beyond_seconds: float = 0.0
    beyond_peak_bytes: int = 0
    pending_beyond_bytes: int = 0


class Totals:
    """Adds up reports; `of` reads one worker's totals."""

    def __init__(self) -> None:
        self._totals: dict[WorkerKey, Total] = {}

    def add(
        self,
        attribution: Attribution,
        throttled: Mapping[WorkerKey, bool | None],
        beyond: Mapping[WorkerKey, Beyond] = _NOBODY,
    ) -> None:
        """Add one tick; a tick counts for the time since this worker's last one."""
        at = attribution.at
        for key, use in attribution.by_key.items():
            total = self._totals.get(key)
            if total is None:
                total = self._totals[key] = Total(seen_at=at)
            seconds = at - total.seen_at
            total.seen_at = at
            seconds = seconds if 0 < seconds <= MAX_GAP_SECONDS else 0.0
            total.compute_seconds = _plus(total.compute_seconds, use.compute_ratio, seconds)
            total.throttled_seconds = _plus(total.throttled_seconds, throttled.get(key), seconds)
            total.pending_peak_bytes = _highest(total.pending_peak_bytes, use.vram_bytes)
            if key in beyond:
                over = beyond[key]
                total.beyond_seconds += over.compute_ratio * seconds
                total.pending_beyond_bytes = max(total.pending_beyond_bytes, over.vram_bytes)
        self._forget(at)

    def turn_peaks(self, *, scraped: bool) -> None:
        """Move the pending peaks into the shown ones; those shown before are kept until they were scraped."""
        for total in self._totals.values():
            kept = None if scraped else total.vram_peak_bytes
            total.vram_peak_bytes = _highest(kept, total.pending_peak_bytes)
            total.pending_peak_bytes = None
            total.beyond_peak_bytes = max(0 if scraped else total.beyond_peak_bytes, total.pending_beyond_bytes)
            total.pending_beyond_bytes = 0

    def of(self, key: WorkerKey) -> Total | None:
        """Return the totals of one worker on one device, None when it was never seen."""
        return self._totals.get(key)

    def _forget(self, at: float) -> None:
        gone = [key for key, total in self._totals.items() if at - total.seen_at > FORGET_AFTER_SECONDS]
        for key in gone:
            del self._totals[key]


def key_of(use: WorkerUse) -> WorkerKey:
    """Return the key of a worker's figures on one device."""
    return (use.worker.pod_uid, use.worker.container, use.uuid)


def _plus(total: float | None, rate: float | None, seconds: float) -> float | None:
    return total if rate is None else (total or 0.0) + rate * seconds


def _highest(one: int | None, other: int | None) -> int | None:
    return max((value for value in (one, other) if value is not None), default=None)
