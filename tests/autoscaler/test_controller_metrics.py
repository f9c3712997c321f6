"""What the controller tells Prometheus about itself, and whether it is alive."""

from __future__ import annotations

import asyncio
import math
import shutil
import subprocess
import threading

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from autoscaler.contract.quota import DevicesStatus, QuotaDocument
from autoscaler.errors import RefusedError
from autoscaler.gateways.agents_memory import MemoryAgents
from autoscaler.model.decision import Field
from autoscaler.model.reasons import Cause, Verdict
from autoscaler.report.metrics import CONTROLLER_METRICS, ControllerMetrics
from autoscaler.report.server import Health, application, serve
from autoscaler.report.timed import TimedEnforcement
from tests.autoscaler.apply_cases import KEY, decision, figure

LIMIT = Field.COMPUTE_LIMIT


def fed():
    """Metrics of a controller in which everything has happened once."""
    metrics = ControllerMetrics()
    metrics.pass_seconds.labels("read").observe(0.1)
    metrics.query_seconds.observe(0.2)
    metrics.push_seconds.observe(0.02)
    metrics.api_written("patch", "200")
    metrics.workloads.set(3)
    metrics.stale_workloads.set(1)
    metrics.leader.set(1)
    saturated = figure(LIMIT, 20.0, 40.0, cause=Cause.SATURATED, inputs={"use": 19.8})
    held = figure(Field.VRAM_LIMIT, 4.0, 3.0, allowed=4.0, cause=Cause.SURPLUS, verdict=Verdict.STABILIZING)
    metrics.decided(decision({LIMIT: saturated, Field.VRAM_LIMIT: held}))
    return metrics


def samples(metrics):
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def value(metrics, name, **labels):
    return samples(metrics).get((f"tensor_fusion_autoscaler_{name}", tuple(sorted(labels.items()))))


def test_moves_and_holds_are_counted_by_layer_direction_and_reason():
    metrics = fed()
    assert value(metrics, "decisions_total", layer="limits", direction="up", reason="Saturated") == 1
    assert value(metrics, "decisions_total", layer="limits", direction="hold", reason="Stabilizing") == 1
    assert sum(v for (name, _), v in samples(metrics).items() if name.endswith("decisions_total")) == 2


def test_targets_and_what_is_applied_are_per_resource_and_side():
    metrics = fed()
    where = {"namespace": "prod", "workload": "chat", "resource": "vram", "side": "limit"}
    assert value(metrics, "recommendation_target", **where) == 3.0
    assert value(metrics, "recommendation_applied", **where) == 4.0


async def test_each_push_to_an_agent_is_timed_a_refused_one_too():
    metrics, agents = ControllerMetrics(), MemoryAgents([DevicesStatus("node-a", ())])
    timed = TimedEnforcement(agents, metrics.push_seconds)
    await timed.push(QuotaDocument(1, 1, "node-a", ()))
    with pytest.raises(RefusedError):
        await timed.push(QuotaDocument(0, 1, "node-a", ()))
    assert value(metrics, "quota_push_seconds_count") == 2


def test_the_ratios_are_of_use_to_target_and_of_change_to_before():
    metrics = fed()
    assert value(metrics, "usage_over_recommendation_ratio_sum") == pytest.approx(19.8 / 40)
    assert value(metrics, "relative_change_ratio_sum") == pytest.approx(1.0)


def test_an_unknown_figure_has_no_series_and_counts_nothing():
    metrics = ControllerMetrics()
    metrics.decided(decision({LIMIT: figure(LIMIT, 20.0, math.nan, allowed=math.nan, inputs={"use": math.nan})}))
    where = {"namespace": "prod", "workload": "chat", "resource": "tflops", "side": "limit"}
    assert value(metrics, "recommendation_target", **where) is None
    assert value(metrics, "usage_over_recommendation_ratio_count") == 0
    assert not [name for name, _ in samples(metrics) if name.endswith("decisions_total")]


