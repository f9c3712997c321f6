"""The whole pass on the in-package ports: a folder of manifests, history in memory, agents in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import DeviceInfo, DevicesStatus, DeviceStatus, Observed, WorkerStatus
from autoscaler.controller import Controller, World
from autoscaler.errors import HistoryError
from autoscaler.gateways.agents_memory import MemoryAgents
from autoscaler.gateways.folder import FolderCluster
from autoscaler.model.usage import Usage, Window, WorkloadKey
from autoscaler.read.memory import MemoryHistory
from autoscaler.report.metrics import ControllerMetrics
from autoscaler.settings import Settings

GIB = 2**30
START = 1_800_000_000.0
CAPACITY = 989.0


@dataclass
class HandClock:
    at: float = START

    def now(self) -> float:
        return self.at


@dataclass
class BreakableHistory:
    """The in-memory history with a switch, and a record of what was asked."""

    inner: MemoryHistory
    broken: str = ""
    asked: list[Window] = field(default_factory=list)

    def parts(self, window: Window) -> tuple[Window, ...]:
        return self.inner.parts(window)

    async def read(self, window: Window) -> Usage:
        if self.broken:
            raise HistoryError(self.broken)
        self.asked.append(window)
        return await self.inner.read(window)

    def only(self, key: WorkloadKey) -> BreakableHistory:
        return self

    async def close(self) -> None:
        await self.inner.close()


class Town:
    """One node, one GPU, workloads by annotation; `minute` meters demand against the limits in force, then passes."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder, self.options = folder, options
        self.clock = HandClock()
        self.agents = MemoryAgents(
            [DevicesStatus("node-a", (DeviceInfo("GPU-0", "NVIDIA H100 80GB HBM3", 80 * GIB, CAPACITY),))]
        )
        self.history = BreakableHistory(MemoryHistory(60.0, 86400.0))
        self.spent: dict[str, float] = {}
        self.controller = self.start()

    def start(self, **changes: Any) -> Controller:
        settings = Settings(
            scrape_interval_seconds=60, settle_seconds=0, history_seconds=86400, **(self.options | changes)
        )
        cluster = FolderCluster(self.folder, self.clock)
        return Controller(World(self.clock, self.history, cluster, self.agents), settings, ControllerMetrics())

    def deploy(self, name: str, **annotations: str) -> None:
        keys = {"tflops-request": "10", "tflops-limit": "20", "vram-request": "4Gi", "vram-limit": "8Gi"}
        keys |= {"auto-requests": "true", "auto-limits": "true"}
        keys |= {key.replace("_", "-"): value for key, value in annotations.items()}
        marks = {f"tensor-fusion.ai/{key}": value for key, value in keys.items()}
        labels = {"tensor-fusion.ai/enabled": "true", "app": name}
        template = {"metadata": {"labels": labels, "annotations": marks}, "spec": {"containers": [{"name": "main"}]}}
        self.write(name, {
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "namespace": "default", "uid": f"d-{name}"}, "spec": {"replicas": 1, "template": template},
        })  # fmt: skip
        owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": name, "uid": f"d-{name}", "controller": True}
        self.write(f"{name}-0", {
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": f"{name}-0", "namespace": "default", "uid": f"p-{name}", "labels": labels,
                         "annotations": dict(marks), "ownerReferences": [owner]},
            "spec": {"nodeName": "node-a", "containers": [{"name": "main"}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        })  # fmt: skip
        device = DeviceStatus("GPU-0", False, Effect.IMMEDIATE, Observed(vram_used_bytes=2 * GIB))
        self.agents.start_worker("node-a", WorkerStatus(f"p-{name}", "default", f"{name}-0", name, (device,)))

    def write(self, name: str, manifest: dict[str, Any]) -> None:
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(manifest))

    def objects(self, kind: str) -> dict[str, dict[str, Any]]:
        found = (one for path in sorted(self.folder.rglob("*.yaml")) for one in self.documents(path))
        return {one["metadata"]["name"]: one for one in found if one.get("kind") == kind}

    @staticmethod
    def documents(path: Path) -> Iterator[dict[str, Any]]:
        try:
            yield from (one for one in yaml.safe_load_all(path.read_text()) if one)
        except yaml.YAMLError:
            return

    def annotations(self, name: str) -> dict[str, str]:
        found: dict[str, str] = self.objects("Pod")[f"{name}-0"]["metadata"]["annotations"]
        return {key.removeprefix("tensor-fusion.ai/"): value for key, value in found.items()}

    def condition(self, name: str, kind: str) -> tuple[str, str, str]:
        conditions = self.objects("TensorFusionWorkload")[name]["status"]["conditions"]
        one = next(one for one in conditions if one["type"] == kind)
        return one["status"], one["reason"], one.get("message", "")

    def limit(self, name: str) -> float:
        return float(self.annotations(name)["tflops-limit"])

    def scrape(self, demand: dict[str, float], vram_gib: float = 2.0) -> None:
        lines = [f'tensor_fusion_device_compute_capacity_tflops{{node="node-a",gpu_uuid="GPU-0"}} {CAPACITY}']
        for name, wanted in demand.items():
            limit = self.limit(name)
            self.spent[name] = self.spent.get(name, 0.0) + 60 * min(wanted, limit) / CAPACITY
            labels = (
                f'namespace="default",workload="{name}",pod="{name}-0",container="main",node="node-a",gpu_uuid="GPU-0"'
            )
            lines += [
                f"tensor_fusion_worker_compute_seconds_total{{{labels}}} {self.spent[name]!r}",
                f"tensor_fusion_worker_vram_peak_bytes{{{labels}}} {vram_gib * GIB!r}",
                f"tensor_fusion_worker_effective_tflops_limit{{{labels}}} {limit}",
                f"tensor_fusion_worker_effective_vram_limit_bytes{{{labels}}} {8 * GIB}",
            ]
        self.history.inner.ingest(self.clock.at, "\n".join(lines) + "\n")

    async def minute(self, demand: dict[str, float], vram_gib: float = 2.0, *, passes: bool = True) -> None:
        self.clock.at += 60
        self.scrape(demand, vram_gib)
        if passes:
            await self.controller.run_pass()


