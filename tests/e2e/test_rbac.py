"""The rights that the plain manifests grant, on a real API server: each program can do its work, and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoscaler.admission.certificate import expires_at
from autoscaler.admission.shared import Names, SharedCertificates
from autoscaler.contract import keys
from autoscaler.controller import Controller, World
from autoscaler.errors import ClusterError
from autoscaler.kube.agent_pods import AgentPods
from autoscaler.kube.client import JSON, MERGE_PATCH, KubeClient, StatusError
from autoscaler.kube.cluster import KubeCluster
from autoscaler.kube.lease import LeaseElector, Terms
from autoscaler.kube.patience import Patience, patience_of
from autoscaler.model.steps import Scale
from autoscaler.model.workload import ref_of
from autoscaler.report.metrics import ControllerMetrics
from autoscaler.settings import Settings
from tests.e2e.apiserver import ApiServer, missing_manager_reason, missing_reason
from tests.e2e.town import Here, Town, marks

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing_reason()), reason=missing_reason() or "a server can be started"),
]
ROOT = Path(__file__).parents[2]
PLAIN = ROOT / "deploy" / "tf-autoscaler.yaml"
GRANTS = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
WITH_EXTRAS = ROOT / "tests" / "chart" / "golden" / "everything.yaml"

needs_manager = pytest.mark.skipif(bool(missing_manager_reason()), reason=missing_manager_reason() or "controllers run")


@pytest.fixture
def installed(cluster: ApiServer, namespace: str) -> Iterator[str]:
    """Install accounts and rights into the test's namespace, under names of their own; return that namespace."""
    found = list(yaml.safe_load_all(PLAIN.read_text().replace("tf-autoscaler", namespace)))
    grants = [document for document in found if document["kind"] in GRANTS]
    text = yaml.safe_dump_all(grants)
    applied = cluster.run("apply", "-f", "-", stdin=text)
    assert applied.returncode == 0, applied.stderr
    yield namespace
    cluster.run("delete", "--ignore-not-found", "-f", "-", stdin=text)


def token_of(cluster: ApiServer, namespace: str, component: str, *arguments: str) -> str:
    made = cluster.run("-n", namespace, "create", "token", f"{namespace}-{component}", *arguments)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def acting_as(cluster: ApiServer, namespace: str, component: str, folder: Path) -> ApiServer:
    """Return the server as a program's ServiceAccount reaches it."""
    view = cluster.run("config", "view", "--minify", "--raw", "-o", "json")
    kubeconfig = json.loads(view.stdout)
    token = token_of(cluster, namespace, component)
    kubeconfig["users"] = [{"name": kubeconfig["users"][0]["name"], "user": {"token": token}}]
    path = folder / f"{component}.kubeconfig"
    path.write_text(json.dumps(kubeconfig))
    return replace(cluster, kubeconfig=path, token=token)


@pytest.fixture
async def controller(cluster: ApiServer, installed: str, tmp_path: Path) -> AsyncIterator[KubeClient]:
    client = await KubeClient.connect(acting_as(cluster, installed, "controller", tmp_path).kubeconfig)
    yield client
    await client.close()


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


class FixedClock:
    def now(self) -> float:
        return 1_800_000_000.0


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


def core(namespace: str, plural: str, rest: str = "") -> str:
    return f"/api/v1/namespaces/{namespace}/{plural}{rest}"


def of_group(group: str, namespace: str, plural: str, rest: str = "") -> str:
    return f"/apis/{group}/namespaces/{namespace}/{plural}{rest}"


Request = tuple[str, str]
OURS, APPS, LEASES = "tensor-fusion.ai/v1", "apps/v1", "coordination.k8s.io/v1"


