"""The command `explain`: why one workload's figures are what they are, for a person or as JSON, with a plot.

It asks a running controller, which remembers cool-downs and windows, or makes one dry-run pass over the world itself.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer
from rich.console import Console

from autoscaler.controller import Controller, World
from autoscaler.errors import ClusterError, ConfigError, Problem
from autoscaler.gateways.controller_api import ControllerError, ask_controller
from autoscaler.model.decision import field_of
from autoscaler.model.quantity import parse_duration
from autoscaler.model.resources import Resource, Side
from autoscaler.model.usage import Usage, Window, WorkloadKey
from autoscaler.report.account import Account, Lines, account_data, account_from, unknown_workload
from autoscaler.report.chart import Series, line_chart
from autoscaler.report.explain import explained
from autoscaler.report.metrics import ControllerMetrics
from autoscaler.report.terminal import SCALES, terminal_plot
from autoscaler.settings import Settings, settings_of

LEAST_WIDTH, MOST_WIDTH = 80, 100
MOST_BINS: Final = 720
NO_PNG: Final = "a name that ends in .svg (for .png install matplotlib beside this program)"


class Output(StrEnum):
    """How an explanation is printed."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Wiring:
    """How the command line makes the world of its settings, and reads NODE=URL."""

    world: Callable[[Settings], Awaitable[World]]
    pair: Callable[[str], tuple[str, str]]


def explain_command(wiring: Wiring) -> Callable[..., None]:
    """Return the command, for the one place that wires real parts together."""

    def explain(  # noqa: PLR0913, PLR0917  each option of the command is a parameter
        workload: Annotated[str, typer.Argument(help="NAMESPACE/NAME, or a NAME in namespace default.")],
        controller: Annotated[str | None, typer.Option(help="Ask this running controller (its --listen URL).")] = None,
        prometheus_url: Annotated[str | None, typer.Option(help="Base URL of Prometheus.")] = None,
        cluster_dir: Annotated[Path | None, typer.Option(help="A folder of manifests, no API server.")] = None,
        kubeconfig: Annotated[Path | None, typer.Option(help="Kubeconfig of the cluster.")] = None,
        agent: Annotated[list[str] | None, typer.Option(help="NODE=URL of a node's agent; may be repeated.")] = None,
        state_dir: Annotated[Path | None, typer.Option(help="What a controller learnt; only read.")] = None,
        window: Annotated[str, typer.Option(help="How far back the plot goes, such as 24h.")] = "24h",
        plot: Annotated[Path | None, typer.Option(help="Write the plot to this file, .svg or .png.")] = None,
        output: Annotated[Output, typer.Option("--output", "-o", help="text or json")] = Output.TEXT,
    ) -> None:
        """Explain a workload's figures: what was seen, what it led to, which guard changed it, what would move it."""
        key, seconds = _key(workload), _seconds(window)
        _check_ending(plot)
        if controller is not None:
            account = _from_controller(controller, key)
        else:
            given = {
                "prometheus_url": prometheus_url,
                "cluster_dir": cluster_dir,
                "kubeconfig": kubeconfig,
                "agents": dict(wiring.pair(one) for one in agent) if agent else None,
                "state_dir": state_dir,
            }
            settings = settings_of({name: value for name, value in given.items() if value is not None})
            if not settings.prometheus_url:
                allowed = "--controller URL, or --prometheus-url URL with --cluster-dir or --kubeconfig"
                raise ConfigError([Problem("explain", "no source", allowed)])
            account = asyncio.run(_from_world(wiring, settings, key, seconds))
        if plot is not None:
            write_plot(plot, account)
        _print(account, output)

    return explain


async def dry_run_account(world: World, settings: Settings, key: WorkloadKey, seconds: float) -> Account:
    """Return a workload's account from one pass that writes nothing, and `seconds` of its history for the plot.

    Raises:
        ClusterError: the cluster can't be read, or there is no such workload.
        HistoryError: the history can't be read.

    """
    controller = Controller(world, settings, ControllerMetrics(), dry_run=True)
    await controller.run_pass()
    account = controller.ledger.account(key)
    if account is None:
        raise ClusterError(unknown_workload(key, controller.ledger.keys))
    step = settings.bin_seconds * max(1, math.ceil(seconds / settings.bin_seconds / MOST_BINS))
    end = math.floor((account.record.at - settings.settled_seconds) / step) * step
    usages = [await world.history.read(part) for part in world.history.parts(Window(end - seconds, end, step))]
    compute, vram = (_lines(account, key, usages, resource) for resource in Resource)
    return Account(account.record, account.changes, (compute, vram))


