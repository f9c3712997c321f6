"""What was asked for on the command line to a backtest: options checked, inputs read, everything replayed."""

from __future__ import annotations

import asyncio
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from autoscaler.contract.keys import QoS
from autoscaler.errors import ConfigError, Problem
from autoscaler.gateways.folder import FolderCluster
from autoscaler.model.defaults import DAY, HOUR
from autoscaler.model.profile import parse_profile
from autoscaler.model.quantity import parse_duration
from autoscaler.model.usage import Window, WorkloadKey
from autoscaler.model.workload import Workload
from autoscaler.ports import Clock
from autoscaler.read.discovery import discover
from autoscaler.read.inventory import SERIES, inventory_of
from autoscaler.read.manifests import load_documents
from autoscaler.read.prometheus import history_of
from autoscaler.replay import demand
from autoscaler.replay.backtest import Backtest, backtest, names_of, span_of
from autoscaler.replay.contend import CURRENT, DEFAULTS, STATIC, TODAY, Setting, Tried, by_qos, cases, matched
from autoscaler.replay.demand import Demands
from autoscaler.replay.recorded import read_recorded
from autoscaler.replay.trace import read_trace
from autoscaler.settings import Settings

MOST_HISTORY_SECONDS: Final = 366 * DAY
LEAST_HISTORY_SECONDS: Final = HOUR
LEAST_FACTOR, MOST_FACTOR = 0.01, 100.0
RESERVED_NAMES: Final = (STATIC, TODAY, CURRENT, DEFAULTS)


@dataclass(frozen=True, slots=True)
class BacktestOptions:
    """What was asked for on the command line; durations as text, as they were written."""

    trace: Path | None = None
    prometheus: Settings | None = None
    history: str = "7d"
    namespace: str = ""
    cluster_dir: Path | None = None
    profiles: Sequence[Path] = ()
    qos: Sequence[QoS] = ()
    start_from: float = 1.5
    warm_up: str = ""
    gpu_model: str = ""
    jobs: int = 0
    html: Path | None = None


def check(options: BacktestOptions) -> None:
    """Raise for options that contradict each other or can't be used.

    Raises:
        ConfigError: naming each of them.

    """
    problems = [*_source_problems(options), *_range_problems(options)]
    for name, text in (("--history", options.history), ("--warm-up", options.warm_up)):
        try:
            parse_duration(text or "0s")
        except ValueError as error:
            problems.append(Problem(name, text, str(error)))
    if problems:
        raise ConfigError(problems)


def _source_problems(options: BacktestOptions) -> Iterator[Problem]:
    sources = (options.trace is not None) + (options.prometheus is not None)
    if sources != 1:
        value = "neither" if sources == 0 else "both"
        yield Problem("--trace, --prometheus-url", value, "one of them: the use that is replayed")
    url = options.prometheus.prometheus_url if options.prometheus is not None else ""
    if url and not url.startswith(("http://", "https://")):
        yield Problem("--prometheus-url", url, "a base URL such as http://localhost:9090")
    if options.html is not None and not options.html.absolute().parent.is_dir():
        yield Problem("--html", str(options.html), "a file in a folder that exists")


def _range_problems(options: BacktestOptions) -> Iterator[Problem]:
    if not LEAST_FACTOR <= options.start_from <= MOST_FACTOR:
        yield Problem("--start-from", f"{options.start_from:g}", f"a number from {LEAST_FACTOR:g} to {MOST_FACTOR:g}")
    if options.jobs < 0:
        yield Problem("--jobs", str(options.jobs), "a number of processes, 0 for one a core")
    try:
        seconds = parse_duration(options.history)
    except ValueError:
        return  # named where durations are
    if not LEAST_HISTORY_SECONDS <= seconds <= MOST_HISTORY_SECONDS:
        yield Problem("--history", options.history, "from 1h to 366d")


def made_from(options: BacktestOptions, clock: Clock) -> Backtest:
    """Return the backtest that the options describe.

    Raises:
        ConfigError: nothing is left to replay, or an input can't be used.

    """
    tried = (*_profiles(options.profiles), *by_qos(options.qos))
    _check_names(tried)
    warm_up = parse_duration(options.warm_up) if options.warm_up else None
    workloads, problems = _cluster(options, clock)
    with _progress() as told:
        source, running = _demands(options, clock, told)
        found, notes = source.demands, (*source.notes, *problems)
        if workloads is not None:
            found, more = matched(found, workloads)
            notes = (*notes, *more)
        if not found:
            raise ConfigError([Problem("workloads", "none", f"at least one with known use in {source.source}")])
        of_cluster = None if workloads is None else {workload.key: workload for workload in workloads}
        setting = Setting(tried, of_cluster, running, options.start_from, options.gpu_model)
        contended = cases(found, setting)
        results = backtest(contended, options.jobs or os.cpu_count() or 1, warm_up, told("replaying"))
    notes = (*notes, *_assumptions(options, setting, len(found)))
    return Backtest(source.source, results, names_of(contended), span_of(contended), notes)


