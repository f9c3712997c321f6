"""Rights beyond the controller's usual ones: scalers' keys, owners of other kinds, the webhook's, tokens for agents."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoscaler.admission.certificate import expires_at
from autoscaler.admission.shared import Names, SharedCertificates
from autoscaler.errors import ClusterError
from autoscaler.kube.client import MERGE_PATCH, KubeClient
from autoscaler.kube.cluster import KubeCluster
from tests.e2e.apiserver import ApiServer, missing_reason
from tests.e2e.rights import (
    LEASES,
    OURS,
    WITH_EXTRAS,
    FixedClock,
    acting_as,
    answer_to,
    core,
    of_group,
    token_of,
)

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing_reason()), reason=missing_reason() or "a server can be started"),
]


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