@pytest.fixture
def town(tmp_path: Path) -> Town:
    folder = tmp_path / "cluster"
    folder.mkdir()
    return Town(folder)


async def test_a_clipped_workload_is_covered_in_three_passes_and_its_status_says_why(town: Town):
    town.deploy("llm")
    await town.controller.run_pass()
    await town.minute({"llm": 5})
    for _ in range(3):
        await town.minute({"llm": 60})
    assert town.limit("llm") >= 60
    status = town.objects("TensorFusionWorkload")["llm"]["status"]["autoscaling"]
    assert "compute limit 40 → 160 TFLOPs: Saturated" in status["lastChange"]
    assert status["applied"] == "1/1"
    pushed = town.agents.pushed[-1].quotas[0].devices[0]
    assert pushed.tflops_limit == town.limit("llm")
    assert b"tensor_fusion_autoscaler_quota_push_seconds_count 0.0" not in town.controller.metrics.render()


async def test_the_first_change_keeps_the_users_figures_and_the_template_stays_untouched(town: Town):
    town.deploy("llm")
    await town.controller.run_pass()
    for _ in range(3):
        await town.minute({"llm": 60})
    original = town.annotations("llm")["autoscaling-original"]
    assert '"20"' in original
    template = town.objects("Deployment")["llm"]["spec"]["template"]["metadata"]["annotations"]
    assert template["tensor-fusion.ai/tflops-limit"] == "20"


async def test_a_settled_fleet_is_not_written_at_all(town: Town):
    town.deploy("llm")
    await town.controller.run_pass()
    for _ in range(90):
        await town.minute({"llm": 8})
    before = {path: path.stat().st_mtime_ns for path in town.folder.rglob("*.yaml")}
    pushed = len(town.agents.pushed)
    for _ in range(20):
        await town.minute({"llm": 8})
    changed = [path.name for path, at in before.items() if path.stat().st_mtime_ns != at]
    assert changed == []
    assert len(town.agents.pushed) == pushed