def _assumptions(options: BacktestOptions, setting: Setting, count: int) -> Iterator[str]:
    if setting.workloads is not None:
        yield "static: the owners' own figures, as they stand in pod template or profile"
    elif len(setting.running) < count and not any(tried.spec.resources for tried in setting.tried):
        yield f"static, where nothing tells what is set: {options.start_from:g} times the largest demand"


def _demands(
    options: BacktestOptions, clock: Clock, told: demand.Telling
) -> tuple[Demands, dict[WorkloadKey, Workload]]:
    if options.trace is not None:
        return read_trace(options.trace), {}
    assert options.prometheus is not None
    return asyncio.run(_recorded(options, options.prometheus, clock.now(), told("reading")))


async def _recorded(
    options: BacktestOptions, settings: Settings, now: float, progress: demand.Progress
) -> tuple[Demands, dict[WorkloadKey, Workload]]:
    step = settings.bin_seconds
    end = math.floor((now - settings.settled_seconds) / step) * step
    window = Window(end - round(parse_duration(options.history) / step) * step, end, step)
    history = history_of(settings)
    try:
        demands = await read_recorded(history, window, options.namespace, progress)
        inventory = inventory_of(await history.points(SERIES, now), now)
        source = f"{settings.prometheus_url}, the last {options.history}"
        return Demands(demands, source), {workload.key: workload for workload in inventory.workloads}
    finally:
        await history.close()


def _cluster(options: BacktestOptions, clock: Clock) -> tuple[tuple[Workload, ...] | None, tuple[str, ...]]:
    """Return the workloads of the folder (None without one), and what is wrong with it."""
    if options.cluster_dir is None:
        return None, ()
    discovered = discover(asyncio.run(FolderCluster(options.cluster_dir, clock).read()), {})
    problems = (
        *map(str, discovered.problems),
        *(f"{one.key} left out: {problem}" for one in discovered.broken for problem in one.problems),
    )
    kept = [one for one in discovered.workloads if options.namespace in {"", one.key.namespace}]
    if not kept:
        allowed = f"a folder with workloads{f' in namespace {options.namespace}' if options.namespace else ''}"
        raise ConfigError([Problem("--cluster-dir", str(options.cluster_dir), "; ".join((allowed, *problems)))])
    return tuple(kept), problems


def _profiles(paths: Sequence[Path]) -> Iterator[Tried]:
    """Yield the WorkloadProfiles of some files.

    Raises:
        ConfigError: with everything that is wrong.

    """
    loaded = load_documents(paths)
    problems = list(loaded.problems)
    for document in loaded.documents:
        where = f"{document.source}:{document.line}"
        if not isinstance(document.body, dict) or document.body.get("kind") != "WorkloadProfile":
            kind = document.body.get("kind") if isinstance(document.body, dict) else document.body
            problems.append(Problem("kind", str(kind), "WorkloadProfile", where))
            continue
        try:
            yield Tried(str(document.body["metadata"]["name"]), parse_profile(document.body))
        except ConfigError as error:
            problems += [replace(problem, source=where) for problem in error.problems]
    if paths and not loaded.documents and not problems:
        problems.append(Problem("--profile", ", ".join(map(str, paths)), "a file with a WorkloadProfile"))
    if problems:
        raise ConfigError(problems)


def _check_names(tried: Sequence[Tried]) -> None:
    names = [one.name for one in tried]
    problems = [
        Problem("metadata.name", name, f"a name of its own, other than {', '.join(RESERVED_NAMES)}")
        for name in dict.fromkeys(names)
        if names.count(name) > 1 or name in RESERVED_NAMES
    ]
    if problems:
        raise ConfigError(problems)


@contextmanager
def _progress() -> Iterator[demand.Telling]:
    """Show bars on a terminal, nothing when piped."""
    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not sys.stderr.isatty()) as bars:

        def telling(what: str) -> demand.Progress:
            task = bars.add_task(what, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield telling
