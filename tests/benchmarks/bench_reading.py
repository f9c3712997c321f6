"""How long reading history takes: `python -m tests.benchmarks.bench_reading [--quick] [--days DAYS] [--json FILE]`.

Bootstrap: seven days of 1,000 workers at 60 s from a real Prometheus, against the time that Prometheus needs to serve
the same queries when their bodies are thrown away. Pass: parsing, binning and joining of one new bin, from bodies made
here, at three sizes of fleet.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from autoscaler.contract import metrics
from autoscaler.model.usage import Window
from autoscaler.read import readings
from autoscaler.read.answer import KnownLabels, samples_in
from autoscaler.read.bins import gap_seconds, stacked
from autoscaler.read.catchup import Catchup, Reach
from autoscaler.read.prometheus import PrometheusHistory, PrometheusSettings
from autoscaler.read.readings import READINGS, Reading, reduced
from autoscaler.read.series import usage_of
from tests.integration.prometheus_server import PrometheusServer, backfill

DAY_SECONDS = 86_400
END = 1_700_006_400
STEP = 60.0
SEED = 20_260_101
MEASURED = (readings.COMPUTE, readings.VRAM_PEAK, readings.TFLOPS_CEILING, readings.VRAM_CEILING)


def label_sets(workers: int) -> list[dict[str, str]]:
    """Ten workers a workload, eight a GPU."""
    return [
        dict(
            zip(
                metrics.WORKER_LABELS,
                (
                    "team-a",
                    f"workload-{i // 10}",
                    f"workload-{i // 10}-{i % 10:05x}",
                    "worker",
                    f"node-{i // 64}",
                    gpu(i),
                ),
                strict=True,
            )
        )
        for i in range(workers)
    ]


def gpu(worker: int) -> str:
    return f"GPU-{worker // 8:08x}-0000-4000-8000-000000000000"


def values_of(reading: Reading, count: int, step: float, generator: np.random.Generator) -> np.ndarray:
    """Full-width figures, as agents expose them: the hard case for a parser."""
    if reading.reduction in {readings.Reduction.SHARE, readings.Reduction.EVENTS}:
        return np.cumsum(generator.random(count) * step * 0.6)
    ceiling = 40e9 if reading.highest == readings.HIGHEST_BYTES else 150.0
    return ceiling * (generator.random(count) if reading is readings.VRAM_PEAK else np.ones(count))


def write_openmetrics(path: Path, reading: Reading, workers: int, days: float) -> None:
    generator = np.random.default_rng(SEED)
    times = [str(t) for t in range(END - int(days * DAY_SECONDS) - 300, END + 1, int(STEP))]
    with path.open("w") as file:
        for labels in label_sets(workers):
            told = ",".join(f'{name}="{value}"' for name, value in labels.items())
            values = values_of(reading, len(times), STEP, generator).tolist()
            file.write(
                "".join(f"{reading.name}{{{told}}} {value!r} {t}\n" for value, t in zip(values, times, strict=True))
            )
        file.write("# EOF\n")


def write_devices(path: Path, workers: int) -> None:
    lines = [
        f'{reading.name}{{node="node-{i // 64}",gpu_uuid="{gpu(i)}"}} {value} {END - age}\n'
        for reading, value in ((readings.TFLOPS_CAPACITY, 989), (readings.VRAM_CAPACITY, 80e9))
        for i in range(0, workers, 8)
        for age in range(7 * DAY_SECONDS, -1, -3600)
    ]
    path.write_text("".join(lines) + "# EOF\n")


def history_of(url: str) -> PrometheusHistory:
    return PrometheusHistory(PrometheusSettings(url, scrape_interval_seconds=STEP, timeout_seconds=300))


async def serve(url: str, window: Window) -> float:
    """Seconds in which Prometheus serves the bootstrap's queries, asked as the bootstrap asks them."""
    history = history_of(url)
    session = history._connected()
    turns = asyncio.Semaphore(history._settings.concurrent_queries)

    async def discard(query) -> None:
        async with turns, session.post(f"{url}/api/v1/{query.path}", data=query.form) as response:
            async for _ in response.content.iter_any():
                pass
            assert response.status == 200

    began = time.perf_counter()
    for part in history.parts(window):
        await asyncio.gather(*(discard(history._query(reading, part)) for reading in READINGS))
    await session.close()
    return time.perf_counter() - began


async def bootstrap(url: str, window: Window) -> dict[str, float]:
    base = psutil.Process().memory_info().rss
    history = history_of(url)
    began, cpu = time.perf_counter(), time.process_time()
    known = 0
    async for usage in Catchup(history, Reach(STEP, 0.0, window.end - window.start)).read(window.end, None):
        known += int((~np.isnan(usage.peak)).sum())
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    peak = peak_bytes()
    newest = Window(window.end - STEP, window.end, STEP)
    began = time.perf_counter()
    await history.read(newest)
    pass_seconds = time.perf_counter() - began
    await history.close()
    return {
        "bootstrap_seconds": seconds,
        "bootstrap_cpu_seconds": cpu_seconds,
        "memory_above_base_mb": (peak - base) / 1e6,
        "known_figures": known,
        "one_bin_seconds": pass_seconds,
    }


