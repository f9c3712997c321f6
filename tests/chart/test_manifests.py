"""What the chart renders holds together, read from the golden files, so that it is checked without helm, too."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.enforce.registry import ACTUATORS
from agent.gpus import load_gpu_table
from agent.scenario import load_scenario
from agent.settings import AgentSettings
from autoscaler.admission.settings import WebhookSettings
from autoscaler.cli import app
from autoscaler.settings import Settings
from tests.chart.rendering import CHART, NAMESPACE, ROOT, VALUE_SETS, Manifest, documents, golden_file

PLAIN = "plain"
TABLE = yaml.safe_load((CHART / "files" / "backends.yaml").read_text())
TEXTS = {name: golden_file(name).read_text() for name in VALUE_SETS}
TEXTS[PLAIN] = (ROOT / "deploy" / "tf-autoscaler.yaml").read_text()
ALL = {name: documents(text) for name, text in TEXTS.items()}
KINDS = {
    "v1": {"Namespace", "ServiceAccount", "Secret", "Service", "ConfigMap", "PersistentVolumeClaim"},
    "apps/v1": {"Deployment", "DaemonSet"},
    "policy/v1": {"PodDisruptionBudget"},
    "networking.k8s.io/v1": {"NetworkPolicy"},
    "rbac.authorization.k8s.io/v1": {"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"},
    "admissionregistration.k8s.io/v1": {"MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"},
    "cert-manager.io/v1": {"Issuer", "Certificate"},
    "monitoring.coreos.com/v1": {"PodMonitor", "PrometheusRule"},
}
CLUSTER_WIDE = {"Namespace", "ClusterRole", "ClusterRoleBinding", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"}  # fmt: skip

every = pytest.mark.parametrize("name", ALL)


def of_kind(name: str, *kinds: str) -> list[Manifest]:
    return [document for document in ALL[name] if document["kind"] in kinds]


def pods(name: str) -> dict[str, Manifest]:
    """Return pod templates by component."""
    templates = [document["spec"]["template"] for document in of_kind(name, "Deployment", "DaemonSet")]
    return {one["metadata"]["labels"]["app.kubernetes.io/component"]: one for one in templates}


def container(pod: Manifest) -> Manifest:
    (only,) = pod["spec"]["containers"]
    return only


def environment(pod: Manifest) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container(pod)["env"] if "value" in entry}


def matched(name: str, labels: dict[str, str]) -> list[str]:
    return [component for component, pod in pods(name).items() if labels.items() <= pod["metadata"]["labels"].items()]


@every
def test_every_kind_is_known_and_no_object_stands_there_twice(name: str) -> None:
    for document in ALL[name]:
        assert document["kind"] in KINDS[document["apiVersion"]]
    identities = [(item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]) for item in ALL[name]]
    assert len(identities) == len(set(identities))


@every
def test_what_has_a_namespace_is_in_that_of_the_release(name: str) -> None:
    home = "tf-autoscaler" if name == PLAIN else NAMESPACE
    for document in ALL[name]:
        namespace = document["metadata"].get("namespace")
        if document["kind"] in CLUSTER_WIDE:
            assert namespace is None
        elif "scaler-keys" not in document["metadata"]["name"]:
            assert namespace == home, document["metadata"]["name"]


@every
def test_every_object_says_what_it_belongs_to(name: str) -> None:
    for document in ALL[name]:
        if document["kind"] != "Namespace":
            labels = document["metadata"]["labels"]
            assert labels["app.kubernetes.io/part-of"] == "tensor-fusion-autoscaler"
            assert labels["app.kubernetes.io/component"] in {"controller", "agent", "webhook"}


@every
def test_every_selector_matches_the_pods_of_one_component(name: str) -> None:
    for document in of_kind(name, "Deployment", "DaemonSet"):
        labels = document["spec"]["template"]["metadata"]["labels"]
        assert document["spec"]["selector"]["matchLabels"].items() <= labels.items()
    selectors = [item["spec"]["selector"]["matchLabels"] for item in of_kind(name, "PodDisruptionBudget", "PodMonitor")]
    selectors += [item["spec"]["selector"] for item in of_kind(name, "Service")]
    selectors += [item["spec"]["podSelector"]["matchLabels"] for item in of_kind(name, "NetworkPolicy")]
    assert selectors or name == "no-webhook"
    for labels in selectors:
        assert len(matched(name, labels)) == 1, labels


@every
def test_the_controller_looks_for_agents_where_they_are(name: str) -> None:
    told = environment(pods(name)["controller"])
    wanted = dict(pair.split("=") for pair in told["TF_AUTOSCALER_AGENT_SELECTOR"].split(","))
    if "agent" not in pods(name):
        return
    assert matched(name, wanted) == ["agent"]
    (daemons,) = of_kind(name, "DaemonSet")
    assert told["TF_AUTOSCALER_AGENT_NAMESPACE"] == daemons["metadata"]["namespace"]
    port = int(told["TF_AUTOSCALER_AGENT_URL_TEMPLATE"].rpartition(":")[2])
    assert port in {one["containerPort"] for one in container(pods(name)["agent"])["ports"]}


def ports(pod: Manifest) -> dict[str, int]:
    return {one["name"]: one["containerPort"] for one in container(pod)["ports"]}


@every
def test_every_port_that_is_named_exists(name: str) -> None:
    for service in of_kind(name, "Service"):
        (component,) = matched(name, service["spec"]["selector"])
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in ports(pods(name)[component])
    for monitor in of_kind(name, "PodMonitor"):
        (component,) = matched(name, monitor["spec"]["selector"]["matchLabels"])
        assert {end["port"] for end in monitor["spec"]["podMetricsEndpoints"]} <= ports(pods(name)[component]).keys()
    for policy in of_kind(name, "NetworkPolicy"):
        (component,) = matched(name, policy["spec"]["podSelector"]["matchLabels"])
        open_ports = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
        assert open_ports == set(ports(pods(name)[component]).values())
    for pod in pods(name).values():
        for probe in ("livenessProbe", "readinessProbe"):
            assert container(pod)[probe]["httpGet"]["port"] in ports(pod)
        scraped = (pod["metadata"]["annotations"]).get("prometheus.io/port")
        assert scraped is None or int(scraped) == ports(pod)["metrics"]


@every
def test_pods_are_found_by_a_monitor_or_by_annotations_never_by_both(name: str) -> None:
    monitored = {
        component
        for monitor in of_kind(name, "PodMonitor")
        for component in matched(name, monitor["spec"]["selector"]["matchLabels"])
    }
    for component, pod in pods(name).items():
        annotated = pod["metadata"]["annotations"].get("prometheus.io/scrape") == "true"
        assert annotated != (component in monitored)


@every
def test_webhooks_lead_to_the_service_and_only_profiles_wait_for_it(name: str) -> None:
    services = {(one["metadata"]["namespace"], one["metadata"]["name"]): one for one in of_kind(name, "Service")}
    hooks = [
        hook
        for document in of_kind(name, "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
        for hook in document["webhooks"]
    ]
    assert bool(hooks) == ("webhook" in pods(name))
    for hook in hooks:
        target = hook["clientConfig"]["service"]
        service = services[target["namespace"], target["name"]]
        assert target["port"] in {port["port"] for port in service["spec"]["ports"]}
        assert hook["failurePolicy"] == ("Fail" if hook["name"] == "profiles.tensor-fusion.ai" else "Ignore")
        # Nobody's pods but those that take part, and never those that serve the webhook.
        for rule in hook["rules"]:
            if "pods" in rule["resources"]:
                assert "tensor-fusion.ai/" in str(hook["objectSelector"])
                assert target["namespace"] in hook["namespaceSelector"]["matchExpressions"][0]["values"]


@every
def test_roles_are_bound_to_accounts_that_pods_run_as(name: str) -> None:
    roles = {(one["kind"], one["metadata"]["name"]): one for one in of_kind(name, "Role", "ClusterRole")}
    accounts = {one["metadata"]["name"] for one in of_kind(name, "ServiceAccount")}
    running = {pod["spec"]["serviceAccountName"] for pod in pods(name).values()}
    assert running == accounts
    bindings = of_kind(name, "RoleBinding", "ClusterRoleBinding")
    assert {(one["roleRef"]["kind"], one["roleRef"]["name"]) for one in bindings} == roles.keys()
    for binding in bindings:
        assert {subject["name"] for subject in binding["subjects"]} <= running


def rules(name: str, component: str, kind: str) -> Iterator[dict[str, Any]]:
    for role in of_kind(name, kind):
        if role["metadata"]["labels"]["app.kubernetes.io/component"] == component:
            yield from role["rules"]


@every
def test_no_rule_is_empty_or_grants_everything_of_something(name: str) -> None:
    for role in of_kind(name, "Role", "ClusterRole"):
        for rule in role["rules"]:
            assert rule["apiGroups"]
            assert rule["resources"]
            assert rule["verbs"]
            assert "*" not in str(rule)
            assert not {"delete", "deletecollection", "escalate", "bind", "impersonate"} & set(rule["verbs"])


@every
def test_every_rule_says_why(name: str) -> None:
    lines = TEXTS[name].splitlines()
    for number, line in enumerate(lines):
        if line.startswith("  - apiGroups:"):
            assert lines[number - 1].startswith("  # "), line


@every
def test_secrets_are_readable_by_name_only_and_agents_have_no_rights(name: str) -> None:
    for role in of_kind(name, "Role", "ClusterRole"):
        assert role["metadata"]["labels"]["app.kubernetes.io/component"] != "agent"
        for rule in role["rules"]:
            if "secrets" in rule["resources"]:
                assert role["kind"] == "Role"
                assert rule["verbs"] == ["create"] or rule["resourceNames"]
    assert not [rule for rule in rules(name, "controller", "ClusterRole") if "secrets" in rule["resources"]]


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
