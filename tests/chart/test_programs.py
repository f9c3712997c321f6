"""What the pods of the chart may do on their nodes, and that each program takes what it is told there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from agent.enforce.registry import ACTUATORS
from agent.gpus import load_gpu_table
from agent.scenario import load_scenario
from agent.settings import AgentSettings
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
    assert spec.get("hostPID", False) == row["hostPID"]
    assert not {"hostNetwork", "hostIPC"} & spec.keys()
    assert spec["securityContext"]["runAsUser"] == row["runAsUser"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert set(inner["capabilities"].get("add", ())) == {one for row in actuators for one in row["capabilities"]}
    assert inner["capabilities"]["drop"] == ["ALL"]
    assert inner["allowPrivilegeEscalation"] is False
    assert "privileged" not in inner
    paths = {volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume}
    assert paths == {"/var/lib/tf-agent"} | {path["path"] for one in actuators for path in one["hostPaths"]}
    assert ("NVIDIA_VISIBLE_DEVICES" in environment(pod)) == row["gpu"]
    assert spec["automountServiceAccountToken"] is False


def test_what_can_be_chosen_are_the_rows_of_the_table_and_known_to_the_agent() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["agent"]["properties"]
    assert set(schema["backend"]["enum"]) == set(TABLE["backends"])
    assert set(schema["actuators"]["items"]["enum"]) == set(TABLE["actuators"])
    assert set(TABLE["actuators"]) <= set(ACTUATORS)


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


@every
def test_the_agent_takes_what_it_is_told_and_serves_quotas_by_mutual_tls(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "agent" not in pods(name):
        return
    monkeypatch.setenv("TF_AGENT_NODE", "node-a")
    for key, value in environment(pods(name)["agent"]).items():
        if key.startswith("TF_"):
            assert key.removeprefix("TF_AGENT_").lower() in AgentSettings.model_fields
            monkeypatch.setenv(key, value.replace("$(TF_AGENT_NODE)", "node-a"))
    settings = AgentSettings()
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
