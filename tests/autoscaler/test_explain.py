"""Explanations for a person: worked cases word for word, where they come from, and what goes wrong."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner

from autoscaler.cli import app
from autoscaler.contract.keys import QoS
from autoscaler.controller import World
from autoscaler.errors import ClusterError
from autoscaler.explain import dry_run_account, write_plot
from autoscaler.gateways.folder import FolderCluster
from autoscaler.model.config import LimitsPolicy, Mode, RequestsPolicy
from autoscaler.model.decision import Field
from autoscaler.model.reasons import Cause, Verdict
from autoscaler.model.record import Estimated, FigureRecord, Record, Step
from autoscaler.model.resources import GIB, Resource
from autoscaler.model.usage import WorkloadKey
from autoscaler.report.account import Account, Lines, account_data, account_from
from autoscaler.report.explain import explained
from autoscaler.report.server import Health, application, serve
from autoscaler.report.terminal import terminal_plot
from tests.autoscaler.stage import Stage, with_config
from tests.autoscaler.test_controller import Town

LLM = WorkloadKey("default", "llm")


def part(lines: list[str], headline: str) -> str:
    """One figure's paragraph."""
    first = next(place for place, line in enumerate(lines) if line.startswith(headline))
    last = next((place for place in range(first, len(lines)) if not lines[place]), len(lines))
    return "\n".join(lines[first:last])


def told(stage: Stage) -> list[str]:
    return explained(Account(stage.records[-1]))


@pytest.fixture
def town(tmp_path: Path) -> Town:
    """Forty minutes of a busy workload beside an idle one, with a controller that passed every minute."""
    built = Town(tmp_path)
    built.deploy("llm")
    built.deploy("llm-eval")
    for _ in range(40):
        asyncio.run(built.minute({"llm": 8.0, "llm-eval": 0.5}))
    return built


@pytest.fixture
def served(town: Town) -> Iterator[str]:
    """The controller's own server, on a thread of its own."""
    loop, ready, url = asyncio.new_event_loop(), threading.Event(), []

    async def start() -> object:
        health = Health(lambda: 0.0, 60.0)
        runner, port = await serve(
            application(lambda: b"", health, lambda: 0.0, town.controller.ledger), "127.0.0.1", 0
        )
        url.append(f"http://127.0.0.1:{port}")
        ready.set()
        return runner

    def turn() -> None:
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())  # type: ignore[attr-defined]
        loop.close()

    thread = threading.Thread(target=turn)
    thread.start()
    assert ready.wait(10)
    yield url[0]
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    assert not thread.is_alive()


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["explain", *arguments])
    return result.exit_code, result.stdout, result.stderr


AT = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC
TERMS = {
    "original": 20.0, "minimum": 0.1, "maximum": math.inf, "device": 989.0, "dead_band_ratio": 0.05,
    "evaluation_seconds": 60.0, "stabilization_seconds": 300.0, "up_cool_down_seconds": 0.0,
    "down_cool_down_seconds": 600.0,
}  # fmt: skip


def told_of(field: Field, current: float, estimated: Estimated, steps: tuple[Step, ...], **changes: object) -> str:
    """One figure's paragraph, all other figures left out."""
    after = steps[-1].after if steps else estimated.figure
    figure = FigureRecord(
        field=field, mode=Mode.ON, current=current, estimated=estimated, recommended=estimated.figure,
        recommended_steps=(), allowed=after, allowed_steps=steps, cause=estimated.cause, verdict=Verdict.PASSED,
        evaluated_at=AT, terms=TERMS,
    )  # fmt: skip
    record = Record(LLM, QoS.HIGH, AT, 1440.0, AT - 86400, AT - 20, (replace(figure, **changes),))  # type: ignore[arg-type]
    return "\n".join(explained(Account(record))[3:])


def test_a_clipped_limit_is_told_with_the_step_that_it_takes():
    inputs = {
        "percentile": math.nan, "request": 10.0, "peak_7d": 23.0, "ratio_to_request": 5.0, "visible_limit": 35.3,
        "use": 19.8, "saturated_samples": 1.0, "step": 2.0,
    }  # fmt: skip
    saturated = Estimated(40.0, 33.6, 44.1, Cause.SATURATED, True, inputs)
    assert (
        told_of(Field.COMPUTE_LIMIT, 20.0, saturated, ())
        == """\
compute limit: 20 TFLOPs → 40 TFLOPs
  seen     request 10 TFLOPs, peak 7d 23 TFLOPs, ratio to request 5, visible limit 35.3 TFLOPs,
           use 19.8 TFLOPs, saturated samples 1, step 2
  led to   2 x 20, at least what was learnt; 40 TFLOPs: Saturated, use is clipped at the limit,
           so demand is unknown and the limit probes upward
  guards   none changed it
  to move  up when use reaches 28.11 TFLOPs, which counts as clipped; up when the rule asks for
           more than 42 TFLOPs; down when it asks for less than 32 TFLOPs for 5m, 10m after the
           last change at the earliest"""
    )


