"""Stories: a workload and its demand in, the product's decisions out, as a user would read them.

Each `stories/NAME.yaml` has its whole decision timeline beside it, `NAME.timeline.txt`, which must be equal to the
letter. When a change of the product is meant to change timelines, write them anew, read the difference and commit it:

    REWRITE_TIMELINES=1 python -m pytest tests/scenarios
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from autoscaler.errors import ConfigError
from tests.scenarios.expectations import unmet
from tests.scenarios.story import parse_story, read_story
from tests.scenarios.timeline import Told

STORIES = sorted((Path(__file__).parent / "stories").glob("*.yaml"))
REWRITE = "REWRITE_TIMELINES"


@pytest.fixture(scope="module", params=STORIES, ids=lambda path: path.stem)
def played(request: pytest.FixtureRequest) -> tuple[Path, Told]:
    return request.param, Told(read_story(request.param))


def test_a_story_goes_as_its_reader_expects(played: tuple[Path, Told]):
    _, told = played
    assert [problem for expected in told.story.expect for problem in unmet(told, expected)] == []


def test_the_timeline_is_the_one_beside_the_story(played: tuple[Path, Told]):
    path, told = played
    kept = path.with_suffix(".timeline.txt")
    if os.environ.get(REWRITE):
        kept.write_text(told.text(), encoding="utf-8")
    assert told.text() == kept.read_text(encoding="utf-8")


BRIEF: dict[str, Any] = {
    "story": "Ten minutes.",
    "length": "10m",
    "workloads": [
        {
            "name": "chat",
            "profile": {
                "resources": {"limits": {"tflops": "20", "vram": "8Gi"}},
                "autoScalingConfig": {"autoSetLimits": {"enable": True}},
            },
            "device": {"tflops": 100, "vram": "80Gi"},
            "compute": [{"at": 60}],
            "vram": [{"at": "2Gi"}],
        }
    ],
    "expect": [],
}


@pytest.fixture(scope="module")
def brief() -> Told:
    return Told(parse_story(BRIEF))


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ({"at": "5m", "compute_limit": ">= 110"}, "chat compute_limit is 100 at 0:05, not >= 110"),
        ({"between": ["0m", "9m"], "vram_limit": "< 8Gi"}, "chat vram_limit is 8Gi at 0:01, not < 8Gi"),
        ({"changes": {"compute_limit": "== 1"}}, "chat compute_limit moves 2 times (0:01, 0:02), not == 1"),
        ({"between": ["2m", "9m"], "unchanged": ["compute_limit"]}, "chat compute_limit moves 1 times (0:02), not == 0"),
        ({"reason": "Saturated", "by": "1m", "figure": "replicas"}, "chat: no Saturated in the timeline by 0:01"),
        ({"short_of_compute": "<= 1m"}, "chat: short_of_compute is 2, not <= 1m"),
        ({"ooms": "== 1"}, "chat: ooms is 0, not == 1"),
    ],
)  # fmt: skip
def test_an_expectation_that_is_not_met_says_what_was_instead(brief: Told, expected: dict[str, Any], said: str):
    assert list(unmet(brief, expected)) == [said]


@pytest.mark.parametrize(
    "expected",
    [
        {"at": "5m", "compute_limit": "== 100", "vram_limit": "~ 8.5Gi", "replicas": "<= 1", "ready": "> 0"},
        {"between": ["3m", "10m"], "unchanged": ["compute_limit"], "changes": {"vram_limit": "== 0"}},
        {"reason": "Saturated", "by": "1m", "figure": "compute_limit", "workload": "chat"},
        {"short_of_compute": "== 2m", "ooms": "== 0", "changes": {"compute_limit": "== 2"}},
    ],
)
def test_an_expectation_that_is_met_says_nothing(brief: Told, expected: dict[str, Any]):
    assert list(unmet(brief, expected)) == []


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"lenght": "1h"}, "lenght"),
        ({"disturbances": [{"prometheus": "slow", "from": "0m", "to": "1m"}]}, "slow is not known"),
        ({"workloads": [{**BRIEF["workloads"][0], "compute": [{"at": 5, "to": 6}]}]}, "no shape"),
        ({"workloads": [{**BRIEF["workloads"][0], "compute": [{"for": "5m", "at": 5}]}]}, "end 5 minutes before"),
        ({"workloads": [{**BRIEF["workloads"][0], "annotations": {"qos": "urgent"}}]}, "urgent"),
        ({"workloads": [{**BRIEF["workloads"][0], "profile": {"autoScaling": {}}}]}, "autoScaling"),
    ],
)
def test_a_story_that_says_what_is_not_known_is_refused(change: dict[str, Any], match: str):
    with pytest.raises((ValueError, ConfigError), match=match):
        parse_story({**BRIEF, **change})


def test_an_expectation_of_an_unknown_kind_is_refused(brief: Told):
    for expected in ({"resaon": "Saturated"}, {"at": "5m", "compute": "> 5"}, {"reason": "Load", "until": "5m"}):
        with pytest.raises((ValueError, KeyError)):
            list(unmet(brief, expected))


def test_a_story_played_twice_tells_the_same_to_the_letter(brief: Told):
    assert Told(parse_story(BRIEF)).text() == brief.text()


def test_every_timeline_belongs_to_a_story():
    assert {path.name.removesuffix(".timeline.txt") for path in STORIES[0].parent.glob("*.txt")} == {
        path.stem for path in STORIES
    }
