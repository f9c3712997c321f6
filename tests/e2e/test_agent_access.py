"""The agent's door on a real API server: tokens of real service accounts, reviewed for real."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from agent.kubeapi import ApiAddress, KubeApi
from agent.serve.access import AUDIENCE, TokenAccess
from tests.e2e.apiserver import ApiServer

pytestmark = pytest.mark.integration
NODE = "node-a"


def apply(cluster: ApiServer, *documents: dict[str, object]) -> None:
    done = cluster.run("apply", "-f", "-", stdin="\n---\n".join(map(json.dumps, documents)))
    assert done.returncode == 0, done.stderr


def account(cluster: ApiServer, namespace: str, name: str) -> None:
    apply(cluster, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}})


def bound(cluster: ApiServer, namespace: str, account: str, role: str) -> str:
    name = f"{namespace}-{account}"
    subject = {"kind": "ServiceAccount", "name": account, "namespace": namespace}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}
    apply(
        cluster,
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "subjects": [subject],
            "roleRef": reference,
        },
    )
    return name


def token(cluster: ApiServer, namespace: str, account: str, audience: str = "") -> str:
    words = ["-n", namespace, "create", "token", account, *([f"--audience={audience}"] if audience else [])]
    made = cluster.run(*words)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


async def test_only_a_token_for_the_agents_of_an_account_with_the_right_opens_the_door(
    cluster: ApiServer, namespace: str, tmp_path: Path
) -> None:
    for name in ("controller", "stranger", "agent"):
        account(cluster, namespace, name)
    role = f"{namespace}-quotas"
    rule = {
        "apiGroups": ["agents.tensor-fusion.ai"],
        "resources": ["quotas"],
        "resourceNames": [NODE],
        "verbs": ["get", "update"],
    }
    apply(
        cluster,
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": role},
            "rules": [rule],
        },
    )
    bindings = [
        bound(cluster, namespace, "controller", role),
        bound(cluster, namespace, "agent", "system:auth-delegator"),
    ]
    own, ca = tmp_path / "token", tmp_path / "ca.crt"
    own.write_text(token(cluster, namespace, "agent"))
    shown = json.loads(cluster.run("config", "view", "--raw", "-o", "json").stdout)["clusters"][0]["cluster"]
    ca.write_bytes(Path(shown["certificate-authority"]).read_bytes())
    api = KubeApi(ApiAddress(cluster.url, own, ca))
    try:
        access = TokenAccess(api, NODE, time.monotonic)
        other = TokenAccess(api, "node-b", time.monotonic)
        good = f"Bearer {token(cluster, namespace, 'controller', AUDIENCE)}"

        async def status(one: TokenAccess, authorization: str, verb: str = "update") -> int:
            judged = await one.judge(authorization, verb)
            return judged.status

        # A binding takes a moment to reach the server's authorizer.
        deadline = time.monotonic() + 30
        while (last := await TokenAccess(api, NODE, time.monotonic).judge(good, "get")).status != 200:
            assert time.monotonic() < deadline, last
        assert last.user == f"system:serviceaccount:{namespace}:controller"
        assert await status(access, good) == 200
        assert await status(other, good) == 403
        assert await status(access, good, "delete") == 403
        assert await status(access, f"Bearer {token(cluster, namespace, 'controller')}") == 401
        assert await status(access, f"Bearer {token(cluster, namespace, 'controller', 'other')}") == 401
        assert await status(access, f"Bearer {token(cluster, namespace, 'stranger', AUDIENCE)}") == 403
        assert await status(access, "Bearer made-up") == 401
    finally:
        await api.close()
        cluster.run("delete", "clusterrolebinding", *bindings)
        cluster.run("delete", "clusterrole", role)
