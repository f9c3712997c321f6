"""One API server for all tests here that ask for `cluster`, with our definitions installed; one namespace a test."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from autoscaler.kube.client import KubeClient
from autoscaler.model.crd import render_crds
from tests.e2e.apiserver import ApiServer, api_server, missing_reason
from tests.e2e.rights import acting_as, grants


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """Return a server with the CRDs; skips, and says why, where none can be had."""
    if reason := missing_reason():
        pytest.skip(reason)
    with api_server(tmp_path_factory.mktemp("cluster"), manager=True) as running:
        for text in render_crds().values():
            applied = running.run("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)
            assert applied.returncode == 0, applied.stderr
        names = [f"crd/{plural}.tensor-fusion.ai" for plural in ("workloadprofiles", "tensorfusionworkloads")]
        established = running.run("wait", "--for=condition=Established", *names, "--timeout=240s")
        assert established.returncode == 0, established.stderr
        yield running


@pytest.fixture
def namespace(cluster: ApiServer) -> Iterator[str]:
    """Return a namespace of the test's own."""
    name = f"test-{secrets.token_hex(4)}"
    created = cluster.run("create", "namespace", name)
    assert created.returncode == 0, created.stderr
    yield name
    cluster.run("delete", "namespace", name, "--wait=false")


@pytest.fixture
def installed(cluster: ApiServer, namespace: str) -> Iterator[str]:
    """Install accounts and rights into the test's namespace, under names of their own; return that namespace."""
    text = grants(namespace)
    applied = cluster.run("apply", "-f", "-", stdin=text)
    assert applied.returncode == 0, applied.stderr
    yield namespace
    cluster.run("delete", "--ignore-not-found", "-f", "-", stdin=text)


@pytest.fixture
async def controller(cluster: ApiServer, installed: str, tmp_path: Path) -> AsyncIterator[KubeClient]:
    """Return a client with the rights of the controller's account."""
    client = await KubeClient.connect(acting_as(cluster, installed, "controller", tmp_path).kubeconfig)
    yield client
    await client.close()