async def test_without_history_everything_is_held_and_afterwards_only_the_gap_is_read(town: Town):
    town.deploy("llm")
    await town.controller.run_pass()
    for _ in range(5):
        await town.minute({"llm": 8})
    last = town.history.asked[-1].end
    town.history.broken = "Prometheus is away"
    for _ in range(10):
        await town.minute({"llm": 500})
    assert town.limit("llm") == 20
    assert town.condition("llm", "MetricsAvailable")[:2] == ("False", "PrometheusError")
    town.history.broken = ""
    while not town.history.asked or town.history.asked[-1].end <= last:
        await town.minute({"llm": 500})
    assert town.history.asked[-1].start == last
    await town.minute({"llm": 500})
    assert town.limit("llm") > 20
    assert town.condition("llm", "MetricsAvailable")[:2] == ("True", "Found")


async def test_a_worker_that_stops_reporting_is_stale_and_stays_where_it_is(town: Town):
    town.deploy("llm")
    town.deploy("other")
    await town.controller.run_pass()
    for _ in range(3):
        await town.minute({"llm": 8, "other": 8})
    for _ in range(6):
        await town.minute({"other": 60})
    assert town.condition("llm", "MetricsAvailable")[:2] == ("False", "Stale")
    assert town.limit("llm") == 20
    assert town.limit("other") >= 60


async def test_one_broken_manifest_and_one_bad_annotation_leave_the_others_working(town: Town):
    town.deploy("llm")
    town.deploy("typo", tflops_limit="twenty")
    (town.folder / "broken.yaml").write_text("kind: Pod\nmetadata: {name: [unclosed\n")
    await town.controller.run_pass()
    for _ in range(3):
        await town.minute({"llm": 60})
    assert town.limit("llm") >= 60
    about = [one for one in town.objects("Event").values() if one["regarding"]["name"] == "typo"]
    assert sorted(one["regarding"]["kind"] for one in about) == ["Deployment", "TensorFusionWorkload"]
    told = [one["note"] for one in about]
    assert "tflops-limit: 'twenty' is not allowed" in told[0]


async def test_a_bad_edit_keeps_the_last_good_configuration(town: Town):
    town.deploy("llm")
    await town.controller.run_pass()
    await town.minute({"llm": 8})
    deployment = town.objects("Deployment")["llm"]
    deployment["spec"]["template"]["metadata"]["annotations"]["tensor-fusion.ai/qos"] = "urgent"
    town.write("llm", deployment)
    for _ in range(3):
        await town.minute({"llm": 60})
    status, _, message = town.condition("llm", "ConfigValid")
    assert status == "False"
    assert "urgent" in message
    assert town.condition("llm", "MetricsAvailable")[0] == "True"


async def test_an_agent_that_is_away_keeps_its_quotas_and_gets_what_was_decided_when_it_is_back(town: Town):
    town.deploy("llm")
    await town.controller.run_pass()
    await town.minute({"llm": 5})
    town.agents.go_away("node-a")
    pushed = len(town.agents.pushed)
    for _ in range(2):
        await town.minute({"llm": 60})
    assert len(town.agents.pushed) == pushed
    assert town.condition("llm", "EnforcementInSync")[:2] == ("False", "AgentUnreachable")
    town.agents.come_back("node-a")
    await town.minute({"llm": 60})
    assert town.agents.pushed[-1].quotas[0].devices[0].tflops_limit == town.limit("llm")
    assert town.condition("llm", "EnforcementInSync")[0] == "True"


