"""Accounts as the manifests make them, and what the API server answers to them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from autoscaler.kube.client import JSON, MERGE_PATCH, KubeClient, StatusError
from tests.e2e.apiserver import ApiServer

ROOT = Path(__file__).parents[2]
PLAIN = ROOT / "deploy" / "tf-autoscaler.yaml"
GRANTS = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
WITH_EXTRAS = ROOT / "tests" / "chart" / "golden" / "everything.yaml"
OURS, APPS, LEASES = "tensor-fusion.ai/v1", "apps/v1", "coordination.k8s.io/v1"


class FixedClock:
    def now(self) -> float:
        return 1_800_000_000.0


def grants(namespace: str) -> str:
    """Return accounts and rights of the plain manifests, for a namespace and under names of its own."""
    found = yaml.safe_load_all(PLAIN.read_text().replace("tf-autoscaler", namespace))
    return yaml.safe_dump_all([document for document in found if document["kind"] in GRANTS])


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


def core(namespace: str, plural: str, rest: str = "") -> str:
    return f"/api/v1/namespaces/{namespace}/{plural}{rest}"


def of_group(group: str, namespace: str, plural: str, rest: str = "") -> str:
    return f"/apis/{group}/namespaces/{namespace}/{plural}{rest}"


async def answer_to(client: KubeClient, method: str, path: str) -> int:
    """Return the status that a request is answered with; 200 stands for every success."""
    body: dict[str, Any] | None = None if method in {"GET", "DELETE"} else {"metadata": {"name": "x"}}
    try:
        await client.request_once(method, path, body, MERGE_PATCH if method == "PATCH" else JSON)
    except StatusError as error:
        return error.status
    return 200
