"""What the node agent costs: CPU of a tick, a rendering and a scrape, over NVML's true ABI, 8 GPUs × 50 workers.

    python -m tests.benchmarks.bench_agent [--gpus 8] [--workers 50] [--ticks 60] [--seed 1]
    python -m tests.benchmarks.bench_agent --process [--seconds 60]     # the whole agent, as a process of its own

Times are CPU milliseconds of this process (the stand-in for the driver runs in it); each tick finds new figures, of
every worker at work. A real driver takes time of its own for its calls; that is waiting, not CPU of the agent. Prints a
table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import pynvml
import structlog.testing

from agent.assemble import assemble
from agent.attribute import attribute
from agent.export.exporter import Exporter
from agent.loop import Agent
from agent.model.report import TickReport
from agent.model.samples import Attribution
from agent.settings import AgentSettings
from autoscaler.contract.quota import QuotaStatus
from tests.agent.faulty import Asked, Node, actuator_of, document
from tests.agent.nvml_standin import STATE_VARIABLE
from tests.benchmarks import agent_process
from tests.benchmarks.agent_fleet import Fleet

RENDER_EVERY_SECONDS = 5
TICK_SECONDS = 0.5
RENDER_EVERY_TICKS = round(RENDER_EVERY_SECONDS / TICK_SECONDS)


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
    """Return the agent of the real parts, and its clock; the exporter's counts ticks, so that it renders as in life."""
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
    ticks = count()
    exporter = Exporter(parts.gpus, RENDER_EVERY_SECONDS, clock=lambda: next(ticks) * TICK_SECONDS)
    return Agent("node-1", replace(parts, exporter=exporter)), time.time


def measure(fleet: Fleet, ticks: int) -> dict[str, list[float]]:
    fleet.stir()
    agent, clock = build(fleet)
    agent.tick(clock())
    answer = agent.put(fleet.document(), clock())
    assert isinstance(answer, QuotaStatus), answer
    agent.exposition(openmetrics=True)
    for _ in range(RENDER_EVERY_TICKS + 1):
        # The labels of new workers are written once; what is measured is the ticks that follow.
        agent.tick(clock())
    parts = agent._parts
    times: dict[str, list[float]] = {name: [] for name in ("tick", "sample", "attribute", "render", "scrape")}
    gc.freeze()  # As the agent does before it serves.
    for _ in range(ticks):
        fleet.stir()
        pynvml.nvmlSystemGetDriverVersion()  # The stand-in takes up its new state.
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
        def count(self, attribution, throttled, beyond):
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
    parser.add_argument("--process", action="store_true", help="measure the whole agent as a process of its own")
    parser.add_argument("--seconds", type=float, default=60.0, help="with --process: for how long")
    args = parser.parse_args()
    if args.process:
        figures = agent_process.measure(args.gpus, args.workers, args.seconds)
        print("\n".join(f"  {name:<24} {figure:10.2f}" for name, figure in figures.items()))
        print(json.dumps(figures))
        return
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
