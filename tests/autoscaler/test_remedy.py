"""What stands in a figure's way: with numbers, and with what would have to happen."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from autoscaler.model.config import Configuration, Pause
from autoscaler.model.decision import Field
from autoscaler.model.reasons import Verdict
from autoscaler.model.resources import GIB
from autoscaler.report.conditions import Reason
from autoscaler.report.display import short_status
from autoscaler.report.remedy import Held, switched_off, way_out
from autoscaler.report.reported import MetricsReason, SyncReason
from tests.autoscaler.apply_cases import NOW, amounts, figure, workload

LIMIT, REQUEST, VRAM, COUNT = Field.COMPUTE_LIMIT, Field.COMPUTE_REQUEST, Field.VRAM_REQUEST, Field.REPLICAS
AT = "2027-01-15 08:00:00 UTC"


def told(verdict, field=LIMIT, config=None, allowed=20.0, wanted=40.0, **numbers):
    decision = figure(field, 20.0, wanted, allowed=allowed, verdict=verdict)
    chosen = config or Configuration(amounts=amounts())
    return way_out(Held(decision, numbers, workload(config=chosen, managed_elsewhere="HorizontalPodAutoscaler web")))


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        (told(Verdict.LOW_CONFIDENCE, samples=3.0, min_samples=10.0), ("3 of 10 samples", "one comes a minute")),
        (told(Verdict.INITIAL_DELAY, until_at=NOW, initial_delay_seconds=1800.0), (f"before {AT}, 30m after",)),
        (told(Verdict.STALE, fresh_seconds=240.0), ("older than 4m", "scraped?")),
        (told(Verdict.STALE, fresh_seconds=-math.inf), ("Prometheus could not be read",)),
        (told(Verdict.REPLICAS_MANAGED_ELSEWHERE, COUNT), ("HorizontalPodAutoscaler web moves them", "delete it")),
        (told(Verdict.WITHIN_TOLERANCE, band_ratio=0.05), ("more than 5.0% off 20 TFLOPs",)),
        (told(Verdict.STABILIZING, window_seconds=1500.0, until_at=NOW), (f"of 25m, which is over at {AT}",)),
        (told(Verdict.COOLING_DOWN, moved_at=NOW, cool_down_seconds=600.0, until_at=NOW), (f"rests 10m, until {AT}",)),
        (told(Verdict.STEP_LIMITED, COUNT, most_added=2.0), ("2 more at once",)),
        (told(Verdict.ROLLED_BACK, last_good=25.0, until_at=NOW), ("back to 25 TFLOPs", AT)),
        (told(Verdict.LIVE_USE, VRAM, live=3.0 * GIB, headroom_ratio=0.05), ("3Gi and 5% more",)),
        (told(Verdict.LIVE_USE, VRAM, live=math.nan, headroom_ratio=0.05), ("can't be seen",)),
        (told(Verdict.QUOTA_LIMITED, quota_left=5.0), ("GPUResourceQuota of prod has 5 TFLOPs left", "raise it")),
        (
            told(Verdict.CAPACITY_LIMITED, room=3.0, free=6.0, workers_on_device=2.0),
            ("room for 3 TFLOPs more per worker", "6 TFLOPs unreserved for 2 of its workers"),
        ),
        (told(Verdict.CAPACITY_LIMITED, COUNT, room_workers=1.0), ("room for 1 more of its workers (1 GPU each)",)),
        (told(Verdict.GAVE_TO_HIGHER_QOS, given=4.0), ("4 TFLOPs of it",)),
    ],
)
def test_the_numbers_and_what_would_have_to_happen_are_named(text, phrases):
    for phrase in phrases:
        assert phrase in text


def test_what_a_worker_asks_for_is_named_where_no_gpu_has_room():
    config = Configuration(amounts=amounts(), gpu_count=2, gpu_model="A100", pool="blue")
    text = told(Verdict.CAPACITY_LIMITED, COUNT, config, room_workers=0.0)
    assert "room for 0 more of its workers (2 GPUs each, model A100, pool blue)" in text


BOUNDS = {"minimum": 1.0, "maximum": 25.0, "device": 989.0, "partner": 10.0}


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        (told(Verdict.BOUND_LIMITED, allowed=25.0, **BOUNDS), "1 TFLOPs to 25 TFLOPs are allowed, see bounds"),
        (told(Verdict.BOUND_LIMITED, allowed=989.0, wanted=2e3, **BOUNDS), "the device has 989 TFLOPs"),
        (told(Verdict.BOUND_LIMITED, allowed=10.0, wanted=5.0, **BOUNDS), "never under its request of 10 TFLOPs"),
        (told(Verdict.BOUND_LIMITED, REQUEST, allowed=10.0, **BOUNDS), "never over its limit of 10 TFLOPs"),
        (
            told(Verdict.BOUND_LIMITED, allowed=50.0, wanted=60.0, ratio_to_request=5.0, request=10.0, **BOUNDS),
            "5 x the request of 10 TFLOPs at most; raise maxRatioToRequests",
        ),
        (told(Verdict.BOUND_LIMITED, COUNT, minimum=1.0, maximum=4.0), "1 to 4 workers are allowed, see minReplicas"),
    ],
)
def test_of_the_bounds_the_one_that_binds_is_named(text, phrase):
    assert phrase in text


def test_a_pause_names_its_annotation_and_its_end():
    config = replace(Configuration(amounts=amounts()), pause=Pause(up=True, down=True, until=NOW))
    assert told(Verdict.PAUSED, config=config) == f"by the annotation tensor-fusion.ai/autoscaling-paused, until {AT}"


def test_a_layer_that_is_off_says_how_it_is_turned_on():
    assert "tensor-fusion.ai/auto-replicas: 'true'" in switched_off(COUNT, is_recommending=False)
    assert "set to recommend only" in switched_off(VRAM, is_recommending=True)


def test_a_guard_that_left_no_numbers_leaves_the_verdict_to_speak():
    assert told(Verdict.COOLING_DOWN) == ""


def test_the_page_on_reading_a_status_names_each_of_them():
    page = (Path(__file__).parents[2] / "docs" / "status.md").read_text()
    reasons = {*Verdict, *MetricsReason, *SyncReason, *Reason} - {"Passed", "Found", "Valid", "Ready", "InSync"}
    told = {"NoData", "NoWorkers"}  # of conditions only: another one speaks in the column
    assert [one for one in sorted(reasons - told) if short_status(one) not in page and str(one) not in page] == []
