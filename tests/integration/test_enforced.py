"""A quota's whole way on one node: HTTP in, a running worker's use out, measured by the driver's own library.

Real are the agent's process, nvidia-ml-py over a C library of NVML's ABI, the limiter's shared memory, and a worker in C
that takes tokens from it. What stands in: the device (the worker counts the time its kernels take), and /proc.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent.enforce import tfshm_layout as layout
from agent.enforce.mapped import MappedFile
from autoscaler.contract import keys
from tests.agent.compiled import compiled
from tests.agent.nvml_standin import GIB, Device, NvmlStandIn, Process, Sample, State
from tests.integration.parts import Program, get_json, until

pytestmark = pytest.mark.integration
WORKER = Path(__file__).parents[1] / "agent" / "tfshm_worker.c"
GPU, MODEL, TFLOPS = "GPU-0", "NVIDIA L4", 121.0
CONTAINER = "ab" * 32
PERIOD_SECONDS = 0.25
"""The driver makes a sample about so often."""


@dataclass
class OneWorker:
    """A worker of the node: its pod, its process, and the time its kernels kept the device busy."""

    name: str
    pid: int
    kernel_us: int
    cost: float
    process: subprocess.Popen[bytes] | None = None
    busy: mmap.mmap | None = None
    history: list[tuple[float, float]] = field(default_factory=list)

    @property
    def uid(self) -> str:
        return f"0123abcd-0000-4000-8000-{self.pid:012d}"

    def seconds(self) -> float:
        assert self.busy is not None
        return ctypes.c_uint64.from_buffer_copy(self.busy).value / 1e6

    def mean(self, seconds: float) -> float:
        """Return its share of the device over the last seconds."""
        (at, busy), since = self.history[-1], self.history[-1][0] - seconds
        before_at, before = next(one for one in self.history if one[0] >= since)
        return (busy - before) / (at - before_at)


@dataclass
class Node:
    folder: Path
    workers: tuple[OneWorker, ...]
    standin: NvmlStandIn
    agent: Program
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{(self.folder / 'port').read_text().strip()}"

    def shared(self, worker: OneWorker) -> Path:
        return self.folder / "shm" / "chat" / worker.name / "shm"

    def put(self, generation: int, **tflops: float) -> dict[str, Any]:
        quotas = [
            {
                "pod_uid": one.uid, "namespace": "chat", "pod": one.name, "workload": one.name, "qos": "high", "container": "main",
                "devices": [{"uuid": GPU, "tflops_request": 1, "tflops_limit": tflops[one.name],
                             "vram_request_bytes": GIB, "vram_limit_bytes": 4 * GIB}],
            }
            for one in self.workers
        ]  # fmt: skip
        body = json.dumps({"epoch": 1, "generation": generation, "node": "n1", "quotas": quotas}).encode()
        request = urllib.request.Request(f"{self.url}/v1/quotas", body, method="PUT")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def feed(self) -> None:
        """Play the driver: a sample per worker and period, of the time its kernels took in it."""
        samples: list[Sample] = []
        while not self.stop.wait(PERIOD_SECONDS):
            for one in self.workers:
                one.history.append((time.time(), one.seconds()))
                if len(one.history) > 1:
                    (before_at, before), (at, busy) = one.history[-2:]
                    percent = round(100 * min((busy - before) / (at - before_at), 1.0))
                    samples.append(Sample(0, one.pid, int(at * 1e6), percent))
            samples = samples[-80:]
            total = sum(sample.percent for sample in samples[-len(self.workers) :])
            device = Device(GPU, MODEL, 24 * GIB, 2 * GIB, min(total, 100))
            processes = tuple(Process(0, one.pid, GIB) for one in self.workers)
            self.standin.write(State(devices=(device,), processes=processes, samples=tuple(samples)))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    workers = (OneWorker("a", 4711, 2000, 3.0), OneWorker("b", 4712, 5000, 0.7))
    pods = []
    for one in workers:
        (tmp_path / "shm" / "chat" / one.name).mkdir(parents=True)
        place = tmp_path / "proc" / str(one.pid)
        place.mkdir(parents=True)
        (place / "stat").write_text(f"{one.pid} (python) S " + " ".join(str(n) for n in range(4, 53)))
        (place / "cgroup").write_text(f"0::/kubepods/pod{one.uid}/{CONTAINER}\n")
        annotations = {keys.TFLOPS_LIMIT: "60", keys.VRAM_LIMIT: "4Gi"}
        pods.append(
            {
                "uid": one.uid, "namespace": "chat", "name": one.name, "labels": {keys.ENABLED: "true"},
                "annotations": annotations, "containers": [{"name": "main", "id": CONTAINER}],
            }
        )  # fmt: skip
    (tmp_path / "pods.json").write_text(json.dumps(pods))
    standin = NvmlStandIn(tmp_path)
    standin.write(
        State(
            devices=(Device(GPU, MODEL, 24 * GIB, 2 * GIB, 0),),
            processes=tuple(Process(0, one.pid, GIB) for one in workers),
        )
    )
    command = [
        "agent", "run", "--node", "n1", "--listen", "127.0.0.1:0", "--port-file", str(tmp_path / "port"), "--tick", "0.5",
        "--state-dir", str(tmp_path / "state"), "--pods-file", str(tmp_path / "pods.json"),
        "--proc-root", str(tmp_path / "proc"), "--tfshm-root", str(tmp_path / "shm"),
        "--vram-backends", "tfshm", "--compute-backends", "tfshm",
    ]  # fmt: skip
    agent = Program("tf-agent", command, tmp_path / "agent.log", standin.environment())
    made = Node(tmp_path, workers, standin, agent)
    feeding = threading.Thread(target=made.feed)
    try:
        agent.start()
        until(
            "the agent makes the limiters' files",
            lambda: all(made.shared(one).exists() for one in workers),
            check=agent.check,
        )
        for one in workers:
            busy = tmp_path / f"busy-{one.name}"
            busy.write_bytes(bytes(8))
            with busy.open("r+b") as file:
                one.busy = mmap.mmap(file.fileno(), 8)
            words = ["run", str(made.shared(one)), "0", str(one.kernel_us), str(one.cost), str(busy)]
            one.process = subprocess.Popen([str(compiled(WORKER)), *words])
        feeding.start()
        yield made
    finally:
        made.stop.set()
        if feeding.ident is not None:
            feeding.join()
        for one in workers:
            if one.process is not None:
                one.process.kill()
                one.process.wait()
        agent.kill()


def test_a_running_worker_follows_its_quota_and_its_neighbour_is_left_alone(node: Node) -> None:
    one, other = node.workers
    for generation, percent in enumerate((30, 60, 30), start=1):
        answer = node.put(generation, a=TFLOPS * percent / 100, b=TFLOPS * 0.2)
        assert all(device["applied"] for worker in answer["workers"] for device in worker["devices"]), answer

        def follows(wanted: float = percent / 100) -> bool:
            return len(one.history) > 20 and abs(one.mean(2.0) - wanted) <= 0.05 and abs(other.mean(2.0) - 0.2) <= 0.05

        until(f"a uses {percent} % and b 20 %", follows, check=node.agent.check)
    with MappedFile(node.shared(one), layout.SIZE) as file:
        assert file.u64(layout.DEVICES + layout.MEM_LIMIT).value == 4 * GIB
        assert file.u64(layout.DEVICES + layout.POD_MEMORY_USED).value == GIB


def test_a_killed_agent_takes_its_limiters_up_again_and_the_quota_stands(node: Node) -> None:
    one, _ = node.workers
    node.put(1, a=TFLOPS * 0.3, b=TFLOPS * 0.2)
    until("a uses 30 %", lambda: len(one.history) > 20 and abs(one.mean(2.0) - 0.3) <= 0.05, check=node.agent.check)
    node.agent.kill()
    (node.folder / "port").unlink()
    node.agent.start()
    until(
        "it serves again",
        lambda: (node.folder / "port").exists() and get_json(f"{node.url}/v1/quotas"),
        check=node.agent.check,
    )

    state = get_json(f"{node.url}/v1/quotas")

    (device,) = next(worker for worker in state["workers"] if worker["pod"] == "a")["devices"]
    assert (state["generation"], device["applied"]) == (1, True)
    assert device["observed"]["vram_limit_bytes"] == 4 * GIB
    restarted = one.history[-1][0]
    until(
        "a uses 30 % again",
        lambda: one.history[-1][0] > restarted + 3 and abs(one.mean(2.0) - 0.3) <= 0.05,
        check=node.agent.check,
    )
