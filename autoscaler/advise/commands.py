"""The commands `estimate` and `recommend`: options in, printed advice out."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import structlog
import typer
from rich.console import Console
from rich.progress import Progress

from autoscaler.advise import estimate as estimating
from autoscaler.advise import printed
from autoscaler.advise.advice import Advice, ordered
from autoscaler.advise.recommend import recommended
from autoscaler.contract.gpus import GpuTable, built_in_rows
from autoscaler.contract.keys import QoS
from autoscaler.errors import ConfigError, Problem
from autoscaler.model.problems import ABSENT
from autoscaler.model.quantity import DURATION_ALLOWED, parse_duration
from autoscaler.process import SystemClock
from autoscaler.settings import Settings, settings_of

NOBODY: Final = (
    "no workload reports to this Prometheus now: it has no series tensor_fusion_worker_info, nor of workers' requests "
    "and limits"
)
NOT_CHOSEN: Final = "workloads report to this Prometheus, but none that --namespace and --qos choose"


class EstimateFormat(StrEnum):
    """How an estimate is printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


class AdviceFormat(StrEnum):
    """How recommendations are printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    CSV = "csv"


def estimate(  # noqa: PLR0913, PLR0917  each option of the command is a parameter
    params: Annotated[str | None, typer.Option(help="Parameters of the model, such as 7B.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, fp16, bf16, fp8, int8, fp4 or int4.")] = None,
    context: Annotated[str | None, typer.Option(help="Tokens of context per user, such as 8K.")] = None,
    users: Annotated[str | None, typer.Option(help="Users that one worker serves at once.")] = None,
    measured_utilization: Annotated[str | None, typer.Option(help="GPU utilization in a measured run, .35.")] = None,
    gpu: Annotated[str | None, typer.Option(help="GPU model of that run, such as A100.")] = None,
    at_users: Annotated[str | None, typer.Option(help="Users of that run.")] = None,
    gpu_count: Annotated[str | None, typer.Option(help="GPUs that a worker's model is spread over.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the WorkloadProfile.")] = None,
    output: Annotated[EstimateFormat, typer.Option("--output", "-o", help="table, json or yaml")] = (
        EstimateFormat.TABLE
    ),
) -> None:
    """Estimate the first requests from a model's size, or from one measured run.

    VRAM GiB = parameters (B) x bytes per parameter + context (K) x users.

    TFLOPs = utilization x FP16 TFLOPs of the GPU x users / users of the run.
    """
    options = {
        "--params": params,
        "--precision": precision,
        "--context": context,
        "--users": users,
        "--measured-utilization": measured_utilization,
        "--gpu": gpu,
        "--at-users": at_users,
        "--gpu-count": gpu_count,
        "--name": name,
    }
    found = estimating.estimate(options, GpuTable(built_in_rows()))
    match output:
        case EstimateFormat.JSON:
            sys.stdout.write(json.dumps(estimating.as_data(found), indent=2, ensure_ascii=False) + "\n")
        case EstimateFormat.YAML:
            sys.stdout.write(estimating.as_yaml(found))
        case EstimateFormat.TABLE:
            sys.stdout.write(estimating.as_text(found))


def recommend(  # noqa: PLR0913, PLR0917  each option of the command is a parameter
    prometheus_url: Annotated[str | None, typer.Option(help="Base URL of Prometheus.")] = None,
    history: Annotated[str, typer.Option(help="How far back to look, such as 7d.")] = "7d",
    namespace: Annotated[list[str] | None, typer.Option(help="Only this namespace; may be repeated.")] = None,
    qos: Annotated[list[QoS] | None, typer.Option(help="Only this service level; may be repeated.")] = None,
    min_samples: Annotated[int, typer.Option(help="Minutes of use below which nothing is said.", min=1)] = 100,
    cluster_dir: Annotated[Path | None, typer.Option(help="A folder of manifests: honour what they set.")] = None,
    kubeconfig: Annotated[Path | None, typer.Option(help="A cluster: honour its profiles and annotations.")] = None,
    output: Annotated[AdviceFormat, typer.Option("--output", "-o", help="table, json, yaml or csv")] = (
        AdviceFormat.TABLE
    ),
) -> None:
    """Say once what running workloads should have, from Prometheus alone; nothing is changed anywhere.

    Figures are meant to be kept: the whole history weighs, by the rules of each service level.
    """
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("warning"),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )
    given = {"prometheus_url": prometheus_url, "cluster_dir": cluster_dir, "kubeconfig": kubeconfig}
    settings = _checked(settings_of(given), history)
    clock = SystemClock()
    with _progress() as progress:
        rows = asyncio.run(recommended(settings, clock, min_samples, progress))
    chosen = [
        row
        for row in rows
        if (not namespace or row.key.namespace in namespace)
        and (not qos or (row.config is not None and row.config.qos in qos))
    ]
    if not chosen:
        sys.stderr.write(f"{NOT_CHOSEN if rows else NOBODY}\n")
    _print(ordered(chosen), clock.now(), settings, output)


def _checked(settings: Settings, history: str) -> Settings:
    problems = []
    if not settings.prometheus_url:
        problems.append(Problem("--prometheus-url", ABSENT, "the base URL of Prometheus"))
    try:
        seconds = parse_duration(history)
    except ValueError:
        seconds = 0.0
    if seconds < settings.bin_seconds:
        allowed = f"{DURATION_ALLOWED}, at least {settings.bin_seconds:g}s"
        problems.append(Problem("--history", history, allowed))
    if problems:
        raise ConfigError(problems)
    return settings.model_copy(update={"history_seconds": seconds})


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Yield what shows on a terminal how much of the history was read; elsewhere nothing is shown."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading history", total=None)
        yield lambda done, count: progress.update(task, completed=done, total=count)


def _print(rows: Sequence[Advice], at: float, settings: Settings, output: AdviceFormat) -> None:
    data = printed.as_data(rows, at, settings.history_seconds)
    match output:
        case AdviceFormat.JSON:
            sys.stdout.write(printed.as_json(data))
        case AdviceFormat.YAML:
            sys.stdout.write(printed.as_yaml(data))
        case AdviceFormat.CSV:
            sys.stdout.write(printed.as_csv(rows))
        case AdviceFormat.TABLE:
            if rows:
                printed.print_table(rows, settings.history_seconds, sys.stdout)
