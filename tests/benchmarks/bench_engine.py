"""What a pass of the controller's core costs: `python -m tests.benchmarks.bench_engine [--quick] [-o FILE]`.

Seeded fleets of 100, 1,000 and 10,000 workloads with 1 and 10 workers each, of which 3 % change their demand a minute;
cluster and agents are in memory, and what the agents cost themselves is not counted. Each size runs in a process of its
own, whose memory is its own. `bootstrap` is the learning of seven days at 60 s, which reading is measured without.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil

from autoscaler.apply.send import send
from autoscaler.controller import Controller, World
from autoscaler.guard import guard
from autoscaler.model.fleet import to_fleet
from autoscaler.recommend import learn, new_memory, recommend, watch
from autoscaler.report.metrics import ControllerMetrics
from autoscaler.report.writer import report
from autoscaler.settings import Settings
from tests.benchmarks.engine_world import EngineWorld

_T = TypeVar("_T")
SEED = 20_260_101
HISTORY_BINS, CHUNK_BINS = 240, 30
SIZES = ((100, 1), (100, 10), (1_000, 1), (1_000, 10), (10_000, 1), (10_000, 10))
STEPS = ("fleet", "learn", "recommend", "guard", "decide", "send")
"""The pass that has a goal; `report` is measured beside it."""


class Stopwatch:
    """CPU and wall milliseconds by step, one entry a pass."""

    def __init__(self) -> None:
        self.cpu_ms: dict[str, list[float]] = {}
        self.wall_ms: dict[str, list[float]] = {}

    @contextmanager
    def step(self, name: str, not_counted: Any = None) -> Iterator[None]:
        aside = not_counted.cpu_seconds if not_counted is not None else 0.0
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        aside = not_counted.cpu_seconds - aside if not_counted is not None else 0.0
        self.cpu_ms.setdefault(name, []).append((time.process_time() - cpu - aside) * 1e3)
        self.wall_ms.setdefault(name, []).append((time.perf_counter() - wall - aside) * 1e3)


class Engine:
    """The controller's own stages on a world in memory, without reading."""

    def __init__(self, world: EngineWorld) -> None:
        self.world = world
        metrics = ControllerMetrics()
        changes = max(100, len(world.workloads) // 100)
        self.controller = Controller(
            World(world, None, world, world.agents),  # type: ignore[arg-type]  # history is handed in
            Settings(scrape_interval_seconds=60, settle_seconds=0, changes_per_pass=changes),
            metrics,
        )
        self.watch = Stopwatch()
        self.moved: list[int] = []

    def begin(self) -> None:
        """Learn four hours at once, so that there is evidence."""
        nodes = asyncio.run(self.world.agents.read(self.world.nodes))
        fleet = self.controller._lay_out(self.world.snapshot(nodes))
        for _ in range(HISTORY_BINS // CHUNK_BINS):
            self.world.at += CHUNK_BINS * 60.0
            learn(self.controller.learnt, self.world.usage(CHUNK_BINS), fleet)

    async def run_pass(self, *, reported: bool = False) -> None:
        world, controller, watched = self.world, self.controller, self.watch
        world.stir()
        usage, nodes = world.usage(), await world.agents.read(world.nodes)
        snapshot = world.snapshot(nodes)
        controller._meet(snapshot)
        with watched.step("fleet"):
            fleet = controller._lay_out(snapshot)
        with watched.step("learn"):
            learn(controller.learnt, usage, fleet)
            watch(controller.learnt, usage, fleet)
        with watched.step("recommend"):
            wanted = recommend(fleet, controller.learnt)
        with watched.step("guard"):
            allowed = guard(fleet, wanted, controller.guarded, controller._limits(""))
        with watched.step("decide"):
            batch = controller._batch(snapshot, allowed)
        with watched.step("send", world.agents):
            outcome = await send(batch, world, world.agents)
            controller._note(allowed, batch, outcome)
        passed = controller._passed(snapshot, allowed, outcome, "")
        if reported:
            with watched.step("report"):
                await report(passed, world, controller.metrics)
        controller._before = passed.alone()
        self.moved.append(int(allowed.changed.sum()))
        assert not outcome.errors, outcome.errors
        assert not outcome.node_errors, outcome.node_errors


def bench_size(workloads: int, workers: int, passes: int) -> dict[str, Any]:
    """Return the median of each step over the passes after the first two, which reach every node.

    Writing reports comes last and once, after all objects were reported on, and counts neither in time nor in memory.
    """
    base = psutil.Process().memory_info().rss
    engine = Engine(EngineWorld(workloads, workers, SEED))
    engine.begin()
    with_world = psutil.Process().memory_info().rss
    for _ in range(2):
        asyncio.run(engine.run_pass())
    first = {name: values[0] for name, values in engine.watch.cpu_ms.items()}
    engine.watch, engine.moved = Stopwatch(), []
    gc.collect()
    for _ in range(passes):
        asyncio.run(engine.run_pass())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for _ in range(2):
        asyncio.run(engine.run_pass(reported=True))
    cpu = {name: statistics.median(values[:passes]) for name, values in engine.watch.cpu_ms.items()}
    totals = [sum(times) for times in zip(*(engine.watch.cpu_ms[name][:passes] for name in STEPS), strict=True)]
    walls = [sum(times) for times in zip(*(engine.watch.wall_ms[name][:passes] for name in STEPS), strict=True)]
    return {
        "workloads": workloads,
        "workers": workloads * workers,
        "moved": statistics.median(engine.moved[:passes]),
        **{f"{name}_ms": cpu[name] for name in STEPS},
        "pass_cpu_ms": statistics.median(totals),
        "pass_worst_cpu_ms": max(totals),
        "pass_wall_ms": statistics.median(walls),
        "first_pass_cpu_ms": sum(first[name] for name in STEPS),
        "report_ms": engine.watch.cpu_ms["report"][-1],
        "world_mb": (with_world - base) / 1e6,
        "peak_mb": (peak - base) / 1e6,
    }


def bench_bootstrap(workloads: int, days: float) -> dict[str, Any]:
    """Return what learning costs when a day is handed over at a time, as the bootstrap reads it."""
    world = EngineWorld(workloads, 1, SEED)
    fleet = to_fleet(world.snapshot({}))
    memory = new_memory()
    memory.align(fleet.keys, fleet.uids)
    base = psutil.Process().memory_info().rss
    usages = world.usage(1440)
    cpu = 0.0
    for day in range(int(days)):
        world.at += 86_400.0
        usage = world.usage(1440) if day else usages
        began = time.process_time()
        learn(memory, usage, fleet)
        cpu += time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"workloads": workloads, "days": days, "learn_cpu_seconds": cpu, "peak_mb": (peak - base) / 1e6}


def alone(function: Callable[..., _T], *arguments: Any) -> _T:
    """Run in a fresh process, whose peak of memory is the case's own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def with_ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the cost per workload against the next smaller fleet of as many workers each; 1 is linear."""
    told = []
    for row in rows:
        smaller = [
            one for one in rows if (one["workloads"] * 10, one["workers"] * 10) == (row["workloads"], row["workers"])
        ]
        ratio = row["pass_cpu_ms"] / smaller[0]["pass_cpu_ms"] / 10 if smaller else None
        told.append({**row, "growth": ratio})
    return told


def run(*, quick: bool) -> dict[str, list[dict[str, Any]]]:
    """Return all figures."""
    sizes = [size for size in SIZES if not quick or size[0] * size[1] <= 10_000]
    passes = [alone(bench_size, *size, 5 if quick else 12) for size in sizes]
    learning = [alone(bench_bootstrap, *((100, 1.0) if quick else (1_000, 7.0)))]
    return {"engine": with_ratios(passes), "bootstrap_learning": learning}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a markdown table; what is not known is a dash."""
    names = list(rows[0])
    lines = [names, ["---:"] * len(names), *([_cell(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 100 else f"{value:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="no fleet above 10,000 workers, few passes, one day")
    parser.add_argument("-o", "--output", type=Path, help="write the figures here as JSON, too")
    arguments = parser.parse_args()
    results = run(quick=arguments.quick)
    for name, rows in results.items():
        print(f"\n{name}\n\n{table(rows)}")
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
