"""The exposition: what a scrape sees, what it must not see, and that tools accept it."""

from __future__ import annotations

import math
import shutil
import subprocess
from dataclasses import replace
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector, CollectorRegistry

from agent.export.exporter import Exporter
from agent.export.exposition import END, family_text
from agent.export.series import Column
from agent.gpus import load_gpu_table
from agent.model.beyond import Beyond
from agent.model.report import (
    DURATION_BOUNDS_SECONDS,
    AgentStats,
    DurationRecorder,
    Durations,
    SourceStats,
    TickReport,
)
from agent.model.samples import Attribution, DeviceSample, NodeSample, Unattributed, Worker, WorkerUse
from autoscaler.contract.keys import QoS
from autoscaler.contract.metrics import (
    AGENT_METRICS,
    AGENT_NVML_CALL_SECONDS,
    DEVICE_METRICS,
    WORKER_COMPUTE_SECONDS,
    WORKER_METRICS,
    WORKER_VRAM_USED,
)
from autoscaler.contract.quota import DeviceQuota, Observed

GIB = 1024**3
WORKER = Worker("uid-a", "team", "pod-a", "main", "work", QoS.HIGH)
KEY = ("uid-a", "main", "GPU-a")
LABELS = {
    "namespace": "team",
    "workload": "work",
    "pod": "pod-a",
    "container": "main",
    "node": "node-1",
    "gpu_uuid": "GPU-a",
}
DEVICE = DeviceSample(0, "GPU-a", "NVIDIA L4", 100.0, 24 * GIB, 10 * GIB, 0.75)
QUOTA = DeviceQuota("GPU-a", 10.0, 40.0, 2 * GIB, 8 * GIB)
W = "tensor_fusion_worker_"


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def exporter(clock):
    return Exporter(load_gpu_table(), render_every_seconds=0, clock=clock)


def use(ratio=0.5, vram_bytes=3 * GIB, worker=WORKER, at=100.0):
    return WorkerUse(worker, "GPU-a", at, ratio, vram_bytes)


def report(*uses, at=100.0, device=DEVICE, **more):
    attribution = Attribution(at, uses, (Unattributed("GPU-a", 0.25, 7 * GIB),))
    return TickReport(at, "node-1", NodeSample(at, (device,), "575.1"), attribution, **more)


def full_report():
    durations = DurationRecorder()
    durations.observe(0.002)
    stats = AgentStats(
        durations.read(),
        durations.read(),
        {("sim", "applied", "immediate"): 3},
        1,
        SourceStats({"nvmlInit": durations.read()}, {("nvmlInit", "unknown"): 2}, {"stale": 4}),
    )
    return report(
        use(at=99.5),
        desired={KEY: QUOTA},
        observed={KEY: Observed(38.0, 7 * GIB)},
        generation=7,
        applied={KEY: 6},
        throttled={KEY: True},
        ooms={(*KEY, "backend"): 2},
        backends={KEY: "sim"},
        credits={KEY: 120.0},
        bypassed={KEY: True},
        beyond={KEY: Beyond(0.2, GIB)},
        last_contact_at=90.0,
        stats=stats,
    )  # fmt: skip


def series(exporter, openmetrics=False):
    parse = parse_openmetrics if openmetrics else parse_text
    samples = [s for family in parse(exporter.body(openmetrics).decode()) for s in family.samples]
    found = {(s.name, tuple(sorted(s.labels.items()))): s.value for s in samples}
    assert len(found) == len(samples), "a label set must not stand there twice"
    return found


def worker(exporter, name, **extra):
    return series(exporter).get((W + name, tuple(sorted((LABELS | extra).items()))))


def names(exporter):
    return {name for name, _ in series(exporter)}


