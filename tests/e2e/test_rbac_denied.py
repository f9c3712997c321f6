"""What the manifests' rights leave out: every other request of the controller's account is refused."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from autoscaler.kube.client import KubeClient
from tests.e2e.apiserver import ApiServer, missing_reason
from tests.e2e.rights import (
    APPS,
    LEASES,
    OURS,
    PLAIN,
    acting_as,
    answer_to,
    core,
    grants,
    of_group,
)

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing_reason()), reason=missing_reason() or "a server can be started"),
]

Request = tuple[str, str]


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
    text = grants(name)
    applied = cluster.run("apply", "-f", "-", stdin=text)
    assert applied.returncode == 0, applied.stderr
    yield name, acting_as(cluster, name, "controller", tmp_path_factory.mktemp("rights"))
    cluster.run("delete", "--ignore-not-found", "-f", "-", stdin=text)
    cluster.run("delete", "namespace", name, "--wait=false")


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
    assert written


def acting_as_default(cluster: ApiServer, namespace: str, folder: Path) -> ApiServer:
    """Return the server as an account without any right reaches it."""
    cluster.run("-n", namespace, "create", "serviceaccount", f"{namespace}-nobody")
    return acting_as(cluster, namespace, "nobody", folder)
