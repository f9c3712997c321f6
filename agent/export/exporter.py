"""Prometheus exposition of the agent: rendered on the tick, served from the cache.

A scrape costs no rendering and touches no device. Series exist only for what the last tick saw, so those of vanished
workers leave; when the ticks themselves stop, workers and devices leave too, and the agent's own series stay.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

from agent.export.exposition import END, FamilyText, family_text
from agent.export.series import Table, agent_columns, worker_and_device_columns
from agent.export.totals import Totals
from agent.gpus import GpuTable
from agent.model.beyond import Beyond
from agent.model.report import TickReport
from agent.model.samples import Attribution, WorkerKey
from autoscaler.contract import metrics as contract

_METRICS: Final = {m.name: m for m in (*contract.WORKER_METRICS, *contract.DEVICE_METRICS, *contract.AGENT_METRICS)}


class Exporter:
    """Takes a report per tick, gives the body of /metrics."""

    def __init__(
        self,
        gpus: GpuTable,
        render_every_seconds: float = 5.0,
        stale_after_seconds: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Render at most every `render_every_seconds` (0: each tick) of `clock`, and call a body stale by it too."""
        self._gpus = gpus
        self._render_every_seconds = render_every_seconds
        self._stale_after_seconds = stale_after_seconds
        self._clock = clock
        self._totals = Totals()
        self._updated_at = clock()
        self._rendered_at: float | None = None
        self._formats: frozenset[bool] = frozenset()
        self._page = _Page({}, {}, {})

    def update(self, report: TickReport) -> None:
        """Add one tick, and render it when the last rendering is old enough."""
        if self.count(report.attribution, report.throttled, report.beyond):
            self.render(report)

    def count(
        self,
        attribution: Attribution,
        throttled: Mapping[WorkerKey, bool | None],
        beyond: Mapping[WorkerKey, Beyond],
    ) -> bool:
        """Add one tick to the totals; return whether the last rendering is old enough for the next."""
        self._totals.add(attribution, throttled, beyond)
        self._updated_at = self._clock()
        return self._rendered_at is None or self._updated_at - self._rendered_at >= self._render_every_seconds

    def body(self, openmetrics: bool = False) -> bytes:
        """Return the exposition, in the text format or in OpenMetrics; only the agent's own part when ticks stopped."""
        page = self._page
        self._formats |= {openmetrics}
        fresh = self._clock() - self._updated_at <= self._stale_after_seconds
        page.scraped |= fresh
        return page.body(openmetrics, fresh=fresh)

    def render(self, report: TickReport) -> None:
        """Make the page that scrapes see from now on."""
        self._rendered_at = self._updated_at
        self._totals.turn_peaks(scraped=self._page.scraped)
        measured = worker_and_device_columns(report, self._totals, self._gpus)
        page = _Page(measured, agent_columns(report), self._page.families)
        for openmetrics in self._formats:
            page.body(openmetrics, fresh=True)
        # Swapped in whole: a scrape in another thread sees the old page or the new one.
        self._page = page


class _Page:
    """One rendering, family by family, each from its text on the page before.

    A format that nobody asked for before is rendered by its first scrape, then cached.
    """

    def __init__(self, measured: Table, own: Table, before: dict[tuple[str, bool], FamilyText]) -> None:
        self._measured, self._table = measured, measured | own
        # Copied first: a scrape in another thread may be adding to it.
        self.families = {key: text for key, text in before.copy().items() if key[0] in self._table}
        self._bodies: dict[tuple[bool, bool], bytes] = {}
        self.scraped = False

    def body(self, openmetrics: bool, *, fresh: bool) -> bytes:
        key = (openmetrics, fresh)
        if key not in self._bodies:
            shown = [name for name in self._table if fresh or name not in self._measured]
            texts = [self._text(name, openmetrics) for name in shown]
            self._bodies[key] = b"".join([*texts, END if openmetrics else b""])
        return self._bodies[key]

    def _text(self, name: str, openmetrics: bool) -> bytes:
        key = (name, openmetrics)
        text = self.families[key] = family_text(_METRICS[name], self._table[name], openmetrics, self.families.get(key))
        return text.body