def test_a_workload_that_is_gone_has_no_series():
    metrics = fed()
    metrics.keep([KEY])
    assert value(metrics, "recommendation_target", namespace="prod", workload="chat", resource="tflops", side="limit")
    metrics.keep([])
    assert not [name for name, _ in samples(metrics) if name.endswith("recommendation_target")]


def test_every_family_of_the_table_is_exported_and_no_other():
    exported = {family.name for family in text_string_to_metric_families(fed().render().decode())}
    assert exported == {family.name.removesuffix("_total") for family in CONTROLLER_METRICS}


def test_labels_are_those_of_the_table():
    table = {family.name: set(family.labels) for family in CONTROLLER_METRICS}
    for name, labels in samples(fed()):
        base = next(known for known in (name, name.rsplit("_", 1)[0]) if known in table)
        assert {label for label, _ in labels} - {"le"} == table[base]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_complain_about():
    found = subprocess.run(
        ["promtool", "check", "metrics"], input=fed().render(), capture_output=True, timeout=300, check=False
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")


class Monotonic:
    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
async def served():
    clock = Monotonic()
    health = Health(clock, stuck_after_seconds=90.0)
    rendered: list[int] = []

    def render() -> bytes:
        rendered.append(threading.get_ident())
        return b"up 1\n"

    runner, port = await serve(application(render, health, clock), "127.0.0.1", 0)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        yield clock, health, rendered, session
    await runner.cleanup()


async def test_ready_only_after_a_pass_and_alive_from_the_start(served):
    _, health, _, session = served
    assert (await session.get("/healthz")).status == 200
    assert (await session.get("/readyz")).status == 503
    health.turned(passed=False)
    assert (await session.get("/readyz")).status == 503
    health.turned()
    answer = await session.get("/readyz")
    assert (answer.status, await answer.text()) == (200, "ok\n")


async def test_a_stuck_loop_is_unhealthy_until_it_turns_again(served):
    clock, health, _, session = served
    health.turned()
    clock.at += 91
    answer = await session.get("/healthz")
    assert answer.status == 503
    assert await answer.text() == "the loop has not turned for 91 s (stuck after 90 s)\n"
    assert (await session.get("/readyz")).status == 503
    health.turned(passed=False)
    assert (await session.get("/healthz")).status == 200


async def test_a_standby_is_ready_while_it_sees_who_leads_and_alive_in_any_case(served):
    clock, health, _, session = served
    health.stood_by("other-0")
    answer = await session.get("/readyz")
    assert (answer.status, await answer.text()) == (200, "ok: standing by, other-0 leads\n")
    health.stood_by("other-0", "connection refused")
    answer = await session.get("/readyz")
    assert (answer.status, "connection refused" in await answer.text()) == (503, True)
    clock.at += 89
    health.stood_by("", "connection refused")
    clock.at += 89
    assert (await session.get("/healthz")).status == 200
    health.leads()
    assert (await session.get("/readyz")).status == 503
    health.turned()
    assert (await session.get("/readyz")).status == 200


async def test_scrapes_share_one_rendering_made_off_the_loop(served):
    clock, _, rendered, session = served
    answers = await asyncio.gather(*(session.get("/metrics") for _ in range(5)))
    assert {await answer.text() for answer in answers} == {"up 1\n"}
    assert answers[0].headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert len(rendered) == 1
    assert rendered[0] != threading.get_ident()
    clock.at += 6
    await session.get("/metrics")
    assert len(rendered) == 2


async def test_a_port_that_is_taken_is_an_error():
    health = Health(Monotonic(), 90.0)
    runner, port = await serve(application(bytes, health, Monotonic()), "127.0.0.1", 0)
    try:
        with pytest.raises(OSError):
            await serve(application(bytes, health, Monotonic()), "127.0.0.1", port)
    finally:
        await runner.cleanup()