async def test_an_intent_without_a_push_is_completed_by_the_next_controller_and_nothing_is_doubled(town: Town):
    town.deploy("llm")
    await town.controller.run_pass()
    await town.minute({"llm": 5})
    town.agents.go_away("node-a")
    await town.minute({"llm": 60})
    intended = town.limit("llm")
    assert intended > 20
    town.agents.come_back("node-a")
    town.controller = town.start()  # killed: nothing of the first one is left but the folder
    before = len(town.agents.pushed)
    await town.controller.run_pass()
    assert [doc.quotas[0].devices[0].tflops_limit for doc in town.agents.pushed[before:]] == [intended]
    assert town.limit("llm") == intended


async def test_a_restart_learns_the_same_from_history_and_from_a_checkpoint(town: Town, tmp_path: Path):
    town.options["state_dir"] = tmp_path / "state"
    town.controller = town.start()
    town.deploy("llm", auto_requests="false", auto_limits="false")
    await town.controller.run_pass()
    for minute in range(90):
        await town.minute({"llm": 8 + minute % 7})
    told = (await town.controller.run_pass()).allowed
    town.controller.close()
    from_checkpoint = (await town.start().run_pass()).allowed
    from_history = (await town.start(state_dir=tmp_path / "empty").run_pass()).allowed
    assert np.array_equal(from_checkpoint.target, told.target)
    assert np.allclose(from_history.wanted.inputs[0]["quantile"], told.wanted.inputs[0]["quantile"], rtol=0.05)
    assert np.allclose(
        from_history.wanted.inputs[2]["working_level"], told.wanted.inputs[2]["working_level"], rtol=0.025
    )


async def test_an_unusable_checkpoint_is_left_aside_and_history_read_instead(town: Town, tmp_path: Path):
    state = tmp_path / "state"
    state.mkdir()
    (state / "memory.npz").write_bytes(b"PK\x03\x04 torn")
    town.deploy("llm")
    await town.minute({"llm": 8}, passes=False)
    await town.minute({"llm": 8}, passes=False)
    passed = await town.start(state_dir=state).run_pass()
    assert passed.allowed.wanted.samples[0] >= 1


async def test_a_dry_run_decides_and_touches_nothing(town: Town):
    town.deploy("llm")
    settings = Settings(scrape_interval_seconds=60, settle_seconds=0, history_seconds=86400)
    world = World(town.clock, town.history, FolderCluster(town.folder, town.clock), town.agents)
    town.controller = Controller(world, settings, ControllerMetrics(), dry_run=True)
    before = {path: path.read_bytes() for path in town.folder.rglob("*.yaml")}
    await town.controller.run_pass()
    for _ in range(3):
        await town.minute({"llm": 60})
    passed = await town.controller.run_pass()
    assert {path: path.read_bytes() for path in town.folder.rglob("*.yaml")} == before
    assert town.agents.pushed == []
    assert passed.allowed.target[0, 1] >= 40


async def test_a_workload_of_the_same_name_with_a_new_uid_takes_nothing_over_but_its_history_in_prometheus(town: Town):
    town.deploy("llm")
    await town.controller.run_pass()
    for _ in range(20):
        await town.minute({"llm": 8})
    workload = town.objects("TensorFusionWorkload")["llm"]
    samples = town.controller.learnt["samples"][0]
    path = next(path for path in town.folder.rglob("*.yaml") if "kind: TensorFusionWorkload" in path.read_text())
    workload["metadata"]["uid"] = "another"
    path.write_text(yaml.safe_dump(workload))
    town.controller.learnt["compute_peaks"][0] = 500.0  # remembered wrongly: the new one must not know of it
    await town.minute({"llm": 8})
    assert samples >= 18
    assert samples <= town.controller.learnt["samples"][0] <= samples + 1
    assert town.controller.learnt["compute_peaks"].max() < 10


async def test_the_controllers_epoch_is_over_any_that_a_node_has_seen(town: Town):
    town.deploy("llm")
    await town.controller.run_pass()
    await town.minute({"llm": 5})
    first = town.agents.pushed[-1].epoch
    town.controller = town.start()
    await town.minute({"llm": 60})
    await town.minute({"llm": 60})
    assert town.agents.pushed[-1].epoch == first + 1