def denied(here: str, there: str) -> dict[str, Request]:
    """Return what the controller's account may not do; `there` is another namespace."""
    return {
        "create a pod": ("POST", core(here, "pods")),
        "delete a pod": ("DELETE", core(here, "pods", "/x")),
        "delete all pods": ("DELETE", core(here, "pods")),
        "evict a pod": ("POST", core(here, "pods", "/x/eviction")),
        "resize a pod": ("PATCH", core(here, "pods", "/x/resize")),
        "bind a pod": ("POST", core(here, "pods", "/x/binding")),
        "report a pod's status": ("PATCH", core(here, "pods", "/x/status")),
        "run something in a pod": ("POST", core(here, "pods", "/x/exec?command=id&stdout=true")),
        "read a pod's log": ("GET", core(here, "pods", "/x/log")),
        "replace a pod": ("PUT", core(here, "pods", "/x")),
        "change a Deployment": ("PATCH", of_group(APPS, here, "deployments", "/x")),
        "delete a Deployment": ("DELETE", of_group(APPS, here, "deployments", "/x")),
        "change a StatefulSet": ("PATCH", of_group(APPS, here, "statefulsets", "/x")),
        "change a ReplicaSet": ("PATCH", of_group(APPS, here, "replicasets", "/x")),
        "create a Job": ("POST", of_group("batch/v1", here, "jobs")),
        "change a profile": ("PATCH", of_group(OURS, here, "workloadprofiles", "/x")),
        "create a profile": ("POST", of_group(OURS, here, "workloadprofiles")),
        "delete a profile": ("DELETE", of_group(OURS, here, "workloadprofiles", "/x")),
        "delete a workload": ("DELETE", of_group(OURS, here, "tensorfusionworkloads", "/x")),
        "replace a workload": ("PUT", of_group(OURS, here, "tensorfusionworkloads", "/x")),
        "change a GPU": ("PATCH", "/apis/tensor-fusion.ai/v1/gpus/x"),
        "change an HPA": ("PATCH", of_group("autoscaling/v2", here, "horizontalpodautoscalers", "/x")),
        "change a budget": ("PATCH", of_group("policy/v1", here, "poddisruptionbudgets", "/x")),
        "list secrets": ("GET", core(here, "secrets")),
        "list all secrets": ("GET", "/api/v1/secrets"),
        "read a secret": ("GET", core(here, "secrets", f"/{here}-agent-client-tls")),
        "create a secret": ("POST", core(here, "secrets")),
        "read a config map": ("GET", core(here, "configmaps", "/x")),
        "create an event of the old kind": ("POST", core(here, "events")),
        "list events": ("GET", of_group("events.k8s.io/v1", here, "events")),
        "read another lease": ("GET", of_group(LEASES, here, "leases", "/other")),
        "change another lease": ("PATCH", of_group(LEASES, here, "leases", "/other")),
        "list leases": ("GET", of_group(LEASES, here, "leases")),
        "delete its own lease": ("DELETE", of_group(LEASES, here, "leases", f"/{here}")),
        "read a lease of the same name elsewhere": ("GET", of_group(LEASES, there, "leases", f"/{here}")),
        "create a lease elsewhere": ("POST", of_group(LEASES, there, "leases")),
        "list webhooks": ("GET", "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"),
        "create a webhook": ("POST", "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"),
        "change a webhook": ("PATCH", f"/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/{here}"),
        "read a definition": ("GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/workloadprofiles.tensor-fusion.ai"),
        "change a node": ("PATCH", "/api/v1/nodes/x"),
        "change a node's status": ("PATCH", "/api/v1/nodes/x/status"),
        "reach through a node": ("GET", "/api/v1/nodes/x/proxy/metrics"),
        "list namespaces": ("GET", "/api/v1/namespaces"),
        "judge tokens": ("POST", "/apis/authentication.k8s.io/v1/tokenreviews"),
        "judge access": ("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews"),
        "make itself a token": ("POST", core(here, "serviceaccounts", f"/{here}-controller/token")),
        "make another's token": ("POST", core(here, "serviceaccounts", "/default/token")),
        "grant a role": ("POST", of_group("rbac.authorization.k8s.io/v1", here, "rolebindings")),
        "change its own role": ("PATCH", f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{here}-controller"),
    }  # fmt: skip


CASES = sorted(denied("here", "there"))


@pytest.fixture(scope="module")
def settled(cluster: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ApiServer]]:
    """Return a namespace with accounts and rights that stay for all cases, and the server as the controller sees it."""
    name = f"test-{secrets.token_hex(4)}"
    assert cluster.run("create", "namespace", name).returncode == 0
    grants = [
        one for one in yaml.safe_load_all(PLAIN.read_text().replace("tf-autoscaler", name)) if one["kind"] in GRANTS
    ]
    text = yaml.safe_dump_all(grants)
    applied = cluster.run("apply", "-f", "-", stdin=text)
    assert applied.returncode == 0, applied.stderr
    yield name, acting_as(cluster, name, "controller", tmp_path_factory.mktemp("rights"))
    cluster.run("delete", "--ignore-not-found", "-f", "-", stdin=text)
    cluster.run("delete", "namespace", name, "--wait=false")


