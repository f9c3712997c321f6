"""The demo: a town that makes sense for every seed, a summary that adds up, and short runs as a real process."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from agent.simulate.scenario import load_scenario
from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import DeviceStatus, Observed, QuotaStatus, WorkerStatus
from autoscaler.demo.manifests import manifests
from autoscaler.demo.processes import Truth
from autoscaler.demo.run import START, DemoOptions, check
from autoscaler.demo.scenario import scenario
from autoscaler.demo.services import town
from autoscaler.demo.summary import DemoResult, Shown, shown, totals
from autoscaler.demo.surge import Surge, demand_tflops, limit_in_force_tflops
from autoscaler.demo.view import clock, print_result
from autoscaler.errors import ConfigError
from autoscaler.gateways.folder import FolderCluster
from autoscaler.model.resources import GIB, Resource
from autoscaler.model.snapshot import NodeState
from autoscaler.read.discovery import discover
from autoscaler.read.manifests import validate_files

COMMAND = (sys.executable, "-m", "autoscaler", "demo")
ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 300.0
HOUR = 3600.0
DAY = 24 * HOUR

seeds = st.integers(min_value=0, max_value=2**32)
durations = st.integers(min_value=60, max_value=7 * 24 * 60).map(lambda minutes: 60.0 * minutes)


class Clock:
    def now(self) -> float:
        return START


# the town


def test_equal_seeds_give_equal_towns_and_others_differ():
    assert town(3, DAY) == town(3, DAY)
    assert town(3, DAY) != town(4, DAY)


@given(seeds, durations)
def test_the_surge_is_three_times_the_limit_that_its_owner_set_and_comes_on_a_whole_minute_inside_the_run(
    seed, duration
):
    place = town(seed, duration)
    surging = next(service for service in place.services if service.name == place.surging)
    after = surging.parameters["tflops"] * surging.parameters["factor_ratio"]
    assert after == pytest.approx(3 * surging.amounts.compute.limit)
    assert 0 < place.surge_at < duration - 3 * 60
    assert place.surge_at % 60 == 0


@given(seeds, durations)
def test_what_the_owners_reserved_fits_on_every_device(seed, duration):
    place = town(seed, duration)
    for device in place.devices:
        reserved = sum(service.amounts.vram.request * service.workers.count(device.uuid) for service in place.services)
        assert 0 < reserved <= device.vram_bytes


def test_the_town_has_a_dozen_workloads_all_characters_and_all_levels_on_two_nodes():
    place = town(1, DAY)
    assert len(place.services) >= 12
    assert {service.character for service in place.services} == {
        "diurnal", "bursty", "nightly", "idle", "outgrower", "step", "ramp", "steady"
    }  # fmt: skip
    assert {str(service.qos) for service in place.services} == {"low", "medium", "high", "critical"}
    assert place.nodes == ("gpu-node-a", "gpu-node-b")
    assert sum(service.profile == "small-model" for service in place.services) == 2


def test_one_service_outgrows_the_vram_that_its_owner_gave_it():
    outgrower = next(service for service in town(1, DAY).services if service.character == "outgrower")
    assert outgrower.parameters["vram_bytes"] < outgrower.amounts.vram.limit < outgrower.parameters["peak_vram_bytes"]


@pytest.mark.parametrize("seed", [0, 1, 2**31])
def test_the_agent_accepts_the_scenarios_and_finds_every_worker_once(tmp_path, seed):
    place, pods = town(seed, DAY), []
    for node in place.nodes:
        (tmp_path / node).write_text(scenario(place, node, START))
        read = load_scenario(tmp_path / node)
        assert read.node == node
        pods += [worker.pod for worker in read.workers]
    assert sorted(pods) == sorted(
        f"{service.name}-{number}" for service in place.services for number in range(len(service.workers))
    )
    assert len(
        {worker["seed"] for node in place.nodes for worker in json.loads(scenario(place, node, START))["workers"]}
    ) == len(pods)


async def test_the_manifests_are_valid_and_say_what_the_owners_reserved(tmp_path):
    place = town(1, DAY)
    for name, text in manifests(place, START).items():
        (tmp_path / name).write_text(text)
    assert validate_files([tmp_path]).ok
    view = await FolderCluster(tmp_path, Clock()).read()
    found = discover(view, {})
    assert not view.problems
    assert not found.problems
    assert not found.broken
    amounts = {workload.key.name: workload.current for workload in found.workloads}
    assert amounts == {service.name: service.amounts for service in place.services}
    levels = {workload.key.name: workload.config.qos for workload in found.workloads}
    assert levels == {service.name: service.qos for service in place.services}


# options


def test_a_duration_below_an_hour_and_a_folder_that_holds_something_are_refused_together(tmp_path):
    (tmp_path / "mine.yaml").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        check(DemoOptions(duration_seconds=1800.0, keep=tmp_path))
    assert [problem.path for problem in caught.value.problems] == ["--duration", "--keep"]


def test_an_empty_folder_and_one_that_is_not_there_may_be_kept(tmp_path):
    check(DemoOptions(keep=tmp_path))
    check(DemoOptions(keep=tmp_path / "new"))


# the surge


SURGE = Surge("sale", owner_limit_tflops=40.0, stepped_at_seconds=600.0, evaluation_period_seconds=60.0)


def test_the_surge_is_covered_in_the_first_minute_in_which_the_limit_in_force_reaches_the_demand():
    surge = SURGE
    for at, demand, limit in ((600, 20, 40), (660, 120, 80), (720, 120, 320), (780, 500, 100)):
        surge = surge.seen(float(at), float(demand), float(limit))
    assert (surge.limit_before_tflops, surge.covered_at_seconds, surge.limit_tflops) == (40.0, 720.0, 320.0)
    assert surge.periods == 2
    assert surge.recovered
    assert "3 times the 40 in force" in surge.sentence()


@pytest.mark.parametrize(("covered_at", "recovered"), [(780.0, True), (781.0, False), (None, False)])
def test_three_evaluation_periods_keep_the_promise_and_any_more_break_it(covered_at, recovered):
    surge = replace(
        SURGE, covered_at_seconds=covered_at, limit_before_tflops=40.0, demand_tflops=120.0, limit_tflops=150.0
    )
    assert surge.recovered is recovered
    assert ("never covered" in surge.sentence()) is (covered_at is None)


def test_a_limit_that_nobody_tells_covers_nothing():
    assert SURGE.seen(660.0, 120.0, math.nan).covered_at_seconds is None


def truth(workload: str = "sale", **figures) -> Truth:
    return Truth(
        **{
            "workload": workload, "pod": f"{workload}-0", "seconds": HOUR, "demand_tflops_seconds": 100 * HOUR,
            "used_tflops_seconds": 75 * HOUR, "request_tflops_seconds": 30 * HOUR,
            "request_vram_byte_seconds": 2.0 * GIB * HOUR, "throttled_seconds": 1800.0, "down_seconds": 0.0, "ooms": 0,
            **figures,
        }
    )  # fmt: skip


def test_demand_is_the_mean_between_two_truths_of_that_workload_alone():
    before = (truth(seconds=60.0, demand_tflops_seconds=1200.0), truth("other"))
    after = (truth(seconds=120.0, demand_tflops_seconds=8400.0), truth("other", seconds=9e9))
    assert demand_tflops("sale", before, after) == 120.0
    assert math.isnan(demand_tflops("sale", after, after))


def node(*limits: float | None) -> NodeState:
    workers = tuple(
        WorkerStatus(
            f"uid-{number}",
            "default",
            f"sale-{number}",
            "sale",
            (DeviceStatus("GPU-0", True, Effect.IMMEDIATE, Observed(limit)),),
        )
        for number, limit in enumerate(limits)
    )
    return NodeState("n", quotas=QuotaStatus("n", 1, 1, workers))


def test_the_limit_in_force_is_the_smallest_that_a_node_observes():
    assert limit_in_force_tflops("sale", {"n": node(80.0, 40.0, None)}) == 40.0
    assert math.isnan(limit_in_force_tflops("sale", {"n": node(None), "away": NodeState("away", error="gone")}))


# the summary


def test_totals_add_up_in_hours_and_shares():
    found = totals((truth(), truth(used_tflops_seconds=100 * HOUR, throttled_seconds=0.0, down_seconds=7200.0, ooms=3)))
    assert (found.reserved_tflops_hours, found.used_tflops_hours, found.reserved_vram_gib_hours) == (60.0, 175.0, 4.0)
    assert (found.unserved_ratio, found.throttled_hours, found.down_hours, found.ooms) == (0.125, 0.5, 2.0, 3)


def result(**changes) -> DemoResult:
    one = Shown("sale", "high", "req,lim", {}, {}, 1, 1, "1/1", "immediate", "Applied", {}, "")
    surge = replace(SURGE, covered_at_seconds=720.0, limit_before_tflops=40.0, demand_tflops=120.0, limit_tflops=320.0)
    same = totals((truth(),))
    made = DemoResult(1, DAY / 2, same, replace(same, reserved_tflops_hours=15.0), (one,), {"sale": 6}, surge)
    return replace(made, **changes)


def test_a_good_run_breaks_no_promise_and_counts_its_changes_per_day():
    assert list(result().broken_promises()) == []
    assert result().changes_per_workload_day == 12.0


@pytest.mark.parametrize("applied", ["0/1", ""])
def test_a_worker_that_did_not_acknowledge_is_a_broken_promise(applied):
    broken = result(workloads=(replace(result().workloads[0], applied=applied),))
    assert [text.split(":")[0] for text in broken.broken_promises()] == ["sale"]


def test_a_surge_that_is_never_covered_is_a_broken_promise():
    assert list(result(surge=SURGE).broken_promises()) == [SURGE.sentence()]


def test_a_status_that_was_never_written_is_shown_as_unknown():
    (one,) = shown([{"kind": "TensorFusionWorkload", "metadata": {"name": "new"}, "spec": {"replicas": 2}}])
    assert (one.name, one.replicas, one.applied, one.effect, one.reason) == ("new", 2, "", None, {})


def test_the_printed_summary_compares_both_runs():
    out = StringIO()
    print_result(Console(file=out, width=120), result())
    assert "-50.0%" in out.getvalue()
    assert "6 changes, 12.0 per workload and day" in out.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(0, "00:00"), (3660, "01:01"), (86400 + 3600, "day 2 01:00")])
def test_moments_are_told_as_clocks_tell_them(seconds, text):
    assert clock(seconds) == text


# as a process


def demo(*arguments: object, temporary: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=ROOT, env=os.environ | {"TMPDIR": str(temporary), "TERM": "dumb"},
        capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same hour twice: as JSON, and with its folder kept."""
    temporary = tmp_path_factory.mktemp("temporary")
    kept = tmp_path_factory.mktemp("demo") / "kept"
    first = demo("--duration", "1h", "--seed", 7, "-o", "json", temporary=temporary)
    second = demo("--duration", "1h", "--seed", 7, "-o", "json", "--keep", kept, temporary=temporary)
    return first, second, kept, temporary


