"""The agent's pods from a real API server: those of its node, as they come, change and go."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.kubeapi import ApiAddress, KubeApi
from agent.pods.watch import PodWatch
from autoscaler.contract import keys
from tests.e2e.apiserver import ApiServer

pytestmark = pytest.mark.integration


def pod(name: str, namespace: str, node: str, limit: str = "20") -> str:
    metadata = {
        "name": name,
        "namespace": namespace,
        "labels": {keys.ENABLED: "true"},
        "annotations": {keys.TFLOPS_LIMIT: limit, keys.VRAM_LIMIT: "8Gi", keys.WORKLOAD: "web"},
    }
    spec = {"nodeName": node, "containers": [{"name": "main", "image": "web"}]}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


async def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_the_pods_of_the_own_node_are_followed(cluster: ApiServer, namespace: str, tmp_path: Path) -> None:
    node = f"node-{secrets.token_hex(4)}"
    shown = json.loads(cluster.run("config", "view", "--raw", "-o", "json").stdout)["clusters"][0]["cluster"]
    (tmp_path / "token").write_text(cluster.token)
    api = KubeApi(ApiAddress(cluster.url, tmp_path / "token", Path(shown["certificate-authority"])))
    watch = PodWatch(api, node)
    for name, place in (("before", node), ("elsewhere", "another")):
        assert cluster.run("apply", "-f", "-", stdin=pod(name, namespace, place)).returncode == 0
    task = asyncio.create_task(watch.run())

    def limits() -> dict[str, float]:
        workers = [worker for known in (watch.pods() or {}).values() for worker in known.workers]
        return {worker.pod: worker.born.tflops_limit for worker in workers if worker.born is not None}

    try:
        await until(lambda: limits() == {"before": 20.0})
        assert cluster.run("apply", "-f", "-", stdin=pod("after", namespace, node)).returncode == 0
        await until(lambda: limits() == {"before": 20.0, "after": 20.0})
        changed = cluster.run("-n", namespace, "annotate", "pod", "after", f"{keys.TFLOPS_LIMIT}=30", "--overwrite")
        assert changed.returncode == 0, changed.stderr
        await until(lambda: limits() == {"before": 20.0, "after": 30.0})
        gone = cluster.run("-n", namespace, "delete", "pod", "before", "--grace-period=0", "--force")
        assert gone.returncode == 0, gone.stderr
        await until(lambda: limits() == {"after": 30.0})
        (known,) = (watch.pods() or {}).values()
        assert known.workers[0].workload == "web"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await api.close()
        cluster.run("-n", namespace, "delete", "pods", "--all", "--grace-period=0", "--force", "--wait=false")
