"""The Lease and the service account's token, as a real API server takes them."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from autoscaler.cli import app
from autoscaler.kube.access import Access
from autoscaler.kube.client import KubeClient, StatusError
from autoscaler.kube.lease import LeaseElector, Terms
from autoscaler.process import SystemClock
from tests.e2e.apiserver import ApiServer

pytestmark = pytest.mark.integration
DEADLINE_SECONDS = 120.0


async def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < end, "never came true"
        await asyncio.sleep(0.05)


class Candidate:
    """An elector at work until `stop`."""

    def __init__(self, client: KubeClient, namespace: str, name: str) -> None:
        self.elector = LeaseElector(client, Terms(namespace, "tf-autoscaler", name, 60, 40.0, 0.2), SystemClock())
        self.stop, self.terms, self.seen = asyncio.Event(), list[int](), list[tuple[str, str]]()
        self.task = asyncio.create_task(self.elector.lead(self._work, self.stop, self._saw))

    async def _work(self, term: int) -> None:
        self.terms.append(term)
        await self.stop.wait()

    def _saw(self, holder: str, error: str) -> None:
        self.seen.append((holder, error))

    async def end(self) -> None:
        self.stop.set()
        await asyncio.wait_for(self.task, DEADLINE_SECONDS)


@pytest.fixture
async def client(cluster: ApiServer) -> AsyncIterator[KubeClient]:
    made = await KubeClient.connect(cluster.kubeconfig)
    yield made
    await made.close()


def lease(cluster: ApiServer, namespace: str) -> dict[str, Any]:
    found = cluster.run("-n", namespace, "get", "lease", "tf-autoscaler", "-o", "json")
    return dict(json.loads(found.stdout)) if found.returncode == 0 else {}


async def test_leases_are_taken_renewed_given_back_and_each_term_has_a_higher_number(
    cluster: ApiServer, namespace: str, client: KubeClient
) -> None:
    first = Candidate(client, namespace, "first")
    await until(lambda: first.terms)
    held = lease(cluster, namespace)
    second = Candidate(client, namespace, "second")
    await until(lambda: len(second.seen) > 3)
    assert set(second.seen) == {("first", "")}
    assert lease(cluster, namespace)["spec"]["renewTime"] > held["spec"]["renewTime"]

    began = time.monotonic()
    await first.end()
    await until(lambda: second.terms)
    assert time.monotonic() - began < 60  # the duration that a dead one is given
    await second.end()

    left = lease(cluster, namespace)["spec"]
    assert (first.terms, second.terms) == ([1], [2])
    assert (left.get("holderIdentity"), left["leaseTransitions"]) == (None, 2)


async def test_a_lease_that_was_deleted_under_its_holder_is_made_again_in_the_same_term(
    cluster: ApiServer, namespace: str, client: KubeClient
) -> None:
    holder = Candidate(client, namespace, "first")
    await until(lambda: holder.terms)
    uid = lease(cluster, namespace)["metadata"]["uid"]
    cluster.run("-n", namespace, "delete", "lease", "tf-autoscaler")
    await until(lambda: lease(cluster, namespace).get("metadata", {}).get("uid") not in {None, uid})
    assert holder.terms == [1]
    assert lease(cluster, namespace)["spec"]["leaseTransitions"] == 1
    await holder.end()


async def test_a_token_that_was_replaced_on_disk_is_shown_from_the_first_refusal_on(
    cluster: ApiServer, namespace: str, tmp_path: Path
) -> None:
    access = service_account(cluster, tmp_path)
    assert access.in_cluster
    (tmp_path / "token").write_text("expired")
    client = await KubeClient.connect(access)
    path = f"/api/v1/namespaces/{namespace}"
    with pytest.raises(StatusError, match="401"):
        await client.request("GET", path)
    (tmp_path / "token").write_text(cluster.token)
    assert (await client.request("GET", path))["metadata"]["name"] == namespace
    await client.close()


def service_account(cluster: ApiServer, folder: Path) -> Access:
    """What a pod finds, for this server."""
    view = cluster.run("config", "view", "--minify", "--raw", "-o", "json")
    told = json.loads(view.stdout)["clusters"][0]["cluster"]
    if "certificate-authority-data" in told:
        authority = base64.b64decode(told["certificate-authority-data"])
    else:
        authority = (cluster.kubeconfig.parent / told["certificate-authority"]).read_bytes()
    (folder / "ca.crt").write_bytes(authority)
    (folder / "token").write_text(cluster.token)
    (folder / "namespace").write_text("default")
    place = urlsplit(cluster.url)
    environment = {"KUBERNETES_SERVICE_HOST": str(place.hostname), "KUBERNETES_SERVICE_PORT": str(place.port)}
    return Access(None, folder, environment)


def test_a_single_pass_and_a_dry_run_take_no_lease(cluster: ApiServer, namespace: str) -> None:
    place = ["--kubeconfig", str(cluster.kubeconfig), "--prometheus-url", "http://127.0.0.1:1"]
    done = CliRunner().invoke(
        app, ["run", "--once", "--dry-run", *place, "--leader-elect", "--lease-namespace", namespace]
    )
    assert done.exit_code == 1  # there is no history
    assert "history: " in done.stdout
    assert lease(cluster, namespace) == {}
