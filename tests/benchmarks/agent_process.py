"""The agent as a process of its own: what it takes of a core and of memory while it does all that it does on a node.

It runs over the stand-in for the driver with TensorFusion's limiter files for all workers. This process plays the rest
of the node: new figures from the driver, tenants who take tokens from their buckets, a scrape every five seconds over
HTTP, and a controller that reads the quotas. What the stand-in does for its calls is counted with the agent.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, RemoteDisconnected
from pathlib import Path

import msgspec
import psutil

from agent.enforce.tfshm_layout import FILE_NAME, LiveSlot, open_state, slots_of
from autoscaler.contract.quota import QUOTAS_PATH, QuotaStatus
from tests.benchmarks.agent_fleet import Fleet

STIR_SECONDS = 1.0
SAMPLE_PERIOD_US = 167_000
TAKE_SECONDS = 0.1
SCRAPE_SECONDS = 5.0
READ_SECONDS = 15.0
WARM_SECONDS = 15.0
LATENCY_SCRAPES = 300
OPENMETRICS = {"Accept": "application/openmetrics-text;version=1.0.0"}


class Tenants:
    """Workers that take tokens from their buckets as they compute, each from its own file."""

    def __init__(self, fleet: Fleet, shm: Path) -> None:
        self.fleet = fleet
        self.buckets: list[tuple[tuple[int, int], LiveSlot]] = []
        for gpu, number in fleet.names:
            file = open_state(shm / "team" / f"pod-{gpu}-{number}" / FILE_NAME)
            self.buckets += [((gpu, number), slot.live()) for slot in slots_of(file).values()]

    def take(self) -> None:
        for name, bucket in self.buckets:
            if self.fleet.loads[name].is_active:
                bucket.tokens = bucket.tokens * 0.8


@contextmanager
def repeated(action: Callable[[], object], seconds: float) -> Iterator[None]:
    """Do something again and again beside what is measured."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(seconds):
            action()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class Scraper:
    """A Prometheus: one connection that is kept; times of answers in milliseconds."""

    def __init__(self, port: int) -> None:
        self.connection = HTTPConnection("127.0.0.1", port)
        self.times: list[float] = []
        self.body = b""

    def __call__(self) -> None:
        started = time.perf_counter()
        try:
            self._ask()
        except (RemoteDisconnected, ConnectionError):
            # The agent ends connections after a minute; whoever scrapes opens another.
            self.connection.close()
            self._ask()
        self.times.append((time.perf_counter() - started) * 1e3)

    def _ask(self) -> None:
        self.connection.request("GET", "/metrics", headers=OPENMETRICS)
        self.body = self.connection.getresponse().read()


@contextmanager
def running(fleet: Fleet, shm: Path) -> Iterator[tuple[psutil.Process, int]]:
    """Run `tf-agent run` on the fleet; yield its process and port."""
    root, port_file = fleet.root, fleet.root / "port"
    for gpu, number in fleet.names:
        (shm / "team" / f"pod-{gpu}-{number}").mkdir(parents=True)
    options = {
        "--node": "node-1",
        "--listen": "127.0.0.1:0",
        "--port-file": port_file,
        "--state-dir": root / "state",
        "--pods-file": root / "pods.json",
        "--proc-root": root / "proc",
        "--tfshm-root": shm,
        "--compute-backends": "tfshm",
        "--vram-backends": "tfshm",
    }
    command = [sys.executable, "-m", "agent", "run", *(str(part) for option in options.items() for part in option)]
    # MALLOC_ARENA_MAX as in the agent's image.
    variables = os.environ | fleet.standin.environment() | {"TF_AGENT_ASK_KUBELET": "false", "MALLOC_ARENA_MAX": "1"}
    with (root / "log").open("wb") as log, subprocess.Popen(command, env=variables, stdout=log, stderr=log) as agent:
        try:
            until = time.monotonic() + 60
            while not port_file.exists():
                assert agent.poll() is None, (root / "log").read_text()
                assert time.monotonic() < until, "the agent did not bind"
                time.sleep(0.05)
            yield psutil.Process(agent.pid), int(port_file.read_text())
        finally:
            agent.terminate()


def put(port: int, fleet: Fleet) -> QuotaStatus:
    body = msgspec.json.encode(fleet.document())
    request = urllib.request.Request(f"http://127.0.0.1:{port}{QUOTAS_PATH}", body, method="PUT")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return msgspec.json.decode(answer.read(), type=QuotaStatus)


def cpu_seconds(process: psutil.Process) -> tuple[float, float]:
    """Return the CPU time of a process, and of all that it started and that ended."""
    times = process.cpu_times()
    return times.user + times.system, times.children_user + times.children_system


def measure(gpus: int, workers: int, seconds: float) -> dict[str, float]:
    """Return what the agent took over some time, after it warmed up."""
    with tempfile.TemporaryDirectory() as folder:
        fleet, shm = Fleet(Path(folder), gpus, workers, seed=1), Path(folder) / "shm"
        fleet.stir(SAMPLE_PERIOD_US)
        with running(fleet, shm) as (process, port):
            status = put(port, fleet)
            applied = sum(device.applied for worker in status.workers for device in worker.devices)
            scrape, tenants, spawned = Scraper(port), Tenants(fleet, shm), set[int]()
            read = Scraper(port)
            with (
                repeated(lambda: fleet.stir(SAMPLE_PERIOD_US), STIR_SECONDS),
                repeated(tenants.take, TAKE_SECONDS),
                repeated(scrape, SCRAPE_SECONDS),
                repeated(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}{QUOTAS_PATH}").read(), READ_SECONDS),
            ):
                time.sleep(WARM_SECONDS)
                before, started, until = cpu_seconds(process), time.monotonic(), time.monotonic() + seconds
                while time.monotonic() < until:
                    spawned |= {child.pid for child in process.children()}
                    time.sleep(0.2)
                after, spent = cpu_seconds(process), time.monotonic() - started
                memory = process.memory_info().rss / 2**20
            for _ in range(LATENCY_SCRAPES):
                read()
                time.sleep(0.02)
            times = sorted(read.times)
            return {
                "workers": len(fleet.names),
                "applied": applied,
                "lines": scrape.body.count(b"\n"),
                "seconds": spent,
                "core_percent": 100 * (after[0] - before[0]) / spent,
                "rss_mib": memory,
                "scrape_p50_ms": times[len(times) // 2],
                "scrape_p99_ms": times[int(len(times) * 0.99)],
                "processes_spawned": len(spawned),
                "cpu_of_spawned_seconds": after[1] - before[1],
                "overruns": overruns(scrape.body),
            }


def overruns(body: bytes) -> float:
    (line,) = (one for one in body.decode().splitlines() if one.startswith("tensor_fusion_agent_tick_overrun_total{"))
    return float(line.rsplit(" ", 1)[1])