@pytest.mark.integration
def test_the_surge_recovers_every_worker_acknowledges_and_the_demo_exits_with_0(runs):
    first = runs[0]
    assert (first.returncode, first.stderr) == (0, "")
    told = json.loads(first.stdout)
    assert (told["seed"], told["duration_seconds"], told["broken_promises"]) == (7, 3600, [])
    surge = told["surge"]
    assert surge["recovered"]
    assert 0 < surge["covered_at_seconds"] - surge["stepped_at_seconds"] <= 180
    assert surge["limit_tflops"] >= surge["demand_tflops"] >= 3 * surge["owner_limit_tflops"]
    for workload in told["workloads"]:
        assert {"current", "recommended", "applied", "effect", "reason"} <= workload.keys()
        assert workload["current"]["requests"].keys() == workload["recommended"]["limits"].keys() == {"tflops", "vram"}
        assert workload["applied"] in {"1/1", "2/2"}
        assert workload["reason"]["tflops"]


@pytest.mark.integration
def test_the_static_run_holds_what_the_owners_reserved_and_suffers_for_it(runs):
    summary = json.loads(runs[0].stdout)["summary"]
    reserved = sum(service.amounts.compute.request * len(service.workers) for service in town(7, HOUR).services)
    assert summary["static"]["reserved_tflops_hours"] == pytest.approx(reserved)
    assert summary["autoscaled"]["reserved_tflops_hours"] < reserved
    assert summary["static"]["ooms"] > summary["autoscaled"]["ooms"]
    assert summary["static"]["unserved_ratio"] > summary["autoscaled"]["unserved_ratio"]
    assert summary["changes"] > 0


