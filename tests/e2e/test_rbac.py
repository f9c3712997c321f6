"""The controller's rights on a real API server: with those of the manifests it can do all of its work."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import yaml

from autoscaler.contract import keys
from autoscaler.controller import Controller, World
from autoscaler.errors import ClusterError
from autoscaler.kube.agent_pods import AgentPods
from autoscaler.kube.client import KubeClient
from autoscaler.kube.cluster import KubeCluster
from autoscaler.kube.lease import LeaseElector, Terms
from autoscaler.kube.patience import Patience, patience_of
from autoscaler.model.steps import Scale
from autoscaler.model.workload import ref_of
from autoscaler.report.metrics import ControllerMetrics
from autoscaler.settings import Settings
from tests.e2e.apiserver import ApiServer, missing_manager_reason, missing_reason
from tests.e2e.rights import (
    PLAIN,
    ROOT,
    FixedClock,
    acting_as,
    grants,
)
from tests.e2e.town import Here, Town, marks

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing_reason()), reason=missing_reason() or "a server can be started"),
]

needs_manager = pytest.mark.skipif(bool(missing_manager_reason()), reason=missing_manager_reason() or "controllers run")


@pytest.fixture
async def town(cluster: ApiServer, namespace: str) -> AsyncIterator[Town]:
    made = Town(cluster, namespace, await KubeClient.connect(cluster.kubeconfig))
    yield made
    await made.close()


def employ(town: Town, client: KubeClient, patience: Patience | None = None) -> None:
    """Let the town's passes be made with another client's rights; with `patience` it watches, as a process does."""
    town.here = Here(KubeCluster(client, town.clock, patience), town.namespace)
    settings = Settings(scrape_interval_seconds=60, settle_seconds=0, history_seconds=86400)
    town.controller = Controller(World(town.clock, town.history, town.here, town.agents), settings, ControllerMetrics())


@needs_manager
async def test_the_controllers_account_can_do_all_of_its_work(town: Town, controller: KubeClient) -> None:
    employ(town, controller, patience_of(Settings()))
    await town.add_node()
    await town.profile("small", qos="high")
    await town.deploy(auto_limits="true", auto_requests="true", workload_profile="small", workers=2)

    await town.minutes(40, tflops=30.0)

    kinds = {type(write).__name__ for write in town.here.writes}
    assert {"CreateObject", "Annotate", "WriteStatus", "Emit"} <= kinds
    pod = (await town.pods("llm"))[0]
    assert float(marks(pod)["tflops-limit"]) > 20
    assert keys.AUTOSCALING_ORIGINAL in pod["metadata"]["annotations"]
    workload = await town.workload()
    assert workload["status"]["autoscaling"]["display"]["tflops"]
    assert (await town.request("GET", town.path("workloadprofiles", "small")))["status"]["workloads"] == 1
    assert {one["reason"] for one in await town.events("TensorFusionWorkload")} >= {"ResourceScaledUp"}


@needs_manager
async def test_the_controllers_account_can_scale_owners_and_workloads(town: Town, controller: KubeClient) -> None:
    employ(town, controller)
    await town.add_node()
    await town.deploy()
    await town.run_pass()
    snapshot = await town.here.read()
    (owner,) = [one for one in snapshot.owners if one["kind"] == "Deployment"]
    (workload,) = snapshot.workloads
    await town.here.write(Scale(ref_of(owner), 3))
    await town.here.write(Scale(ref_of(workload), 3))

    scaled = await town.request("GET", town.path("deployments", "llm", "/apis/apps/v1"))
    assert scaled["spec"]["replicas"] == 3
    assert (await town.workload())["spec"]["replicas"] == 3


async def test_the_controllers_account_can_lead(installed: str, controller: KubeClient) -> None:
    terms = Terms(installed, installed, "one", duration_seconds=15)
    elector = LeaseElector(controller, terms, FixedClock())
    led: list[int] = []

    async def term(number: int) -> None:
        led.append(number)

    stop = asyncio.Event()
    await asyncio.wait_for(elector.lead(term, stop, lambda _leader, _error: None), 60)

    assert len(led) == 1
    lease = await controller.request("GET", terms.path)
    assert lease["spec"]["leaseTransitions"] >= 1


async def test_the_controllers_account_finds_the_agents_pods(
    cluster: ApiServer, installed: str, controller: KubeClient
) -> None:
    labels = {"app.kubernetes.io/instance": installed, "app.kubernetes.io/component": "agent"}
    spec = {"nodeName": f"{installed}-node", "containers": [{"name": "agent", "image": "tf-agent:0.1.0"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "agent-a", "labels": labels}, "spec": spec}
    assert cluster.run("-n", installed, "create", "-f", "-", stdin=json.dumps(pod)).returncode == 0
    status = json.dumps({"status": {"phase": "Running", "podIP": "10.1.2.3", "podIPs": [{"ip": "10.1.2.3"}]}})
    patched = cluster.run(
        "-n", installed, "patch", "pod", "agent-a", "--subresource=status", "--type=merge", "-p", status
    )
    assert patched.returncode == 0, patched.stderr
    selector = ",".join(f"{key}={value}" for key, value in labels.items())

    assert await AgentPods(controller, installed, selector)() == {f"{installed}-node": "10.1.2.3"}


@needs_manager
async def test_when_everything_is_uninstalled_workloads_stay_as_they_are(
    cluster: ApiServer, town: Town, installed: str, controller: KubeClient
) -> None:
    employ(town, controller)
    await town.add_node()
    await town.deploy(auto_limits="true", workers=2)
    await town.minutes(40, tflops=30.0)
    before, workload = await town.pods("llm"), await town.workload()
    assert float(marks(before[0])["tflops-limit"]) > 20

    removed = cluster.run("delete", "-f", "-", stdin=grants(installed))
    assert removed.returncode == 0, removed.stderr

    await refused(town.run_pass)
    after = await town.pods("llm")
    assert [(pod["metadata"]["uid"], marks(pod)) for pod in after] == [
        (pod["metadata"]["uid"], marks(pod)) for pod in before
    ]
    assert await town.workload() == workload


async def refused(run_pass: Callable[[], Awaitable[object]]) -> None:
    """Wait until the server refuses what it granted; it answers from caches for a moment."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            await run_pass()
        except ClusterError:
            return
        await asyncio.sleep(0.2)
    raise AssertionError("rights that were taken away still work")


