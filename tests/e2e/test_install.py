"""Installing, upgrading and uninstalling on a real API server: manifests it takes, definitions that carry objects on."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoscaler.model.crd import render_crds
from tests.e2e.apiserver import ApiServer, missing_reason

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing_reason()), reason=missing_reason() or "a server can be started"),
]
ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "tensor-fusion-autoscaler"
RENDERED = {path.stem: path for path in sorted((ROOT / "tests" / "chart" / "golden").glob("*.yaml"))}
RENDERED["plain"] = ROOT / "deploy" / "tf-autoscaler.yaml"
FOREIGN = ("cert-manager.io/v1", "monitoring.coreos.com/v1")
HELM = os.environ.get("HELM") or shutil.which("helm") or ""
needs_helm = pytest.mark.skipif(not HELM, reason="helm is neither on PATH nor named by HELM")


@pytest.mark.parametrize("name", RENDERED)
def test_the_server_takes_every_manifest_strictly(cluster: ApiServer, namespace: str, name: str) -> None:
    manifests = [one for one in yaml.safe_load_all(RENDERED[name].read_text()) if one]
    # Golden files have no real certificates in their Secrets; a release of helm's has, below.
    tried = [
        one for one in manifests if one["apiVersion"] not in FOREIGN and one["kind"] not in {"Namespace", "Secret"}
    ]
    for one in tried:
        if one["metadata"].get("namespace"):
            one["metadata"]["namespace"] = namespace
        else:
            one["metadata"]["name"] = f"{namespace}-{one['metadata']['name']}"
    text = yaml.safe_dump_all(tried)
    applied = cluster.run("apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text)

    assert applied.returncode == 0, applied.stderr
    assert len(applied.stdout.splitlines()) == len(tried)
    assert "Warning" not in applied.stderr


def test_the_restricted_standard_holds_for_controller_and_webhook_and_refuses_the_agent(
    cluster: ApiServer, namespace: str
) -> None:
    labelled = cluster.run("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    assert labelled.returncode == 0
    manifests = [one for one in yaml.safe_load_all(RENDERED["plain"].read_text()) if one]
    told = {}
    for one in manifests:
        if one["kind"] in {"Deployment", "DaemonSet"}:
            template = one["spec"]["template"]
            component = template["metadata"]["labels"]["app.kubernetes.io/component"]
            # Accounts and runtime classes are not what this is about.
            template["spec"] |= {"serviceAccountName": "default"}
            template["spec"].pop("runtimeClassName", None)
            template["metadata"] |= {"name": component, "namespace": namespace}
            pod = {"apiVersion": "v1", "kind": "Pod", **template}
            told[component] = cluster.run("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))
    assert told["controller"].returncode == 0, told["controller"].stderr
    assert told["webhook"].returncode == 0, told["webhook"].stderr
    assert "violates PodSecurity" in told["agent"].stderr


@pytest.fixture
def group(cluster: ApiServer) -> Iterator[str]:
    """Return an API group of the test's own, for definitions that can be changed without disturbing others."""
    name = f"{secrets.token_hex(4)}.test"
    yield name
    for plural in ("workloadprofiles", "tensorfusionworkloads"):
        cluster.run("delete", "crd", f"{plural}.{name}", "--wait=false", "--ignore-not-found")


def definitions(group: str) -> list[dict[str, Any]]:
    found = [yaml.safe_load(text.replace("tensor-fusion.ai", group)) for text in render_crds().values()]
    for one in found:
        # Short names are shared by all groups of a server.
        one["spec"]["names"].pop("shortNames")
    return found


def older(definition: dict[str, Any]) -> dict[str, Any]:
    """Return a definition as an early release might have had it: no rules, no enums, fewer columns and fields."""
    before = json.loads(json.dumps(definition))
    version = before["spec"]["versions"][0]
    version["additionalPrinterColumns"] = version["additionalPrinterColumns"][:1]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"].pop("autoScalingConfig")
    _loosen(spec)
    return dict(before)


