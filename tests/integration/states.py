"""The states that the story's chapters begin from, make or wait for, as a user and the proxies see them."""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Any

import pytest

from autoscaler.contract.quantity import parse_quantity
from tests.agent.nvml_standin import GIB
from tests.integration.recorded import WINDOW_METRIC, has_evidence
from tests.integration.simulated_worker import TFLOPS
from tests.integration.story import BIN_SECONDS, QUOTAS, Story
from tests.integration.tap import Held

DEAD_BAND_RATIO = 0.05
LITTLE_TFLOPS, LITTLE_VRAM_BYTES = 10.0, 4 * GIB
SATURATION = (
    r".*compute limit (?P<before>[\d.]+) → (?P<after>[\d.]+) TFLOPs[^:]*: Saturated, "
    r".*use (?P<use>[\d.]+), saturated samples (?P<samples>\d+), step (?P<step>[\d.]+)[,)].*"
)
"""What is said of a compute limit that saturation raised."""


def make_still(story: Story) -> None:
    """Let demand be little, the limit in force at most half of the device, nothing left to raise; then pause."""
    story.worker.demand_tflops, story.worker.demand_vram_bytes = LITTLE_TFLOPS, LITTLE_VRAM_BYTES
    if not _has_room(story):
        story.write_pause(None)
        story.until_after_a_pass("there is room above the limit", lambda: _has_room(story))
    story.pause("true")


def _has_room(story: Story) -> bool:
    autoscaling = story.status()["autoscaling"]
    pairs = [
        (autoscaling[key]["uncappedLimitTarget"], autoscaling["current"]["limits"][key]) for key in ("tflops", "vram")
    ]
    figures = [(float(parse_quantity(wanted)), float(parse_quantity(current))) for wanted, current in pairs]
    nothing_to_raise = all(wanted <= (1 + DEAD_BAND_RATIO) * current for wanted, current in figures)
    return nothing_to_raise and story.limit_tflops() <= TFLOPS / 2


def saturated_push(story: Story) -> Held:
    """Hold the push that doubles the limit in force (of a workload that is paused, and then goes on).

    Decisions are paused until a whole bin of saturation is read, so that the first push is about nothing less.
    """
    assert story.paused == "true"
    limit, since = story.limit_tflops(), time.time()
    story.worker.demand_tflops = 3 * limit
    story.until(
        "saturation is read",
        lambda: any(has_evidence(one, story.told(), TFLOPS, BIN_SECONDS) for one in story.passes(since)),
    )
    push = story.to_agent.hold("PUT", QUOTAS)
    story.write_pause(None)
    story.until("a push is under way", push.arrived.is_set)
    assert float(story.annotations()["tflops-limit"]) >= 2 * limit
    return push


def told_saturation(story: Story) -> tuple[float, str] | None:
    """Return the use in the first event that tells of saturation, and what the status says beside it."""
    notes = [found for one in story.events("ResourceScaledUp") if (found := re.fullmatch(SATURATION, one.note))]
    if not notes:
        return None
    before, after, use, step = (float(notes[0][name]) for name in ("before", "after", "use", "step"))
    assert step == (2 if notes[0]["samples"] == "1" else 4)
    assert after == pytest.approx(min(step * before, TFLOPS), rel=0.01)
    assert 0.9 * before <= use <= before
    return use, story.status()["autoscaling"]["lastChange"]


def observed(quotas: dict[str, Any]) -> dict[str, Any]:
    """Return what the node sees of the only worker."""
    return dict(quotas["workers"][0]["devices"][0]["observed"])


def in_force(quotas: dict[str, Any]) -> tuple[float, int]:
    """Return the limits of the only worker, as observed: TFLOPs, bytes."""
    seen = observed(quotas)
    return seen["tflops_limit"], seen["vram_limit_bytes"]


def shown_in_sync(story: Story) -> tuple[dict[str, Any], float, dict[str, str]] | None:
    """Return the status, the limit in force and the pod's figures once the status shows that limit, in sync."""
    limit = story.limit_tflops()
    status = status_at(story, limit)
    in_sync = story.condition("EnforcementInSync") == ("True", "InSync")
    return (status, limit, story.annotations()) if status and in_sync else None


def metrics_gone(story: Story) -> tuple[str, float] | None:
    """Return why there are no metrics, and since when, once a condition says so."""
    conditions = story.status()["conditions"]
    found = next(one for one in conditions if one["type"] == "MetricsAvailable")
    return (found["reason"], moment(found["lastTransitionTime"])) if found["status"] == "False" else None


def peaks_read(story: Story, since: float) -> list[int]:
    """Return the peaks of memory in bytes that were read since a moment."""
    return [int(value) for one in story.passes(since) for _, value in one.samples(WINDOW_METRIC)]


def status_at(story: Story, limit: float) -> dict[str, Any]:
    """Return the status once it shows this limit in force, else nothing."""
    status = story.status()
    current = status.get("autoscaling", {}).get("current", {}).get("limits", {}).get("tflops", "nan")
    return status if float(current) == limit else {}


def shrink_waiting(story: Story) -> tuple[float, float] | None:
    """Return when the compute limit's shrink was first said to wait, and the limit in force."""
    autoscaling = story.status()["autoscaling"]
    message = autoscaling["tflops"]["message"].partition("compute limit")[2]
    return (moment(autoscaling["lastEvaluationTime"]), story.limit_tflops()) if "Stabilizing" in message else None


def shrinks(note: str) -> bool:
    """Tell whether an event is about a compute limit that moved."""
    return bool(re.search(r"compute limit [\d.]+ → [\d.]+", note))


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
