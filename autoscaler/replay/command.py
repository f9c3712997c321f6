"""The command `backtest`: options in; table, JSON and page out."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import structlog
import typer
from rich.console import Console

from autoscaler.contract.keys import QoS
from autoscaler.process import SystemClock
from autoscaler.settings import Settings, settings_of

PIPED_COLUMNS: Final = 120


class BacktestFormat(StrEnum):
    """How a backtest is printed."""

    TABLE = "table"
    JSON = "json"


def backtest(  # noqa: PLR0913, PLR0917  each option of the command is a parameter
    trace: Annotated[Path | None, typer.Option(help="Use from a file, CSV or Parquet; see docs/backtest.md.")] = None,
    prometheus_url: Annotated[str | None, typer.Option(help="Use from Prometheus: its base URL.")] = None,
    history: Annotated[str, typer.Option(help="How far back to read from Prometheus, such as 7d.")] = "7d",
    namespace: Annotated[str, typer.Option(help="Only this namespace.")] = "",
    cluster_dir: Annotated[Path | None, typer.Option(help="A folder of manifests: workloads and profiles.")] = None,
    profile: Annotated[list[Path] | None, typer.Option(help="Try this WorkloadProfile; may be repeated.")] = None,
    qos: Annotated[list[QoS] | None, typer.Option(help="Try this level's defaults; may be repeated.")] = None,
    start_from: Annotated[
        float, typer.Option(help="What is set where nothing tells, in multiples of the largest demand.")
    ] = 1.5,
    warm_up: Annotated[str, typer.Option(help="Learn this long before counting; unset: 24h, or a sixth.")] = "",
    gpu_model: Annotated[str, typer.Option(help="Count GPUs of this model, such as A100; unset: H100.")] = "",
    jobs: Annotated[int, typer.Option(help="Processes; 0: one a core.")] = 0,
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page with plots here.")] = None,
    output: Annotated[BacktestFormat, typer.Option("--output", "-o", help="table or json")] = BacktestFormat.TABLE,
) -> None:
    """Replay recorded use: what would have been held, throttled, killed, changed and saved.

    The product's own recommending and guarding runs in a closed loop, sees only what its own limits let through, and is
    compared with holding what is set. Nothing is changed anywhere.
    """
    from autoscaler.replay.gather import BacktestOptions, check, made_from
    from autoscaler.replay.page import render_page
    from autoscaler.replay.printed import backtest_as_data, print_backtest

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("warning"),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )
    options = BacktestOptions(
        trace=trace,
        prometheus=_prometheus(prometheus_url) if trace is None or prometheus_url is not None else None,
        history=history,
        namespace=namespace,
        cluster_dir=cluster_dir,
        profiles=tuple(profile or ()),
        qos=tuple(dict.fromkeys(qos or ())),
        start_from=start_from,
        warm_up=warm_up,
        gpu_model=gpu_model,
        jobs=jobs,
        html=html,
    )
    check(options)
    made = made_from(options, SystemClock())
    if html is not None:
        html.write_text(render_page(made), encoding="utf-8")
    if output is BacktestFormat.JSON:
        sys.stdout.write(json.dumps(backtest_as_data(made), indent=2, ensure_ascii=False) + "\n")
        return
    console = Console()
    print_backtest(console if console.is_terminal else Console(width=PIPED_COLUMNS), made)
    if html is not None:
        sys.stdout.write(f"written: {html}\n")


def _prometheus(url: str | None) -> Settings | None:
    """Return how to read Prometheus; None where neither the flag nor the environment names one."""
    settings = settings_of({"prometheus_url": url})
    return settings if settings.prometheus_url else None
