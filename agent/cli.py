"""The command tf-agent: run, probe, quotas, record. Exit codes: 0 done, 1 something failed, 2 usage."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NoReturn

import msgspec
import structlog
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from agent.enforce.backend import BackendError
from agent.enforce.live import LastUse
from agent.gpus import GpuTable, load_gpu_table
from agent.model.samples import DeviceSource, SourceError
from agent.pods.probing import probe_pods
from agent.probing import probe_all
from agent.quotas.states import device_infos
from agent.quotas.store import StoreError
from agent.record import capture
from agent.record.capture import Recorder
from agent.record.replayed import ReplayedSource
from agent.settings import AgentSettings
from agent.simulate.node import Simulation
from agent.simulate.scenario import ScenarioError, load_scenario
from agent.tables import probe_tables, quota_table
from autoscaler.contract.quota import QUOTAS_PATH, DeviceInfo, QuotaStatus

_PIPED_WIDTH = 200

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Measure, attribute and govern the GPUs of one node.",
)


class Output(StrEnum):
    """How a table is printed."""

    TABLE = "table"
    JSON = "json"


_Output = Annotated[Output, typer.Option("--output", "-o", help="table or json")]
_Simulate = Annotated[Path | None, typer.Option(help="Play this scenario instead of reading NVML.")]
_GpuTable = Annotated[
    Path | None, typer.Option(help="Table of FP16 TFLOPs by model that goes before the built-in one.")
]


def main() -> None:
    """Run the command."""
    app()


@app.command()
def run(  # noqa: PLR0913, PLR0917  each option of the command is a parameter
    node: Annotated[str | None, typer.Option(help="Name of this node, as Kubernetes has it.")] = None,
    listen: Annotated[str | None, typer.Option(help="HOST:PORT to serve on; port 0 takes a free one.")] = None,
    port_file: Annotated[Path | None, typer.Option(help="Write the port that was bound here.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="Keeps the desired quotas over a restart.")] = None,
    pods_file: Annotated[Path | None, typer.Option(help="The pods of this node, JSON or YAML.")] = None,
    proc_root: Annotated[Path | None, typer.Option(help="Where the host's processes are seen.")] = None,
    gpu_table: _GpuTable = None,
    backend: Annotated[str | None, typer.Option(help="auto, observe or simulated")] = None,
    compute_backends: Annotated[str | None, typer.Option(help="With auto: who may limit compute, best first.")] = None,
    vram_backends: Annotated[str | None, typer.Option(help="With auto: who may limit VRAM, best first.")] = None,
    shrink_below_use: Annotated[
        bool | None, typer.Option("--shrink-below-use", help="Let VRAM limits go below what is in use.")
    ] = None,
    freeze: Annotated[
        bool | None, typer.Option("--freeze", help="Stop low workers for seconds where nothing else holds them.")
    ] = None,
    tfshm_root: Annotated[Path | None, typer.Option(help="Where TensorFusion's limiters share memory.")] = None,
    simulated_dir: Annotated[Path | None, typer.Option(help="Where simulated workers find their limits.")] = None,
    simulate: _Simulate = None,
    lockstep: Annotated[bool | None, typer.Option("--lockstep", help="Simulated time moves on request only.")] = None,
    tick: Annotated[float | None, typer.Option(help="Seconds between samples.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate of the server (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key of the certificate (PEM).")] = None,
    client_ca: Annotated[
        Path | None, typer.Option(help="Authority whose certificates clients must show (PEM).")
    ] = None,
    token_review: Annotated[
        bool | None, typer.Option("--token-review", help="Let the API server judge bearer tokens.")
    ] = None,
    metrics_listen: Annotated[
        str | None, typer.Option(help="HOST:PORT of /metrics, /healthz and /readyz alone, in plain text.")
    ] = None,
) -> None:
    """Sample, attribute, govern, enforce and export, until SIGTERM; every option is also TF_AGENT_<NAME>."""
    given = {name: value for name, value in locals().items() if value is not None}
    if "tick" in given:
        given["tick_seconds"] = given.pop("tick")
    settings = _settings(given)
    with _failing():
        _run(settings)


@app.command()
def probe(
    simulate: _Simulate = None,
    replay: Annotated[Path | None, typer.Option(help="Play this capture instead of reading NVML.")] = None,
    gpu_table: _GpuTable = None,
    output: _Output = Output.TABLE,
) -> None:
    """Show the devices, backends and sources of pods found here; exit code 1 where no device can be read."""
    from agent.assemble import places, surroundings

    with _failing():
        gpus = load_gpu_table(gpu_table)
        problem, devices = "", tuple[DeviceInfo, ...]()
        try:
            with _source(simulate, gpus, replay) as source:
                devices = device_infos(source.sample(time.time()), gpus)  # noqa: TID251  the shell owns the clock
        except SourceError as error:
            problem = str(error)
        is_real = simulate is None and replay is None and not problem
        settings = _settings({} if "TF_AGENT_NODE" in os.environ else {"node": "probed"})
        backends = probe_all(surroundings(settings, LastUse(), has_driver=is_real))
        # A scenario's or a capture's processes are of other pods.
        pods = probe_pods(places(settings)) if simulate is None and replay is None else {}
        _show(
            output,
            {"devices": devices, "backends": backends, "pods": pods, "problem": problem},
            probe_tables(devices, backends, pods),
        )
        if problem:
            raise SourceError(problem)


@app.command()
def quotas(
    url: Annotated[str, typer.Option(help="Address of the running agent.")] = "http://127.0.0.1:9400",
    output: _Output = Output.TABLE,
) -> None:
    """Show what a running agent is asked for, and what it has put into force."""
    with _failing():
        status = asyncio.run(_fetch(url.rstrip("/") + QUOTAS_PATH))
        _show(output, status, (quota_table(status),))


@app.command()
def record(  # noqa: PLR0913, PLR0917  each option of the command is a parameter
    seconds: Annotated[float, typer.Option(min=0.0, help="How long to record.")] = 60.0,
    tick: Annotated[float, typer.Option(min=0.05, help="Seconds between samples.")] = 1.0,
    to: Annotated[Path | None, typer.Option(help="File to write; standard output when absent.")] = None,
    note: Annotated[str, typer.Option(help="What readers of the capture should know.")] = "",
    proc_root: Annotated[Path, typer.Option(help="Where the host's processes are seen.")] = Path("/proc"),
    simulate: _Simulate = None,
) -> None:
    """Record a capture of all devices that can be played again: one JSON document a line."""
    with _failing(), _source(simulate, load_gpu_table()) as source, _written(to) as file:
        # The pids of a simulation are those of other processes here.
        capture.record(Recorder(source, proc_root if simulate is None else None), file, seconds, tick, note)


def _run(settings: AgentSettings) -> None:
    from agent.assemble import assemble
    from agent.run import serve
    from agent.serve.server import tls_context

    structlog.get_logger(__name__).info("starting", **settings.model_dump(mode="json", exclude_none=True))
    tls = tls_context(settings)
    parts = assemble(settings)
    try:
        asyncio.run(serve(parts, settings, tls))
    finally:
        parts.agent.close()


async def _fetch(url: str) -> QuotaStatus:
    from aiohttp import ClientError, ClientSession, ClientTimeout

    try:
        async with ClientSession(timeout=ClientTimeout(total=10)) as session, session.get(url) as response:
            response.raise_for_status()
            return msgspec.json.decode(await response.read(), type=QuotaStatus)
    except (ClientError, TimeoutError, msgspec.DecodeError) as error:
        raise SourceError(f"{url}: {error or 'no answer within 10 s'}") from error


def _settings(given: dict[str, Any]) -> AgentSettings:
    try:
        return AgentSettings(**given)
    except ValidationError as error:
        found = [(".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, ")) for one in error.errors()]
        _end("; ".join(f"{where}: {text}" if where else text for where, text in found), code=2)


@contextmanager
def _failing() -> Iterator[None]:
    """Turn what can go wrong outside into one line and exit code 1."""
    structlog.configure(
        processors=[
            structlog.processors.TimeStamper("iso"),
            structlog.processors.add_log_level,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # as it is then, not as it is now
    )
    try:
        yield
    except (SourceError, ScenarioError, StoreError, BackendError, OSError, ValueError) as error:
        _end(str(error), code=1)


def _end(message: str, *, code: int) -> NoReturn:
    typer.echo(f"tf-agent: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)


@contextmanager
def _source(simulate: Path | None, gpus: GpuTable, replay: Path | None = None) -> Iterator[DeviceSource]:
    source: DeviceSource
    if replay is not None:
        source = ReplayedSource(capture.load_capture(replay)[1])
    elif simulate is None:
        from agent.nvml.source import NvmlSource

        source = NvmlSource()
    else:
        scenario = load_scenario(simulate)
        source = Simulation(scenario, lambda _worker, _uuid: None, gpus)
    try:
        yield source
    finally:
        source.close()


@contextmanager
def _written(to: Path | None) -> Iterator[BinaryIO]:
    if to is None:
        yield sys.stdout.buffer
    else:
        with to.open("wb") as file:
            yield file


def _show(output: Output, data: object, tables: Sequence[Table]) -> None:
    if output is Output.JSON:
        typer.echo(msgspec.json.encode(data).decode())
        return
    console = Console() if sys.stdout.isatty() else Console(width=_PIPED_WIDTH)
    for table in tables:
        console.print(table)
