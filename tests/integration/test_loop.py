"""The loop on real parts: NVML's own interface, the agent, Prometheus and the controller as processes, step by step.

The chapters of one story, in order; each makes the state from which it begins and waits for it. Demand of a worker
passes its limit, falls, and everything around it is stopped or killed once. Only the GPU is a stand-in: the driver's
library, compiled from C. Nothing depends on how fast the machine is: where a chapter needs stillness it pauses the
workload as its owner would, or keeps the controller between two passes, and it counts by what the controller read.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.agent.nvml_standin import GIB
from tests.integration import worlds
from tests.integration.manifests import FIGURES, LIMIT_TFLOPS, STABILIZATION_SECONDS
from tests.integration.prometheus_server import require_prometheus
from tests.integration.recorded import LIMIT_METRIC, evaluations
from tests.integration.simulated_worker import TFLOPS
from tests.integration.states import (
    LITTLE_TFLOPS,
    LITTLE_VRAM_BYTES,
    SATURATION,
    in_force,
    make_still,
    metrics_gone,
    observed,
    peaks_read,
    saturated_push,
    shown_in_sync,
    shrink_waiting,
    shrinks,
    status_at,
    told_saturation,
)
from tests.integration.story import BIN_SECONDS, Story, staged

pytestmark = pytest.mark.integration

DEMAND_TFLOPS = 3 * LIMIT_TFLOPS
EVALUATIONS = 3
USED = "tensor_fusion_worker_compute_used_tflops"


@pytest.fixture(scope="module", params=["folder", "api_server"])
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    require_prometheus()
    folder = tmp_path_factory.mktemp(request.param)
    world = {"folder": worlds.folder_world, "api_server": worlds.api_server_world}[request.param]
    with world(folder) as cluster, staged(cluster, folder) as stage:
        yield stage


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a line of the report, whether or not the test passes."""

    def said(text: str) -> None:
        with capsys.disabled():
            print(f"\n    {text}", end="", flush=True)

    return said


@contextmanager
def chapter(story: Story, number: int) -> Iterator[None]:
    """Tell a chapter: only after the one before, and with the logs of all processes where it fails."""
    assert number == 1 or number - 1 in story.done, f"chapter {number - 1} was not told to its end"
    try:
        yield
    except Exception as error:
        error.add_note(story.tails())
        raise
    story.done.add(number)


def test_a_demand_of_three_times_the_limit_is_covered_within_three_evaluations(story, say):
    with chapter(story, 1):
        worker = story.worker
        worker.demand_tflops, worker.demand_vram_bytes = LITTLE_TFLOPS, 6 * GIB
        story.until("the limits of birth are in force", lambda: story.limit_tflops() == LIMIT_TFLOPS)
        story.until("Prometheus has the worker's series", lambda: story.series(LIMIT_METRIC) == LIMIT_TFLOPS)
        story.write_pause("down")
        story.controller.start()
        story.until("history is read", story.passes)
        say(
            f"use is {worker.demand_tflops:g} TFLOPs, the limit in force {LIMIT_TFLOPS:g}: at the agent and in Prometheus"
        )

        worker.demand_tflops = DEMAND_TFLOPS
        use, in_status = story.until_after_a_pass("a saturated limit is raised", lambda: told_saturation(story))
        assert re.fullmatch(SATURATION, in_status)
        say(f"demand rises to {DEMAND_TFLOPS:g} TFLOPs, use is clipped at {use:g}; event and status say: {in_status}")

        story.until("the limit in force at the agent covers the demand", lambda: story.limit_tflops() >= DEMAND_TFLOPS)
        story.until("use is the demand", lambda: story.series(USED) == DEMAND_TFLOPS)
        assert story.until("so it is in Prometheus", lambda: (story.series(LIMIT_METRIC) or 0.0) >= DEMAND_TFLOPS)
        count = evaluations(story.passes(), story.told(), DEMAND_TFLOPS, TFLOPS, BIN_SECONDS)
        say(f"the limit in force is {story.limit_tflops():g} TFLOPs after {count} evaluations that could tell")
        assert 1 <= count <= EVALUATIONS


