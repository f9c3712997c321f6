"""One metric family as text, in either exposition format; what did not change is not written again.

prometheus_client writes every line once. Labels change rarely and cost most, so a line is kept up to its value, and
later only values are put in. Neighbour: `agent.export.exporter` says what there is to show, and when.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, Final, NamedTuple, TypeAlias

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics.exposition import ALLOWUTF8
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from agent.export.series import Labels
from agent.model.report import DURATION_BOUNDS_SECONDS, Durations
from autoscaler.contract import metrics as contract
from autoscaler.contract.metrics import MetricType

END: Final = b"# EOF\n"
"""Last line of an OpenMetrics body."""

Rows: TypeAlias = list[tuple[Labels, float | Durations]]

_FAMILIES: Final[dict[MetricType, Any]] = {
    MetricType.GAUGE: GaugeMetricFamily,
    MetricType.COUNTER: CounterMetricFamily,
    MetricType.HISTOGRAM: HistogramMetricFamily,
}


class FamilyText(NamedTuple):
    """A family's rows and their text; `heads` are the rows' lines up to their values, `comments` stand above."""

    rows: Rows
    body: bytes
    comments: str = ""
    heads: Sequence[str] = ()


def family_text(metric: contract.Metric, rows: Rows, openmetrics: bool, before: FamilyText | None) -> FamilyText:
    """Return the text of a family in the text format or in OpenMetrics; `before` is its last text in that format."""
    if before is not None and before.rows == rows:
        return before
    if metric.type is MetricType.HISTOGRAM:
        return FamilyText(rows, _written(metric, rows, openmetrics).encode())
    if before is not None and [labels for labels, _ in rows] == [labels for labels, _ in before.rows]:
        comments, heads = before.comments, before.heads
    else:
        comments, heads = _heads(metric, rows, openmetrics, before)
    lines = [f"{head}{_number(value)}\n" for head, (_, value) in zip(heads, rows, strict=True)]
    return FamilyText(rows, (comments + "".join(lines)).encode(), comments, heads)


@lru_cache(maxsize=16_384)
def _number(value: float) -> str:
    """Return a value as text; many rows have the same one, or the one they had before."""
    text: str = floatToGoString(value)  # type: ignore[no-untyped-call]
    return text


def _heads(
    metric: contract.Metric, rows: Rows, openmetrics: bool, before: FamilyText | None
) -> tuple[str, Sequence[str]]:
    """Return the comments and each row's line up to its value; only rows with new labels are written for it."""
    known: Mapping[Labels, str] = {}
    if before is not None:
        known = {labels: head for (labels, _), head in zip(before.rows, before.heads, strict=True)}
    fresh = [row for row in rows if row[0] not in known]
    if before is not None and not fresh:
        return before.comments, [known[labels] for labels, _ in rows]
    lines = _written(metric, fresh, openmetrics).removesuffix("\n").split("\n")
    comments = [f"{line}\n" for line in lines if line.startswith("#")]
    heads = {
        labels: line[: line.rindex(" ") + 1] for (labels, _), line in zip(fresh, lines[len(comments) :], strict=True)
    }
    return "".join(comments), [heads.get(labels) or known[labels] for labels, _ in rows]


def _written(metric: contract.Metric, rows: Rows, openmetrics: bool) -> str:
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


def _family(metric: contract.Metric, rows: Rows) -> Metric:
    family = _FAMILIES[metric.type](metric.name, metric.help, labels=metric.labels)
    for labels, value in rows:
        figures = (_buckets(value), value.total_seconds) if isinstance(value, Durations) else (value,)
        family.add_metric(labels, *figures)
    assert isinstance(family, Metric)
    return family


def _buckets(durations: Durations) -> list[tuple[str, float]]:
    bounds = [*map(str, DURATION_BOUNDS_SECONDS), "+Inf"]
    return list(zip(bounds, accumulate(durations.counts), strict=True))
