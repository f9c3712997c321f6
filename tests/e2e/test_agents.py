"""Agents on a real API server: found at their pods, and known by the certificates of the script without helm."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoscaler.gateways.agents import AgentAccess, HttpAgents
from autoscaler.kube.agent_pods import AgentPods
from autoscaler.kube.client import KubeClient
from tests.e2e.apiserver import ApiServer, missing_reason
from tests.e2e.rights import PLAIN, FixedClock

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing_reason()), reason=missing_reason() or "a server can be started"),
]
ROOT = Path(__file__).parents[2]


def certificates(cluster: ApiServer, namespace: str) -> dict[str, Any]:
    found = json.loads(cluster.run("-n", namespace, "get", "secrets", "-o", "json").stdout)["items"]
    return {one["metadata"]["name"]: one["data"] for one in found if one["type"] == "kubernetes.io/tls"}


def script_environment(cluster: ApiServer) -> dict[str, str]:
    path = os.pathsep.join((str(cluster.kubectl.parent), os.environ["PATH"]))
    return os.environ | {"KUBECONFIG": str(cluster.kubeconfig), "PATH": path}


def write_secret(cluster: ApiServer, namespace: str, name: str, folder: Path) -> Path:
    """Write a Secret's values as files, as a volume would show them."""
    folder.mkdir()
    for key, value in certificates(cluster, namespace)[name].items():
        (folder / key).write_bytes(base64.b64decode(value))
    return folder


@pytest.fixture
def secrets_of_the_script(cluster: ApiServer, namespace: str, tmp_path: Path) -> tuple[Path, Path]:
    """Return the agents' and the controller's files, made by the script that installs without helm."""
    for said in ("created", "are kept"):
        made = subprocess.run(
            ["bash", ROOT / "deploy" / "certificates.sh", namespace],
            env=script_environment(cluster), capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        assert said in made.stdout
    agents = write_secret(cluster, namespace, "tf-autoscaler-agent-tls", tmp_path / "agent")
    return agents, write_secret(cluster, namespace, "tf-autoscaler-agent-client-tls", tmp_path / "controller")


@pytest.fixture
def agent(tmp_path: Path, secrets_of_the_script: tuple[Path, Path]) -> Iterator[int]:
    """Start a real agent with the files and variables that the manifests give it; return its port."""
    files, scenario, port_file = secrets_of_the_script[0], tmp_path / "node.yaml", tmp_path / "port"
    device = {"uuid": "GPU-0", "model": "NVIDIA H100 80GB HBM3", "vram_bytes": 80 * 2**30}
    scenario.write_text(json.dumps({"node": "node-a", "devices": [device], "workers": []}))
    told = {
        "TF_AGENT_NODE": "node-a",
        "TF_AGENT_SIMULATE": str(scenario),
        "TF_AGENT_LISTEN": "127.0.0.1:0",
        "TF_AGENT_PORT_FILE": str(port_file),
        "TF_AGENT_STATE_DIR": str(tmp_path / "state"),
        "TF_AGENT_TLS_CERT": str(files / "tls.crt"),
        "TF_AGENT_TLS_KEY": str(files / "tls.key"),
        "TF_AGENT_CLIENT_CA": str(files / "ca.crt"),
    }
    with (tmp_path / "agent.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "agent", "run"], env=os.environ | told, cwd=ROOT, stdout=log, stderr=log
        )
        try:
            end = time.monotonic() + 60
            while not port_file.exists() and process.poll() is None and time.monotonic() < end:
                time.sleep(0.05)
            assert port_file.exists(), (tmp_path / "agent.log").read_text()
            yield int(port_file.read_text())
        finally:
            process.terminate()
            process.wait(timeout=60)


async def test_controller_and_agent_know_each_other_by_the_certificates_of_the_script(
    cluster: ApiServer, namespace: str, agent: int, secrets_of_the_script: tuple[Path, Path]
) -> None:
    labels = {"app.kubernetes.io/instance": "tf-autoscaler", "app.kubernetes.io/component": "agent"}
    spec = {"nodeName": "node-a", "containers": [{"name": "agent", "image": "tf-agent:0.1.0"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "agent-a", "labels": labels}, "spec": spec}
    assert cluster.run("-n", namespace, "create", "-f", "-", stdin=json.dumps(pod)).returncode == 0
    status = json.dumps({"status": {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}})
    named = ("-n", namespace, "patch", "pod", "agent-a", "--subresource=status", "--type=merge", "-p", status)
    assert cluster.run(*named).returncode == 0
    (deployment,) = [
        one
        for one in yaml.safe_load_all(PLAIN.read_text())
        if one["kind"] == "Deployment" and one["metadata"]["name"].endswith("controller")
    ]
    variables = {
        one["name"]: one.get("value", "") for one in deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    client = await KubeClient.connect(cluster.kubeconfig)
    locate = AgentPods(client, namespace, variables["TF_AUTOSCALER_AGENT_SELECTOR"])
    errors = {}
    for who, files in zip(("agent", "controller"), secrets_of_the_script, strict=True):
        # The authority of the agents is the controller's to know, whatever certificate is shown.
        access = AgentAccess(
            template=variables["TF_AUTOSCALER_AGENT_URL_TEMPLATE"].replace(":9400", f":{agent}"),
            ca_file=secrets_of_the_script[1] / "ca.crt",
            client_cert=files / "tls.crt",
            client_key=files / "tls.key",
            tls_name=variables["TF_AUTOSCALER_AGENT_TLS_NAME"],
        )
        gateway = HttpAgents(access, FixedClock(), locate)
        state = (await gateway.read(("node-a",)))["node-a"]
        errors[who] = state.error
        if who == "controller":
            assert [device.uuid for device in state.devices] == ["GPU-0"]
        await gateway.close()
    await client.close()

    assert errors["controller"] == ""
    assert errors["agent"] != "", "what lies on a node would open every other node"
