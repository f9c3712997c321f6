"""From use on file or in Prometheus to a backtest as table, JSON and page."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from autoscaler.cli import app
from autoscaler.contract import metrics
from autoscaler.contract.keys import QoS
from autoscaler.errors import ConfigError
from autoscaler.model.config import LimitsPolicy, Mode, RequestsPolicy
from autoscaler.model.profile import parse_spec
from autoscaler.model.resources import GIB, Amount, Amounts
from autoscaler.model.usage import Usage, Window, WorkloadKey, empty_usage
from autoscaler.read.inventory import AMOUNTS, inventory_of
from autoscaler.replay.backtest import Backtest, backtest, names_of, span_of
from autoscaler.replay.contend import Setting, Tried, as_if_on, by_qos, cases, configured
from autoscaler.replay.demand import Demand, steady
from autoscaler.replay.page import render_page
from autoscaler.replay.printed import backtest_as_data, print_backtest
from autoscaler.replay.recorded import demands_of
from autoscaler.replay.trace import read_trace

HEADER = ("workload_id", "timestamp_s", "tflops_used", "vram_bytes_used")
ASKED = Amounts(Amount(10, 20), Amount(4 * GIB, 8 * GIB))
DAY = 1_700_006_400  # a midnight
PROFILE = """
apiVersion: tensor-fusion.ai/v1
kind: WorkloadProfile
metadata: {name: %s, namespace: default}
spec:
  qos: low
  resources: {requests: {tflops: "40", vram: 8Gi}, limits: {tflops: "60", vram: 16Gi}}
  autoScalingConfig: {autoSetLimits: {enable: true}}
"""
CLUSTER = """
apiVersion: tensor-fusion.ai/v1
kind: TensorFusionWorkload
metadata: {name: chat, namespace: ml}
spec:
  qos: high
  gpuModel: A100
  gpuCount: 2
  replicas: 1
  resources: {requests: {tflops: "100", vram: 10Gi}, limits: {tflops: "200", vram: 20Gi}}
---
apiVersion: tensor-fusion.ai/v1
kind: TensorFusionWorkload
metadata: {name: silent, namespace: ml}
spec: {resources: {requests: {tflops: "1", vram: 1Gi}}}
"""

POD = """
---
apiVersion: v1
kind: Pod
metadata:
  name: chat-0
  namespace: ml
  labels: {tensor-fusion.ai/enabled: 'true', tensor-fusion.ai/workload: chat}
  annotations:
    tensor-fusion.ai/tflops-request: '70'
    tensor-fusion.ai/tflops-limit: '140'
    tensor-fusion.ai/vram-request: 10Gi
    tensor-fusion.ai/vram-limit: 20Gi
