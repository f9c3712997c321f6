"""The history in memory reads what agents really expose, and tells the same story as Prometheus would."""

from __future__ import annotations

import math

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from autoscaler.contract import metrics
from autoscaler.errors import HistoryError
from autoscaler.model.resources import GIB, Resource
from autoscaler.model.usage import Window, WorkloadKey
from autoscaler.read.memory import MemoryHistory

START = 1_700_000_040.0
WORKER = ("ns", "a", "a-0", "c", "n", "G")


class Exposed(Collector):
    """The families of one agent with one worker."""

    def __init__(self, seconds: float, vram_bytes: float, worker: tuple[str, ...] = WORKER) -> None:
        self.seconds, self.vram_bytes, self.worker = seconds, vram_bytes, worker

    def collect(self):
        for metric, value in (
            (metrics.WORKER_COMPUTE_SECONDS, self.seconds),
            (metrics.WORKER_VRAM_PEAK, self.vram_bytes),
            (metrics.WORKER_SAMPLE_AGE, 0.5),
        ):
            yield family(metric, self.worker, value)
        yield family(metrics.DEVICE_COMPUTE_CAPACITY, ("n", "G"), 300.0)
        yield family(metrics.DEVICE_VRAM_TOTAL, ("n", "G"), 80.0 * GIB)


def family(metric: metrics.Metric, labels: tuple[str, ...], value: float) -> Metric:
    kind = CounterMetricFamily if metric.type is metrics.MetricType.COUNTER else GaugeMetricFamily
    made = kind(metric.name, metric.help, labels=metric.labels)
    made.add_metric(labels, value)
    return made


def scrape(*collectors: Collector) -> str:
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    return generate_latest(registry).decode()


def history(retention_seconds: float = 3600.0) -> MemoryHistory:
    return MemoryHistory(scrape_interval_seconds=15.0, retention_seconds=retention_seconds)


async def test_a_real_exposition_becomes_use():
    kept = history()
    for at in range(0, 121, 15):
        kept.ingest(START + at, scrape(Exposed(0.5 * at, at * GIB)))
    usage = await kept.read(Window(START, START + 120, 60))
    assert usage.keys == (WorkloadKey("ns", "a"),)
    assert usage.peak[Resource.COMPUTE, 0] == pytest.approx([150, 150])
    assert usage.peak[Resource.VRAM, 0] == pytest.approx([60 * GIB, 120 * GIB])
    assert usage.last_seen.tolist() == [START + 120]


async def test_labels_with_quotes_braces_and_newlines_are_read():
    odd = ("ns", 'we"ird} 1\\n', "a\n0", "c", "n", "G")
    kept = history()
    kept.ingest(START + 30, scrape(Exposed(1, 7 * GIB, odd)))
    kept.ingest(START + 45, scrape(Exposed(2, 5 * GIB, odd)))
    usage = await kept.read(Window(START, START + 60, 60))
    assert usage.keys == (WorkloadKey("ns", 'we"ird} 1\\n'),)
    assert usage.peak[Resource.VRAM, 0].tolist() == [7 * GIB]


async def test_timestamps_in_the_exposition_do_not_change_when_it_was_scraped():
    kept = history()
    labels = ",".join(f'{name}="{value}"' for name, value in zip(metrics.WORKER_LABELS, WORKER, strict=True))
    kept.ingest(START + 30, f"{metrics.WORKER_VRAM_PEAK.name}{{{labels}}} 1e+09 1500000000000\n")
    kept.ingest(START + 45, f"{metrics.WORKER_VRAM_PEAK.name}{{{labels}}} 2e+09 1500000015000\n")
    usage = await kept.read(Window(START, START + 60, 60))
    assert usage.peak[Resource.VRAM, 0] == pytest.approx([2e9])


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1", "1e30"])
async def test_nonsense_in_an_exposition_is_unknown(value: str):
    kept = history()
    text = scrape(Exposed(1, 8 * GIB)).replace("8.589934592e+09", value)
    assert value in text
    kept.ingest(START + 30, text)
    usage = await kept.read(Window(START, START + 60, 60))
    assert math.isnan(usage.peak[Resource.VRAM, 0, 0])


@pytest.mark.parametrize("tail", ["", " many", ' 1"'])
async def test_a_line_that_cannot_be_read_is_named_and_nothing_is_kept(tail: str):
    kept = history()
    with pytest.raises(HistoryError, match="tensor_fusion_worker_vram_peak_bytes"):
        kept.ingest(START + 30, f'{scrape(Exposed(1, GIB))}{metrics.WORKER_VRAM_PEAK.name}{{workload="b"}}{tail}\n')
    assert (await kept.read(Window(START, START + 60, 60))).keys == ()


async def test_a_scrape_that_is_not_newer_is_refused():
    kept = history()
    kept.ingest(START + 30, scrape(Exposed(1, GIB)))
    with pytest.raises(HistoryError, match="not newer"):
        kept.ingest(START + 30, scrape(Exposed(2, GIB)))


async def test_what_is_older_than_the_retention_is_forgotten_and_the_rest_is_not():
    kept = history(retention_seconds=300)
    for at in range(0, 3601, 15):
        worker = WORKER if at > 1000 else ("ns", "old", "o-0", "c", "n", "G")
        kept.ingest(START + at, scrape(Exposed(0.5 * at, GIB, worker)))
    usage = await kept.read(Window(START, START + 3600, 60))
    assert usage.keys == (WorkloadKey("ns", "a"),)
    assert [bool(x) for x in usage.workers[0]] == [False] * 54 + [True] * 6


async def test_an_empty_history_is_no_use_and_no_error():
    usage = await history().read(Window(START, START + 60, 60))
    assert usage.keys == ()
    assert usage.peak.shape == (2, 0, 1)
