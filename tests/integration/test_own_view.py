"""What a worker itself is told of its memory: a new VRAM limit reaches it while it runs, without a restart.

Real are the agent's process, its API, the driver's library over a stand-in of its ABI, and the memory that limiters share
with the node. The worker is a C program that asks and allocates as those libraries do for `cuMemGetInfo`,
`nvmlDeviceGetMemoryInfo` (which `nvidia-smi` shows) and `cuMemAlloc`.
"""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from autoscaler.contract import keys
from tests.agent.compiled import compiled
from tests.agent.nvml_standin import GIB, Device, NvmlStandIn, Process, State
from tests.integration.parts import Program, get_json, until

pytestmark = pytest.mark.integration
SOURCES = Path(__file__).parents[1] / "agent"
GPU, MODEL, TFLOPS = "GPU-0", "NVIDIA L4", 121.0
UID, CONTAINER, PID = "0123abcd-0000-4000-8000-000000004711", "ab" * 32, 4711


@dataclass
class Worker:
    """The worker's process; `held_bytes` is what the driver says that it has."""

    standin: NvmlStandIn
    process: subprocess.Popen[str]
    held_bytes: int = 0

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        return self.process.stdout.readline().strip()

    def info(self) -> tuple[int, int]:
        """Return what it is told: memory in all, and free."""
        total, free = self.ask("info").split()
        return int(total), int(free)

    def allocate(self, size_bytes: int) -> bool:
        granted = self.ask(f"alloc {size_bytes}") == "granted"
        if granted:
            self._hold(size_bytes)
        return granted

    def free(self, size_bytes: int) -> None:
        self.ask(f"free {size_bytes}")
        self._hold(-size_bytes)

    def _hold(self, more_bytes: int) -> None:
        self.held_bytes += more_bytes
        show(self.standin, self.held_bytes)


def show(standin: NvmlStandIn, held_bytes: int) -> None:
    device = Device(GPU, MODEL, 24 * GIB, held_bytes, 0)
    standin.write(State(devices=(device,), processes=(Process(0, PID, held_bytes),)))


@dataclass
class Node:
    folder: Path
    agent: Program

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{(self.folder / 'port').read_text().strip()}/v1/quotas"

    def measured_bytes(self) -> int:
        """Return what the agent knows of the worker's memory."""
        (worker,) = get_json(self.url)["workers"]
        return int(worker["devices"][0]["observed"].get("vram_used_bytes", 0))

    def put(self, generation: int, vram_limit_bytes: int) -> dict[str, Any]:
        """Send a quota, and return what is said of the worker."""
        device = {
            "uuid": GPU, "tflops_request": 1, "tflops_limit": TFLOPS / 2,
            "vram_request_bytes": GIB, "vram_limit_bytes": vram_limit_bytes,
        }  # fmt: skip
        named = {"pod_uid": UID, "namespace": "chat", "pod": "a", "workload": "a", "qos": "high", "container": "main"}
        quotas = [{**named, "devices": [device]}]
        body = json.dumps({"epoch": 1, "generation": generation, "node": "n1", "quotas": quotas}).encode()
        request = urllib.request.Request(self.url, body, method="PUT")
        with urllib.request.urlopen(request, timeout=30) as answer:
            (worker,) = json.load(answer)["workers"]
        return dict(worker["devices"][0])


@contextmanager
def running(folder: Path, backend: str) -> Iterator[tuple[Node, Worker]]:
    """Run an agent on a node with one worker behind a limiter."""
    place = folder / "proc" / str(PID)
    place.mkdir(parents=True)
    (place / "stat").write_text(f"{PID} (python) S " + " ".join(str(n) for n in range(4, 53)))
    (place / "cgroup").write_text(f"0::/kubepods/pod{UID}/{CONTAINER}\n")
    annotations = {keys.TFLOPS_LIMIT: "60", keys.VRAM_LIMIT: "4Gi"}
    pod = {
        "uid": UID, "namespace": "chat", "name": "a", "labels": {keys.ENABLED: "true"},
        "annotations": annotations, "containers": [{"name": "main", "id": CONTAINER}],
    }  # fmt: skip
    (folder / "pods.json").write_text(json.dumps([pod]))
    shared = {
        "tfshm": folder / "shared" / "chat" / "a" / "shm",
        "hamicore": folder / "shared" / f"{UID}_main" / "9c1d.cache",
    }[backend]
    shared.parent.mkdir(parents=True)
    if backend == "hamicore":
        subprocess.run([compiled(SOURCES / "hamicore_region.c"), "make", shared, GPU], check=True)
    standin = NvmlStandIn(folder)
    show(standin, 0)
    command = [
        "agent", "run", "--node", "n1", "--listen", "127.0.0.1:0", "--port-file", str(folder / "port"), "--tick", "0.25",
        "--state-dir", str(folder / "state"), "--pods-file", str(folder / "pods.json"),
        "--proc-root", str(folder / "proc"),
        "--vram-backends", backend, "--compute-backends", backend,
    ]  # fmt: skip
    where = {**standin.environment(), f"TF_AGENT_{backend.upper()}_ROOT": str(folder / "shared")}
    agent = Program("tf-agent", command, folder / "agent.log", where)
    try:
        agent.start()
        until("the limiter has its file", shared.exists, check=agent.check)
        view = [str(compiled(SOURCES / "memory_view.c")), backend, str(shared), "0"]
        with subprocess.Popen(view, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            yield Node(folder, agent), Worker(standin, process)
            assert process.poll() is None, "the same process saw it all"
            process.kill()
    finally:
        agent.end()


@pytest.mark.parametrize("backend", ["tfshm", "hamicore"])
def test_a_running_worker_sees_a_new_limit_of_memory_and_is_held_to_it(tmp_path: Path, backend: str) -> None:
    with running(tmp_path, backend) as (node, worker):

        def sees(total_gib: int, free_gib: int) -> None:
            wanted = total_gib * GIB, free_gib * GIB
            until(f"it sees {total_gib} GiB", lambda: worker.info() == wanted, check=node.agent.check)
            until("the agent knows", lambda: node.measured_bytes() == worker.held_bytes, check=node.agent.check)

        until("the limit of its birth is there", lambda: worker.info()[0] == 4 * GIB, check=node.agent.check)
        assert node.put(1, 6 * GIB)["observed"]["vram_limit_bytes"] == 6 * GIB
        sees(6, 6)
        assert worker.allocate(4 * GIB)
        sees(6, 2)
        assert not worker.allocate(3 * GIB)

        assert node.put(2, 12 * GIB)["observed"]["vram_limit_bytes"] == 12 * GIB
        sees(12, 8)
        assert worker.allocate(3 * GIB)
        sees(12, 5)

        # What it holds it keeps, and it gets no more; the limit follows as it gives back.
        assert node.put(3, 5 * GIB)["reason"].startswith("VRAMInUse")
        sees(7, 0)
        assert not worker.allocate(1)
        worker.free(6 * GIB)
        sees(5, 4)
        assert worker.allocate(4 * GIB)
        sees(5, 0)
        assert not worker.allocate(1)
