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

    def add(self, use: WorkerUse, throttled: bool | None, at: float) -> float:
        """Add what was measured; return the seconds that it counts for."""
        seconds = at - self.seen_at
        self.seen_at = at
        seconds = seconds if 0 < seconds <= MAX_GAP_SECONDS else 0.0
        ratio, held = use.compute_ratio, use.vram_bytes
        if ratio is not None:
            self.compute_seconds = (self.compute_seconds or 0.0) + ratio * seconds
        if throttled is not None:
            self.throttled_seconds = (self.throttled_seconds or 0.0) + throttled * seconds
        if held is not None and (self.pending_peak_bytes is None or held > self.pending_peak_bytes):
            self.pending_peak_bytes = held
        return seconds

    def turn_peaks(self, *, scraped: bool) -> None:
        """Move the pending peaks into the shown ones, which stand until they were scraped."""
        if scraped:
            self.vram_peak_bytes, self.beyond_peak_bytes = None, 0
        shown, pending = self.vram_peak_bytes, self.pending_peak_bytes
        if shown is None or (pending is not None and pending > shown):
            self.vram_peak_bytes = pending
        self.pending_peak_bytes = None
        self.beyond_peak_bytes = max(self.beyond_peak_bytes, self.pending_beyond_bytes)
        self.pending_beyond_bytes = 0


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
            seconds = total.add(use, throttled.get(key), at)
            if key in beyond:
                over = beyond[key]
                total.beyond_seconds += over.compute_ratio * seconds
                total.pending_beyond_bytes = max(total.pending_beyond_bytes, over.vram_bytes)
        if len(self._totals) > len(attribution.by_key):
            self._forget(at)

    def turn_peaks(self, *, scraped: bool) -> None:
        """Move the pending peaks into the shown ones; those shown before are kept until they were scraped."""
        for total in self._totals.values():
            total.turn_peaks(scraped=scraped)

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
