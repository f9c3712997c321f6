"""What the pods of the chart may do on their nodes, and that each program takes what it is told there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from agent.enforce.orders import COMPUTE_ORDER, VRAM_ORDER
from agent.enforce.registry import ACTUATORS
from agent.gpus import load_gpu_table
from agent.kubelet.sockets import POD_RESOURCES, PODS
from agent.serve.access import AUDIENCE, GROUP, RESOURCE
from agent.settings import AgentSettings
from agent.simulate.scenario import load_scenario
from autoscaler.admission.settings import WebhookSettings
from autoscaler.cli import app
from autoscaler.settings import Settings
from tests.chart.rendered import (
    ALL,
    TABLE,
    container,
    environment,
    every,
    of_kind,
    pods,
    ports,
    rules,
)
from tests.chart.rendering import CHART


def kubelet_of(name: str) -> str:
    """Return the kubelet's folder on the nodes of a value set."""
    return "/var/lib/k0s/kubelet" if name == "everything" else "/var/lib/kubelet"


@every
def test_images_have_a_version(name: str) -> None:
    for pod in pods(name).values():
        image = container(pod)["image"]
        assert re.search(r"(:(?!latest$)[\w.-]+|@sha256:[0-9a-f]{64})$", image), image


@every
def test_controller_and_webhook_keep_the_restricted_standard(name: str) -> None:
    for component in {"controller", "webhook"} & pods(name).keys():
        spec, inner = pods(name)[component]["spec"], container(pods(name)[component])["securityContext"]
        outer = spec["securityContext"]
        assert outer["runAsNonRoot"] is True
        assert outer["seccompProfile"] == {"type": "RuntimeDefault"}
        assert inner == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not {"hostPID", "hostNetwork", "hostIPC"} & spec.keys()
        assert not [volume for volume in spec["volumes"] if "hostPath" in volume]


