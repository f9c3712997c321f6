"""One metric family as text, in either exposition format; what did not change is not written again.

prometheus_client writes every line once. Labels change rarely and cost most, so a line is kept up to its value, and
later only values are put in. Neighbour: `agent.export.exporter` says what there is to show, and when.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, chain
from typing import Any, Final, NamedTuple, cast

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics.exposition import ALLOWUTF8
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from agent.export.series import Column, Labels
from agent.model.report import DURATION_BOUNDS_SECONDS, Durations
from autoscaler.contract import metrics as contract
from autoscaler.contract.metrics import MetricType

END: Final = b"# EOF\n"
"""Last line of an OpenMetrics body."""

_FAMILIES: Final[dict[MetricType, Any]] = {
    MetricType.GAUGE: GaugeMetricFamily,
    MetricType.COUNTER: CounterMetricFamily,
    MetricType.HISTOGRAM: HistogramMetricFamily,
}


_HISTOGRAM_LINES: Final = len(DURATION_BOUNDS_SECONDS) + 3
"""Of one row: a line for each bucket, for all that is longer, for the count and for the sum."""


class FamilyText(NamedTuple):
    """A family's rows and their text; `heads` are its lines up to their values, `comments` stand above."""

    column: Column
    body: bytes
    comments: str = ""
    heads: Sequence[str] = ()


def family_text(metric: contract.Metric, column: Column, openmetrics: bool, before: FamilyText | None) -> FamilyText:
    """Return the text of a family in the text format or in OpenMetrics; `before` is its last text in that format."""
    if before is not None and before.column == column:
        return before
    if before is not None and before.column.labels == column.labels:
        comments, heads = before.comments, before.heads
    else:
        comments, heads = _heads(metric, column, openmetrics, before)
    ends = map(_end_of_line, _figures(metric, column.values))
    body = comments + "".join(chain.from_iterable(zip(heads, ends, strict=True)))
    return FamilyText(column, body.encode(), comments, heads)


def _figures(metric: contract.Metric, values: Sequence[float | Durations]) -> Sequence[float]:
    """Return the values of all lines, in their order: a histogram has a line for each bucket, its count and its sum."""
    if metric.type is not MetricType.HISTOGRAM:
        return cast("Sequence[float]", values)
    histograms = [(tuple(accumulate(one.counts)), one.total_seconds) for one in cast("Sequence[Durations]", values)]
    return [figure for buckets, seconds in histograms for figure in (*buckets, buckets[-1], seconds)]


@lru_cache(maxsize=4_096)
def _end_of_line(value: float) -> str:
    """Return a value as text; many rows have the same one, or the one they had before."""
    # Both zeros are equal, so they have one text.
    text: str = floatToGoString(value + 0.0)  # type: ignore[no-untyped-call]
    return text + "\n"


def _heads(
    metric: contract.Metric, column: Column, openmetrics: bool, before: FamilyText | None
) -> tuple[str, Sequence[str]]:
    """Return the comments and each line up to its value; only rows with new labels are written for it."""
    size = _HISTOGRAM_LINES if metric.type is MetricType.HISTOGRAM else 1
    known: Mapping[Labels, Sequence[str]] = _by_row(before.column.labels, before.heads, size) if before else {}
    fresh = [row for row in zip(*column, strict=True) if row[0] not in known]
    if before is not None and not fresh:
        return before.comments, _in_order(column, known)
    lines = _written(metric, fresh, openmetrics).removesuffix("\n").split("\n")
    comments = "".join(f"{line}\n" for line in lines if line.startswith("#"))
    heads = [line[: line.rindex(" ") + 1] for line in lines if not line.startswith("#")]
    return comments, _in_order(column, {**known, **_by_row([labels for labels, _ in fresh], heads, size)})


def _by_row(labels: Iterable[Labels], heads: Sequence[str], size: int) -> Mapping[Labels, Sequence[str]]:
    return {one: heads[start : start + size] for one, start in zip(labels, range(0, len(heads), size), strict=True)}


def _in_order(column: Column, known: Mapping[Labels, Sequence[str]]) -> Sequence[str]:
    return [head for labels in column.labels for head in known[labels]]


def _written(metric: contract.Metric, rows: Iterable[tuple[Labels, float | Durations]], openmetrics: bool) -> str:
    write = generate_openmetrics if openmetrics else generate_latest
    # Our names are plain, so no escaping scheme touches them; this one looks at them fastest.
    body: bytes = write(_OneFamily(_family(metric, rows)), ALLOWUTF8)
    return body.removesuffix(END).decode()


class _OneFamily(Collector):
    """Hands a ready family to prometheus_client."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return (self._family,)


def _family(metric: contract.Metric, rows: Iterable[tuple[Labels, float | Durations]]) -> Metric:
    family = _FAMILIES[metric.type](metric.name, metric.help, labels=metric.labels)
    for labels, value in rows:
        figures = (_buckets(value), value.total_seconds) if isinstance(value, Durations) else (value,)
        family.add_metric(labels, *figures)
    assert isinstance(family, Metric)
    return family


def _buckets(durations: Durations) -> list[tuple[str, float]]:
    bounds = [*map(str, DURATION_BOUNDS_SECONDS), "+Inf"]
    return list(zip(bounds, accumulate(durations.counts), strict=True))
