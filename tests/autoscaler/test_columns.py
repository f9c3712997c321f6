"""The columns of `kubectl get`, for objects in a folder: same titles, same paths, at most 120 wide."""

from __future__ import annotations

import io
import json
import re

import pytest
import yaml

from autoscaler.model.crd import render_crds
from autoscaler.model.decision import Field
from autoscaler.model.reasons import Verdict
from autoscaler.report.columns import COLUMNS, as_json, rows, table
from autoscaler.report.fitting import WIDTH
from autoscaler.report.status import MetricsHealth, Reported, status_of
from tests.autoscaler.apply_cases import NODE, NOW, decision, figure, quota, told, workload

KIND = "TensorFusionWorkload"
BORN = "2027-01-15T07:50:34Z"  # 9m26s before NOW


def stored(name="llama-3-70b-serving", status=None):
    metadata = {"namespace": "prod", "name": name, "creationTimestamp": BORN}
    return {"kind": KIND, "metadata": metadata, "spec": {"qos": "high"}, "status": status or {}}


def held_status():
    limit = figure(Field.COMPUTE_LIMIT, 20.0, 24.0, allowed=20.0, verdict=Verdict.CAPACITY_LIMITED)
    held = decision({Field.COMPUTE_LIMIT: limit})
    nodes = {NODE: told(quota("chat-0"), quota("chat-1")).state()}
    return status_of(Reported(workload(), held, MetricsHealth(), NOW, nodes))


def printed(objects, kind=KIND):
    out = io.StringIO()
    table(rows(objects, kind, NOW), kind, out)
    return out.getvalue()


def test_a_row_reads_like_kubectl_s():
    (row,) = rows([stored(status=held_status())], KIND, NOW)
    assert row == {
        "Name": "llama-3-70b-serving",
        "QoS": "medium",
        "Auto": "off",
        "TFlops": "10/20→10/24",
        "VRAM": "4Gi",
        "Replicas": "2",
        "Applied": "2/2",
        "Status": "CapacityLim",
        "Age": "9m26s",
    }


def test_what_an_object_does_not_say_is_an_empty_cell():
    (row,) = rows([stored()], KIND, NOW)
    assert (row["TFlops"], row["Applied"], row["Status"]) == ("", "", "")


def test_the_widest_usual_row_stays_within_120_characters_and_whole():
    wide = stored(
        status={
            "autoscaling": {
                "applied": "2/2",
                "display": {
                    "qos": "critical",
                    "auto": "req,lim,rep",
                    "tflops": "10/20→12/24",
                    "vram": "4Gi→6Gi",
                    "replicas": "2→3",
                    "status": "RecommendOnly12",
                },
            }
        },
        name="llama-3-70b-serving-x23",
    )
    text = printed([wide])
    assert max(map(len, text.splitlines())) <= WIDTH
    for part in ("llama-3-70b-serving-x23", "critical", "req,lim,rep", "10/20→12/24", "RecommendOnly12", "9m26s"):
        assert part in text


def test_a_piped_table_is_printed_whole_whatever_the_names():
    lines = printed([stored(name="x" * 200, status=held_status())]).splitlines()
    assert "x" * 200 in lines[1]
    assert "…" not in lines[1]


def test_a_pipe_gets_plain_text():
    assert "\x1b" not in printed([stored(status=held_status())])


def test_json_is_keyed_by_column():
    assert json.loads(as_json(rows([stored()], KIND, NOW)))[0]["Name"] == "llama-3-70b-serving"


def test_rows_are_sorted_and_other_kinds_are_left_out():
    found = rows([stored("b"), stored("a"), {"kind": "Pod", "metadata": {"name": "p"}}], KIND, NOW)
    assert [row["Name"] for row in found] == ["a", "b"]


@pytest.mark.parametrize(
    ("born", "age"),
    [
        ("2027-01-15T07:59:30Z", "30s"),
        ("2027-01-15T05:00:00Z", "3h"),
        ("2027-01-01T08:00:00Z", "14d"),
        ("soon", ""),
        (None, ""),
    ],
)
def test_ages_are_short(born, age):
    one = stored()
    one["metadata"]["creationTimestamp"] = born
    assert rows([one], KIND, NOW)[0]["Age"] == age


def test_a_profile_shows_whether_it_is_valid():
    profile = {
        "kind": "WorkloadProfile",
        "metadata": {"name": "llm"},
        "spec": {"qos": "high"},
        "status": {"workloads": 3, "conditions": [{"type": "ConfigValid", "status": "True"}]},
    }
    (row,) = rows([profile], "WorkloadProfile", NOW)
    assert (row["QoS"], row["Workloads"], row["Ready"], row["Age"]) == ("high", "3", "True", "")


@pytest.mark.parametrize("kind", sorted(COLUMNS))
def test_columns_are_those_of_the_crd(kind):
    crd = next(one for one in map(yaml.safe_load, render_crds().values()) if one["spec"]["names"]["kind"] == kind)
    declared = crd["spec"]["versions"][0]["additionalPrinterColumns"]
    narrow = [(one["name"], one["jsonPath"]) for one in declared if not one.get("priority")]
    assert [column.title for column in COLUMNS[kind]] == ["Name", *(name for name, _ in narrow)]
    paths = dict(narrow)
    for column in COLUMNS[kind]:
        if column.path:
            assert re.sub(r"^\.", "", paths[column.title]) == ".".join(column.path)
