"""What the other tests here stand on: a server, and controllers that make pods where they are to be had."""

from __future__ import annotations

import json
import time

import pytest

from tests.e2e.apiserver import ApiServer, missing_manager_reason

pytestmark = pytest.mark.integration


@pytest.mark.skipif(bool(missing_manager_reason()), reason=missing_manager_reason() or "controllers run")
def test_a_deployment_makes_pods(cluster: ApiServer, namespace: str) -> None:
    created = cluster.run("-n", namespace, "create", "deployment", "web", "--image=web", "--replicas=2")
    assert created.returncode == 0, created.stderr
    deadline = time.monotonic() + 120
    names: list[str] = []
    while len(names) < 2 and time.monotonic() < deadline:
        pods = json.loads(cluster.run("-n", namespace, "get", "pods", "-o", "json").stdout)["items"]
        names = [pod["metadata"]["name"] for pod in pods]
        time.sleep(0.2)
    assert len(names) == 2
    assert all(name.startswith("web-") for name in names)