@pytest.mark.integration
def test_equal_seeds_give_equal_runs(runs):
    assert runs[0].stdout == runs[1].stdout


@pytest.mark.integration
async def test_a_kept_folder_holds_the_workloads_as_they_were_shown_and_nothing_else_stays(runs):
    _, second, kept, temporary = runs
    view = await FolderCluster(kept, Clock()).read()
    assert not view.problems
    names = [workload["metadata"]["name"] for workload in view.workloads]
    assert sorted(names) == [workload["name"] for workload in json.loads(second.stdout)["workloads"]]
    amounts = {workload.key.name: workload.current for workload in discover(view, {}).workloads}
    assert amounts["flash-sale"][Resource.COMPUTE].limit > 100
    assert list(temporary.iterdir()) == []


@pytest.mark.integration
def test_options_that_cannot_be_used_are_told_in_a_line_with_exit_code_2(tmp_path):
    ended = demo("--duration", "10m", temporary=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert "at least 1h" in ended.stderr


@pytest.mark.integration
@pytest.mark.parametrize(("sign", "moment"), [(signal.SIGINT, "starting"), (signal.SIGTERM, "running")])
def test_an_interrupted_demo_leaves_no_process_and_no_folder_behind(tmp_path, sign, moment):
    process = subprocess.Popen(
        COMMAND, cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path), "TERM": "dumb"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        agents = _agents_of(process)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(1 if moment == "starting" else 2)]
        process.send_signal(sign)
        out, errors = process.communicate(timeout=DEADLINE_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 1, errors
    assert errors == "interrupted: all agents have ended\n"
    assert all(lines)
    assert "\x1b" not in out
    assert [agent for agent in agents if agent.is_running() and agent.status() != psutil.STATUS_ZOMBIE] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.integration
def test_an_agent_that_dies_ends_the_demo_with_a_sentence_and_leaves_nothing_behind(tmp_path):
    process = subprocess.Popen(
        COMMAND, cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path), "TERM": "dumb"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        agents = _agents_of(process)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        agents[0].kill()
        _, errors = process.communicate(timeout=DEADLINE_SECONDS)
    finally:
        process.kill()
    assert all(lines)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("error: gpu-node-a: ")
    assert [agent for agent in agents if agent.is_running() and agent.status() != psutil.STATUS_ZOMBIE] == []
    assert list(tmp_path.iterdir()) == []


def _agents_of(process: subprocess.Popen) -> list[psutil.Process]:
    end = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < end:
        children = psutil.Process(process.pid).children(recursive=True)
        if len(children) == 4:
            return children
        time.sleep(0.02)
    raise AssertionError(f"four agents did not start within {DEADLINE_SECONDS} s")