spec: {containers: [{name: main}]}
"""


def write(path: Path, rows: Iterable[Sequence[object]], header: Sequence[str] = HEADER) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def trace_rows(hours: float = 2.0, seed: int = 1) -> list[Sequence[object]]:
    """`chat` breathes with VRAM, `batch` bursts from idle without any VRAM figures."""
    rng = np.random.default_rng(seed)
    rows: list[Sequence[object]] = []
    for place in range(int(hours * 60)):
        at = DAY + 60 * place
        chat = 30 + 20 * math.sin(place / 30) + rng.normal(0, 1)
        rows.append(("chat", at, f"{chat:.3f}", int((5 + math.sin(place / 30)) * GIB)))
        rows.append(("batch", at, f"{80 * (place % 40 > 30) + rng.random():.3f}", ""))
    return rows


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write(tmp_path / "trace.csv", trace_rows())


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["backtest", "--jobs", "1", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def data(*arguments: object) -> dict[str, Any]:
    code, out, err = run("-o", "json", *arguments)
    assert code == 0, err
    made: dict[str, Any] = json.loads(out)
    return made


def policies(made: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    return next({p["policy"]: p for p in one["policies"]} for one in made["workloads"] if one["name"] == name)


def held_backtest(demands: Sequence[Demand], *, factor: float) -> Backtest:
    """A backtest of static allocation against itself: figures that can be worked by hand."""
    setting = Setting((), None, {}, factor, "")
    contended = [replace(case, contenders=case.contenders[:1]) for case in cases(demands, setting)]
    results = backtest(contended, 1, 0.0, lambda *_: None)
    return Backtest("by hand", results, names_of(contended), span_of(contended), ())


# The trace file


def test_a_csv_trace_is_read_by_its_columns_and_ignores_others(tmp_path: Path):
    header = ("more", *HEADER)
    rows = [
        ("x", "ml/chat", 60, 2.5, 2**30),
        ("x", "ml/chat", 0, 1, ""),
        ("x", "b", 0, "", 5),
        ("x", "b", 30, "nan", 6),
    ]
    chat, b = read_trace(write(tmp_path / "t.csv", rows, header)).demands
    assert (chat.key, chat.start, chat.step) == (WorkloadKey("ml", "chat"), 0, 60)
    assert chat.compute.tolist() == [1, 2.5]
    assert chat.vram is not None
    assert math.isnan(chat.vram[0])
    assert chat.vram[1] == 2**30
    assert b.key == WorkloadKey("default", "b")
    assert np.isnan(b.compute).all()


def test_vram_may_be_missing_altogether(tmp_path: Path):
    (one,) = read_trace(write(tmp_path / "t.csv", [("a", 0, 1), ("a", 60, 2)], HEADER[:3])).demands
    assert one.vram is None


def test_a_gap_in_the_trace_is_unknown_and_not_idle(tmp_path: Path):
    rows = [("a", at, 3, 7) for at in (0, 60, 120, 300, 360)]
    made = read_trace(write(tmp_path / "t.csv", rows))
    assert np.isnan(made.demands[0].compute).tolist() == [False, False, False, True, True, False, False]
    assert made.notes == ()


def test_irregular_timestamps_become_bins_of_a_minute_and_that_is_said(tmp_path: Path):
    rows = [("a", at, used, at) for at, used in ((0, 1), (25, 3), (61, 5), (95, 7), (150, 9))]
    made = read_trace(write(tmp_path / "t.csv", rows))
    (one,) = made.demands
    assert (one.step, one.compute.tolist()) == (60, [2, 6, 9])
    assert one.vram is not None
    assert one.vram.tolist() == [25, 95, 150]
    assert made.notes == ("a: irregular timestamps, put into bins of 60 s (mean compute, peak VRAM)",)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "at least one row"),
        ([("a", 0, -1, 5), ("a", 60, 1, 5)], "tflops_used: '-1' is not allowed"),
        ([("a", 0, 1, 5), ("a", 60, 1, -5)], "vram_bytes_used: '-5' is not allowed"),
        ([("a", 0, "inf", 5), ("a", 60, 1, 5)], "tflops_used: 'inf' is not allowed"),
        ([("a", 0, "much", 5)], "tflops_used: 'much' is not allowed; allowed: a number"),
        ([("a", "", 1, 5)], "timestamp_s: 'nan' is not allowed"),
        ([("", 0, 1, 5), ("", 60, 1, 5)], "row 1: workload_id"),
        ([("a", 0, 1, 5)], "at least two rows"),
        ([("a", 0, 1, 5), ("a", 0, 2, 5), ("a", 60, 2, 5)], "0 stands twice"),
        ([("a", 0, 1, 5), ("a", 1, 1, 5), ("a", 2, 1, 5), ("a", 1e12, 1, 5)], "are all of them seconds?"),
    ],
)
def test_a_row_that_can_be_no_measurement_is_named(tmp_path: Path, rows: list[Sequence[object]], says: str):
    path = write(tmp_path / "t.csv", rows)
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)


def test_missing_columns_other_formats_and_absent_files_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="timestamp_s missing"):
        read_trace(write(tmp_path / "t.csv", [("a", 1)], ("workload_id", "tflops_used")))
    with pytest.raises(ConfigError, match=r"ends in \.csv or \.parquet"):
        read_trace(tmp_path / "t.xlsx")
    with pytest.raises(ConfigError, match="a readable file"):
        read_trace(tmp_path / "absent.csv")


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow, the extra parquet, is not installed")
def test_parquet_and_csv_say_the_same(tmp_path: Path):
    import pyarrow as pa
    from pyarrow import parquet

    rows = [("a", 0.0, 1.0, 5.0), ("a", 60.0, 2.0, None), ("b", 0.0, 3.0, 7.0), ("b", 60.0, 4.0, 8.0)]
    columns = dict(zip(HEADER, map(list, zip(*rows, strict=True)), strict=True))
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    of_csv = write(tmp_path / "t.csv", [["" if cell is None else cell for cell in row] for row in rows])
    for one, other in zip(read_trace(tmp_path / "t.parquet").demands, read_trace(of_csv).demands, strict=True):
        assert (one.key, one.start, one.step) == (other.key, other.start, other.step)
        np.testing.assert_array_equal(one.compute, other.compute)
        np.testing.assert_array_equal(one.vram, other.vram)


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=re.escape("tensor-fusion-autoscaler[parquet]")):
        read_trace(tmp_path / "t.parquet")


# Recorded use


def recorded(*, clipped: Sequence[int] = (), killed: Sequence[int] = ()) -> Usage:
    usage = empty_usage(Window(0, 360, 60), (WorkloadKey("ml", "chat"), WorkloadKey("dev", "never")))
    usage.peak[0, 0, 1:] = 10
    usage.peak[1, 0, 1:] = 4 * GIB
    usage.ceiling[1, 0, 1:] = 8 * GIB
    usage.workers[0, 1:] = 3
    usage.clipped[0, 0, list(clipped)] = True
    usage.ooms[0, list(killed)] = 1
    return usage


def test_recorded_use_is_the_demand_from_the_first_bin_in_which_a_workload_was_seen():
    (one,) = demands_of(recorded())
    assert (one.key, one.start, len(one.compute)) == (WorkloadKey("ml", "chat"), 60, 5)
    assert one.compute.tolist() == [10] * 5
    assert one.workers.tolist() == [3] * 5
    assert one.censored_hours == 0


def test_clipped_use_is_taken_for_more_demand_and_counted_as_censored():
    (one,) = demands_of(recorded(clipped=(2, 3), killed=(3, 4)))
    assert one.compute.tolist() == pytest.approx([10, 11.5, 11.5, 10, 10])
    assert one.vram is not None
    assert (one.vram / GIB).tolist() == pytest.approx([4, 4, 9.6, 9.6, 4])
    assert one.censored_hours == pytest.approx(3 / 60)


def test_only_the_namespace_that_was_asked_for_is_replayed():
    assert demands_of(recorded(), "dev") == ()
    assert len(demands_of(recorded(), "ml")) == 1


# Who contends


def test_a_profile_that_only_recommends_is_tried_as_if_it_were_on():
    config = configured(parse_spec({"autoScalingConfig": {"autoSetLimits": {"enable": False}}}), ASKED)
    assert (config.requests.mode, config.limits.mode) == (Mode.OFF, Mode.ON)
    assert config.amounts == ASKED
    both = configured(parse_spec({"qos": "critical"}), ASKED)
    assert (both.requests.mode, both.limits.mode, both.qos) == (Mode.ON, Mode.ON, QoS.CRITICAL)
    assert as_if_on(both) == both
    assert both.requests == RequestsPolicy(mode=Mode.ON)
    assert both.limits == LimitsPolicy(mode=Mode.ON)


def test_without_anything_set_static_is_a_multiple_of_the_largest_demand():
    one = steady(WorkloadKey("a", "b"), 0, 60, np.array([1.0, 8.0]), np.array([GIB, 2.0 * GIB]))
    (case,) = cases([one], Setting(by_qos([QoS.LOW]), None, {}, 2.0, ""))
    assert [(who.name, who.figures) for who in case.contenders] == [
        ("static", (16, 16, 4 * GIB, 4 * GIB)),
        ("low", (16, 16, 4 * GIB, 4 * GIB)),
    ]
    assert (case.card.model, case.card.is_named) == ("H100", False)


def test_what_the_agents_report_is_what_is_set_and_the_level_that_is_tried():
    one = steady(WorkloadKey("ml", "chat"), 0, 60, np.array([1.0, 8.0]), None)
    labels = {"namespace": "ml", "workload": "chat", "pod": "c-0", "gpu_uuid": "GPU-0"}
    info = {**labels, "qos": "critical", "gpu_model": "NVIDIA L4"}
    answers = dict(zip(AMOUNTS, [[(labels, value)] for value in (5, 9, GIB, 2 * GIB)], strict=True))
    running = inventory_of({**answers, metrics.WORKER_INFO.name: [(info, 1)]}, 0).workloads
    (case,) = cases([one], Setting((), None, {workload.key: workload for workload in running}, 1.5, ""))
    assert [(who.name, who.figures) for who in case.contenders] == [
        ("static", (5, 9, GIB, 2 * GIB)),
        ("defaults", (5, 9, GIB, 2 * GIB)),
    ]
    assert case.contenders[1].config is not None
    assert case.contenders[1].config.qos is QoS.CRITICAL
    assert case.card.tflops == 121


def test_a_profile_with_amounts_says_what_is_set():
    one = steady(WorkloadKey("a", "b"), 0, 60, np.array([1.0, 8.0]), None)
    spec = parse_spec({"resources": {"requests": {"tflops": "5", "vram": "1Gi"}, "limits": {"tflops": "9"}}})
    (case,) = cases([one], Setting((Tried("mine", spec),), None, {}, 1.5, "L40s"))
    assert [who.figures for who in case.contenders] == [(5, 9, GIB, GIB)] * 2
    assert (case.card.model, case.card.is_named) == ("L40s", True)


def test_an_unknown_gpu_model_is_named(trace: Path):
    code, _, err = run("--trace", trace, "--gpu-model", "Voodoo2")
    assert (code, "--gpu-model: 'Voodoo2' is not allowed" in err) == (2, True)


# What it comes to


def test_static_against_itself_can_be_worked_by_hand():
    one = steady(WorkloadKey("default", "a"), DAY, 3600, np.array([10.0, 20.0]), np.array([8.0, 16.0]) * GIB)
    other = steady(WorkloadKey("default", "b"), DAY, 3600, np.array([40.0, 40.0]), None)
    made = held_backtest([one, other], factor=1.5)
    total = made.static
    assert total.compute.request == 2 * 30 + 2 * 60
    assert total.vram.request == 2 * 24
    assert total.compute.slack_share == pytest.approx((180 - 110) / 180)
    assert total.gpus == pytest.approx(max(30 / 989, 24 / 80) + 60 / 989)
    assert made.results[0].outcomes[0].reserved[0].mean() == pytest.approx(30)
    assert made.results[1].needed[0].mean() == pytest.approx(40)


def test_a_limit_that_is_too_low_shows_as_throttled_and_killed():
    one = steady(WorkloadKey("default", "a"), DAY, 3600, np.array([10.0, 20.0]), np.array([8.0, 16.0]) * GIB)
    static = held_backtest([one], factor=0.75).static
    assert static.compute.throttled_share == pytest.approx(5 / 30)
    assert (static.ooms, static.ooms_per_1000_hours) == (1, 500)


def test_the_product_saves_what_a_generous_user_holds(trace: Path):
    made = data("--trace", trace, "--start-from", 4, "--warm-up", "40m", "--qos", "medium")
    static, medium = policies(made, "chat")["static"], policies(made, "chat")["medium"]
    assert static["began_with"]["tflops_request"] == medium["began_with"]["tflops_request"]
    assert medium["compute_saved_tflop_hours"] == pytest.approx(
        static["compute_request_tflop_hours"] - medium["compute_request_tflop_hours"], abs=1e-5
    )
    assert medium["compute_saved_ratio"] > 0.3
    assert medium["vram_saved_ratio"] > 0.3
    assert static["changes_per_day"] == 0 < medium["changes_per_day"]
    total = {one["policy"]: one for one in made["total"]}
    assert total["medium"]["compute_request_tflop_hours"] == pytest.approx(
        sum(policies(made, name)["medium"]["compute_request_tflop_hours"] for name in ("chat", "batch")), abs=1e-5
    )


def test_the_product_finds_its_way_out_of_a_limit_that_clips_everything(tmp_path: Path):
    rows = [("a", 60 * place, 60, "") for place in range(120)]
    made = data("--trace", write(tmp_path / "t.csv", rows), "--start-from", 0.1)
    static, defaults = policies(made, "a")["static"], policies(made, "a")["defaults"]
    assert static["compute_throttled_ratio"] == pytest.approx(0.9)
    assert defaults["compute_throttled_ratio"] < 0.02


def test_equal_input_gives_equal_output_however_many_processes_share_the_work(trace: Path, tmp_path: Path):
    pages, outputs = [], []
    for jobs in (1, 2):
        page = tmp_path / f"{jobs}.html"
        result = CliRunner().invoke(
            app, ["backtest", "--trace", str(trace), "--jobs", str(jobs), "--html", str(page), "-o", "json"]
        )
        assert result.exit_code == 0
        pages.append(page.read_text())
        outputs.append(result.stdout)
    assert outputs[0] == outputs[1]
    assert pages[0] == pages[1]


def test_profiles_of_a_file_are_tried_beside_service_levels(trace: Path, tmp_path: Path):
    profile = tmp_path / "p.yaml"
    profile.write_text(PROFILE % "tight")
    made = data("--trace", trace, "--profile", profile, "--qos", "critical")
    assert [one["policy"] for one in made["total"]] == ["static", "tight", "critical"]
    assert policies(made, "chat")["tight"]["began_with"]["tflops_limit"] == 60
    # Only its limits are on: requests stay as the profile sets them.
    assert policies(made, "chat")["tight"]["compute_saved_ratio"] == 0


def test_a_folder_of_manifests_gives_workloads_and_profiles(trace: Path, tmp_path: Path):
    folder = tmp_path / "cluster"
    folder.mkdir()
    (folder / "all.yaml").write_text(CLUSTER)
    made = data("--trace", trace, "--cluster-dir", folder, "--warm-up", "0s")
    (one,) = made["workloads"]
    assert (one["namespace"], one["name"], one["gpu_model"]) == ("ml", "chat", "A100")
    assert [p["policy"] for p in one["policies"]] == ["static", "current"]
    # 100 TFLOPs on each of two devices for two hours.
    assert one["policies"][0]["compute_request_tflop_hours"] == 400
    assert "left out, the folder has no such workload: default/batch" in made["notes"]
    assert "left out, nothing is known of their use: ml/silent" in made["notes"]


def test_what_the_pods_carry_today_is_held_too_where_it_differs_from_the_owners_figures(trace: Path, tmp_path: Path):
    folder = tmp_path / "cluster"
    folder.mkdir()
    (folder / "all.yaml").write_text(CLUSTER + POD)
    (one,) = data("--trace", trace, "--cluster-dir", folder, "--warm-up", "0s")["workloads"]
    assert [p["policy"] for p in one["policies"]] == ["static", "today", "current"]
    held = [p["compute_request_tflop_hours"] for p in one["policies"]]
    assert held[:2] == [400, 280]
    assert one["policies"][1]["compute_saved_ratio"] == pytest.approx(0.3)


# What goes wrong


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "--trace, --prometheus-url: 'neither'"),
        (("--trace", "t.csv", "--prometheus-url", "http://localhost:1"), "--trace, --prometheus-url: 'both'"),
        (("--prometheus-url", "localhost:9090"), "--prometheus-url: 'localhost:9090'"),
        (("--prometheus-url", "http://localhost:1", "--history=-1d"), "--history: '-1d' is not allowed"),
        (("--prometheus-url", "http://localhost:1", "--history", "9999d"), "allowed: from 1h to 366d"),
        (("--prometheus-url", "http://localhost:1", "--history", "1s"), "allowed: from 1h to 366d"),
        (("--trace", "t.csv", "--start-from", "0"), "--start-from: '0' is not allowed"),
        (("--trace", "t.csv", "--jobs", "-3"), "--jobs: '-3' is not allowed"),
        (("--trace", "t.csv", "--warm-up", "soon"), "--warm-up: 'soon' is not allowed"),
        (("--trace", "t.csv", "--html", "/nowhere/at/all.html"), "--html: '/nowhere/at/all.html'"),
    ],
)
def test_options_that_can_not_be_used_are_named_with_what_is_allowed(options: tuple[str, ...], says: str):
    code, out, err = run(*options)
    assert (code, out) == (2, "")
    assert says in err


def test_a_prometheus_that_is_away_is_one_line_and_exit_code_1():
    code, out, err = run("--prometheus-url", "http://127.0.0.1:1", "--history", "1h")
    assert (code, out, len(err.splitlines())) == (1, "", 1)


def test_a_broken_profile_and_one_that_is_none_are_named_with_file_and_path(trace: Path, tmp_path: Path):
    profile = tmp_path / "p.yaml"
    profile.write_text((PROFILE % "bad").replace("low", "urgent") + "---\nkind: Pod\n")
    code, _, err = run("--trace", trace, "--profile", profile)
    assert code == 2
    assert f"{profile}:" in err
    assert "spec.qos: 'urgent' is not allowed" in err
    assert "kind: 'Pod' is not allowed; allowed: WorkloadProfile" in err
    profile.write_text(PROFILE % "static")
    code, _, err = run("--trace", trace, "--profile", profile)
    assert (code, "metadata.name: 'static' is not allowed" in err) == (2, True)


def test_a_folder_without_any_of_the_trace_is_an_error(trace: Path, tmp_path: Path):
    code, _, err = run("--trace", trace, "--cluster-dir", tmp_path / "empty")
    assert code != 0
    (tmp_path / "empty").mkdir()
    code, _, err = run("--trace", trace, "--cluster-dir", tmp_path / "empty")
    assert (code, "--cluster-dir" in err) == (2, True)


# How it is shown


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Backtest:
    path = write(tmp_path_factory.mktemp("backtest") / "trace.csv", trace_rows(seed=2))
    found = read_trace(path)
    contended = cases(found.demands, Setting(by_qos([QoS.MEDIUM, QoS.HIGH]), None, {}, 0.8, ""))
    results = backtest(contended, 1, 0.0, lambda *_: None)
    return Backtest("trace.csv", results, names_of(contended), span_of(contended), ("a <note> & more",))


def test_the_table_fits_120_columns_and_tells_totals_and_every_workload(made: Backtest):
    console = Console(width=120)
    with console.capture() as captured:
        print_backtest(console, made)
    lines = captured.get().splitlines()
    totals = next(place for place, line in enumerate(lines) if line.startswith("ALL WORKLOADS"))
    each = next(place for place, line in enumerate(lines) if line.startswith("WORKLOAD "))
    assert [line.split()[0] for line in lines[totals + 1 : totals + 4]] == ["static", "medium", "high"]
    assert [line.split()[:2] for line in lines[each + 1 : each + 5 : 3]] == [["chat", "static"], ["batch", "static"]]
    assert all(len(line) <= 120 for line in lines[totals : each + 7])
    assert "…" not in "".join(lines)
    assert "note: a <note> & more" in lines


def test_the_page_is_well_formed_self_contained_and_says_what_the_data_say(made: Backtest):
    text = render_page(made)
    page = ET.fromstring(text.removeprefix("<!DOCTYPE html>"))
    assert not re.search(r"(src|href)=\"(?!#)", text)
    assert "url(" not in text
    assert "prefers-color-scheme" in text
    words = " ".join(page.itertext())
    total = {one["policy"]: one for one in backtest_as_data(made)["total"]}
    for name in ("medium", "high"):
        kills, share = total[name]["ooms"], total[name]["compute_throttled_ratio"]
        assert f"{100 * share:.1f} % of the compute demand throttled" in words
        assert f"{kills} out-of-memory kill{'s' * (kills != 1)} in " in words
        assert f"{total[name]['compute_request_tflop_hours']:,.0f}" in words
    assert "a <note> & more" in words


def test_the_page_draws_each_workload_for_each_policy_with_its_marks(made: Backtest):
    page = ET.fromstring(render_page(made).removeprefix("<!DOCTYPE html>"))
    panels = {svg.get("aria-label", ""): svg for svg in page.iter("svg") if svg.get("class") == "panel"}
    assert sorted(panels) == [
        "batch, compute, high",
        "batch, compute, medium",
        "chat, VRAM, high",
        "chat, VRAM, medium",
        "chat, compute, high",
        "chat, compute, medium",
    ]
    for label, svg in panels.items():
        classes = [part.get("class") for part in svg.iter()]
        assert {"need", "peak", "request", "limit", "static"} <= set(classes), label
        name, noun, policy = label.split(", ")
        result = next(result for result in made.results if result.name == name)
        marks = {"compute": "lost", "VRAM": "oom"}[noun]
        strip = result.outcome(policy).strip
        expected = {"compute": int((strip.lost_share > 0).sum()), "VRAM": int((strip.ooms > 0).sum())}[noun]
        assert classes.count(marks) == expected, label
    titles = [title.text or "" for title in panels["chat, VRAM, medium"].iter("title")]
    # A start at 0.8 of the largest demand must kill once.
    assert any("out-of-memory kill" in text for text in titles)
    assert any(text.startswith("Wed 2023-11-15 00:00\ndemand ") for text in titles)


def test_every_table_row_can_be_sorted_by_its_values(made: Backtest):
    page = ET.fromstring(render_page(made).removeprefix("<!DOCTYPE html>"))
    tables = [table for table in page.iter("table") if table.get("class") == "sortable"]
    assert len(tables) == 2
    for cell in tables[0].iter("td"):
        assert cell.get("data-value") is not None
