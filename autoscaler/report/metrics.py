"""The controller about itself, for Prometheus: one table of families, and the verbs that feed them.

Figures per workload are kept as plain numbers and rendered by a collector: 10,000 workloads are 80,000 series, too many
for an object each. Neighbour: `server` serves what `render` returns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from autoscaler.contract.metrics import Metric, MetricType
from autoscaler.model.decision import AMOUNT_FIELDS, LAYER_NAMES, Decision, FieldDecision
from autoscaler.model.resources import SPECS
from autoscaler.model.usage import WorkloadKey
from autoscaler.report.message import is_blocked, moves

_PREFIX: Final = "tensor_fusion_autoscaler_"
_FIGURE_LABELS: Final = ("namespace", "workload", "resource", "side")


def _family(name: str, kind: MetricType, text: str, *labels: str) -> Metric:
    return Metric(_PREFIX + name, kind, text, labels)


_G, _C, _H = MetricType.GAUGE, MetricType.COUNTER, MetricType.HISTOGRAM
PASS_SECONDS: Final = _family("pass_seconds", _H, "Time of one pass over the fleet, by step.", "step")
WORKLOADS: Final = _family("workloads", _G, "Workloads under control.")
DECISIONS: Final = _family(
    "decisions_total",
    _C,
    "Figures decided: moved (reason is the cause) or held back (the guard's verdict).",
    "layer",
    "direction",
    "reason",
)
TARGET: Final = _family(
    "recommendation_target", _G, "Recommended amount per worker and device, TFLOPs or bytes.", *_FIGURE_LABELS
)
APPLIED: Final = _family(
    "recommendation_applied", _G, "Amount in force by the latest decision, TFLOPs or bytes.", *_FIGURE_LABELS
)
USAGE_RATIO: Final = _family(
    "usage_over_recommendation_ratio", _H, "Use over the recommended amount, at each decision where use is known."
)
CHANGE_RATIO: Final = _family("relative_change_ratio", _H, "Size of each change, relative to what held before.")
QUERY_SECONDS: Final = _family("prometheus_query_seconds", _H, "Time of reading history from Prometheus.")
STALE: Final = _family("stale_workloads", _G, "Workloads without fresh samples: nothing is decided about them.")
API_WRITES: Final = _family(
    "api_writes_total",
    _C,
    "Attempts to write to the API server, by verb and HTTP code (or unreachable).",
    "verb",
    "code",
)
PUSH_SECONDS: Final = _family("quota_push_seconds", _H, "Time for a node agent to answer a quota document.")
FORECAST_FITS: Final = _family(
    "forecast_fits_total", _C, "Fits of the forecast's model: taken into force, or refused.", "result"
)
LEADER: Final = _family("leader", _G, "1 while this process leads, 0 while it stands by.")

CONTROLLER_METRICS: Final = (
    PASS_SECONDS,
    WORKLOADS,
    DECISIONS,
    TARGET,
    APPLIED,
    USAGE_RATIO,
    CHANGE_RATIO,
    QUERY_SECONDS,
    STALE,
    API_WRITES,
    PUSH_SECONDS,
    FORECAST_FITS,
    LEADER,
)
SECONDS_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
RATIO_BUCKETS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.5, 2.0, 4.0)


class _Figures(Collector):
    """Targets and applied amounts of every workload, as of its last decision."""

    def __init__(self) -> None:
        self.by_workload: dict[WorkloadKey, tuple[FieldDecision, ...]] = {}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield both families; a figure that is not known has no series."""
        known = list(self.by_workload.items())
        for family, is_target in ((TARGET, True), (APPLIED, False)):
            made = GaugeMetricFamily(family.name, family.help, labels=family.labels)
            for key, decisions in known:
                for one in decisions:
                    value = one.wanted if is_target else one.allowed
                    if math.isfinite(value):
                        made.add_metric([key.namespace, key.name, *_labels(one)], value)
            yield made


class ControllerMetrics:
    """The controller's metrics in a registry of their own; the attributes are prometheus_client's objects."""

    def __init__(self) -> None:
        # Else every counter brings a family that is in no table. The library declares no type here.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.pass_seconds = _histogram(PASS_SECONDS, self.registry, SECONDS_BUCKETS)
        self.query_seconds = _histogram(QUERY_SECONDS, self.registry, SECONDS_BUCKETS)
        self.push_seconds = _histogram(PUSH_SECONDS, self.registry, SECONDS_BUCKETS)
        self.usage_ratio = _histogram(USAGE_RATIO, self.registry, RATIO_BUCKETS)
        self.change_ratio = _histogram(CHANGE_RATIO, self.registry, RATIO_BUCKETS)
        self.decisions = Counter(DECISIONS.name, DECISIONS.help, DECISIONS.labels, registry=self.registry)
        self.api_writes = Counter(API_WRITES.name, API_WRITES.help, API_WRITES.labels, registry=self.registry)
        self.forecast_fits = Counter(
            FORECAST_FITS.name, FORECAST_FITS.help, FORECAST_FITS.labels, registry=self.registry
        )
        self.workloads = Gauge(WORKLOADS.name, WORKLOADS.help, registry=self.registry)
        self.stale_workloads = Gauge(STALE.name, STALE.help, registry=self.registry)
        self.leader = Gauge(LEADER.name, LEADER.help, registry=self.registry)
        self._figures = _Figures()
        self.registry.register(self._figures)

    def decided(self, decision: Decision) -> None:
        """Take in one workload's decision: its figures, and what moved or was held back."""
        self._figures.by_workload[decision.key] = tuple(decision[field] for field in AMOUNT_FIELDS)
        for one in decision.fields:
            if moves(one):
                direction = "up" if one.allowed > one.current else "down"
                self.decisions.labels(LAYER_NAMES[one.field], direction, str(one.cause)).inc()
                if one.current > 0:
                    self.change_ratio.observe(abs(one.allowed - one.current) / one.current)
            elif is_blocked(one):
                self.decisions.labels(LAYER_NAMES[one.field], "hold", str(one.verdict)).inc()
            use = one.inputs.get("use", math.nan)
            if use >= 0 and one.wanted > 0:
                self.usage_ratio.observe(use / one.wanted)

    def api_written(self, verb: str, code: str) -> None:
        """Count an attempt to write to the API server; `code` is the HTTP code, `unreachable` where none came."""
        self.api_writes.labels(verb, code).inc()

    def keep(self, keys: Iterable[WorkloadKey]) -> None:
        """Drop the figures of every workload but these: what is gone has no series."""
        kept, figures = set(keys), self._figures.by_workload
        self._figures.by_workload = {key: figures[key] for key in figures if key in kept}

    def render(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)


def _histogram(family: Metric, registry: CollectorRegistry, buckets: tuple[float, ...]) -> Histogram:
    return Histogram(family.name, family.help, family.labels, registry=registry, buckets=buckets)


def _labels(decision: FieldDecision) -> tuple[str, str]:
    resource, side = decision.field.resource, decision.field.side
    return ("", "") if resource is None or side is None else (SPECS[resource].key, side.name.lower())
