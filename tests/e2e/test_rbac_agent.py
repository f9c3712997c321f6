"""The agent's rights on a real API server: with those of the chart it follows pods and has tokens judged, no more."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import yaml

from agent.kubeapi import ApiAddress, KubeApi
from agent.kubelet.resources import ClaimedDevice
from agent.pods.claims import DRIVER, Claims
from agent.pods.watch import PodWatch
from agent.serve.access import AUDIENCE, TokenAccess
from autoscaler.contract import keys
from autoscaler.kube.client import KubeClient
from tests.e2e.apiserver import ApiServer, missing_reason
from tests.e2e.rights import GRANTS, OURS, ROOT, acting_as, answer_to, core, of_group, token_of
from tests.e2e.test_rbac_denied import acting_as_default, granted

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing_reason()), reason=missing_reason() or "a server can be started"),
]

GOLDEN = ROOT / "tests" / "chart" / "golden" / "tokens.yaml"
NAME = "tf-autoscaler-tensor-fusion-autoscaler"


@pytest.fixture
def released(cluster: ApiServer, namespace: str) -> Iterator[str]:
    """Install the accounts and rights of a release whose agents review tokens; return its namespace."""
    text = GOLDEN.read_text().replace(NAME, namespace).replace("namespace: gpu", f"namespace: {namespace}")
    found = [one for one in yaml.safe_load_all(text) if one and one["kind"] in GRANTS]
    grants = yaml.safe_dump_all(found)
    applied = cluster.run("apply", "-f", "-", stdin=grants)
    assert applied.returncode == 0, applied.stderr
    yield namespace
    cluster.run("delete", "--ignore-not-found", "-f", "-", stdin=grants)


@pytest.fixture
async def api(cluster: ApiServer, released: str, tmp_path: Path) -> AsyncIterator[KubeApi]:
    """Return what the agent asks the server with, under its account's token."""
    (tmp_path / "token").write_text(token_of(cluster, released, "agent"))
    view = json.loads(cluster.run("config", "view", "--minify", "--raw", "-o", "json").stdout)
    asked = KubeApi(
        ApiAddress(cluster.url, tmp_path / "token", Path(view["clusters"][0]["cluster"]["certificate-authority"]))
    )
    yield asked
    await asked.close()


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what takes the server a moment, as new rights do."""
    end = time.monotonic() + 30
    while not await holds():
        assert time.monotonic() < end
        await asyncio.sleep(0.1)


async def test_the_agents_account_can_follow_the_pods_of_its_node(
    cluster: ApiServer, released: str, api: KubeApi
) -> None:
    node = f"{released}-node"
    watch = PodWatch(api, node)
    task = asyncio.create_task(watch.run())

    async def pods() -> set[str]:
        return {worker.pod for known in (watch.pods() or {}).values() for worker in known.workers}

    async def listed() -> bool:
        return watch.pods() is not None

    async def followed() -> bool:
        return await pods() == {"mine"}

    try:
        await until(listed)
        for name, place in (("mine", node), ("elsewhere", "another")):
            metadata = {"name": name, "namespace": released, "labels": {keys.ENABLED: "true"}}
            spec = {"nodeName": place, "containers": [{"name": "main", "image": "web"}]}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
            created = cluster.run("create", "-f", "-", stdin=json.dumps(pod))
            assert created.returncode == 0, created.stderr
        await until(followed)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        cluster.run("-n", released, "delete", "pods", "--all", "--grace-period=0", "--force", "--wait=false")


async def test_the_agents_account_can_read_which_gpu_a_claimed_device_is(
    cluster: ApiServer, released: str, api: KubeApi
) -> None:
    node, uuid = f"{released}-node", "GPU-6f2c1f8a-0b1d-4c3e-9a57-0123456789ab"
    device = {"name": "gpu-0", "attributes": {"uuid": {"string": uuid}, "index": {"int": 0}}}
    for place, devices in ((node, [device]), ("another", [device | {"name": "gpu-1"}])):
        pool = {"name": place, "generation": 1, "resourceSliceCount": 1}
        slice_ = {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceSlice",
            "metadata": {"name": f"{released}-{place}"},
            "spec": {"driver": DRIVER, "pool": pool, "nodeName": place, "devices": devices},
        }
        created = cluster.run("create", "-f", "-", stdin=json.dumps(slice_))
        assert created.returncode == 0, created.stderr
    claimed = ClaimedDevice(DRIVER, node, "gpu-0")
    now = 0.0
    claims = Claims(api, node, lambda: now)

    async def known() -> bool:
        nonlocal now
        now += 60.0
        return await claims.uuids({claimed}) == {claimed: uuid}

    try:
        await until(known)
    finally:
        cluster.run("delete", "resourceslices", f"{released}-{node}", f"{released}-another")


async def test_the_agents_account_lets_the_controllers_set_quotas_and_nobody_else(
    cluster: ApiServer, released: str, api: KubeApi
) -> None:
    access = TokenAccess(api, "node-a", time.monotonic)
    audience = f"--audience={AUDIENCE}"
    shown = f"Bearer {token_of(cluster, released, 'controller', audience)}"

    async def let_in() -> bool:
        return (await TokenAccess(api, "node-a", time.monotonic).judge(shown, "update")).status == 200

    await until(let_in)
    assert (await access.judge(shown, "get")).status == 200
    assert (await access.judge(f"Bearer {token_of(cluster, released, 'controller')}", "update")).status == 401
    for stranger in ("agent", "webhook"):
        judged = await access.judge(f"Bearer {token_of(cluster, released, stranger, audience)}", "update")
        assert judged.status == 403, stranger


def test_the_agents_account_has_these_rights_and_no_others(cluster: ApiServer, released: str, tmp_path: Path) -> None:
    everyone = granted(acting_as_default(cluster, released, tmp_path), released)

    found = granted(acting_as(cluster, released, "agent", tmp_path), released) - everyone

    assert found == {
        ("", "pods", "list", ""),
        ("", "pods", "watch", ""),
        ("resource.k8s.io", "resourceslices", "list", ""),
        ("authentication.k8s.io", "tokenreviews", "create", ""),
        ("authorization.k8s.io", "subjectaccessreviews", "create", ""),
    }


async def test_every_other_request_of_the_agents_account_is_refused(
    cluster: ApiServer, released: str, tmp_path: Path
) -> None:
    client = await KubeClient.connect(acting_as(cluster, released, "agent", tmp_path).kubeconfig)
    roles = "/apis/rbac.authorization.k8s.io/v1"
    try:
        for method, path in (
            ("GET", core(released, "pods", "/x")),
            ("PATCH", core(released, "pods", "/x")),
            ("PATCH", core(released, "pods", "/x/status")),
            ("POST", core(released, "pods")),
            ("POST", core(released, "pods", "/x/exec?command=id&stdout=true")),
            ("GET", core(released, "pods", "/x/log")),
            ("DELETE", core(released, "pods", "/x")),
            ("POST", core(released, "pods", "/x/eviction")),
            ("GET", core(released, "secrets")),
            ("GET", "/api/v1/secrets"),
            ("GET", core(released, "secrets", f"/{released}-agent-client-tls")),
            ("GET", core(released, "configmaps", "/x")),
            ("GET", "/api/v1/nodes"),
            ("PATCH", "/api/v1/nodes/x"),
            ("GET", "/api/v1/nodes/x/proxy/pods"),
            ("POST", core(released, "serviceaccounts", f"/{released}-controller/token")),
            ("POST", core(released, "events")),
            ("POST", of_group(OURS, released, "tensorfusionworkloads")),
            ("GET", of_group(OURS, released, "tensorfusionworkloads")),
            ("PATCH", f"{roles}/clusterroles/{released}-agent"),
            ("PATCH", f"{roles}/clusterrolebindings/{released}-agent-token-review"),
        ):
            assert await answer_to(client, method, path) == 403, (method, path)
    finally:
        await client.close()
