"""What writing costs on a real API server: `python -m tests.benchmarks.bench_writes [--quick]`.

Statuses of workloads that all changed, as a restart into another world would find them: with nobody pacing, and at the
default pace. The server is found as in tests/e2e (`KUBEBUILDER_ASSETS`, or `USE_EXISTING_CLUSTER=true`); without one
there is nothing to measure. How long a failover takes, and that a fleet at rest writes nothing, tests/e2e say.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from autoscaler.kube.client import KubeClient
from autoscaler.kube.cluster import KubeCluster
from autoscaler.kube.pacing import UNPACED, Pace, TokenBucket
from autoscaler.model.crd import render_crds
from autoscaler.model.steps import ClusterWrite, CreateObject, WriteStatus
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import ref_of
from autoscaler.process import SystemClock
from autoscaler.report.outbox import Outbox
from autoscaler.settings import Settings
from tests.benchmarks.bench_engine import table
from tests.e2e.apiserver import ApiServer, api_server, missing_reason

GROUP = "tensor-fusion.ai/v1"
MESSAGE = "compute limit 20 → 40 TFLOPs: Saturated, all samples of the last minute were at the limit (use 19.9, step 2)"


def workload(namespace: str, number: int) -> dict[str, Any]:
    spec = {"replicas": 1, "resources": {"requests": {"tflops": "10", "vram": "4Gi"}}}
    metadata = {"name": f"load-{number}", "namespace": namespace}
    return {"apiVersion": GROUP, "kind": "TensorFusionWorkload", "metadata": metadata, "spec": spec}


def status(limit: int) -> dict[str, Any]:
    """About as long as a real one."""
    at = "2026-01-01T00:00:00Z"
    kinds = ("ConfigValid", "MetricsAvailable", "RecommendationProvided", "RequestsApplied", "LimitsApplied")
    conditions = [
        {"type": kind, "status": "True", "reason": "Applied", "message": MESSAGE, "lastTransitionTime": at}
        for kind in kinds
    ]
    figures = {"tflops": str(limit), "vram": "4Gi"}
    one = {
        "target": str(limit),
        "lowerBound": "1",
        "upperBound": "100",
        "uncappedTarget": str(limit),
        "message": MESSAGE,
    }
    return {
        "workerCount": 1,
        "readyWorkers": 1,
        "observedGeneration": 1,
        "conditions": conditions,
        "recommendation": {"requests": figures, "limits": figures},
        "autoscaling": {"tflops": one, "vram": one, "applied": "1/1", "lastEvaluationTime": at, "lastChange": MESSAGE},
    }


class Writing:
    """One cluster, its writes counted by verb and code."""

    def __init__(self, client: KubeClient) -> None:
        self.cluster = KubeCluster(client, SystemClock())
        self.counted: Counter[tuple[str, str]] = Counter()
        client.observe = lambda verb, code: self.counted.update([(verb, code)])

    async def timed(self, name: str, writes: list[tuple[str, ClusterWrite]]) -> dict[str, Any]:
        self.counted.clear()
        began, cpu = time.perf_counter(), time.process_time()
        async with Outbox().open(self.cluster) as put:
            for key, write in writes:
                await put(WorkloadKey("bench", key), [write])
        seconds = time.perf_counter() - began
        requests = sum(self.counted.values())
        failed = requests - sum(number for (_, code), number in self.counted.items() if code.startswith("2"))
        cost = {"seconds": seconds, "cpu_seconds": time.process_time() - cpu, "requests": requests, "failed": failed}
        return {f"{name}_{what}": value for what, value in cost.items()}


async def measure(server: ApiServer, namespace: str, count: int) -> list[dict[str, Any]]:
    settings = Settings()
    pace = TokenBucket(settings.kube_qps, settings.kube_burst)
    free = await connected(server, UNPACED)
    made: list[tuple[str, ClusterWrite]] = [
        (f"load-{number}", CreateObject(workload(namespace, number))) for number in range(count)
    ]
    row = {"workloads": count}
    row |= await free.timed("create", made)
    row |= await free.timed("status", await statuses(server, namespace, 40))
    await free.cluster.close()
    paced = await connected(server, pace)
    row |= await paced.timed("paced_status", await statuses(server, namespace, 80))
    await paced.cluster.close()
    return [row]


async def connected(server: ApiServer, pace: Pace) -> Writing:
    return Writing(await KubeClient.connect(server.kubeconfig, pace=pace))


async def statuses(server: ApiServer, namespace: str, limit: int) -> list[tuple[str, ClusterWrite]]:
    """One write for each workload there, with its version as a watch would know it."""
    found = server.run("get", "--raw", f"/apis/{GROUP}/namespaces/{namespace}/tensorfusionworkloads")
    items = [item | {"apiVersion": GROUP, "kind": "TensorFusionWorkload"} for item in json.loads(found.stdout)["items"]]
    return [(item["metadata"]["name"], WriteStatus(ref_of(item), status(limit))) for item in items]


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Return the rows, none where there is no server."""
    if reason := missing_reason():
        print(f"writes: not measured, {reason}", file=sys.stderr)
        return []
    namespace = f"bench-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory() as folder, api_server(Path(folder)) as server:
        for text in render_crds().values():
            server.run("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)
        server.run("wait", "--for=condition=Established", "crd", "--all", "--timeout=240s")
        server.run("create", "namespace", namespace)
        try:
            return asyncio.run(measure(server, namespace, 100 if quick else 1_000))
        finally:
            server.run("delete", "namespace", namespace, "--wait=false")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a hundred workloads")
    print(table(run(quick=parser.parse_args().quick)))


if __name__ == "__main__":
    main()