@every
def test_an_agent_has_of_its_node_what_its_backend_needs_and_no_more(name: str) -> None:
    if "agent" not in pods(name):
        return
    pod = pods(name)["agent"]
    told, spec, inner = environment(pod), pod["spec"], container(pod)["securityContext"]
    row = TABLE["backends"][told["TF_AGENT_BACKEND"]]
    chosen = {*told.get("TF_AGENT_COMPUTE_BACKENDS", "").split(","), *told.get("TF_AGENT_VRAM_BACKENDS", "").split(",")}
    actuators = [TABLE["actuators"][one] for one in sorted(chosen - {""})]
    assert bool(actuators) == (told["TF_AGENT_BACKEND"] == "auto")
    if "TF_AGENT_FREEZE" in told:
        actuators.append(TABLE["freeze"])
    assert spec.get("hostPID", False) == row["hostPID"]
    assert not {"hostNetwork", "hostIPC"} & spec.keys()
    assert spec["securityContext"]["runAsUser"] == row["runAsUser"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert set(inner["capabilities"].get("add", ())) == {one for row in actuators for one in row["capabilities"]}
    assert inner["capabilities"]["drop"] == ["ALL"]
    assert inner["allowPrivilegeEscalation"] is False
    assert "privileged" not in inner
    paths = {volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume}
    asked = {f"{kubelet_of(name)}/{folder}" for folder in TABLE["kubelet"]["folders"] if told["TF_AGENT_ASK_KUBELET"] == "true"}  # fmt: skip
    assert paths == {"/var/lib/tf-agent"} | asked | {path["path"] for one in actuators for path in one["hostPaths"]}
    assert ("NVIDIA_VISIBLE_DEVICES" in told) == row["gpu"]
    if row["gpu"]:
        parts = {"utility"} | {one for row in actuators for one in row["driver"]}
        assert set(told["NVIDIA_DRIVER_CAPABILITIES"].split(",")) == parts


@every
def test_an_agent_looks_for_what_is_mounted_where_it_is_mounted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "agent" not in pods(name):
        return
    pod = pods(name)["agent"]
    settings = told_to_the_agent(name, monkeypatch)
    volumes = {one["name"]: one["hostPath"]["path"] for one in pod["spec"]["volumes"] if "hostPath" in one}
    mounted = {volumes[one["name"]]: one for one in container(pod)["volumeMounts"] if one["name"] in volumes}
    places = {
        "/sys/fs/cgroup": settings.cgroup_root,
        "/run/tensor-fusion/shm": settings.tfshm_root,
        "/usr/local/vgpu/containers": settings.hamicore_root,
        "/run/tensor-fusion/mps": settings.mps_root,
        "/var/lib/tf-agent": settings.state_dir,
        f"{kubelet_of(name)}/pod-resources": (settings.kubelet_dir / POD_RESOURCES).parent,
        f"{kubelet_of(name)}/pods-api": (settings.kubelet_dir / PODS).parent,
    }
    assert {path: Path(one["mountPath"]) for path, one in mounted.items()} == {path: places[path] for path in mounted}
    read = {path for path in mounted if path.startswith(kubelet_of(name))}
    assert {path for path, one in mounted.items() if one.get("readOnly")} == read
    assert bool(read) == settings.ask_kubelet == (name not in {"cert-manager", "simulated"})
    assert ("/sys/fs/cgroup" in mounted) == (settings.freeze or ("dmem" in settings.vram_backends and settings.backend == "auto"))  # fmt: skip


@every
def test_an_agent_has_a_token_only_where_it_asks_the_api_server_and_asks_nothing_it_has_no_right_to(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "agent" not in pods(name):
        return
    settings = told_to_the_agent(name, monkeypatch)
    follows = settings.follow_pods and settings.simulate is None
    written = [(rule["apiGroups"], rule["resources"], rule["verbs"]) for rule in rules(name, "agent", "ClusterRole")]
    delegated = [
        one for one in of_kind(name, "ClusterRoleBinding") if one["roleRef"]["name"] == "system:auth-delegator"
    ]

    assert pods(name)["agent"]["spec"]["automountServiceAccountToken"] == (follows or settings.token_review)
    expected = [([""], ["pods"], ["list", "watch"])]
    if settings.ask_kubelet:
        expected.append((["resource.k8s.io"], ["resourceslices"], ["list"]))
    assert written == (expected if follows else [])
    assert bool(delegated) == settings.token_review
    assert all(one["metadata"]["labels"]["app.kubernetes.io/component"] == "agent" for one in delegated)


@every
def test_the_controller_shows_agents_both_a_certificate_and_a_token_that_it_may_use(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = environment(pods(name)["controller"])
    (token,) = [
        one["projected"]["sources"] for one in pods(name)["controller"]["spec"]["volumes"] if "projected" in one
    ]
    assert token[0]["serviceAccountToken"]["audience"] == AUDIENCE
    assert {"TF_AUTOSCALER_AGENT_TOKEN_FILE", "TF_AUTOSCALER_AGENT_CLIENT_CERT"} <= told.keys()
    (right,) = [rule for rule in rules(name, "controller", "ClusterRole") if rule["apiGroups"] == [GROUP]]
    assert (right["resources"], right["verbs"]) == ([RESOURCE], ["get", "update"])
    if "agent" in pods(name):
        settings = told_to_the_agent(name, monkeypatch)
        assert (settings.client_ca is None) == settings.token_review, "one of both is asked for"


def test_what_can_be_chosen_are_the_rows_of_the_table_and_known_to_the_agent() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["agent"]["properties"]
    assert set(schema["backend"]["enum"]) == set(TABLE["backends"])
    assert set(schema["actuators"]["items"]["enum"]) == set(TABLE["actuators"])
    assert set(TABLE["actuators"]) == set(ACTUATORS)
    for order, part in ((COMPUTE_ORDER, "compute"), (VRAM_ORDER, "vram")):
        assert set(order) == {name for name, row in TABLE["actuators"].items() if part in row["serves"]}


@every
def test_what_is_mounted_exists(name: str) -> None:
    made = {(document["kind"], document["metadata"]["name"]) for document in ALL[name]}
    made |= {("Secret", item["spec"]["secretName"]) for item in of_kind(name, "Certificate")}
    outside = {"prometheus", "agents", "controller", "tf-autoscaler-agent-tls", "tf-autoscaler-agent-client-tls"}
    for pod in pods(name).values():
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        mounts = container(pod)["volumeMounts"]
        assert {mount["name"] for mount in mounts} == set(volumes)
        assert len({mount["mountPath"] for mount in mounts}) == len(mounts)
        for volume in volumes.values():
            if "secret" in volume and volume["secret"]["secretName"] not in outside:
                assert ("Secret", volume["secret"]["secretName"]) in made
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in made
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in made


@every
def test_the_controller_takes_what_it_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {key: value for key, value in environment(pods(name)["controller"]).items() if key.startswith("TF_")}
    for key, value in told.items():
        assert key.removeprefix("TF_AUTOSCALER_").lower() in Settings.model_fields
        monkeypatch.setenv(key, value)
    settings = Settings()
    assert settings.leader_elect is True
    (lease,) = [rule["resourceNames"] for rule in rules(name, "controller", "Role") if "leases" in rule["resources"] and "resourceNames" in rule]  # fmt: skip
    assert lease == [settings.lease_name]
    assert settings.agent_url_template.startswith("https://{ip}:")
    assert settings.agent_client_cert is not None
    assert settings.agent_ca_file is not None


def told_to_the_agent(name: str, monkeypatch: pytest.MonkeyPatch) -> AgentSettings:
    """Return the agent's settings as its pod makes them, on a node of a cluster."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("TF_AGENT_NODE", "node-a")
    for key, value in environment(pods(name)["agent"]).items():
        if key.startswith("TF_"):
            assert key.removeprefix("TF_AGENT_").lower() in AgentSettings.model_fields
            monkeypatch.setenv(key, value.replace("$(TF_AGENT_NODE)", "node-a"))
    return AgentSettings()


@every
def test_the_agent_takes_what_it_is_told_and_lets_nobody_unknown_set_quotas(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "agent" not in pods(name):
        return
    settings = told_to_the_agent(name, monkeypatch)
    assert settings.authenticated
    assert settings.metrics_address is not None
    assert settings.metrics_address[1] == ports(pods(name)["agent"])["metrics"]


def test_a_scenario_of_the_values_is_one_that_the_agent_plays(tmp_path: Path) -> None:
    (config,) = of_kind("simulated", "ConfigMap")
    (file,) = config["data"]
    (tmp_path / file).write_text(config["data"][file])

    told = environment(pods("simulated")["agent"])["TF_AGENT_SIMULATE"]
    assert load_scenario(tmp_path / file).node == file.removesuffix(".yaml")
    assert told == "/etc/tf-agent/config/$(TF_AGENT_NODE).yaml"


def test_a_table_of_gpus_of_the_values_is_one_that_the_agent_reads(tmp_path: Path) -> None:
    (config,) = of_kind("everything", "ConfigMap")
    (tmp_path / "gpus.csv").write_text(config["data"]["gpus.csv"])

    assert load_gpu_table(tmp_path / "gpus.csv").lookup("NVIDIA Z9").tflops == 1000


@every
def test_pods_start_a_command_that_there_is(name: str) -> None:
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    for component in {"controller", "webhook"} & pods(name).keys():
        assert container(pods(name)[component])["args"][0] in commands


@every
def test_the_webhook_takes_what_it_is_told_and_may_write_what_it_keeps(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "webhook" not in pods(name):
        return
    for key, value in environment(pods(name)["webhook"]).items():
        if key.startswith("TF_"):
            assert key.removeprefix("TF_AUTOSCALER_WEBHOOK_").lower() in WebhookSettings.model_fields
            monkeypatch.setenv(key, value)
    settings = WebhookSettings()
    assert [one["metadata"]["name"] for one in of_kind(name, "Service")] == [settings.service]
    named = {rule["resources"][0]: rule["resourceNames"] for kind in ("Role", "ClusterRole") for rule in rules(name, "webhook", kind) if "resourceNames" in rule}  # fmt: skip
    if settings.cert_file is not None:
        assert named == {}, "a certificate from outside needs no right to keep one"
        return
    assert named["secrets"] == [settings.secret]
    assert named["mutatingwebhookconfigurations"] == [settings.configurations]
    for document in of_kind(name, "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"):
        assert document["metadata"]["name"] == settings.configurations
