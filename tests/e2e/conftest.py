"""One API server for all tests here that ask for `cluster`, with our definitions installed; one namespace a test."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from autoscaler.model.crd import render_crds
from tests.e2e.apiserver import ApiServer, api_server, missing_reason


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
