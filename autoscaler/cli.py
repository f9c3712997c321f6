"""The command tf-autoscaler; the only place that wires real parts together. Exit codes: 0 done, 1 failed, 2 usage."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import structlog
import typer
from rich.console import Console

from autoscaler.admission.command import webhook_command
from autoscaler.advise.commands import estimate, recommend
from autoscaler.controller import World
from autoscaler.errors import AutoscalerError, ConfigError
from autoscaler.explain import Wiring, explain_command
from autoscaler.gateways.agents import AgentAccess, HttpAgents, Locate
from autoscaler.gateways.external_scaler import HttpScalers
from autoscaler.gateways.folder import FolderCluster
from autoscaler.model.crd import render_crds
from autoscaler.model.docs import render_docs
from autoscaler.model.validation import render_json, render_text
from autoscaler.process import SystemClock, log_to_stderr, run_once, run_until_stopped
from autoscaler.read.manifests import validate_files
from autoscaler.read.prometheus import history_of
from autoscaler.replay.command import backtest
from autoscaler.replay.fit import fit
from autoscaler.report import columns
from autoscaler.report.metrics import ControllerMetrics
from autoscaler.report.printed import pass_as_data, pass_as_lines
from autoscaler.report.writer import Passed
from autoscaler.settings import Settings, settings_of

if TYPE_CHECKING:
    from autoscaler.kube.cluster import KubeCluster

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Right-size the TFLOPs and VRAM of vGPU workers from measured use.",
)
err = Console(stderr=True, soft_wrap=True)


class Output(StrEnum):
    """How a result is printed."""

    TABLE = "table"
    JSON = "json"


class Kind(StrEnum):
    """What `get` shows."""

    TFW = "tfw"
    WP = "wp"


KINDS = {Kind.TFW: "TensorFusionWorkload", Kind.WP: "WorkloadProfile"}
_Output = Annotated[Output, typer.Option("--output", "-o", help="table or json")]
_Paths = Annotated[list[Path], typer.Argument(help="Manifests, or folders of them.", exists=True, show_default=False)]


def main() -> None:
    """Run the command."""
    app()


@app.command()
def run(  # noqa: PLR0913, PLR0917  each option of the command is a parameter
    once: Annotated[bool, typer.Option("--once", help="One pass, printed, then exit.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Decide and report here, write nothing.")] = False,
    interval: Annotated[float | None, typer.Option(help="Seconds between passes.")] = None,
    prometheus_url: Annotated[str | None, typer.Option(help="Base URL of Prometheus.")] = None,
    cluster_dir: Annotated[Path | None, typer.Option(help="A folder of manifests in place of an API server.")] = None,
    kubeconfig: Annotated[Path | None, typer.Option(help="Kubeconfig of the cluster.")] = None,
    agent: Annotated[list[str] | None, typer.Option(help="NODE=URL of a node's agent; may be repeated.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="Keeps what was learnt over a restart.")] = None,
    listen: Annotated[str | None, typer.Option(help="HOST:PORT of /metrics, /healthz and /readyz.")] = None,
    leader_elect: Annotated[bool | None, typer.Option(help="Act only while holding the Lease (in a cluster).")] = None,
    lease_name: Annotated[str | None, typer.Option(help="Name of the Lease.")] = None,
    lease_namespace: Annotated[str | None, typer.Option(help="Namespace of the Lease, else the pod's.")] = None,
    kube_qps: Annotated[float | None, typer.Option(help="Requests a second to the API server.")] = None,
    kube_burst: Annotated[int | None, typer.Option(help="Requests at once, above that rate.")] = None,
    output: _Output = Output.TABLE,
) -> None:
    """Read history and cluster, recommend, guard, apply, report: pass after pass.

    Every other knob is a TF_AUTOSCALER_* environment variable, see docs/running.md.
    """
    given = {
        "interval_seconds": interval,
        "prometheus_url": prometheus_url,
        "cluster_dir": cluster_dir,
        "kubeconfig": kubeconfig,
        "agents": dict(_pair(one) for one in agent) if agent else None,
        "state_dir": state_dir,
        "listen": listen,
        "leader_elect": leader_elect,
        "lease_name": lease_name,
        "lease_namespace": lease_namespace,
        "kube_qps": kube_qps,
        "kube_burst": kube_burst,
    }
    log_to_stderr()
    with _one_line_errors():
        settings = settings_of(given)
        if not settings.prometheus_url:
            _fail("no history to read: give --prometheus-url or TF_AUTOSCALER_PROMETHEUS_URL", code=2)
        shown = settings.model_dump(mode="json", exclude_none=True)
        structlog.get_logger("tf-autoscaler").info("starting", once=once, dry_run=dry_run, **shown)
        if not once:
            asyncio.run(_run_until_stopped(settings, dry_run=dry_run))
            return
        passed = asyncio.run(_run_once(settings, dry_run=dry_run))
        if output is Output.JSON:
            _print_json(pass_as_data(passed))
        else:
            sys.stdout.writelines(f"{line}\n" for line in pass_as_lines(passed))
        if passed.history_error:
            raise typer.Exit(1)


@app.command()
def demo(
    duration: Annotated[str, typer.Option(help="Simulated time, such as 24h.")] = "12h",
    seed: Annotated[int, typer.Option(help="Equal seeds give equal runs.")] = 1,
    keep: Annotated[Path | None, typer.Option(help="Keep the folder of manifests here.")] = None,
    output: _Output = Output.TABLE,
) -> None:
    """Show the main job: a simulated cluster behind real agents, scaled by the real controller."""
    from autoscaler.demo import run_demo
    from autoscaler.model.quantity import parse_duration

    with _one_line_errors():
        try:
            seconds = parse_duration(duration)
        except ValueError as error:
            _fail(f"--duration is {duration!r}; allowed: {error}", code=2)
        raise typer.Exit(run_demo(seconds, seed, output.value, keep, Console()))


@app.command()
def get(
    kind: Annotated[Kind, typer.Argument(help="tfw: workloads, wp: profiles")] = Kind.TFW,
    cluster_dir: Annotated[Path, typer.Option(help="The folder of manifests.", exists=True, file_okay=False)] = Path(),
    output: _Output = Output.TABLE,
) -> None:
    """Show workloads or profiles of a folder with the columns that kubectl shows."""
    with _one_line_errors():
        clock = SystemClock()
        view = asyncio.run(FolderCluster(cluster_dir, clock).read())
        name = KINDS[kind]
        rows = columns.rows((*view.workloads, *view.profiles), name, clock.now())
        if output is Output.JSON:
            sys.stdout.write(columns.as_json(rows) + "\n")
        elif rows:
            columns.table(rows, name, sys.stdout)
        else:
            err.print(f"no {name} in {cluster_dir}", markup=False)
        for problem in view.problems:
            err.print(str(problem), markup=False)


@app.command()
def validate(files: _Paths, output: _Output = Output.TABLE) -> None:
    """Check manifests and annotations: every problem with file, path, value and what is allowed."""
    report = validate_files(files)
    sys.stdout.write(render_json(report) if output is Output.JSON else render_text(report))
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def crds(
    directory: Annotated[Path | None, typer.Argument(help="Where to write them; default: standard output.")] = None,
    docs: Annotated[bool, typer.Option("--docs", help="The reference pages instead.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only tell whether the files are current.")] = False,
) -> None:
    """Write the custom resource definitions, or the reference pages, as generated from the model."""
    rendered = render_docs() if docs else render_crds()
    if directory is None:
        sys.stdout.write("---\n".join(rendered.values()))
        return
    stale = [name for name, text in rendered.items() if _content(directory / name) != text]
    if check and stale:
        _fail(f"not current: {', '.join(stale)}; run `tf-autoscaler crds {'--docs ' if docs else ''}{directory}`")
    if not check:
        directory.mkdir(parents=True, exist_ok=True)
        for name in stale:
            (directory / name).write_text(rendered[name], encoding="utf-8")


def _content(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


async def _run_once(settings: Settings, *, dry_run: bool) -> Passed:
    return await run_once(await _world(settings), settings, dry_run=dry_run)


async def _run_until_stopped(settings: Settings, *, dry_run: bool) -> None:
    metrics, leadership = ControllerMetrics(), None
    if settings.cluster_dir is None and not dry_run:
        from autoscaler.kube.lease import LeaseElector

        leadership = await LeaseElector.connect(settings, SystemClock())
    world = await _world(settings, metrics)
    await run_until_stopped(world, settings, dry_run=dry_run, metrics=metrics, leadership=leadership)


async def _world(settings: Settings, metrics: ControllerMetrics | None = None) -> World:
    """Return the real ports that the settings name; with `metrics` those of one that stays: it watches, counts."""
    clock = SystemClock()
    history = history_of(settings)
    cluster = await _cluster(settings, clock, metrics)
    return World(clock, history, cluster, _agents(settings, clock, cluster), HttpScalers(cluster, clock))


async def _cluster(
    settings: Settings, clock: SystemClock, metrics: ControllerMetrics | None
) -> FolderCluster | KubeCluster:
    if settings.cluster_dir is not None:
        return FolderCluster(settings.cluster_dir, clock)
    from autoscaler.kube.cluster import KubeCluster  # the client costs a second and 60 MB to import
    from autoscaler.kube.pacing import TokenBucket
    from autoscaler.kube.patience import patience_of

    pace = TokenBucket(settings.kube_qps, settings.kube_burst)
    patience = patience_of(settings) if metrics is not None else None
    cluster = await KubeCluster.connect(settings.kubeconfig, clock, patience, pace)
    if metrics is not None:
        cluster.client.observe = metrics.api_written
    return cluster


def _agents(settings: Settings, clock: SystemClock, cluster: FolderCluster | KubeCluster) -> HttpAgents:
    access = AgentAccess(
        template=settings.agent_url_template,
        urls=settings.agents,
        token_file=settings.agent_token_file,
        ca_file=settings.agent_ca_file,
        client_cert=settings.agent_client_cert,
        client_key=settings.agent_client_key,
        tls_name=settings.agent_tls_name,
        timeout_seconds=settings.agent_timeout_seconds,
    )
    return HttpAgents(access, clock, _locate(settings, cluster))


def _locate(settings: Settings, cluster: FolderCluster | KubeCluster) -> Locate | None:
    if isinstance(cluster, FolderCluster) or "{ip}" not in settings.agent_url_template:
        return None
    from autoscaler.kube.agent_pods import AgentPods

    return AgentPods(cluster.client, settings.agent_namespace, settings.agent_selector)


def _pair(text: str) -> tuple[str, str]:
    node, equals, url = text.partition("=")
    if not equals or not node or "://" not in url:
        _fail(f"--agent is {text!r}; allowed: NODE=URL, such as node-a=http://10.0.0.7:9400", code=2)
    return node, url


def _print_json(data: Any) -> None:
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn what users and worlds get wrong into one line each and an exit code."""
    try:
        yield
    except ConfigError as error:
        for problem in error.problems:
            err.print(f"error: {problem}", markup=False, highlight=False)
        raise typer.Exit(2) from None
    except (AutoscalerError, OSError) as error:
        _fail(str(error))


def _fail(message: str, code: int = 1) -> NoReturn:
    err.print(f"error: {message}", markup=False, highlight=False)
    raise typer.Exit(code)


for advice in (estimate, recommend, backtest, fit):
    app.command()(_one_line_errors()(advice))
app.command()(_one_line_errors()(explain_command(Wiring(_world, _pair))))
app.command()(_one_line_errors()(webhook_command(log_to_stderr)))
