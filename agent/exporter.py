"""Prometheus exposition of the agent: rendered on the tick, served from the cache.

A scrape costs no rendering and touches no device. Series exist only for what the last tick saw, so those of vanished
workers leave; when the ticks themselves stop, workers and devices leave too, and the agent's own series stay.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector

from agent.gpus import GpuTable
from agent.report import DURATION_BOUNDS_SECONDS, Durations, TickReport
from agent.series import Sample, agent_samples, worker_and_device_samples
from agent.totals import Totals
from autoscaler.contract import metrics as contract
from autoscaler.contract.metrics import MetricType


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
        self._page = _Page((), ())

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
        measured = families(worker_and_device_samples(report, self._totals, self._gpus))
        page = _Page(measured, families(agent_samples(report)))
        for openmetrics in self._formats:
            page.body(openmetrics, fresh=True)
        # Swapped in whole: a scrape in another thread sees the old page or the new one.
        self._page = page


class _Page:
    """One rendering; a format that nobody asked for before is rendered by its first scrape, then cached."""

    def __init__(self, measured: tuple[Metric, ...], own: tuple[Metric, ...]) -> None:
        self._measured, self._own = measured, own
        self._bodies: dict[tuple[bool, bool], bytes] = {}
        self.scraped = False

    def body(self, openmetrics: bool, *, fresh: bool) -> bytes:
        key = (openmetrics, fresh)
        if key not in self._bodies:
            registry = CollectorRegistry()
            registry.register(_Families(self._measured + self._own if fresh else self._own))
            render = generate_openmetrics if openmetrics else generate_latest
            self._bodies[key] = render(registry)
        return self._bodies[key]


class _Families(Collector):
    """Hands ready families to prometheus_client; describes nothing, for names come with the data."""

    def __init__(self, ready: tuple[Metric, ...]) -> None:
        self._ready = ready

    def collect(self) -> Iterable[Metric]:
        return self._ready

    def describe(self) -> Iterable[Metric]:
        return ()


def families(samples: Iterable[Sample]) -> tuple[Metric, ...]:
    """Return prometheus_client families for samples of the metric table, in the order they first appear."""
    made: dict[str, Metric] = {}
    for metric, labels, value in samples:
        family = made.get(metric.name)
        if family is None:
            family = made[metric.name] = _family(metric)
        if isinstance(value, Durations):
            assert isinstance(family, HistogramMetricFamily)
            family.add_metric(labels, _buckets(value), value.total_seconds)
        else:
            assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
            family.add_metric(labels, value)
    return tuple(made.values())


def _family(metric: contract.Metric) -> Metric:
    match metric.type:
        case MetricType.COUNTER:
            return CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
        case MetricType.HISTOGRAM:
            return HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        case _:
            return GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)


def _buckets(durations: Durations) -> list[tuple[str, float]]:
    bounds = [*map(str, DURATION_BOUNDS_SECONDS), "+Inf"]
    return list(zip(bounds, accumulate(durations.counts), strict=True))
