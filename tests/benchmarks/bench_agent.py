"""What the node agent costs: CPU of a tick, a rendering and a scrape, over NVML's true ABI, 8 GPUs × 50 workers.

    python -m tests.benchmarks.bench_agent [--gpus 8] [--workers 50] [--ticks 60] [--seed 1]

Times are CPU milliseconds of this process (the stand-in for the driver runs in it). A real driver takes time of its own
for its calls; that is waiting, not CPU of the agent. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog.testing

from agent.assemble import assemble
from agent.attribute import attribute
from agent.export.exporter import Exporter
from agent.loop import Agent
from agent.model.report import TickReport
from agent.model.samples import Attribution
from agent.settings import AgentSettings
from autoscaler.contract.keys import QoS
from autoscaler.contract.quota import DeviceQuota, QuotaDocument, QuotaStatus, WorkerQuota
from tests.agent.faulty import Asked, Node, actuator_of, document
from tests.agent.nvml_standin import STATE_VARIABLE, Device, NvmlStandIn, Process, State

GIB = 1024**3
RENDER_EVERY_SECONDS = 5


class Fleet:
    """A node's devices, processes and pods in a directory, drawn from a seed."""

    def __init__(self, root: Path, gpus: int, workers: int, seed: int) -> None:
        self.root, self.gpus, self.workers = root, gpus, workers
        self.random = random.Random(seed)
        self.standin = NvmlStandIn(root)
        self.names = [(gpu, number) for gpu in range(gpus) for number in range(workers)]
        for gpu, number in self.names:
            self._run(gpu, number)
        (root / "pods.json").write_text(json.dumps([self._pod(*name) for name in self.names]), encoding="utf-8")

    def stir(self) -> None:
        """Give every process new use; about a third is idle."""
        share = 180 // self.workers
        processes = tuple(
            Process(
                gpu,
                self.pid(gpu, number),
                self.random.randrange(GIB),
                max(0, self.random.randint(-share // 2, share)),
                period_us=500,
            )
            for gpu, number in self.names
        )
        devices = tuple(
            Device(f"GPU-{gpu}", "NVIDIA H100 80GB HBM3", 80 * GIB, 60 * GIB, 95) for gpu in range(self.gpus)
        )
        self.standin.write(State(devices, processes))

    def document(self) -> QuotaDocument:
        quotas = (
            WorkerQuota(
                self.uid(gpu, number),
                "team",
                f"pod-{gpu}-{number}",
                f"work-{number}",
                QoS.MEDIUM,
                (DeviceQuota(f"GPU-{gpu}", 10.0, 100.0, GIB, 2 * GIB),),
                "main",
            )
            for gpu, number in self.names
        )
        return QuotaDocument(1, 1, "node-1", tuple(quotas))

    def pid(self, gpu: int, number: int) -> int:
        return 1000 + gpu * self.workers + number

    def uid(self, gpu: int, number: int) -> str:
        return f"00000000-0000-0000-{gpu:04x}-{number:012x}"

    def _container(self, gpu: int, number: int) -> str:
        return f"{gpu:032x}{number:032x}"

    def _pod(self, gpu: int, number: int) -> dict[str, object]:
        return {
            "uid": self.uid(gpu, number),
            "namespace": "team",
            "name": f"pod-{gpu}-{number}",
            "labels": {"tensor-fusion.ai/workload": f"work-{number}"},
            "containers": [{"name": "main", "id": self._container(gpu, number)}],
        }

    def _run(self, gpu: int, number: int) -> None:
        directory = self.root / "proc" / str(self.pid(gpu, number))
        directory.mkdir(parents=True)
        (directory / "stat").write_text(f"1 (python) S {'0 ' * 18}100 {'0 ' * 30}\n", encoding="utf-8")
        path = f"0::/kubepods/burstable/pod{self.uid(gpu, number)}/{self._container(gpu, number)}\n"
        (directory / "cgroup").write_text(path, encoding="utf-8")


def cpu_ms(action: Callable[[], object]) -> float:
    started = time.process_time()
    action()
    return (time.process_time() - started) * 1e3


def wall_ms(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return (time.perf_counter() - started) * 1e3


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what is logged: a line per changed quota is the audit's, and a terminal's cost is not the agent's."""
    with structlog.testing.capture_logs():
        yield


def build(fleet: Fleet) -> tuple[Agent, Callable[[], float]]:
    """Return the agent of the real parts, and its clock: one second a tick, so that rendering falls due as in life."""
    os.environ[STATE_VARIABLE] = str(fleet.standin.state_file)
    # Loaded under its SONAME first, it is what nvidia-ml-py finds.
    ctypes.CDLL(str(fleet.standin.shared_object), ctypes.RTLD_GLOBAL)
    settings = AgentSettings(
        node="node-1",
        state_dir=fleet.root / "state",
        pods_file=fleet.root / "pods.json",
        proc_root=fleet.root / "proc",
        backend="simulated",
        render_seconds=RENDER_EVERY_SECONDS,
    )
    parts = assemble(settings).agent._parts
    ticks = iter(range(10**9))
    agent = Agent(
        "node-1", replace(parts, exporter=Exporter(parts.gpus, RENDER_EVERY_SECONDS, clock=lambda: float(next(ticks))))
    )
    return agent, time.time


def measure(fleet: Fleet, ticks: int) -> dict[str, list[float]]:
    fleet.stir()
    agent, clock = build(fleet)
    agent.tick(clock())
    answer = agent.put(fleet.document(), clock())
    assert isinstance(answer, QuotaStatus), answer
    agent.exposition(openmetrics=True)
    for _ in range(RENDER_EVERY_SECONDS + 1):
        # The labels of new workers are written once; what is measured is the ticks that follow.
        agent.tick(clock())
    parts = agent._parts
    times: dict[str, list[float]] = {name: [] for name in ("tick", "sample", "attribute", "render", "scrape")}
    for tick in range(ticks):
        if tick % 10 == 0:
            fleet.stir()
        time.sleep(0.002)  # Lets the driver's sample period end.
        times["tick"].append(cpu_ms(lambda: agent.tick(clock())))
        time.sleep(0.002)
        times["sample"].append(cpu_ms(lambda: parts.source.sample(clock())))
        times["attribute"].append(cpu_ms(partial(attribute_again, agent)))
    assert len(attribute_again(agent).uses) == fleet.gpus * fleet.workers
    for _ in range(10):
        exporter, report = Exporter(parts.gpus), agent_report(agent)
        times["render"].append(cpu_ms(partial(render, exporter, report)))
        times["scrape"].append(cpu_ms(partial(exporter.body, openmetrics=True)))
    times["request"] = [wall_ms(partial(agent.exposition, openmetrics=True)) for _ in range(200)]
    times["series"] = [float(exporter.body(openmetrics=True).count(b"\n"))]
    return times


def attribute_again(agent: Agent) -> Attribution:
    scene = agent._scene
    assert scene is not None
    return attribute(scene.sample, agent._parts.directory, scene.attribution)


def render(exporter: Exporter, report: TickReport) -> None:
    """Render every family anew; a running agent keeps the text of those that did not change."""
    exporter.update(report)
    exporter.body(openmetrics=True)


def agent_report(agent: Agent) -> TickReport:
    """Return the report of the agent's last tick, by standing where its exporter stands."""

    class Catch:
        def count(self, attribution, throttled):
            return True

        def render(self, report):
            self.report = report

    catch = Catch()
    twin = Agent("node-1", replace(agent._parts, exporter=catch))
    twin.tick(time.time())
    return catch.report


def enforcing(workers: int) -> dict[str, float]:
    """Return what real limiter files cost: a document for all workers (ms), ticks, the heartbeat (CPU ms a second)."""
    names = tuple(f"w{number}" for number in range(workers))
    with tempfile.TemporaryDirectory() as root, quiet():
        node = Node(Path(root), names)
        agent = node.start()
        node.tick(agent)
        applies = []
        for generation in range(1, 6):
            asked = [Asked(name, 0.1, 0.1 + generation / 100, 10.0 + generation) for name in names]
            wanted = document(generation, *asked)
            applies.append((wall_ms(partial(agent.put, wanted, node.at)), cpu_ms(partial(node.tick, agent))))
        beating = heartbeat_ms(agent, seconds=4.0)
        node.kill(agent)
        rests = [cpu_ms(partial(enforce_again, agent, node.at + tick)) for tick in range(1, 31)]
        agent.close()
    # The first one takes all files up, the later ones change limits.
    puts = [put for put, _ in applies]
    return {
        "first_apply_ms": puts[0],
        "apply_ms": statistics.median(puts[1:]),
        "tfshm_tick_ms": statistics.median(tick for _, tick in applies),
        "enforce_at_rest_ms": statistics.median(rests),
        "heartbeat_ms_per_second": beating / 4.0,
    }


def heartbeat_ms(agent: Agent, seconds: float) -> float:
    """Return the CPU time of the thread that beats, while nothing else is done: woken from sleep, its caches cold."""
    heart = actuator_of(agent)._keeper
    assert heart is not None
    assert heart.ident is not None
    clock = time.pthread_getcpuclockid(heart.ident)
    before = time.clock_gettime(clock)
    time.sleep(seconds)
    return (time.clock_gettime(clock) - before) * 1e3


def enforce_again(agent: Agent, now: float) -> None:
    """Do what enforcing does in a tick in which nothing changed."""
    scene, layout, enforcer = agent._scene, agent._layout, agent._parts.enforcer
    assert scene is not None
    assert layout is not None
    totals = {device.uuid: device.vram_total_bytes for device in scene.sample.devices}
    enforcer.backend.turn(now)
    enforcer.observed(scene.attribution, layout.places)
    enforcer.enforce(scene.shares, totals, layout.present)
    actuator_of(agent).throttled()


def stages(gpus: int, workers: int, ticks: int) -> list[dict[str, float]]:
    """Return what each stage costs on average, in CPU milliseconds, as one row."""
    with tempfile.TemporaryDirectory() as root, quiet():
        times = measure(Fleet(Path(root), gpus, workers, seed=1), ticks)
    lines = times.pop("series")[0]
    means = {f"{name}_ms": statistics.fmean(spent) for name, spent in times.items()} | enforcing(gpus * workers)
    return [{"gpus": gpus, "workers": gpus * workers, "lines": lines, **means}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("gpus", 8), ("workers", 50), ("ticks", 60), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root, quiet():
        times = measure(Fleet(Path(root), args.gpus, args.workers, args.seed), args.ticks)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    processes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    enforced = {name: round(spent, 2) for name, spent in enforcing(args.gpus * args.workers).items()}
    lines = times.pop("series")[0]
    result = {
        name: {
            "mean": round(statistics.fmean(t), 3),
            "p95": round(sorted(t)[int(len(t) * 0.95)], 3),
            "p99": round(sorted(t)[int(len(t) * 0.99)], 3),
        }
        for name, t in times.items()
    }
    print(
        f"{args.gpus} GPUs × {args.workers} workers, {lines:.0f} lines; CPU ms (a tick renders every {RENDER_EVERY_SECONDS} s)"
    )
    for name, row in result.items():
        print(f"  {name:<10} mean {row['mean']:8.3f}   p95 {row['p95']:8.3f}   p99 {row['p99']:8.3f}")
    for name, spent in enforced.items():
        print(f"  {name:<24} {spent:8.2f}")
    print(
        f"  peak memory {peak_mib:.1f} MiB; CPU of processes it started {processes:.3f} s (the stand-in's compiler, if any)"
    )
    print(
        json.dumps(
            {
                "gpus": args.gpus,
                "workers": args.workers,
                "seed": args.seed,
                "lines": lines,
                "rss_mib": round(peak_mib, 1),
                "cpu_ms": result,
                "enforcing": enforced,
            }
        )
    )


if __name__ == "__main__":
    main()
