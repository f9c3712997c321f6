"""All benchmarks, as markdown on standard output: `python -m tests.benchmarks [--quick]`; progress goes to stderr."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from typing import Any

from tests.benchmarks import bench_agent, bench_cluster, bench_engine, bench_forecast, bench_reading, bench_writes
from tests.benchmarks.bench_engine import alone, table


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print one table."""
    print(f"## {title}\n\n{table(rows)}\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small fleets, short histories")
    quick = parser.parse_args().quick
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, load {load:.1f} at the start\n")
    sizes = (100, 1_000) if quick else (100, 1_000, 10_000)
    print("agent", file=sys.stderr)
    show("Agent", alone(bench_agent.stages, 8, 50, 20 if quick else 120))
    print("engine", file=sys.stderr)
    for name, rows in bench_engine.run(quick=quick).items():
        show(name.replace("_", " ").capitalize(), rows)
    print("forecast", file=sys.stderr)
    for name, rows in bench_forecast.run(quick=quick).items():
        show(name.replace("_", " ").capitalize(), rows)
    print("cluster", file=sys.stderr)
    show("Cluster", bench_cluster.run(quick=quick))
    if writes := bench_writes.run(quick=quick):
        show("Writing", writes)
    print("reading", file=sys.stderr)
    show("Reading one bin", [bench_reading.bench_pass(workloads) for workloads in sizes])
    show("Bootstrap", [bench_reading.bench_bootstrap(*((100, 1.0) if quick else (1_000, 7.0)))])


if __name__ == "__main__":
    main()