def test_the_status_shows_the_new_figures_and_the_pods_carry_them_beside_the_original(story, say):
    with chapter(story, 2):
        assert story.paused == "down"
        status, limit, figures = story.until_after_a_pass(
            "the status shows the covered demand", lambda: shown_in_sync(story)
        )
        assert limit >= DEMAND_TFLOPS
        assert status["autoscaling"]["applied"] == "1/1"
        assert status["autoscaling"]["effect"] == "immediate"
        assert float(figures["tflops-limit"]) == limit
        assert json.loads(figures["autoscaling-original"]) == FIGURES
        say(
            f"the status shows {status['autoscaling']['display']['tflops']}, {status['autoscaling']['applied']} applied"
        )


def test_a_shrink_waits_for_its_window_and_memory_never_falls_below_what_is_in_use(story, say):
    with chapter(story, 3):
        assert story.paused == "down"
        worker, high = story.worker, story.limit_tflops()
        worker.demand_tflops, worker.demand_vram_bytes = LITTLE_TFLOPS, LITTLE_VRAM_BYTES
        story.until("use falls", lambda: story.series(USED) == LITTLE_TFLOPS)
        story.write_pause(None)
        say(f"demand falls to {LITTLE_TFLOPS:g} TFLOPs and 4 GiB, with {high:g} TFLOPs in force")
        waiting, limit = story.until_after_a_pass(
            "the status says that the shrink waits", lambda: shrink_waiting(story)
        )
        assert limit == high
        story.until("the limit in force shrinks", lambda: story.limit_tflops() < high)
        shrunk = story.until(
            "an event tells it", lambda: [one for one in story.events("ResourceScaledDown") if shrinks(one.note)]
        )[0]
        waited_seconds = shrunk.at - waiting
        assert waited_seconds >= STABILIZATION_SECONDS
        say(f"it shrinks {waited_seconds:.1f} s after it began to wait: {shrunk.note}")
        story.until(
            "it settles just above the demand", lambda: LITTLE_TFLOPS < story.limit_tflops() <= 2 * LITTLE_TFLOPS
        )
        assert all(one.vram_limit_bytes >= one.vram_used_bytes for one in worker.seen if one.vram_limit_bytes)
        lowest = min(one.vram_limit_bytes for one in worker.seen if one.vram_limit_bytes)
        say(
            f"the VRAM limit was {lowest / GIB:.2f} GiB at least, use 6 GiB and then 4, over {len(worker.seen)} changes"
        )


def test_without_prometheus_everything_is_held_and_then_only_the_gap_is_read(story, say):
    with chapter(story, 4):
        stopped_at = time.time()
        story.prometheus.stop()
        told, since = story.until("MetricsAvailable is False", lambda: metrics_gone(story))
        assert told in {"PrometheusError", "Stale"}
        # The pass that could not read said so; times in a status are whole seconds.
        failed = [one.at for one in story.to_prometheus.since(stopped_at, "POST", "/") if one.status != 200]
        assert since <= min(failed, default=stopped_at)
        with story.between_passes():
            before, generation = story.annotations(), story.generation()
        # Live use at the limit would raise it at once, were there a history to judge it by.
        story.worker.demand_vram_bytes = full = in_force(story.quotas())[1]
        story.until("the node sees that use", lambda: observed(story.quotas())["vram_used_bytes"] == full)
        story.await_passes(3)
        assert (story.annotations(), story.generation()) == (before, generation)
        say(f"Prometheus is stopped: {told}, and over three passes nothing moved")

        story.worker.demand_vram_bytes = LITTLE_VRAM_BYTES
        last = story.passes()[-1].end
        started_at = time.time()
        story.prometheus.start()
        first = story.until("history is read again", lambda: story.passes(started_at))[0]
        assert first.start == last
        assert first.end > last
        story.until("MetricsAvailable is True", lambda: story.condition("MetricsAvailable") == ("True", "Found"))
        say(f"it is started: the first query begins where the last one ended, and reads {first.end - first.start:g} s")
        story.until(
            "what was used meanwhile is read", lambda: peaks_read(story, started_at)[-1:] == [LITTLE_VRAM_BYTES]
        )


