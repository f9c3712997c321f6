"""Prometheus exposition of the agent: rendered on the tick, served from the cache.

A scrape costs no rendering and touches no device. Series exist only for what the last tick saw, so those of vanished
workers leave; when the ticks themselves stop, workers and devices leave too, and the agent's own series stay.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any, Final, TypeAlias

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics.exposition import ALLOWUTF8
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector

from agent.gpus import GpuTable
from agent.report import DURATION_BOUNDS_SECONDS, Durations, TickReport
from agent.series import Labels, Sample, agent_samples, worker_and_device_samples
from agent.totals import Totals
from autoscaler.contract import metrics as contract
from autoscaler.contract.metrics import MetricType

_END: Final = b"# EOF\n"
_METRICS: Final = {m.name: m for m in (*contract.WORKER_METRICS, *contract.DEVICE_METRICS, *contract.AGENT_METRICS)}
_FAMILIES: Final[dict[MetricType, Any]] = {
    MetricType.GAUGE: GaugeMetricFamily,
    MetricType.COUNTER: CounterMetricFamily,
    MetricType.HISTOGRAM: HistogramMetricFamily,
}


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
        self._page = _Page({}, {})

    def update(self, report: TickReport) -> None:
        """Add one tick to the totals, and render it when the last rendering is old enough."""
        self._totals.add(report)
        self._updated_at = self._clock()
        if self._rendered_at is None or self._updated_at - self._rendered_at >= self._render_every_seconds:
            self._rendered_at = self._updated_at
            self._render(report)

    def body(self, openmetrics: bool = False) -> bytes:
        """Return the exposition, in the text format or in OpenMetrics; only the agent's own part when ticks stopped."""
        page = self._page
        self._formats |= {openmetrics}
        fresh = self._clock() - self._updated_at <= self._stale_after_seconds
        page.scraped |= fresh
        return page.body(openmetrics, fresh=fresh)

    def _render(self, report: TickReport) -> None:
        self._totals.turn_peaks(scraped=self._page.scraped)
        measured = _grouped(worker_and_device_samples(report, self._totals, self._gpus))
        page = _Page(measured, _grouped(agent_samples(report)), self._page)
        for openmetrics in self._formats:
            page.body(openmetrics, fresh=True)
        # Swapped in whole: a scrape in another thread sees the old page or the new one.
        self._page = page


_Rows: TypeAlias = list[tuple[Labels, float | Durations]]
_Table: TypeAlias = dict[str, _Rows]


class _Page:
    """One rendering, family by family; a family that did not change keeps its text from the page before.

    A format that nobody asked for before is rendered by its first scrape, then cached.
    """

    def __init__(self, measured: _Table, own: _Table, before: _Page | None = None) -> None:
        self._measured, self._rows = measured, measured | own
        kept = before.texts if before is not None else {}
        self.texts: dict[tuple[str, bool], tuple[_Rows, bytes]] = {
            key: (rows, text) for key, (rows, text) in kept.items() if self._rows.get(key[0]) == rows
        }
        self._bodies: dict[tuple[bool, bool], bytes] = {}
        self.scraped = False

    def body(self, openmetrics: bool, *, fresh: bool) -> bytes:
        key = (openmetrics, fresh)
        if key not in self._bodies:
            shown = [name for name in self._rows if fresh or name not in self._measured]
            texts = [self._text(name, openmetrics) for name in shown]
            self._bodies[key] = b"".join([*texts, _END if openmetrics else b""])
        return self._bodies[key]

    def _text(self, name: str, openmetrics: bool) -> bytes:
        key = (name, openmetrics)
        if key not in self.texts:
            rows = self._rows[name]
            render = generate_openmetrics if openmetrics else generate_latest
            # Our names are plain, so no escaping scheme touches them; this one looks at them fastest.
            text: bytes = render(_OneFamily(_family(_METRICS[name], rows)), ALLOWUTF8)
            self.texts[key] = (rows, text.removesuffix(_END))
        return self.texts[key][1]


class _OneFamily(Collector):
    """Hands a ready family to prometheus_client."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return (self._family,)


def _grouped(samples: Iterable[Sample]) -> _Table:
    table: _Table = {}
    for metric, labels, value in samples:
        table.setdefault(metric.name, []).append((labels, value))
    return table


def _family(metric: contract.Metric, rows: _Rows) -> Metric:
    family = _FAMILIES[metric.type](metric.name, metric.help, labels=metric.labels)
    for labels, value in rows:
        figures = (_buckets(value), value.total_seconds) if isinstance(value, Durations) else (value,)
        family.add_metric(labels, *figures)
    assert isinstance(family, Metric)
    return family


def _buckets(durations: Durations) -> list[tuple[str, float]]:
    bounds = [*map(str, DURATION_BOUNDS_SECONDS), "+Inf"]
    return list(zip(bounds, accumulate(durations.counts), strict=True))