def test_a_full_tick_shows_every_family_with_its_figure(exporter):
    exporter.update(full_report())
    figures = {
        "compute_utilization_ratio": 0.5,
        "compute_used_tflops": 60.5,
        "compute_seconds_total": 0,
        "vram_used_bytes": 3 * GIB,
        "vram_peak_bytes": 3 * GIB,
        "tflops_request": 10,
        "tflops_limit": 40,
        "vram_request_bytes": 2 * GIB,
        "vram_limit_bytes": 8 * GIB,
        "effective_tflops_limit": 38,
        "effective_vram_limit_bytes": 7 * GIB,
        "throttled_seconds_total": 0,
        "quota_generation": 7,
        "quota_applied_generation": 6,
        "burst_credit_tflop_seconds": 120,
        "limit_bypassed": 1,
        "compute_beyond_limit_seconds_total": 0,
        "vram_beyond_limit_peak_bytes": GIB,
        "sample_age_seconds": 0.5,
    }
    assert {name: worker(exporter, name) for name in figures} == figures
    assert worker(exporter, "oom_total", source="backend") == 2
    assert worker(exporter, "info", qos="high", backend="sim", gpu_model="NVIDIA L4", pod_uid="uid-a") == 1
    expected = {metric.name for metric in (*WORKER_METRICS, *DEVICE_METRICS, *AGENT_METRICS)}
    assert {
        name.removesuffix(suffix) for name in names(exporter) for suffix in ("", "_bucket", "_sum", "_count")
    } >= expected


def test_what_is_beyond_a_limit_is_a_part_of_what_is_counted_and_is_told_where_a_limit_reaches(exporter):
    at_first = {"bypassed": {KEY: False}}
    exporter.update(report(use(0.9), **at_first))
    assert worker(exporter, "compute_beyond_limit_seconds_total") == 0
    assert worker(exporter, "vram_beyond_limit_peak_bytes") == 0
    exporter.update(report(use(0.9, at=102), at=102.0, beyond={KEY: Beyond(0.4, GIB)}, **at_first))
    exporter.update(report(use(0.3, at=105), at=105.0, **at_first))
    assert worker(exporter, "compute_seconds_total") == pytest.approx(0.9 * 2 + 0.3 * 3)
    assert worker(exporter, "compute_beyond_limit_seconds_total") == pytest.approx(0.4 * 2)
    exporter.update(report(use(0.3, at=106), at=106.0))
    assert worker(exporter, "compute_beyond_limit_seconds_total") is None


def test_the_peak_beyond_a_limit_lasts_until_it_was_scraped(exporter):
    judged = {"bypassed": {KEY: False}}
    exporter.update(report(use(), beyond={KEY: Beyond(0.0, GIB)}, **judged))
    exporter.update(report(use(at=101), at=101.0, **judged))
    assert worker(exporter, "vram_beyond_limit_peak_bytes") == GIB
    exporter.update(report(use(at=102), at=102.0, **judged))
    assert worker(exporter, "vram_beyond_limit_peak_bytes") == 0


def test_both_formats_say_the_same(exporter):
    exporter.update(full_report())
    assert series(exporter) == series(exporter, openmetrics=True)
    assert exporter.body(openmetrics=True).endswith(b"# EOF\n")


