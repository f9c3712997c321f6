"""Advice from a history alone: what is recommended, what nothing is said of, and the forms it is printed in."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from dataclasses import replace

import pytest
import yaml
from typer.testing import CliRunner

from autoscaler.advise import printed
from autoscaler.advise.advice import NO_TFLOPS, Advice, Severity, advice_of, broken_advice, ordered, totals_of
from autoscaler.advise.once import say
from autoscaler.advise.recommend import gathered
from autoscaler.cli import app
from autoscaler.contract import keys, metrics
from autoscaler.contract.keys import QoS
from autoscaler.model.decision import Field
from autoscaler.model.profile import API_VERSION
from autoscaler.model.resources import GIB, Resource
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import ClusterView
from autoscaler.read.catchup import Reach
from autoscaler.read.inventory import inventory_of
from tests.autoscaler.seeded import DEVICE_BYTES, DEVICE_TFLOPS, Service, answers, in_memory

END = 1_767_571_200.0
DAY = 24 * 60
HISTORY_SECONDS = 86_400.0


def advised(*services: Service, view: ClusterView | None = None, min_samples: int = 100) -> dict[str, Advice]:
    snapshot = gathered(inventory_of(answers(services), END), view, END)
    history = in_memory(services, END)
    said = asyncio.run(say(snapshot, history, Reach(60.0, 0.0, HISTORY_SECONDS)))
    rows = advice_of(snapshot.discovered.workloads, said, min_samples)
    rows += [broken_advice(broken) for broken in snapshot.discovered.broken]
    return {row.key.name: row for row in rows}


def figure(row: Advice, field: Field) -> float:
    value = row.recommended[field]
    assert value is not None
    return value


def day(**changes: object) -> Service:
    return replace(Service("llm", minutes=DAY), **changes)  # type: ignore[arg-type]


def test_what_is_reserved_and_not_needed_is_given_back():
    row = advised(day(use=3.0, vram=3 * GIB))["llm"]
    assert row.severity is Severity.SAVING
    assert 3.0 < figure(row, Field.COMPUTE_REQUEST) < 4.5
    assert 3 * GIB < figure(row, Field.VRAM_REQUEST) < 4 * GIB
    assert row.saved[Resource.COMPUTE] == pytest.approx(10 - figure(row, Field.COMPUTE_REQUEST))
    assert "Surplus: compute request" in row.reason


def test_use_that_is_clipped_at_its_limit_is_critical_and_the_limit_is_doubled_once():
    row = advised(day(use=60.0, tflops=(10.0, 20.0)))["llm"]
    assert row.severity is Severity.CRITICAL
    assert figure(row, Field.COMPUTE_LIMIT) == 40.0
    assert figure(row, Field.COMPUTE_REQUEST) > 20.0
    assert "Saturated: compute limit" in row.reason


def test_a_worker_that_ran_out_of_memory_gets_more_however_long_ago_it_was():
    recent = advised(day(vram=10 * GIB, vram_figures=(12 * GIB, 16 * GIB), ooms=(-30.0,)))["llm"]
    assert (recent.severity, recent.ooms) == (Severity.CRITICAL, 1)
    assert figure(recent, Field.VRAM_LIMIT) >= 1.5 * 16 * GIB
    earlier = advised(day(vram=10 * GIB, vram_figures=(12 * GIB, 16 * GIB), ooms=(-1000.0,)))["llm"]
    assert earlier.ooms == 1
    assert figure(earlier, Field.VRAM_LIMIT) > 16 * GIB
    assert "out-of-memory events: 1" in earlier.reason


def test_what_was_busy_in_the_morning_keeps_its_memory_and_compute_though_it_idles_now():
    def busy(minute: float) -> bool:
        return -DAY < minute < -14 * 60

    row = advised(
        day(
            use=lambda m: 9.0 if busy(m) else 0.0,
            vram=lambda m: (12.0 if busy(m) else 1.0) * GIB,
            vram_figures=(16 * GIB, 20 * GIB),
        )
    )["llm"]
    assert figure(row, Field.COMPUTE_REQUEST) > 9.0
    assert figure(row, Field.VRAM_REQUEST) > 12 * GIB
    assert figure(row, Field.VRAM_LIMIT) > 12 * GIB


def test_what_fits_is_ok_and_nothing_moves():
    row = advised(day(use=8.5, tflops=(10.0, 13.0), vram=4 * GIB, vram_figures=(4.45 * GIB, 4.5 * GIB)))["llm"]
    assert (row.severity, row.reason) == (Severity.OK, "")
    assert row.recommended == row.current
    assert row.saved == (0.0, 0.0)


def test_with_too_few_samples_nothing_is_said_and_how_many_are_needed_is():
    row = advised(day(minutes=11.0))["llm"]
    assert (row.severity, row.reason) == (Severity.UNKNOWN, "12 samples, 100 needed")
    assert set(row.recommended) == {None}
    assert advised(day(minutes=11.0), min_samples=12)["llm"].severity is not Severity.UNKNOWN


def test_without_known_tflops_only_memory_is_judged():
    row = advised(day(tflops_known=False))["llm"]
    assert row.recommended[Field.COMPUTE_REQUEST] is row.recommended[Field.COMPUTE_LIMIT] is None
    assert row.recommended[Field.VRAM_REQUEST] is not None
    assert NO_TFLOPS in row.reason


def test_figures_that_nobody_set_are_recommended_and_save_nothing():
    row = advised(day(tflops=None, vram_figures=None))["llm"]
    assert row.current[:4] == (None,) * 4
    assert None not in row.recommended
    assert (row.severity, row.saved) == (Severity.WARNING, (None, None))
    assert row.reason.startswith("Unset: compute request")


@pytest.mark.parametrize("qos", ["low", "high", "critical"])
def test_the_service_level_is_that_of_the_series(qos: str):
    row = advised(day(qos=qos))["llm"]
    assert row.config is not None
    assert row.config.qos is QoS(qos)


def test_a_higher_service_level_reserves_more_of_the_same_use():
    def use(minute: float) -> float:
        return 15.0 if minute % 25 == 0 else 5.0  # 4 % of the time: above the 95th percentile, not the 97th

    medium, critical = (advised(day(use=use, qos=qos))["llm"] for qos in ("medium", "critical"))
    assert figure(medium, Field.COMPUTE_REQUEST) < 7.0
    assert figure(critical, Field.COMPUTE_REQUEST) > 15.0


def test_requests_count_over_all_workers_and_more_are_recommended_only_where_limits_can_t_grow():
    row = advised(day(use=3.0, workers=4))["llm"]
    assert (row.current[Field.REPLICAS], row.recommended[Field.REPLICAS]) == (4.0, 4.0)
    assert row.saved[Resource.COMPUTE] == pytest.approx(4 * (10 - figure(row, Field.COMPUTE_REQUEST)))
    full = advised(day(use=DEVICE_TFLOPS, tflops=(50.0, DEVICE_TFLOPS), workers=2))["llm"]
    assert figure(full, Field.REPLICAS) > 2
    assert figure(full, Field.COMPUTE_LIMIT) == DEVICE_TFLOPS


def test_no_limit_passes_the_device():
    row = advised(day(vram=60 * GIB, vram_figures=(70 * GIB, 79 * GIB), ooms=(-5.0,)))["llm"]
    assert figure(row, Field.VRAM_LIMIT) == DEVICE_BYTES


def test_workloads_of_one_name_in_two_namespaces_are_two():
    services = (day(use=2.0), day(use=8.0, namespace="team-b"))
    snapshot = gathered(inventory_of(answers(services), END), None, END)
    said = asyncio.run(say(snapshot, in_memory(services, END), Reach(60.0, 0.0, HISTORY_SECONDS)))
    rows = advice_of(snapshot.discovered.workloads, said, 100)
    assert [row.key for row in rows] == [WorkloadKey("team-a", "llm"), WorkloadKey("team-b", "llm")]
    assert figure(rows[0], Field.COMPUTE_REQUEST) < figure(rows[1], Field.COMPUTE_REQUEST)


def test_each_part_of_the_history_is_heard_of():
    services = (day(),)
    heard: list[tuple[int, int]] = []
    snapshot = gathered(inventory_of(answers(services), END), None, END)
    asyncio.run(
        say(
            snapshot,
            in_memory(services, END),
            Reach(60.0, 0.0, HISTORY_SECONDS),
            lambda done, count: heard.append((done, count)),
        )
    )
    assert heard == [(0, 2), (1, 2), (2, 2)]


def deployment(**annotations: str) -> dict[str, object]:
    template = {
        "metadata": {
            "labels": {keys.ENABLED: "true"},
            "annotations": {keys.PREFIX + key.replace("_", "-"): text for key, text in annotations.items()},
        },
        "spec": {"containers": [{"name": "main"}]},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "llm", "namespace": "team-a", "uid": "d-0"},
        "spec": {"replicas": 1, "template": template},
    }


def profile(config: dict[str, object]) -> dict[str, object]:
    return {
        "apiVersion": API_VERSION,
        "kind": "WorkloadProfile",
        "metadata": {"name": "mine", "namespace": "team-a"},
        "spec": {"autoScalingConfig": config},
    }


FIGURES = {"tflops_request": "10", "tflops_limit": "20", "vram_request": "8Gi", "vram_limit": "16Gi"}


def test_with_a_cluster_bounds_and_service_level_of_its_objects_hold():
    bounds = {"bounds": {"minAllowed": {"tflops": 9, "vram": "7Gi"}}}
    view = ClusterView(
        owners=(deployment(**FIGURES, qos="critical", workload_profile="mine"),), profiles=(profile(bounds),)
    )
    row = advised(day(use=2.0, vram=2 * GIB), view=view)["llm"]
    assert row.config is not None
    assert row.config.qos is QoS.CRITICAL
    assert figure(row, Field.COMPUTE_REQUEST) >= 9.0
    assert figure(row, Field.VRAM_REQUEST) >= 7 * GIB


def test_what_a_bound_cuts_is_said():
    most = {"bounds": {"maxAllowed": {"tflops": 25, "vram": "16Gi"}}}
    view = ClusterView(owners=(deployment(**FIGURES, workload_profile="mine"),), profiles=(profile(most),))
    row = advised(day(use=60.0), view=view)["llm"]
    assert figure(row, Field.COMPUTE_LIMIT) == 25.0
    assert "compute limit cut to its bounds or the GPU" in row.reason


def test_with_a_replicas_layer_fewer_workers_may_be_enough():
    replicas = {"autoSetReplicas": {"enable": True, "minReplicas": 1, "maxReplicas": 8}}
    limits = {"bounds": {"minAllowed": {"tflops": 20, "vram": "8Gi"}}}
    view = ClusterView(owners=(deployment(**FIGURES, workload_profile="mine"),), profiles=(profile(replicas | limits),))
    service = day(use=1.0, workers=4, tflops=(20.0, 20.0), vram_figures=(8 * GIB, 8 * GIB))
    without = advised(service)["llm"]
    owned = replace(view, owners=({**view.owners[0], "spec": {**view.owners[0]["spec"], "replicas": 4}},))
    row = advised(service, view=owned)["llm"]
    assert figure(without, Field.REPLICAS) == 4
    assert figure(row, Field.REPLICAS) < 4


def test_a_broken_configuration_is_a_row_that_says_what_is_wrong():
    view = ClusterView(owners=(deployment(**FIGURES | {"qos": "urgent"}),))
    row = advised(day(), view=view)["llm"]
    assert row.severity is Severity.UNKNOWN
    assert f"{keys.QOS}: 'urgent' is not allowed" in row.reason


def test_a_workload_that_only_the_cluster_knows_has_no_samples():
    view = ClusterView(owners=({**deployment(**FIGURES), "metadata": {"name": "new", "namespace": "team-a"}},))
    rows = advised(day(), view=view)
    assert rows["new"].reason == "0 samples, 100 needed"
    assert rows["llm"].severity is not Severity.UNKNOWN


def test_a_dedicated_gpu_is_not_judged():
    view = ClusterView(owners=(deployment(**FIGURES, dedicated_gpu="true"),))
    assert advised(day(), view=view)["llm"].reason == "it has whole GPUs of its own"


@pytest.fixture(scope="module")
def rows() -> list[Advice]:
    services = (
        day(name="roomy", use=3.0),
        day(name="tight", use=30.0),
        day(name="young", minutes=5.0),
        day(name="dark", tflops_known=False),
    )
    return ordered(list(advised(*services).values()))


def test_the_most_urgent_come_first(rows: list[Advice]):
    assert [row.key.name for row in rows] == ["tight", "dark", "roomy", "young"]


def test_totals_are_the_sums_over_what_was_judged(rows: list[Advice]):
    totals = totals_of(rows)
    assert (totals.workloads, totals.judged) == (4, 3)
    known = [row for row in rows if row.key.name in {"roomy", "tight"}]
    assert totals.current[Resource.COMPUTE] == 20.0
    assert totals.recommended[Resource.COMPUTE] == sum(figure(row, Field.COMPUTE_REQUEST) for row in known)
    assert sum(totals.by_severity.values()) == 4


def test_json_yaml_and_csv_tell_the_same_in_the_same_columns(rows: list[Advice]):
    data = printed.as_data(rows, END, HISTORY_SECONDS)
    assert json.loads(printed.as_json(data)) == yaml.safe_load(printed.as_yaml(data)) == data
    read = list(csv.DictReader(io.StringIO(printed.as_csv(rows))))
    for flat, record in zip(read, data["workloads"], strict=True):
        assert list(flat) == list(record) == list(printed.COLUMNS)
        assert flat == {name: "" if value is None else str(value) for name, value in record.items()}


def test_the_columns_are_these():
    assert (
        *("namespace", "workload", "qos", "gpu_model", "gpu_count", "workers", "severity"),
        *("current_tflops_request", "recommended_tflops_request", "current_tflops_limit", "recommended_tflops_limit"),
        *("current_vram_request_bytes", "recommended_vram_request_bytes"),
        *("current_vram_limit_bytes", "recommended_vram_limit_bytes", "current_replicas", "recommended_replicas"),
        *("saved_tflops", "saved_vram_bytes", "samples", "span_seconds", "out_of_memory_events", "reason"),
    ) == printed.COLUMNS


def test_the_table_has_a_line_per_workload_and_one_of_totals(rows: list[Advice]):
    out = io.StringIO()
    printed.print_table(rows, HISTORY_SECONDS, out)
    lines = out.getvalue().splitlines()
    assert len(lines) == 1 + len(rows) + 1
    assert lines[0].split() == [
        "WORKLOAD",
        "QOS",
        "SEVERITY",
        "TFLOPS",
        "VRAM",
        "REPLICAS",
        "SAVED",
        "SAMPLES",
        "REASON",
    ]
    assert lines[1].startswith("team-a/tight")
    assert "10/20→" in lines[1]
    assert lines[-1].startswith("4 workloads, 3 judged by 1d of history: 1 critical, 2 saving, 1 unknown; requests 20→")


def test_labels_that_the_scrape_renamed_are_understood():
    service = day(minutes=5.0, qos="high")
    renamed = {
        name: [
            ({f"exported_{key}" if key in {"namespace", "pod", "container"} else key: text for key, text in labels.items()}
             | {"namespace": "monitoring", "pod": "tf-agent-0"}, value)
            for labels, value in points
        ]
        for name, points in answers((service,)).items()
    }  # fmt: skip
    [workload] = inventory_of(renamed, END).workloads
    assert (workload.key, workload.config.qos) == (WorkloadKey("team-a", "llm"), QoS.HIGH)
    assert workload.workers[0].ref.uid == "uid-llm-0"


def test_a_worker_that_two_scrapes_report_is_one():
    twice = {name: [*points, *points] for name, points in answers((day(workers=2),)).items()}
    [workload] = inventory_of(twice, END).workloads
    assert (workload.replicas, len(workload.workers), workload.config.gpu_count) == (2, 2, 1)


def test_one_of_a_pair_stands_for_the_other():
    told = dict(answers((day(),)))
    del told[metrics.WORKER_TFLOPS_REQUEST.name]
    [workload] = inventory_of(told, END).workloads
    assert (workload.current.compute.request, workload.current.compute.limit) == (20.0, 20.0)


def test_a_prometheus_that_can_t_be_reached_is_one_line_and_exit_code_1():
    result = CliRunner().invoke(app, ["recommend", "--prometheus-url", "http://127.0.0.1:1"])
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)


def test_wrong_options_are_named_at_once():
    result = CliRunner().invoke(app, ["recommend", "--history", "5min"], env={"TF_AUTOSCALER_PROMETHEUS_URL": ""})
    assert result.exit_code == 2
    assert "--prometheus-url: is missing" in result.stderr
    assert "--history: '5min' is not allowed" in result.stderr