def peak_bytes() -> int:
    """Highest resident memory of this program; getrusage would begin with that of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def bootstrap_alone(url: str, window: Window) -> dict[str, float]:
    """Run in a fresh process, whose peak of memory is the bootstrap's."""
    return asyncio.run(bootstrap(url, window))


def bench_bootstrap(workers: int, days: float) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="bench-reading-"))
    server = PrometheusServer(folder)
    window = Window(END - days * DAY_SECONDS, END, STEP)
    try:
        for reading in MEASURED:
            note(f"writing and loading {workers} workers x {days:g} d of {reading.name}")
            write_openmetrics(folder / "history.om", reading, workers, days)
            backfill(folder, folder / "history.om")
        write_devices(folder / "history.om", workers)
        backfill(folder, folder / "history.om")
        (folder / "history.om").unlink()
        server.start()
        note("reading")
        asyncio.run(serve(server.url, window))  # warms the page cache for both
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            served = [asyncio.run(serve(server.url, window))]
            result = pool.apply(bootstrap_alone, (server.url, window))
            served.append(asyncio.run(serve(server.url, window)))
    finally:
        server.stop()
        shutil.rmtree(folder)
    serve_seconds = sum(served) / len(served)
    ratio = result["bootstrap_seconds"] / serve_seconds
    return {
        "workers": workers,
        "days": days,
        "metrics": len(MEASURED),
        "serve_seconds": serve_seconds,
        "ratio": ratio,
        **result,
    }


def body_of(
    reading: Reading, workers: Sequence[dict[str, str]], scrape: float, generator: np.random.Generator
) -> bytes:
    around = gap_seconds(scrape) if reading.reduction.needs_neighbours else 0.0
    times = np.arange(END - STEP - around + 0.5, END, scrape)
    series = []
    for own in workers:
        values = values_of(reading, len(times), scrape, generator)
        pairs = ",".join(f'[{t:.3f},"{v!r}"]' for t, v in zip(times.tolist(), values.tolist(), strict=True))
        labels = {"__name__": reading.name, "instance": "10.0.0.1:9400", "job": "tf-agent", **own}
        told = json.dumps(labels, sort_keys=True, separators=(",", ":"))  # as Prometheus writes it
        series.append(f'{{"metric":{told},"values":[{pairs}]}}')
    result = ",".join(series)
    return f'{{"status":"success","data":{{"resultType":"matrix","result":[{result}]}}}}'.encode()


def bench_pass(workloads: int, scrape: float = 15.0) -> dict[str, Any]:
    """Every metric of the table at full width, throttling and OOM counters included."""
    generator = np.random.default_rng(SEED)
    workers = label_sets(10 * workloads)
    devices = [{"node": w["node"], "gpu_uuid": w["gpu_uuid"]} for w in workers[::8]]
    window, gap = Window(END - STEP, END, STEP), gap_seconds(scrape)
    binned, parse, bins, size, known = {}, 0.0, 0.0, 0, KnownLabels()
    for reading in READINGS:
        is_device = reading.reduction is readings.Reduction.DEVICE
        body = body_of(reading, devices if is_device else workers, scrape, generator)
        size += len(body)
        began = time.process_time()
        samples = list(samples_in(body, known))
        parsed = time.process_time()
        binned[reading] = stacked([reduced(reading, some, window, gap) for some in samples])
        parse, bins = parse + parsed - began, bins + time.process_time() - parsed
        del body, samples
    began = time.process_time()
    usage = usage_of(window, binned)
    join = time.process_time() - began
    assert len(usage.keys) == workloads
    return {
        "workloads": workloads,
        "body_mb": size / 1e6,
        "parse_cpu_seconds": parse,
        "bins_cpu_seconds": bins,
        "join_cpu_seconds": join,
        "cpu_seconds": parse + bins + join,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    names = list(rows[0])
    cells = [
        names,
        *([f"{row[name]:.3g}" if isinstance(row[name], float) else str(row[name]) for name in names] for row in rows),
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(names))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100 workers x 1 d, and no fleet above 1,000 workloads")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--days", type=float, default=7.0, help="days of history to bootstrap from")
    arguments = parser.parse_args()
    passes = [bench_pass(workloads) for workloads in ((100, 1000) if arguments.quick else (100, 1000, 10_000))]
    results = {
        "pass": passes,
        "bootstrap": [bench_bootstrap(100, 1.0) if arguments.quick else bench_bootstrap(1000, arguments.days)],
    }
    for name, rows in results.items():
        print(f"\n{name}\n{table(rows)}")
    print(f"\n{json.dumps(results)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