def test_promtool_finds_nothing_to_criticise(exporter):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    exporter.update(full_report())
    done = subprocess.run(
        [promtool, "check", "metrics"], check=False, input=exporter.body(), capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_worker_has_at_most_25_series_on_a_device_and_no_pid(exporter):
    exporter.update(full_report())
    own = [labels for name, labels in series(exporter) if name.startswith(W)]
    assert len(own) <= 25
    assert not any("pid" in dict(labels) for labels in own)


def test_compute_seconds_are_the_integral_of_the_ratio(exporter):
    for second, ratio in enumerate((0.9, 0.5, None, 1.0)):
        exporter.update(report(use(ratio), at=100.0 + second))
    assert worker(exporter, "compute_seconds_total") == pytest.approx(1.5)


def test_a_long_silence_and_a_clock_set_back_add_nothing(exporter):
    for at in (100.0, 1000.0, 50.0, 51.0):
        exporter.update(report(use(1.0), at=at))
    assert worker(exporter, "compute_seconds_total") == pytest.approx(1.0)


def test_throttled_seconds_are_absent_where_nothing_can_tell(exporter):
    exporter.update(report(use(), throttled={KEY: None}))
    assert worker(exporter, "throttled_seconds_total") is None
    for second, throttled in enumerate((True, False, True), start=1):
        exporter.update(report(use(), at=100.0 + second, throttled={KEY: throttled}))
    assert worker(exporter, "throttled_seconds_total") == 2.0


def test_the_peak_runs_from_scrape_to_scrape(exporter):
    def tick(gib):
        exporter.update(report(use(vram_bytes=gib * GIB)))

    tick(5)
    tick(3)
    assert worker(exporter, "vram_peak_bytes") == 5 * GIB
    tick(2)
    assert worker(exporter, "vram_peak_bytes") == 2 * GIB


def test_a_peak_after_the_rendering_of_the_scraped_page_is_not_lost(clock):
    exporter = Exporter(load_gpu_table(), render_every_seconds=5, clock=clock)
    peaks = []
    for second, gib in enumerate([1, 1, 9, 1, 1, 1, 1, 1, 1, 1, 1]):
        clock.now = float(second)
        exporter.update(report(use(vram_bytes=gib * GIB), at=100.0 + second))
        peaks.append(worker(exporter, "vram_peak_bytes") // GIB)
    assert peaks == [1] * 5 + [9] * 5 + [1]


def test_an_unknown_model_leaves_out_tflops_and_nothing_else(exporter):
    exporter.update(report(use(), device=replace(DEVICE, model="NVIDIA X1")))
    assert worker(exporter, "compute_used_tflops") is None
    assert worker(exporter, "compute_utilization_ratio") == 0.5
    assert "tensor_fusion_device_compute_capacity_tflops" not in names(exporter)


def test_a_mig_slice_counts_its_fraction(exporter):
    exporter.update(report(use(), device=replace(DEVICE, mig_fraction=0.5)))
    assert worker(exporter, "compute_used_tflops") == pytest.approx(121 / 4)


@pytest.mark.parametrize("unknown", [None, math.nan, math.inf])
def test_what_is_not_known_has_no_series(exporter, unknown):
    exporter.update(report(use(unknown, None), device=replace(DEVICE, vram_used_bytes=None, compute_ratio=None)))
    gone = {"compute_utilization_ratio", "compute_used_tflops", "vram_used_bytes", "vram_peak_bytes"}
    assert not {W + name for name in gone} & names(exporter)
    assert "tensor_fusion_device_vram_used_bytes" not in names(exporter)
    assert "tensor_fusion_device_vram_total_bytes" in names(exporter)


def test_a_worker_without_a_document_shows_the_amounts_it_was_born_with(exporter):
    exporter.update(report(use(worker=replace(WORKER, born=replace_uuid(QUOTA)))))
    assert worker(exporter, "tflops_limit") == 40
    assert worker(exporter, "effective_tflops_limit") is None
    assert worker(exporter, "quota_generation") is None


def replace_uuid(quota):
    return DeviceQuota("", quota.tflops_request, quota.tflops_limit, quota.vram_request_bytes, quota.vram_limit_bytes)


def test_a_quota_without_a_container_is_that_of_the_pods_worker(exporter):
    pods = ("uid-a", "", "GPU-a")
    exporter.update(report(use(), desired={pods: QUOTA}, observed={pods: Observed(30.0)}, generation=3))
    assert (worker(exporter, "tflops_limit"), worker(exporter, "quota_generation")) == (40, 3)
    assert worker(exporter, "effective_tflops_limit") == 30
    assert worker(exporter, "quota_applied_generation") is None


def test_series_of_a_vanished_worker_leave_with_the_next_page(exporter):
    exporter.update(report(use()))
    exporter.update(report(at=101.0))
    assert not any(name.startswith(W) for name in names(exporter))


def test_a_lost_device_takes_its_own_series_along_and_keeps_totals_for_its_return(exporter):
    for at in (100.0, 101.0):
        exporter.update(report(use(1.0), at=at))
    exporter.update(report(at=102.0, device=replace(DEVICE, healthy=False, reason="lost")))
    assert not any(name.startswith(("tensor_fusion_device", W)) for name in names(exporter))
    exporter.update(report(use(1.0), at=103.0))
    assert worker(exporter, "compute_seconds_total") >= 1.0


def test_two_pods_of_one_name_never_double_a_series(exporter):
    exporter.update(report(use(), use(0.1, worker=replace(WORKER, pod_uid="uid-b"))))
    assert worker(exporter, "compute_utilization_ratio") == 0.5


def test_when_ticks_stop_measurements_leave_and_the_agents_own_series_stay(exporter, clock):
    exporter.update(full_report())
    clock.now = 16.0
    assert {name.split("_")[2] for name in names(exporter)} == {"agent"}
    exporter.update(full_report())
    assert worker(exporter, "compute_utilization_ratio") == 0.5


def test_a_scrape_costs_no_rendering(exporter):
    exporter.update(full_report())
    assert exporter.body() is exporter.body()


def test_before_the_first_tick_the_page_is_empty_and_valid(exporter):
    assert (exporter.body(), exporter.body(openmetrics=True)) == (b"", b"# EOF\n")


def test_durations_are_counted_in_cumulative_buckets(exporter):
    exporter.update(full_report())
    found = series(exporter)
    name = "tensor_fusion_agent_sample_seconds"
    node = ("node", "node-1")
    assert found[name + "_bucket", (("le", "0.001"), node)] == 0
    assert found[name + "_bucket", (("le", "0.005"), node)] == 1
    assert found[name + "_bucket", (("le", "+Inf"), node)] == found[name + "_count", (node,)] == 1
    assert found[name + "_sum", (node,)] == pytest.approx(0.002)


# Both zeros are written alike.
VALUES = {
    WORKER_VRAM_USED: (GaugeMetricFamily, st.floats().map(lambda value: value + 0.0)),
    WORKER_COMPUTE_SECONDS: (CounterMetricFamily, st.integers(0, 2**70)),
    AGENT_NVML_CALL_SECONDS: (
        HistogramMetricFamily,
        st.builds(
            Durations,
            st.tuples(*[st.integers(0, 9)] * (len(DURATION_BOUNDS_SECONDS) + 1)),
            st.floats(0, 9).map(lambda value: value + 0.0),
        ),
    ),
}
LABEL = st.text(st.characters(codec="utf-8"), max_size=4)
TABLES = st.sampled_from(list(VALUES)).flatmap(
    lambda metric: st.tuples(
        st.just(metric),
        st.lists(
            st.dictionaries(st.tuples(*[LABEL] * len(metric.labels)), VALUES[metric][1], max_size=4),
            min_size=1,
            max_size=4,
        ),
    )
)


@given(TABLES, st.booleans())
def test_a_family_written_from_the_lines_before_is_what_prometheus_client_writes(drawn, openmetrics):
    (metric, tables), text = drawn, None
    for table in tables:
        text = family_text(metric, Column(list(table), list(table.values())), openmetrics, text)
        family = VALUES[metric][0](metric.name, metric.help, labels=metric.labels)
        for labels, value in table.items():
            family.add_metric(labels, *as_prometheus_client_takes(value))
        registry = CollectorRegistry()
        registry.register(Ready(family))
        write = generate_openmetrics if openmetrics else generate_latest
        assert text.body == write(registry).removesuffix(END)


def as_prometheus_client_takes(value):
    if not isinstance(value, Durations):
        return (value,)
    bounds = [*map(str, DURATION_BOUNDS_SECONDS), "+Inf"]
    return list(zip(bounds, accumulate(value.counts), strict=True)), value.total_seconds


class Ready(Collector):
    def __init__(self, family):
        self.family = family

    def collect(self):
        return [self.family]
