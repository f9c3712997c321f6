"""The loop on real parts: NVML's own interface, the agent, Prometheus and the controller as processes, step by step.

The chapters of one story, in order; each begins where the one before ended. Demand of a worker passes its limit, falls,
and everything around it is stopped or killed once. Only the GPU is a stand-in: the driver's library, compiled from C.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

import pytest

from autoscaler.contract.quantity import parse_quantity
from tests.agent.nvml_standin import GIB
from tests.integration import worlds
from tests.integration.manifests import FIGURES, LIMIT_TFLOPS, STABILIZATION_SECONDS
from tests.integration.parts import until
from tests.integration.prometheus_server import require_prometheus
from tests.integration.story import BIN_SECONDS, Story, staged
from tests.integration.tap import Held

pytestmark = pytest.mark.integration

DEMAND_TFLOPS = 3 * LIMIT_TFLOPS
EVALUATIONS = 3
DEAD_BAND_RATIO = 0.05
EFFECTIVE = "tensor_fusion_worker_effective_tflops_limit"


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
        worker.demand_tflops, worker.demand_vram_bytes = 10.0, 6 * GIB
        until("the limits of birth are in force", lambda: story.limit_tflops() == LIMIT_TFLOPS)
        until("Prometheus has the worker's series", lambda: story.series(EFFECTIVE) == LIMIT_TFLOPS)
        story.controller.start()
        until("history is read", story.passes)
        say(
            f"use is {worker.demand_tflops:g} TFLOPs, the limit in force {LIMIT_TFLOPS:g}: at the agent and in Prometheus"
        )

        worker.demand_tflops = DEMAND_TFLOPS
        used = until(
            "use is clipped at the limit",
            lambda: (
                (use := story.series("tensor_fusion_worker_compute_used_tflops") or 0.0) >= 0.95 * LIMIT_TFLOPS and use
            ),
        )
        clipped_at = time.time()
        assert used <= LIMIT_TFLOPS
        say(f"demand rises to {DEMAND_TFLOPS:g} TFLOPs: use is clipped at {used:g}")

        first = until("a saturated limit is raised", lambda: story.events("ResourceScaledUp"))[0]
        in_status = story.status()["autoscaling"]["lastChange"]
        until("the limit in force at the agent covers the demand", lambda: story.limit_tflops() >= DEMAND_TFLOPS)
        evaluations = _evaluations(story, clipped_at, first.at)
        say(f"the limit in force is {story.limit_tflops():g} TFLOPs after {evaluations} evaluations")
        assert evaluations <= EVALUATIONS
        assert until("so it is in Prometheus", lambda: (story.series(EFFECTIVE) or 0.0) >= DEMAND_TFLOPS)
        until("use is the demand", lambda: story.series("tensor_fusion_worker_compute_used_tflops") == DEMAND_TFLOPS)

        for told in (first.note, in_status):
            assert f"compute limit {LIMIT_TFLOPS:g} → 50 TFLOPs: Saturated, " in told
            assert re.search(r"use 2[2-5](\.\d+)?, saturated samples 1, step 2", told)
        say(f"the event and the status say why: {in_status}")


def test_the_status_shows_the_new_figures_and_the_pods_carry_them_beside_the_original(story, say):
    with chapter(story, 2):
        status = until("the status shows the covered demand", lambda: _status_at(story, story.limit_tflops()))
        assert status["autoscaling"]["applied"] == "1/1"
        assert status["autoscaling"]["effect"] == "immediate"
        assert story.condition("EnforcementInSync") == ("True", "InSync")
        figures = story.annotations()
        assert float(figures["tflops-limit"]) == story.limit_tflops()
        assert json.loads(figures["autoscaling-original"]) == FIGURES
        say(
            f"the status shows {status['autoscaling']['display']['tflops']}, {status['autoscaling']['applied']} applied"
        )


def test_a_shrink_waits_for_its_window_and_memory_never_falls_below_what_is_in_use(story, say):
    with chapter(story, 3):
        worker, high = story.worker, story.limit_tflops()
        worker.demand_tflops, worker.demand_vram_bytes = 10.0, 4 * GIB
        say(f"demand falls to 10 TFLOPs and 4 GiB, with {high:g} TFLOPs in force")
        waiting = until("the status says that the shrink waits", lambda: _waiting(story))
        assert story.limit_tflops() == high
        until("the limit in force shrinks", lambda: story.limit_tflops() < high)
        shrunk = until(
            "an event tells it", lambda: [one for one in story.events("ResourceScaledDown") if _shrinks(one.note)]
        )[0]
        waited_seconds = shrunk.at - waiting
        assert waited_seconds >= STABILIZATION_SECONDS
        say(f"it shrinks {waited_seconds:.1f} s after it began to wait: {shrunk.note}")
        until("it settles just above the demand", lambda: 10.0 < story.limit_tflops() <= 20.0)
        assert all(one.vram_limit_bytes >= one.vram_used_bytes for one in worker.seen if one.vram_limit_bytes)
        lowest = min(one.vram_limit_bytes for one in worker.seen if one.vram_limit_bytes)
        say(
            f"the VRAM limit was {lowest / GIB:.2f} GiB at least, use 6 GiB and then 4, over {len(worker.seen)} changes"
        )


def test_without_prometheus_everything_is_held_and_then_only_the_gap_is_read(story, say):
    with chapter(story, 4):
        until("nothing is left to do", lambda: _settled(story))
        story.prometheus.stop()
        before, stopped_at = story.annotations(), time.time()
        generation = story.generation()
        # Live use at the limit would raise it at once, were there a history to judge it by.
        story.worker.demand_vram_bytes = _in_force(story.quotas())[1]
        told = until(
            "MetricsAvailable is False", lambda: (c := story.condition("MetricsAvailable"))[0] == "False" and c
        )
        assert told[1] in {"PrometheusError", "Stale"}
        assert time.time() - stopped_at <= 60.0
        story.await_passes(3)
        assert (story.annotations(), story.generation()) == (before, generation)
        say(f"Prometheus is stopped: {told[1]}, and over three passes nothing moved")

        story.worker.demand_vram_bytes = 4 * GIB
        last = story.passes()[-1].end
        started_at = time.time()
        story.prometheus.start()
        first = until("history is read again", lambda: story.passes(started_at))[0]
        assert first.start == last
        assert first.end > last
        until("MetricsAvailable is True", lambda: story.condition("MetricsAvailable") == ("True", "Found"))
        say(f"it is started: the first query begins where the last one ended, and reads {first.end - first.start:g} s")


def test_a_restarted_agent_has_the_same_quotas_in_force_before_anyone_tells_it(story, say):
    with chapter(story, 5):
        until("nothing is left to do", lambda: _settled(story))
        with story.controller_paused():
            before, seen = story.quotas(), len(story.worker.seen)
            story.agent.kill()
            killed_at = time.time()
            story.agent.start()
            after = until("the agent answers again", lambda: story.agent.runs and story.quotas())
            assert (after["epoch"], after["generation"]) == (before["epoch"], before["generation"])
            assert _in_force(after) == _in_force(before)
            assert not story.to_agent.since(killed_at, "PUT", "/")
        say(
            f"the agent is killed and started: generation {after['generation']} is in force before the controller looks"
        )
        story.await_passes(2)
        until("the workload is in sync", lambda: story.condition("EnforcementInSync") == ("True", "InSync"))
        until("its series are back", lambda: story.series(EFFECTIVE) == _in_force(after)[0])
        assert story.generation() == before["generation"]
        assert not story.to_agent.since(killed_at, "PUT", "/")
        assert {(one.tflops_limit, one.vram_limit_bytes) for one in story.worker.seen[seen - 1 :]} == {
            _in_force(before)
        }
        say("the controller read it again and had nothing to tell; the worker never saw another limit")


def test_a_change_whose_controller_died_before_telling_the_node_is_completed_once(story, say):
    with chapter(story, 6):
        push = _saturated_push(story)
        before, before_limit = story.quotas(), story.limit_tflops()
        intent = story.annotations()["tflops-limit"]
        story.controller.kill()
        push.drop()
        # Enough for a raised limit: whoever raises it further has counted the same saturation twice.
        story.worker.demand_tflops = 0.7 * float(intent)
        told, seen = story.to_agent.since(0.0, "PUT", "/"), len(story.worker.seen)
        say(
            f"the controller is killed with its intent ({before_limit:g} → {intent} TFLOPs) written and the push under way"
        )
        assert story.generation() == before["generation"]
        assert story.limit_tflops() == before_limit

        story.controller.start()
        until("the change is in force", lambda: story.limit_tflops() == float(intent))
        after = story.quotas()
        assert (after["generation"], after["epoch"]) == (before["generation"] + 1, before["epoch"] + 1)
        assert story.annotations()["tflops-limit"] == intent
        until("the status shows it", lambda: _status_at(story, float(intent)))
        assert len(story.to_agent.since(0.0, "PUT", "/")) == len(told) + 1
        raised = [one for one in story.events("ResourceScaledUp") if f"→ {intent} TFLOPs" in one.note]
        assert sum(one.count for one in raised) <= 1
        story.await_passes(2)
        assert max(one.tflops_limit for one in story.worker.seen[seen:]) == float(intent)
        say(f"the next start completes the same change: {intent} TFLOPs, generation {after['generation']}, told once")


def test_an_older_leaders_late_push_is_refused_and_it_says_so(story, say):
    with chapter(story, 7):
        story.worker.demand_tflops = 10.0
        until("the limit is low again", lambda: story.limit_tflops() <= LIMIT_TFLOPS)
        push, limit = _saturated_push(story), story.limit_tflops()
        epoch = story.quotas()["epoch"]
        story.second_controller.start()
        assert story.second_controller.wait() == 0
        newer = story.quotas()
        assert newer["epoch"] == epoch + 1
        assert story.limit_tflops() == float(story.annotations()["tflops-limit"]) > limit
        say(f"a second leader puts epoch {newer['epoch']} into force while the push of epoch {epoch} is on its way")

        push.deliver()
        refusal = until(
            "the refusal is told", lambda: [one for one in story.controller.lines() if "StaleGeneration" in str(one)]
        )
        assert story.to_agent.since(0.0, "PUT", "/")[-1].status == [409]
        assert story.quotas()["generation"] == newer["generation"]
        say(f"it is refused: {refusal[-1]['error']}")


def _saturated_push(story: Story) -> Held:
    """Hold the push that doubles the limit; the first one may only follow a bin in which demand rose.

    Demand is taken from the limit in force: whatever came before, and however slow the machine, there is one to hold.
    """
    while True:
        story.worker.demand_tflops = 3 * story.limit_tflops()
        push = story.to_agent.hold("PUT")
        until("a push is under way", push.arrived.is_set)
        if float(story.annotations()["tflops-limit"]) >= 2 * story.limit_tflops():
            return push
        push.deliver()
        until("it is in force", lambda: story.limit_tflops() == float(story.annotations()["tflops-limit"]))


def _in_force(quotas: dict) -> tuple[float, int]:
    """Return the limits of the only worker, as observed: TFLOPs, bytes."""
    observed = quotas["workers"][0]["devices"][0]["observed"]
    return observed["tflops_limit"], observed["vram_limit_bytes"]


def _evaluations(story: Story, clipped_at: float, raised_at: float) -> int:
    """Count the evaluations from the first that saw clipping to the one that covered it, both included.

    The first is the one that raised the limit, but at the latest the one that read the first bin in which use was
    clipped from end to end.
    """
    whole_bin_end = (math.ceil(clipped_at / BIN_SECONDS) + 1) * BIN_SECONDS
    return sum(one.end >= whole_bin_end or one.until >= raised_at for one in story.passes())


def _status_at(story: Story, limit: float) -> dict:
    status = story.status()
    current = status.get("autoscaling", {}).get("current", {}).get("limits", {}).get("tflops", "nan")
    return status if float(current) == limit else {}


def _waiting(story: Story) -> float:
    """Return the time of the first pass that says that the compute limit's shrink waits, else 0."""
    autoscaling = story.status().get("autoscaling", {})
    message = autoscaling.get("tflops", {}).get("message", "")
    return _moment(autoscaling["lastEvaluationTime"]) if "Stabilizing" in message.partition("compute limit")[2] else 0.0


def _shrinks(note: str) -> bool:
    return bool(re.search(r"compute limit [\d.]+ → [\d.]+", note))


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _settled(story: Story) -> bool:
    """Whether the limits are where they should be, and have been told for two passes."""
    told, autoscaling = story.to_agent.since(0.0, "PUT", "/"), story.status()["autoscaling"]
    pairs = [
        (autoscaling[key]["uncappedLimitTarget"], autoscaling["current"]["limits"][key]) for key in ("tflops", "vram")
    ]
    figures = [(float(parse_quantity(wanted)), float(parse_quantity(current))) for wanted, current in pairs]
    near = all(abs(wanted - current) <= DEAD_BAND_RATIO * current for wanted, current in figures)
    return near and story.looks(told[-1].at) >= 2