async def answer_to(client: KubeClient, method: str, path: str) -> int:
    """Return the status that a request is answered with; 200 stands for every success."""
    body: dict[str, Any] | None = None if method in {"GET", "DELETE"} else {"metadata": {"name": "x"}}
    try:
        await client.request_once(method, path, body, MERGE_PATCH if method == "PATCH" else JSON)
    except StatusError as error:
        return error.status
    return 200


@pytest.mark.parametrize("case", CASES)
async def test_the_controllers_account_may_not(case: str, settled: tuple[str, ApiServer]) -> None:
    here, server = settled
    client = await KubeClient.connect(server.kubeconfig)
    try:
        assert await answer_to(client, *denied(here, "default")[case]) == 403
    finally:
        await client.close()


def test_the_controllers_account_may_not_pass_for_someone_else(settled: tuple[str, ApiServer]) -> None:
    _, server = settled
    tried = server.run("get", "pods", "-A", "--as=system:admin", "--as-group=system:masters")

    assert tried.returncode != 0
    assert "cannot impersonate" in tried.stderr


def granted(server: ApiServer, namespace: str) -> set[tuple[str, str, str, str]]:
    """Return what the server says that an account may do in a namespace, as (group, resource, verb, name)."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    told = server.run("create", "--validate=false", "-o", "json", "-f", "-", stdin=json.dumps(review))
    assert told.returncode == 0, told.stderr
    return {
        (group, resource, verb, name)
        for rule in json.loads(told.stdout)["status"]["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames") or [""]
    }


@pytest.mark.parametrize("component", ["controller", "webhook", "agent"])
def test_an_account_has_the_rights_that_are_written_down_and_no_others(
    cluster: ApiServer, settled: tuple[str, ApiServer], component: str, tmp_path: Path
) -> None:
    here, _ = settled
    everyone = granted(acting_as_default(cluster, here, tmp_path), here)
    found = granted(acting_as(cluster, here, component, tmp_path), here) - everyone

    written = {
        (group, resource, verb, name)
        for document in yaml.safe_load_all(PLAIN.read_text().replace("tf-autoscaler", here))
        if document["kind"] in {"Role", "ClusterRole"} and document["metadata"]["name"].endswith(component)
        for rule in document["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames") or [""]
    }
    assert found == written
    assert bool(written) == (component != "agent")


def acting_as_default(cluster: ApiServer, namespace: str, folder: Path) -> ApiServer:
    """Return the server as an account without any right reaches it."""
    cluster.run("-n", namespace, "create", "serviceaccount", f"{namespace}-nobody")
    return acting_as(cluster, namespace, "nobody", folder)


async def test_a_scalers_key_is_readable_where_it_was_listed_and_nowhere_else(
    cluster: ApiServer, installed: str, controller: KubeClient
) -> None:
    golden = list(yaml.safe_load_all(WITH_EXTRAS.read_text()))
    grants = [one for one in golden if one and one["metadata"]["name"].endswith("-scaler-keys")]
    assert len(grants) == 2
    for one in grants:
        one["metadata"]["namespace"] = installed
        for subject in one.get("subjects", ()):
            subject |= {"name": f"{installed}-controller", "namespace": installed}
    assert cluster.run("apply", "-f", "-", stdin=yaml.safe_dump_all(grants)).returncode == 0
    for name in ("scaler-key", "other"):
        cluster.run("-n", installed, "create", "secret", "generic", name, "--from-literal=token=hush")
    reader = KubeCluster(controller, FixedClock())

    assert await reader.secret(installed, "scaler-key") == {"token": "hush"}
    for place in ((installed, "other"), ("default", "scaler-key")):
        with pytest.raises(ClusterError, match="403"):
            await reader.secret(*place)


@pytest.fixture
def rollouts(cluster: ApiServer, installed: str) -> Iterator[str]:
    """Define a kind of owner with a scale subresource, allow the controller to scale it, make one; return its group."""
    group = f"{secrets.token_hex(4)}.test"
    (role,) = [
        one
        for one in yaml.safe_load_all(WITH_EXTRAS.read_text())
        if one and one["kind"] == "ClusterRole" and one["metadata"]["name"].endswith("-controller")
    ]
    role["rules"] = [rule | {"apiGroups": [group]} for rule in role["rules"] if rule["apiGroups"] == ["argoproj.io"]]
    role["metadata"]["name"] = f"{installed}-extra"
    account = {"kind": "ServiceAccount", "name": f"{installed}-controller", "namespace": installed}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": f"{installed}-extra"}
    binding = role | {"kind": "ClusterRoleBinding", "roleRef": reference, "subjects": [account]}
    binding.pop("rules")
    free = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": free},
        "subresources": {"scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
    }  # fmt: skip
    names = {"kind": "Rollout", "plural": "rollouts"}
    spec = {"group": group, "names": names, "scope": "Namespaced", "versions": [version]}
    head = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}
    definition = head | {"metadata": {"name": f"rollouts.{group}"}, "spec": spec}
    assert cluster.run("apply", "-f", "-", stdin=yaml.safe_dump_all([definition, role, binding])).returncode == 0
    established = cluster.run("wait", "--for=condition=Established", f"crd/rollouts.{group}", "--timeout=120s")
    assert established.returncode == 0, established.stderr
    metadata = {"name": "web", "namespace": installed}
    one = {"apiVersion": f"{group}/v1", "kind": "Rollout", "metadata": metadata, "spec": {"replicas": 1}}
    end = time.monotonic() + 60
    while (made := cluster.run("create", "-f", "-", stdin=json.dumps(one))).returncode and time.monotonic() < end:
        time.sleep(0.2)
    assert made.returncode == 0, made.stderr
    yield group
    for kind, name in (("crd", f"rollouts.{group}"), ("clusterrole", f"{installed}-extra"), ("clusterrolebinding", f"{installed}-extra")):  # fmt: skip
        cluster.run("delete", kind, name, "--wait=false")


async def test_an_owner_of_another_kind_can_be_read_and_scaled_where_it_was_listed_and_not_changed(
    installed: str, rollouts: str, controller: KubeClient
) -> None:
    path = of_group(f"{rollouts}/v1", installed, "rollouts", "/web")
    assert (await controller.request("GET", path))["spec"]["replicas"] == 1
    assert (await controller.request("GET", f"{path}/scale"))["spec"]["replicas"] == 1

    scaled = await controller.request("PATCH", f"{path}/scale", {}, {"spec": {"replicas": 2}}, MERGE_PATCH)

    assert scaled["spec"]["replicas"] == 2
    assert await answer_to(controller, "PATCH", path) == 403
    assert await answer_to(controller, "DELETE", path) == 403


def never_called(namespace: str) -> dict[str, Any]:
    rule = {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}
    return {
        "name": "pods.tensor-fusion.ai",
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Ignore",
        "clientConfig": {"service": {"name": "none", "namespace": namespace}},
        "objectSelector": {"matchLabels": {"nobody/has": "this"}},
        "rules": [rule],
    }


async def test_the_webhooks_account_can_keep_its_certificate_and_no_others(
    cluster: ApiServer, installed: str, tmp_path: Path
) -> None:
    for kind in ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"):
        metadata = {"name": installed}
        configuration = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": metadata}
        configuration["webhooks"] = [never_called(installed)]
        created = cluster.run("create", "-f", "-", stdin=json.dumps(configuration))
        assert created.returncode == 0, created.stderr
    client = await KubeClient.connect(acting_as(cluster, installed, "webhook", tmp_path).kubeconfig)
    names = Names(f"{installed}-webhook", installed, f"{installed}-webhook-tls", installed)
    hooks = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
    try:
        first = await SharedCertificates(client, names, FixedClock()).current()
        again = await SharedCertificates(client, names, FixedClock()).current()
        assert first == again
        assert expires_at(first.certificate, names.dns) is not None
        told = await client.request("GET", f"{hooks}/{installed}")
        assert told["webhooks"][0]["clientConfig"]["caBundle"]
        for method, path in (
            ("PATCH", f"{hooks}/other"),
            ("GET", hooks),
            ("GET", core(installed, "secrets", "/other")),
            ("GET", core(installed, "secrets")),
            ("POST", core("default", "secrets")),
            ("PATCH", core(installed, "pods", "/x")),
            ("PATCH", of_group(OURS, installed, "tensorfusionworkloads", "/x")),
            ("GET", of_group(LEASES, installed, "leases", f"/{installed}")),
        ):
            assert await answer_to(client, method, path) == 403, (method, path)
    finally:
        await client.close()
        for kind in ("mutatingwebhookconfiguration", "validatingwebhookconfiguration"):
            cluster.run("delete", kind, installed, "--ignore-not-found")


async def review(cluster: ApiServer, kind: str, group: str, spec: dict[str, Any]) -> dict[str, Any]:
    body = {"apiVersion": f"{group}/v1", "kind": kind, "spec": spec}
    told = cluster.run("create", "-o", "json", "-f", "-", stdin=json.dumps(body))
    assert told.returncode == 0, told.stderr
    return dict(json.loads(told.stdout)["status"])


async def test_a_token_for_agents_proves_the_controller_to_them_and_opens_nothing_else(
    cluster: ApiServer, installed: str
) -> None:
    token = token_of(cluster, installed, "controller", "--audience=tensor-fusion-agent")
    told = await review(
        cluster, "TokenReview", "authentication.k8s.io", {"token": token, "audiences": ["tensor-fusion-agent"]}
    )
    assert told["authenticated"] is True
    target = {"group": "agents.tensor-fusion.ai", "resource": "quotas", "verb": "update", "name": "node-a"}
    for component, allowed in (("controller", True), ("webhook", False), ("agent", False)):
        user = f"system:serviceaccount:{installed}:{installed}-{component}"
        judged = await review(
            cluster, "SubjectAccessReview", "authorization.k8s.io", {"user": user, "resourceAttributes": target}
        )
        assert judged["allowed"] is allowed
    view = json.loads(cluster.run("config", "view", "--minify", "--raw", "-o", "json").stdout)
    tried = cluster.run("--server", view["clusters"][0]["cluster"]["server"], "--token", token, "get", "pods")
    assert tried.returncode != 0


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

    grants = [one for one in yaml.safe_load_all(PLAIN.read_text().replace("tf-autoscaler", installed)) if one["kind"] in GRANTS]  # fmt: skip
    removed = cluster.run("delete", "-f", "-", stdin=yaml.safe_dump_all(grants))
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