def variables_of_the_controller(namespace: str) -> dict[str, str]:
    found = yaml.safe_load_all(PLAIN.read_text().replace("tf-autoscaler", namespace))
    (deployment,) = [
        one for one in found if one["kind"] == "Deployment" and one["metadata"]["name"].endswith("-controller")
    ]
    entries = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    return {entry["name"]: entry["value"] for entry in entries if "value" in entry}


def test_the_controller_becomes_ready_as_the_manifest_starts_it(
    cluster: ApiServer, installed: str, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Where it would run, kubelet writes these; a dry run, because it sees all namespaces of this server.
    here = {
        "TF_AUTOSCALER_KUBECONFIG": str(acting_as(cluster, installed, "controller", tmp_path).kubeconfig),
        "TF_AUTOSCALER_LISTEN": f"127.0.0.1:{port}",
        "TF_AUTOSCALER_STATE_DIR": str(tmp_path / "state"),
        "TF_AUTOSCALER_PROMETHEUS_URL": "http://127.0.0.1:1",
    }
    (tmp_path / "state").mkdir()
    environment = os.environ | variables_of_the_controller(installed) | here
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "autoscaler", "run", "--dry-run"]
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
        try:
            end = time.monotonic() + 120
            while (status := ready_status(port)) != 200 and process.poll() is None and time.monotonic() < end:
                time.sleep(0.2)
            assert status == 200, (tmp_path / "log").read_text()[-3000:]
        finally:
            process.terminate()
            code = process.wait(timeout=120)
    assert code == 0, (tmp_path / "log").read_text()[-3000:]


def ready_status(port: int) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0