def test_a_request_that_is_too_large_is_told_with_the_time_that_its_evidence_still_takes():
    inputs = {
        "percentile": 0.97, "quantile": 7.0, "buffer_ratio": 0.15, "floor": 1.82, "peak_7d": 18.2,
        "peak_above_request": math.nan, "surplus_minutes": 20.0, "surplus_level_minutes": 25.0,
    }  # fmt: skip
    unchanged = Estimated(10.0, 7.0, 8.05 / 0.9, Cause.UNCHANGED, False, inputs)
    terms = {**TERMS, "exceedances": 2.0}
    assert (
        told_of(Field.COMPUTE_REQUEST, 10.0, unchanged, (), terms=terms, recommended=10.0)
        == """\
compute request: stays 10 TFLOPs
  seen     percentile 0.97, quantile 7 TFLOPs, buffer ratio 0.15, floor 1.82 TFLOPs, peak 7d
           18.2 TFLOPs, surplus minutes 20, surplus level minutes 25
  led to   max(7 x (1 + 0.15), floor 1.82) = 8.05; 10 TFLOPs: Unchanged, the figure in force is
           inside the band
  guards   none changed it
  to move  up when the 0.97 quantile of use passes 10 TFLOPs (now 7 TFLOPs); up when use stays
           above 10 TFLOPs in 2 samples within 30m; down when the estimate stays at 8.05 TFLOPs,
           below 9 TFLOPs, for about 26m more"""
    )


def test_growth_that_the_devices_cut_short_is_told_with_what_they_had_free():
    inputs = {
        "percentile": 0.95, "working_level": 8.0 * GIB, "buffer_ratio": 0.1, "live": 8.0 * GIB, "oom_floor": math.nan,
    }  # fmt: skip
    raised = Estimated(8.8 * GIB, 8.0 * GIB, 9.8 * GIB, Cause.RAISED, False, inputs)
    steps = (
        Step("published", Verdict.PASSED, 8.8 * GIB, 9.0 * GIB, {"most": 80.0 * GIB}),
        Step(
            "capacity", Verdict.CAPACITY_LIMITED, 9.0 * GIB, 5.5 * GIB,
            {"room": 1.5 * GIB, "free": 3.0 * GIB, "workers_on_device": 2.0},
        ),
    )  # fmt: skip
    assert (
        told_of(Field.VRAM_REQUEST, 4.0 * GIB, raised, steps)
        == """\
VRAM request: 4Gi → 5.5Gi, recommended 8.8Gi
  seen     percentile 0.95, working level 8Gi, buffer ratio 0.1, live 8Gi
  led to   max(live 8Gi, working level 8Gi) x (1 + 0.1), at most the ceiling; 8.8Gi: Raised, the
           estimate is above the figure in force
  guards   8.8Gi → 9Gi (published: rounded up to whole MiB); then 9Gi → 5.5Gi (capacity: room
           for 1.5Gi more per worker; the tightest device had 3Gi free for 2 of its workers and
           all others)
  to move  up when live use or the working level passes 5Gi, or after an out-of-memory event;
           down when the estimate is below 5.225Gi for 5m, 10m after the last change at the
           earliest"""
    )


def test_a_shrink_that_waits_is_told_with_the_moment_until_which_it_waits():
    stage = Stage()
    stage.run(33, 3.0)
    text = part(told(stage), "VRAM limit")
    assert "VRAM limit: held at 8Gi, recommended 2." in text
    flat = " ".join(text.split())
    assert "held at 8Gi (stabilization: it must stay low for 5m, until 00:36:00 (3m))" in flat
    assert flat.endswith("not before that: it waits until 00:36:00 (3m)")


def test_a_layer_that_is_off_is_told_as_advice_that_nobody_takes():
    stage = Stage(with_config(requests=RequestsPolicy(mode=Mode.RECOMMEND), limits=LimitsPolicy()))
    stage.run(60, 3.0)
    text = part(told(stage), "compute request")
    assert "the layer is set to recommend only" in text
    assert "to move  auto-requests only recommends: up when" in text
    assert "auto-limits is off" in part(told(stage), "compute limit")


def test_every_line_fits_the_width_and_every_figure_says_what_would_move_it():
    stage = Stage()
    stage.run(90, lambda at: 20.0 if at % 30 < 8 else 1.0)
    for width in (80, 100):
        lines = explained(Account(stage.records[-1]), width)
        assert max(map(len, lines)) <= width
        assert sum(line.startswith("  to move") for line in lines) == len(Field)


