"""What reaches a real API server: nothing from a fleet at rest, and of a status what the installed definition can hold.

The controller runs here, on a clock that the test moves; history and agents are in memory.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import yaml

from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import DeviceStatus, Observed, WorkerStatus
from autoscaler.controller import Controller, World
from autoscaler.kube.client import KubeClient
from autoscaler.kube.cluster import KubeCluster
from autoscaler.model.crd import render_crds
from autoscaler.report.metrics import ControllerMetrics
from autoscaler.report.writer import SWEEP_PASSES
from autoscaler.settings import Settings
from tests.autoscaler.test_controller import GIB, Town
from tests.autoscaler.test_steady import LOADS, QUIET_MINUTES, SETTLING_MINUTES
from tests.e2e.apiserver import ApiServer, api_server, missing_own_reason

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing_own_reason()), reason=missing_own_reason() or "a server can be started"),
]
TFW = "tensorfusionworkloads.tensor-fusion.ai"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with api_server(tmp_path_factory.mktemp("apiserver")) as running:
        install(running, [yaml.safe_load(text) for text in render_crds().values()])
        yield running


def install(server: ApiServer, definitions: list[dict[str, Any]]) -> None:
    for definition in definitions:
        applied = server.run("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(definition))
        assert applied.returncode == 0, applied.stderr
    established = server.run("wait", "--for=condition=Established", "crd", "--all", "--timeout=240s")
    assert established.returncode == 0, established.stderr


class ServerTown(Town):
    """A town whose objects are behind a server; `written` counts what was sent there, by verb and code."""

    def __init__(self, server: ApiServer, client: KubeClient, folder: Path) -> None:
        self.server, self.client = server, client
        self.written: Counter[tuple[str, str]] = Counter()
        client.observe = lambda verb, code: self.written.update([(verb, code)])
        super().__init__(folder, state_dir=folder)

    def start(self, **changes: Any) -> Controller:
        settings = Settings(
            scrape_interval_seconds=60, settle_seconds=0, history_seconds=86400, **(self.options | changes)
        )
        world = World(self.clock, self.history, KubeCluster(self.client, self.clock), self.agents)
        return Controller(world, settings, ControllerMetrics())

    def add(self, manifest: dict[str, Any], status: dict[str, Any] | None = None) -> str:
        made = self.server.run("create", "-f", "-", "-o", "json", stdin=json.dumps(manifest))
        assert made.returncode == 0, made.stderr
        if status is not None:
            name = manifest["metadata"]["name"]
            patch = f"--patch={json.dumps({'status': status})}"
            patched = self.server.run("patch", manifest["kind"], name, "--subresource=status", "--type=merge", patch)
            assert patched.returncode == 0, patched.stderr
        return str(json.loads(made.stdout)["metadata"]["uid"])

    def deploy(self, name: str, **annotations: str) -> None:
        """As the folder's: a Deployment, its running pod, and the worker on the node."""
        keys = {"tflops-request": "10", "tflops-limit": "20", "vram-request": "4Gi", "vram-limit": "8Gi"}
        keys |= {"auto-requests": "true", "auto-limits": "true"} | annotations
        marks = {f"tensor-fusion.ai/{key}": value for key, value in keys.items()}
        labels = {"tensor-fusion.ai/enabled": "true", "app": name}
        containers = [{"name": "main", "image": "main"}]
        template = {"metadata": {"labels": labels, "annotations": marks}, "spec": {"containers": containers}}
        spec = {"replicas": 1, "selector": {"matchLabels": {"app": name}}, "template": template}
        owner = self.add({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec})
        reference = {"apiVersion": "apps/v1", "kind": "Deployment", "name": name, "uid": owner, "controller": True}
        metadata = {"name": f"{name}-0", "labels": labels, "annotations": marks, "ownerReferences": [reference]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
        running = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        uid = self.add(pod | {"spec": {"nodeName": "node-a", "containers": containers}}, running)
        device = DeviceStatus("GPU-0", False, Effect.IMMEDIATE, Observed(vram_used_bytes=2 * GIB))
        self.agents.start_worker("node-a", WorkerStatus(uid, "default", f"{name}-0", name, (device,)))

    def limit(self, name: str) -> float:
        """What it was born with: at these loads it stays."""
        return 20.0

    def status(self, name: str) -> dict[str, Any]:
        found = json.loads(self.server.run("get", TFW, name, "-o", "json").stdout)
        return dict(found.get("status") or {})


@pytest.fixture
async def town(server: ApiServer, tmp_path: Path) -> AsyncIterator[ServerTown]:
    client = await KubeClient.connect(server.kubeconfig)
    yield ServerTown(server, client, tmp_path)
    await client.close()


async def test_at_constant_load_no_request_writes_anything_not_after_a_restart_either(town: ServerTown) -> None:
    town.deploy("llm")
    await town.controller.run_pass()
    for _ in range(SETTLING_MINUTES):
        await town.minute(LOADS)
    assert set(town.written) == {("create", "201"), ("patch", "200")}
    assert town.status("llm")["autoscaling"]["applied"] == "1/1"

    town.written.clear()
    for _ in range(QUIET_MINUTES):
        await town.minute(LOADS)
    assert town.written == {}

    town.controller.close()
    town.controller = town.start()
    for _ in range(SWEEP_PASSES + 1):
        await town.minute(LOADS)
    assert town.written == {}


async def test_where_a_smaller_definition_is_installed_the_status_has_what_that_can_hold(town: ServerTown) -> None:
    """Such as TensorFusion's own: no `autoscaling`, and another type where we have a number."""
    (definition,) = (yaml.safe_load(text) for name, text in render_crds().items() if "tensorfusionworkloads" in name)
    smaller = copy.deepcopy(definition)
    status = smaller["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    del status["autoscaling"], status["observedGeneration"]
    status["readyWorkers"] = {"type": "string"}
    install(town.server, [smaller])
    try:
        town.deploy("chat")
        with structlog.testing.capture_logs() as logs:
            for _ in range(4):
                await town.minute({"chat": 8.0})
        assert [entry for entry in logs if entry["event"] == "not_reported"] == []
        found = town.status("chat")
        assert found["workerCount"] == 1
        assert found["conditions"]
        assert {"autoscaling", "readyWorkers", "observedGeneration"}.isdisjoint(found)
        told = [entry["field"] for entry in logs if entry["event"] == "status_field_not_held"]
        assert sorted(told) == ["autoscaling", "observedGeneration", "readyWorkers"]
        assert 3 <= town.written["patch", "500"] <= 12  # learnt once, by as many as write at that time
    finally:
        install(town.server, [definition])
