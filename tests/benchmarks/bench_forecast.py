"""What the forecast costs: a bin for one workload and for a fleet, and a fit: `python -m tests.benchmarks.bench_forecast`.

Seeded use with a day's rhythm. A fit is measured as the process that the controller starts, with all it imports.
"""

from __future__ import annotations

import asyncio
import resource
import time
from typing import Any

import numpy as np

from autoscaler.fit.daily import fit_apart
from autoscaler.fit.rows import Past
from autoscaler.fit.task import Task
from autoscaler.recommend.features import BIN_SECONDS, PER_DAY
from autoscaler.recommend.forecast import observe
from autoscaler.recommend.series import Samples
from autoscaler.state.models import built_in_model
from tests.autoscaler.stage import START
from tests.autoscaler.test_fit import daily_rhythm
from tests.autoscaler.test_forecast import at, fed, fleet_of

SEEN_BINS = 2 * PER_DAY


def bench_bin(workloads: int, bins: int) -> dict[str, Any]:
    """Time a 5-minute bin: taken in, scored, forecast."""
    fleet, use = fleet_of(workloads), daily_rhythm(workloads, (SEEN_BINS + bins) / PER_DAY)
    memory = fed(use[:, :SEEN_BINS], fleet)
    start = time.process_time()
    for place in range(SEEN_BINS, SEEN_BINS + bins):
        ends = np.array([START + BIN_SECONDS * (place + 1)])
        observe(memory, Samples(ends, BIN_SECONDS, use[:, place : place + 1]), at(fleet, float(ends[0])))
    spent = (time.process_time() - start) / bins
    size = sum(array.nbytes for array in memory.series.arrays.values()) / workloads
    return {
        "workloads": workloads,
        "CPU per bin, ms": round(spent * 1e3, 3),
        "per workload, µs": round(spent / workloads * 1e6, 1),
        "state, KiB each": round(size / 1024, 1),
    }


def bench_fit(series: int, days: float) -> dict[str, Any]:
    """Time a fit of one horizon, and the most memory that its process held."""
    use = daily_rhythm(series, days).astype(np.float32)
    task = Task(Past(use, use, use.max(axis=1).astype(float)), (7200.0,), built_in_model(), 0.0)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    verdict = asyncio.run(fit_apart(task, 900.0))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    losses = verdict.trials.get("7200", {}).get("losses", {})
    return {
        "series": series,
        "days": days,
        "CPU, s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "wall, s": round(time.perf_counter() - start, 1),
        "peak memory, MiB": round(after.ru_maxrss / 1024),
        "loss": " ".join(f"{name} {loss:.3f}" for name, loss in losses.items()),
    }


def run(*, quick: bool) -> dict[str, list[dict[str, Any]]]:
    """Return the tables by title."""
    sizes = ((1, 200), (100, 50)) if quick else ((1, 500), (100, 100), (1_000, 30), (10_000, 4))
    fits = ((3, 4.0),) if quick else ((3, 4.0), (20, 8.0), (1_000, 8.0))
    return {
        "forecast_per_bin": [bench_bin(*size) for size in sizes],
        "fit_of_the_forecast": [bench_fit(*size) for size in fits],
    }


if __name__ == "__main__":
    for rows in run(quick=False).values():
        for row in rows:
            print(row, flush=True)
