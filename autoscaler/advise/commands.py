"""The commands `estimate` and `recommend`: options in, printed advice out."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer

from autoscaler.advise.estimate import as_data, as_text, as_yaml
from autoscaler.advise.estimate import estimate as estimated
from autoscaler.contract.gpus import GpuTable, built_in_rows


class Format(StrEnum):
    """How an estimate is printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


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
    output: Annotated[Format, typer.Option("--output", "-o", help="table, json or yaml")] = Format.TABLE,
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
    found = estimated(options, GpuTable(built_in_rows()))
    match output:
        case Format.JSON:
            _print_json(as_data(found))
        case Format.YAML:
            sys.stdout.write(as_yaml(found))
        case Format.TABLE:
            sys.stdout.write(as_text(found))


def _print_json(data: Any) -> None:
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