def test_an_account_survives_json_bit_for_bit(town: Town):
    account = town.controller.ledger.account(LLM)
    assert account is not None
    assert account.lines[Resource.COMPUTE].use
    again = account_from(json.loads(json.dumps(account_data(account), allow_nan=False)))
    assert account_data(again) == account_data(account)


def test_the_ledger_knows_the_changes_and_the_use_of_a_running_controller(town: Town):
    account = town.controller.ledger.account(LLM)
    assert account is not None
    assert account.changes
    assert all(change.before != change.after for change in account.changes)
    compute = account.lines[Resource.COMPUTE]
    assert max(value for _, value in compute.use if not math.isnan(value)) == pytest.approx(8.0, rel=0.05)
    assert compute.limit[0][1] == 20.0


def test_a_running_controller_is_asked_for_text_json_and_plot(served: str, tmp_path: Path):
    plot = tmp_path / "plot.svg"
    code, out, _ = run("default/llm", "--controller", served, "--plot", str(plot))
    assert code == 0
    assert out.startswith("default/llm at 2027-01-15 ")
    assert "last changes" in out
    assert "█ use" in out or "▅ use" in out
    assert len(ET.fromstring(plot.read_text())) == 2
    code, out, _ = run("llm", "--controller", served, "-o", "json")
    assert (code, json.loads(out)["record"]["name"]) == (0, "llm")


def test_an_unknown_workload_is_one_line_that_names_the_near_ones_and_exits_1(served: str):
    code, out, err = run("default/lmm", "--controller", served)
    assert (code, out) == (1, "")
    assert err == "error: there is no workload default/lmm; near: default/llm, default/llm-eval\n"
    assert "near: default/llm" in run("other/llm", "--controller", served)[2]


def test_a_dry_run_tells_the_same_figures_and_writes_nothing(town: Town, tmp_path: Path):
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.yaml")}
    controller = town.start()
    world = World(town.clock, town.history, FolderCluster(tmp_path, town.clock), town.agents)
    account = asyncio.run(dry_run_account(world, controller.settings, LLM, 1800.0))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.yaml")} == before
    asked = town.controller.ledger.account(LLM)
    assert asked is not None
    for field in Field:
        assert account.record[field].estimated.inputs.get("quantile", 0.0) == pytest.approx(
            asked.record[field].estimated.inputs.get("quantile", 0.0), nan_ok=True
        )
    assert len(account.lines[Resource.VRAM].use) == 30
    with pytest.raises(ClusterError, match="no workload default/llmm; near: default/llm"):
        asyncio.run(dry_run_account(world, controller.settings, WorkloadKey("default", "llmm"), 1800.0))


def test_a_controller_that_is_away_or_is_none_is_one_line_and_exits_1(served: str):
    code, _, err = run("llm", "--controller", "http://127.0.0.1:1")
    assert (code, err.count("\n")) == (1, 1)
    code, _, err = run("llm", "--controller", served + "/metrics")
    assert (code, err.count("\n")) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("a/b/c",), "NAMESPACE/NAME"),
        (("llm",), "--controller URL, or --prometheus-url"),
        (("llm", "--window", "5min"), "--window"),
        (("llm", "--window", "1s"), "at least 1m"),
        (("llm", "--controller", "here"), "a URL"),
        (("llm", "--plot", "plot.gif"), ".svg or .png"),
    ],
)
def test_a_wrong_option_is_one_line_that_says_what_is_allowed_and_exits_2(arguments: tuple[str, ...], named: str):
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert named in err


def test_the_terminal_plot_tells_use_request_and_limit_apart_without_colour():
    minutes = range(0, 7200, 60)
    lines = Lines(
        use=tuple((at, math.nan if 2000 < at < 3000 else 8.0 * (at >= 3600)) for at in map(float, minutes)),
        request=((0.0, 10.0), (7140.0, 10.0)),
        limit=((0.0, 20.0), (7140.0, 20.0)),
    )
    title, *rows = terminal_plot(lines, Resource.COMPUTE, width=60, height=9)
    assert title == "compute, TFLOPs: ▅ use  ─ request  ═ limit"
    assert all(len(row) <= 60 for row in rows)
    assert rows[0].split("│") == ["     20 ", "═" * 51]
    assert rows[4].split("│") == ["     10 ", "─" * 51]
    bottom = rows[8].split("│")[1]
    assert set(bottom[:14]) == {"▁"}
    assert " " in bottom[15:21]
    assert bottom.endswith("█")
    assert rows[-1].split() == ["01-01", "00:00", "01:00", "01:30"]


def test_a_plot_without_samples_says_so(tmp_path: Path):
    assert terminal_plot(Lines(), Resource.VRAM)[1] == "  nothing measured yet"
    stage = Stage()
    stage.run(1, 1.0, GIB)
    write_plot(tmp_path / "empty.svg", Account(stage.records[-1]))
    assert (tmp_path / "empty.svg").read_text().count("nothing measured yet") == 2
