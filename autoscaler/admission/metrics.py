"""The webhook about itself, for Prometheus."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest

from autoscaler.contract.metrics import Metric, MetricType

_PREFIX: Final = "tensor_fusion_autoscaler_admission_"
REQUESTS: Final = Metric(
    _PREFIX + "requests_total",
    MetricType.COUNTER,
    "Admission requests answered, by what was asked and what came of it.",
    ("operation", "result"),
)
SECONDS: Final = Metric(
    _PREFIX + "seconds", MetricType.HISTOGRAM, "Time to answer an admission request.", ("operation",)
)
ADMISSION_METRICS: Final = (REQUESTS, SECONDS)
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0)


class Result(StrEnum):
    """What came of a request."""

    SIZED = "sized"
    """A pod was given its size."""
    ALLOWED = "allowed"
    DENIED = "denied"
    MALFORMED = "malformed"
    """No AdmissionReview, or too large a one."""
    FAILED = "failed"
    """A defect of ours: the failure policy decides."""


class AdmissionMetrics:
    """The families in a registry of their own; the attributes are prometheus_client's objects."""

    def __init__(self) -> None:
        # Else the counter brings a family that is in no table. The library declares no type here.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.requests = Counter(REQUESTS.name, REQUESTS.help, REQUESTS.labels, registry=self.registry)
        self.seconds = Histogram(SECONDS.name, SECONDS.help, SECONDS.labels, registry=self.registry, buckets=_BUCKETS)

    def render(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)