def test_a_restarted_agent_has_the_same_quotas_in_force_before_anyone_tells_it(story, say):
    with chapter(story, 5):
        make_still(story)
        with story.controller_paused():
            before, seen = story.quotas(), len(story.worker.seen)
            story.agent.kill()
            killed_at = time.time()
            story.agent.start()
            after = story.until("the agent answers again", lambda: story.agent.runs and story.quotas())
            assert (after["epoch"], after["generation"]) == (before["epoch"], before["generation"])
            assert in_force(after) == in_force(before)
            assert not story.to_agent.since(killed_at, "PUT", "/")
        say(
            f"the agent is killed and started: generation {after['generation']} is in force before the controller looks"
        )
        story.await_passes(2)
        story.until("the workload is in sync", lambda: story.condition("EnforcementInSync") == ("True", "InSync"))
        story.until("its series are back", lambda: story.series(LIMIT_METRIC) == in_force(after)[0])
        assert story.generation() == before["generation"]
        assert not story.to_agent.since(killed_at, "PUT", "/")
        assert {(one.tflops_limit, one.vram_limit_bytes) for one in story.worker.seen[seen - 1 :]} == {in_force(before)}
        say("the controller read it again and had nothing to tell; the worker never saw another limit")


def test_a_change_whose_controller_died_before_telling_the_node_is_completed_once(story, say):
    with chapter(story, 6):
        make_still(story)
        push = saturated_push(story)
        before, before_limit = story.quotas(), story.limit_tflops()
        intent = story.annotations()["tflops-limit"]
        story.controller.kill()
        push.drop()
        # Enough for a raised limit: whoever raises it further has counted the same saturation twice.
        story.write_pause("down")
        story.worker.demand_tflops = 0.7 * float(intent)
        told, seen = story.to_agent.since(0.0, "PUT", "/"), len(story.worker.seen)
        say(
            f"the controller is killed with its intent ({before_limit:g} → {intent} TFLOPs) written and the push under way"
        )
        assert story.generation() == before["generation"]
        assert story.limit_tflops() == before_limit

        story.controller.start()
        story.until("the change is in force", lambda: story.limit_tflops() == float(intent))
        after = story.quotas()
        assert (after["generation"], after["epoch"]) == (before["generation"] + 1, before["epoch"] + 1)
        assert story.annotations()["tflops-limit"] == intent
        story.until("the status shows it", lambda: status_at(story, float(intent)))
        assert len(story.to_agent.since(0.0, "PUT", "/")) == len(told) + 1
        raised = [one for one in story.events("ResourceScaledUp") if f"→ {intent} TFLOPs" in one.note]
        assert sum(one.count for one in raised) <= 1
        story.await_passes(2)
        assert max(one.tflops_limit for one in story.worker.seen[seen:]) == float(intent)
        say(f"the next start completes the same change: {intent} TFLOPs, generation {after['generation']}, told once")


def test_an_older_leaders_late_push_is_refused_and_it_says_so(story, say):
    with chapter(story, 7):
        make_still(story)
        push, limit = saturated_push(story), story.limit_tflops()
        # The second leader finds an intent to complete, and makes none of its own.
        story.write_pause("true")
        epoch = story.quotas()["epoch"]
        story.second_controller.start()
        assert story.second_controller.wait() == 0
        newer = story.quotas()
        assert newer["epoch"] == epoch + 1
        assert story.limit_tflops() == float(story.annotations()["tflops-limit"]) > limit
        say(f"a second leader puts epoch {newer['epoch']} into force while the push of epoch {epoch} is on its way")

        push.deliver()
        refusal = story.until(
            "the refusal is told", lambda: [one for one in story.controller.lines() if "StaleGeneration" in str(one)]
        )
        assert push.asked is not None
        assert push.asked.status == 409
        assert story.quotas()["generation"] == newer["generation"]
        say(f"it is refused: {refusal[-1]['error']}")
