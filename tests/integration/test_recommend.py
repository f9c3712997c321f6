"""`recommend` as a process over a real Prometheus, whose history is that of services with a known use."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoscaler.advise import printed
from autoscaler.advise.advice import advice_of
from autoscaler.advise.once import say
from autoscaler.advise.recommend import gathered
from autoscaler.model.resources import GIB
from autoscaler.read.catchup import Reach
from autoscaler.read.inventory import inventory_of
from tests.autoscaler.seeded import SCRAPE, Service, answers, in_memory, openmetrics
from tests.integration.prometheus_server import backfill, prometheus_server, require_prometheus

pytestmark = pytest.mark.integration

HISTORY = "8h"
HISTORY_SECONDS = 8 * 3600.0
MINUTES = HISTORY_SECONDS / 60
SERVICES = (
    Service("roomy", use=3.0, vram=3 * GIB, minutes=MINUTES, workers=2),
    Service("tight", use=60.0, minutes=MINUTES, qos="high"),
    Service("night", use=lambda m: 8.0 if m < -4 * 60 else 0.0, minutes=MINUTES, namespace="team-b"),
    Service("young", minutes=20.0),
)
DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "roomy", "namespace": "team-a"},
    "spec": {
        "replicas": 2,
        "template": {
            "metadata": {
                "labels": {"tensor-fusion.ai/enabled": "true"},
                "annotations": {
                    "tensor-fusion.ai/tflops-limit": "20",
                    "tensor-fusion.ai/vram-limit": "16Gi",
                    "tensor-fusion.ai/workload-profile": "floored",
                },
            },
            "spec": {"containers": [{"name": "main"}]},
        },
    },
}
PROFILE = {
    "apiVersion": "tensor-fusion.ai/v1",
    "kind": "WorkloadProfile",
    "metadata": {"name": "floored", "namespace": "team-a"},
    "spec": {"autoScalingConfig": {"bounds": {"minAllowed": {"tflops": 7}}}},
}


@dataclass(frozen=True)
class World:
    url: str
    end: float

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "autoscaler", "recommend", "--prometheus-url", self.url, *arguments],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"TF_AUTOSCALER_SCRAPE_INTERVAL_SECONDS": f"{SCRAPE:g}", "NO_COLOR": "1"},
            check=False,
            capture_output=True,
            text=True,
        )

    def data(self, *arguments: str) -> dict[str, dict[str, Any]]:
        done = self.run("--history", HISTORY, "-o", "json", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return {record["workload"]: record for record in json.loads(done.stdout)["workloads"]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    require_prometheus()
    folder = tmp_path_factory.mktemp("prometheus")
    end = float(time.time() // 60 * 60)
    (folder / "history.om").write_text(openmetrics(SERVICES, end))
    backfill(folder, folder / "history.om")
    with prometheus_server(folder) as server:
        yield World(server.url, end)


def test_prometheus_alone_tells_the_same_as_the_same_history_in_memory(world: World):
    found = world.data()
    snapshot = gathered(inventory_of(answers(SERVICES), world.end), None, world.end)
    said = asyncio.run(say(snapshot, in_memory(SERVICES, world.end), Reach(60.0, 0.0, HISTORY_SECONDS)))
    expected = {row.key.name: printed.as_record(row) for row in advice_of(snapshot.discovered.workloads, said, 100)}
    assert set(found) == set(expected)
    for name, record in expected.items():
        for column, value in record.items():
            if column in {"samples", "span_seconds", "reason"}:
                continue
            # A process that starts a little later sees a bin more or less.
            near = pytest.approx(value, rel=0.06) if isinstance(value, float | int) else value
            assert found[name][column] == near, (name, column)


def test_shortage_surplus_and_thin_data_are_told_apart(world: World):
    found = world.data()
    assert {name: record["severity"] for name, record in found.items()} == {
        "tight": "critical",
        "roomy": "saving",
        "night": "saving",
        "young": "unknown",
    }
    assert found["young"]["reason"].endswith(" samples, 100 needed")
    assert found["tight"]["recommended_tflops_limit"] == 40
    assert found["night"]["recommended_tflops_request"] > 8
    assert found["roomy"]["saved_tflops"] > 10


def test_namespaces_and_service_levels_choose(world: World):
    assert set(world.data("--namespace", "team-b")) == {"night"}
    assert set(world.data("--qos", "high")) == {"tight"}
    done = world.run("--history", HISTORY, "--namespace", "nobody")
    assert (done.returncode, done.stdout) == (0, "")
    assert "none that --namespace and --qos choose" in done.stderr


def test_a_cluster_adds_what_its_objects_want(world: World, tmp_path: Path):
    (tmp_path / "roomy.yaml").write_text(yaml.safe_dump_all([DEPLOYMENT, PROFILE]))
    found = world.data("--cluster-dir", str(tmp_path))
    assert found["roomy"]["recommended_tflops_request"] == 7
    assert set(found) == {service.name for service in SERVICES}


def test_table_and_csv_are_plain_where_nobody_watches(world: World):
    table = world.run("--history", HISTORY)
    lines = table.stdout.splitlines()
    assert (table.returncode, table.stderr) == (0, "")
    assert lines[0].startswith("WORKLOAD")
    assert lines[-1].startswith("4 workloads, 3 judged by 8h of history")
    assert "\x1b" not in table.stdout
    rows = list(csv.DictReader(io.StringIO(world.run("--history", HISTORY, "-o", "csv").stdout)))
    assert len(rows) == len(SERVICES)


def test_a_prometheus_without_workloads_says_so(tmp_path: Path):
    with prometheus_server(tmp_path) as server:
        done = World(server.url, 0.0).run("--history", "1h", "-o", "json")
        assert (done.returncode, json.loads(done.stdout)["workloads"]) == (0, [])
        assert "no workload reports to this Prometheus now" in done.stderr