def write_plot(path: Path, account: Account) -> None:
    """Write both resources over time as one picture.

    Raises:
        ConfigError: PNG was asked for and nothing here can draw it.
        OSError: the file can't be written.

    """
    if path.suffix.lower() == ".png":
        _write_png(path, account)
        return
    charts = [
        line_chart(_series(account, resource), title=_title(account, resource), unit=SCALES[resource][1])
        for resource in Resource
    ]
    path.write_text(_stacked(charts), encoding="utf-8")


def _stacked(charts: list[str]) -> str:
    """Return one SVG with the charts under each other."""
    rest = [chart.replace("<svg ", f'<svg y="{300 * place}" ', 1) for place, chart in enumerate(charts)]
    size = f'width="880" height="{300 * len(charts)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n{"".join(rest)}</svg>\n'


def _write_png(path: Path, account: Account) -> None:
    # No dependency of ours: `_check_ending` has seen that it is there.
    figure = import_module("matplotlib.figure").Figure(figsize=(9, 6), layout="constrained")
    for resource, axes in zip(Resource, figure.subplots(len(Resource)), strict=True):
        for series in _series(account, resource):
            moments = [np.datetime64(round(at), "s") for at, _ in series.points]
            style = "steps-post" if series.is_step else "default"
            axes.plot(moments, [value for _, value in series.points], drawstyle=style, label=series.name)
        axes.set(title=_title(account, resource), ylabel=SCALES[resource][1], ylim=(0, None))
        axes.legend()
    figure.savefig(path, format="png")


def _series(account: Account, resource: Resource) -> list[Series]:
    scale, lines = SCALES[resource][0], account.lines[resource]
    named = (("use", lines.use), ("request", lines.request), ("limit", lines.limit))
    return [
        Series(name, [(at, value / scale) for at, value in points], is_step=name != "use") for name, points in named
    ]


def _title(account: Account, resource: Resource) -> str:
    return f"{account.record.key}: {('compute', 'VRAM')[resource]} per worker and device (UTC)"


def _lines(account: Account, key: WorkloadKey, usages: list[Usage], resource: Resource) -> Lines:
    """Return use and limit as measured, and the request in force now; what it was before is not in the history."""
    use: list[tuple[float, float]] = []
    limit: list[tuple[float, float]] = []
    for usage in usages:
        if key not in usage.keys:
            continue
        row, window = usage.keys.index(key), usage.window
        ends = [window.start + window.step * (place + 1) for place in range(window.bins)]
        use += zip(ends, usage.peak[resource][row].tolist(), strict=True)
        limit += zip(ends, usage.ceiling[resource][row].tolist(), strict=True)
    record = account.record
    request, ceiling = (record[field_of(resource, side)].current for side in Side)
    first = use[0][0] if use else record.at
    return Lines(tuple(use), ((first, request), (record.at, request)), (*limit, (record.at, ceiling)))


def _from_controller(url: str, key: WorkloadKey) -> Account:
    if "://" not in url:
        raise ConfigError([Problem("--controller", url, "a URL, such as http://127.0.0.1:9401")])
    try:
        return account_from(asyncio.run(ask_controller(url, key)))
    except ValueError as error:
        raise ControllerError(f"{url}: {error}") from error


async def _from_world(wiring: Wiring, settings: Settings, key: WorkloadKey, seconds: float) -> Account:
    world = await wiring.world(settings)
    try:
        return await dry_run_account(world, settings, key, seconds)
    finally:
        await world.close()


def _print(account: Account, output: Output) -> None:
    if output is Output.JSON:
        sys.stdout.write(json.dumps(account_data(account), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        return
    console = Console(highlight=False, soft_wrap=True)
    width = min(max(console.width if console.is_terminal else MOST_WIDTH, LEAST_WIDTH), MOST_WIDTH)
    for line in explained(account, width):
        is_headline = bool(line) and not line.startswith(" ")
        console.print(line, markup=False, style="bold" if is_headline else None)
    for resource in Resource:
        console.print()
        for line in terminal_plot(account.lines[resource], resource, width):
            console.print(line, markup=False)


def _key(text: str) -> WorkloadKey:
    namespace, slash, name = text.partition("/")
    key = WorkloadKey(namespace, name) if slash else WorkloadKey("default", text)
    if not key.namespace or not key.name or "/" in key.name:
        raise ConfigError([Problem("WORKLOAD", text, "NAMESPACE/NAME, or a NAME in namespace default")])
    return key


def _seconds(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise ConfigError([Problem("--window", text, str(error))]) from None
    if seconds < 60:
        raise ConfigError([Problem("--window", text, "at least 1m")])
    return seconds


def _check_ending(plot: Path | None) -> None:
    """Refuse before anything is read what could not be written afterwards."""
    if plot is None or plot.suffix.lower() == ".svg":
        return
    if plot.suffix.lower() == ".png":
        if find_spec("matplotlib") is None:
            raise ConfigError([Problem("--plot", str(plot), NO_PNG)])
        return
    raise ConfigError([Problem("--plot", str(plot), "a name that ends in .svg or .png")])
