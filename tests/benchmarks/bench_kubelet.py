"""What following a kubelet costs a running agent: its memory and CPU with and without the sockets.

    python -m tests.benchmarks.bench_kubelet [--gpus 8] [--workers 50] [--seconds 25] [--seed 1]

An agent process each, over NVML's true ABI, its workers' quotas in force; the pods bear 4 KiB of annotations that nobody
reads. CPU is that of the last seconds, after everything was taken up. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from agent.kubelet.fake import FakeKubelet
from agent.kubelet.resources import Allocation
from tests.benchmarks.bench_agent import Fleet

SETTLED_SECONDS = 12
NOTES = {f"example.com/note-{number}": "x" * 200 for number in range(20)}


def kubelet_of(fleet: Fleet) -> FakeKubelet:
    """Return a kubelet that tells the fleet's pods, each with a device."""
    kubelet = FakeKubelet(fleet.root / "kubelet")
    pods: list[dict[str, Any]] = json.loads((fleet.root / "pods.json").read_text(encoding="utf-8"))
    for one in pods:
        names = {name: one[name] for name in ("uid", "namespace", "name", "labels")}
        statuses = [{"name": box["name"], "containerID": f"containerd://{box['id']}"} for box in one["containers"]]
        kubelet.pods[one["uid"]] = {
            "metadata": names | {"annotations": NOTES},
            "spec": {"nodeName": "node-1", "containers": [{"name": box["name"]} for box in one["containers"]]},
            "status": {"containerStatuses": statuses},
        }
    device = "GPU-00000000-0000-0000-0000-000000000000"
    kubelet.allocations = tuple(Allocation("team", one["name"], "main", (device,)) for one in pods)
    return kubelet


def status_of(pid: int, field: str) -> float:
    """Return a size from /proc/<pid>/status in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(fleet: Fleet, services: tuple[str, ...], seconds: float) -> dict[str, float]:
    """Return what an agent takes beside a kubelet with these services; without one that tells pods, a file does."""
    kubelet = kubelet_of(fleet)
    await kubelet.start(resources="resources" in services, pods="pods" in services)
    own = {
        "TF_AGENT_NODE": "node-1",
        "TF_AGENT_STATE_DIR": str(fleet.root / f"state-{len(services)}"),
        "TF_AGENT_PROC_ROOT": str(fleet.root / "proc"),
        "TF_AGENT_LISTEN": "127.0.0.1:0",
        "TF_AGENT_PORT_FILE": str(fleet.root / "port"),
        "TF_AGENT_KUBELET_DIR": str(fleet.root / "kubelet"),
    }
    if "pods" not in services:
        own["TF_AGENT_PODS_FILE"] = str(fleet.root / "pods.json")
    (fleet.root / "port").unlink(missing_ok=True)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent", "run"),
        env=os.environ | fleet.standin.environment() | own,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await asyncio.sleep(SETTLED_SECONDS / 2)
        await put(fleet)
        await asyncio.sleep(SETTLED_SECONDS / 2)
        before = cpu_seconds(process.pid)
        await asyncio.sleep(seconds)
        used = (cpu_seconds(process.pid) - before) / seconds * 100
        rss, peak = status_of(process.pid, "VmRSS"), status_of(process.pid, "VmHWM")
        return {"rss_mib": rss, "peak_mib": peak, "cpu_percent": used, "asked": float(len(kubelet.calls))}
    finally:
        process.terminate()
        await process.wait()
        await kubelet.stop()


async def put(fleet: Fleet) -> None:
    port = (fleet.root / "port").read_text(encoding="ascii").strip()
    body = msgspec.json.encode(fleet.document())
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}/v1/quotas"
        async with session.put(url, data=body, headers={"Content-Type": "application/json"}) as answer:
            assert answer.status == 200, await answer.text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("gpus", 8), ("workers", 50), ("seconds", 25), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    rows = {}
    for services in ((), ("resources",), ("resources", "pods")):
        with tempfile.TemporaryDirectory() as root:
            fleet = Fleet(Path(root), args.gpus, args.workers, args.seed)
            fleet.stir()
            rows["+".join(services) or "none"] = asyncio.run(measure(fleet, services, args.seconds))
    print(f"{args.gpus} GPUs × {args.workers} workers; sockets, and what the agent takes beside them")
    for name, row in rows.items():
        figures = f"{row['rss_mib']:6.1f} MiB   peak {row['peak_mib']:6.1f} MiB   CPU {row['cpu_percent']:5.2f} %"
        print(f"  {name:<16} {figures}   calls {row['asked']:.0f}")
    print(json.dumps({"gpus": args.gpus, "workers": args.workers, "sockets": rows}))


if __name__ == "__main__":
    main()