def _loosen(node: Any) -> None:
    if isinstance(node, dict):
        for key in ("x-kubernetes-validations", "enum", "pattern"):
            if not isinstance(node.get(key), dict):
                node.pop(key, None)
        for child in node.values():
            _loosen(child)
    elif isinstance(node, list):
        for child in node:
            _loosen(child)


def install(cluster: ApiServer, found: list[dict[str, Any]]) -> None:
    applied = cluster.run("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(found))
    assert applied.returncode == 0, applied.stderr
    names = [f"crd/{one['metadata']['name']}" for one in found]
    assert cluster.run("wait", "--for=condition=Established", *names, "--timeout=120s").returncode == 0


def put(cluster: ApiServer, manifest: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    return cluster.run("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(manifest))


def retried(attempt: Any, wanted: str) -> subprocess.CompletedProcess[str]:
    """Try until the answer holds what a new schema says; it takes the server a moment to serve one."""
    end = time.monotonic() + 60
    while True:
        told: subprocess.CompletedProcess[str] = attempt()
        if wanted in told.stdout + told.stderr or time.monotonic() > end:
            return told
        time.sleep(0.2)


def test_objects_of_an_older_definition_are_carried_on_by_the_new_one(
    cluster: ApiServer, namespace: str, group: str
) -> None:
    new = definitions(group)
    install(cluster, [older(one) for one in new])
    head = {"apiVersion": f"{group}/v1", "metadata": {"name": "old", "namespace": namespace}}
    # What the new definition would refuse: a request above the limit, and an unknown service level.
    resources = {"requests": {"tflops": "30"}, "limits": {"tflops": "20"}}
    profile = {**head, "kind": "WorkloadProfile", "spec": {"qos": "gold", "resources": resources}}
    workload = {**head, "kind": "TensorFusionWorkload", "spec": {"qos": "high", "replicas": 2}}
    for one in (profile, workload):
        stored = put(cluster, one)
        assert stored.returncode == 0, stored.stderr
    workloads, profiles = (f"{plural}.{group}" for plural in ("tensorfusionworkloads", "workloadprofiles"))
    status = json.dumps({"status": {"workerCount": 2, "readyWorkers": 2}})
    named = ("-n", namespace, "patch", workloads, "old", "--type=merge")
    assert cluster.run(*named, "--subresource=status", "-p", status).returncode == 0

    install(cluster, new)

    shown = retried(lambda: cluster.run("-n", namespace, "get", workloads), "APPLIED")
    assert "APPLIED" in shown.stdout
    found = json.loads(cluster.run("-n", namespace, "get", workloads, "old", "-o", "json").stdout)
    assert (found["spec"]["replicas"], found["spec"]["qos"]) == (2, "high")
    assert found["status"]["workerCount"] == 2
    kept = json.loads(cluster.run("-n", namespace, "get", profiles, "old", "-o", "json").stdout)
    assert (kept["spec"]["qos"], kept["spec"]["resources"]) == ("gold", resources)
    # What was stored may stay; what is touched must be right, and new fields can be used.
    changed = cluster.run("-n", namespace, "patch", profiles, "old", "--type=merge", "-p", '{"spec": {"replicas": 3}}')
    assert changed.returncode == 0, changed.stderr
    refused = cluster.run(
        "-n", namespace, "patch", profiles, "old", "--type=merge", "-p", '{"spec": {"qos": "silver"}}'
    )
    assert "Unsupported value" in refused.stderr
    layers = '{"spec": {"autoScalingConfig": {"autoSetLimits": {"enable": true}}}}'
    assert cluster.run(*named, "-p", layers).returncode == 0
    scaled = cluster.run("-n", namespace, "scale", workloads, "old", "--replicas=4")
    assert scaled.returncode == 0, scaled.stderr


def helm(cluster: ApiServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HELM_", "KUBE"))}
    return subprocess.run(
        [HELM, "--kubeconfig", str(cluster.kubeconfig), *arguments],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def certificates(cluster: ApiServer, namespace: str) -> dict[str, Any]:
    found = json.loads(cluster.run("-n", namespace, "get", "secrets", "-o", "json").stdout)["items"]
    return {one["metadata"]["name"]: one["data"] for one in found if one["type"] == "kubernetes.io/tls"}


@needs_helm
def test_a_release_keeps_its_certificates_over_an_upgrade_and_leaves_objects_and_definitions_when_it_goes(
    cluster: ApiServer, namespace: str
) -> None:
    # Without the webhook, whose configurations would reach into other tests' namespaces.
    release = (namespace, str(CHART), "-n", namespace, "--set", "webhook.enabled=false")
    marked = {"name": "mine", "namespace": namespace}
    profile = {
        "apiVersion": "tensor-fusion.ai/v1",
        "kind": "WorkloadProfile",
        "metadata": marked,
        "spec": {"qos": "low"},
    }
    assert put(cluster, profile).returncode == 0
    definition = (
        "get",
        "crd",
        "workloadprofiles.tensor-fusion.ai",
        "-o",
        "jsonpath={.metadata.uid}{.metadata.generation}",
    )
    before = cluster.run(*definition).stdout

    installed = helm(cluster, "install", *release)
    assert installed.returncode == 0, installed.stderr
    assert "someone else's" in installed.stdout
    made = certificates(cluster, namespace)
    assert len(made) == 2
    upgraded = helm(cluster, "upgrade", *release, "--set", "controller.replicas=1")
    assert upgraded.returncode == 0, upgraded.stderr
    assert certificates(cluster, namespace) == made
    removed = helm(cluster, "uninstall", namespace, "-n", namespace)
    assert removed.returncode == 0, removed.stderr

    assert certificates(cluster, namespace) == {}
    assert cluster.run(*definition).stdout == before
    kept = cluster.run("-n", namespace, "get", "workloadprofile", "mine", "-o", "jsonpath={.spec.qos}")
    assert kept.stdout == "low"
    left = cluster.run("get", "clusterroles,clusterrolebindings", "-o", "name").stdout
    assert f"/{namespace}" not in left


def chart_of(group: str, folder: Path, *, old: bool) -> Path:
    """Return a copy of the chart whose definitions are of the test's own group, so that nobody else's are touched."""
    copy = folder / ("old" if old else "new")
    shutil.copytree(CHART, copy)
    for definition in definitions(group):
        name = f"{definition['metadata']['name'].partition('.')[0]}.yaml"
        (path,) = [one for one in (copy / "files" / "crds").iterdir() if one.name.endswith(f"_{name}")]
        path.write_text(yaml.safe_dump(older(definition) if old else definition, sort_keys=False))
    return copy


@needs_helm
def test_definitions_are_upgraded_with_the_release_kept_when_it_goes_and_taken_up_again(
    cluster: ApiServer, namespace: str, group: str, tmp_path: Path
) -> None:
    options = ("-n", namespace, "--set", "webhook.enabled=false", "--set", "agent.enabled=false")
    old, new = (str(chart_of(group, tmp_path, old=old)) for old in (True, False))
    workloads = f"tensorfusionworkloads.{group}"
    columns = ("get", "crd", workloads, "-o", "jsonpath={.spec.versions[0].additionalPrinterColumns[*].name}")
    head = {"apiVersion": f"{group}/v1", "metadata": {"name": "mine", "namespace": namespace}}

    installed = helm(cluster, "install", namespace, old, *options)
    assert installed.returncode == 0, installed.stderr
    assert cluster.run(*columns).stdout == "QoS"
    stored = retried(lambda: put(cluster, {**head, "kind": "TensorFusionWorkload", "spec": {"replicas": 2}}), "applied")
    assert stored.returncode == 0, stored.stderr
    upgraded = helm(cluster, "upgrade", namespace, new, *options)
    assert upgraded.returncode == 0, upgraded.stderr
    assert "Applied" in cluster.run(*columns).stdout
    removed = helm(cluster, "uninstall", namespace, "-n", namespace)
    assert removed.returncode == 0, removed.stderr
    kept = cluster.run("-n", namespace, "get", workloads, "mine", "-o", "jsonpath={.spec.replicas}")
    assert kept.stdout == "2", kept.stderr
    again = helm(cluster, "install", namespace, new, *options)
    assert again.returncode == 0, again.stderr
    helm(cluster, "uninstall", namespace, "-n", namespace)
