"""Annotations: each form, each refusal, all problems at once."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.contract import keys
from autoscaler.contract.keys import PREFIX, QoS
from autoscaler.model.annotations import ANNOTATIONS, container_problems, parse_annotations
from autoscaler.model.config import Pause
from autoscaler.model.resources import GIB, Resource
from autoscaler.model.sizing import Precision

GOOD = {
    "tflops-request": ("31250m", 31.25),
    "tflops-limit": ("62.5", 62.5),
    "vram-request": ("6.5Gi", 13 * GIB // 2),
    "vram-limit": ("12Gi", 12 * GIB),
    "qos": ("critical", QoS.CRITICAL),
    "gpu-count": ("128", 128),
    "gpu-model": (" L40s ", "L40s"),
    "gpupool": ("research", "research"),
    "replicas": ("0", 0),
    "auto-requests": ("true", True),
    "auto-limits": ("false", False),
    "auto-replicas": ("true", True),
    "workload-profile": ("small", "small"),
    "workload": ("shared", "shared"),
    "generate-workload": ("false", False),
    "inject-container": (" a, b ,a", ("a", "b")),
    "is-local-gpu": ("true", True),
    "no-standalone-worker-mode": ("true", True),
    "autoscale": ("true", True),
    "autoscale-target": ("compute", frozenset({Resource.COMPUTE})),
    "auto-resources": ("true", True),
    "isolation": ("hard", "hard"),
    "dedicated-gpu": ("true", True),
    "autoscaling-paused": ("up", Pause(up=True)),
    "autoscaling-revert": ("true", True),
    "model-params": ("7B", 7e9),
    "model-precision": ("fp8", Precision.FP8),
    "model-context": ("8K", 8192.0),
    "model-users": ("4", 4),
}
BAD = {
    "tflops-request": ["10TF", "", "-1", "0"],
    "tflops-limit": ["many"],
    "vram-request": ["4GB", "4 Gi"],
    "vram-limit": ["-4Gi"],
    "qos": ["urgent", "High", ""],
    "gpu-count": ["0", "129", "1.5", "1_0", "-1", " 1", "٣"],
    "gpu-model": [" "],
    "gpupool": ["<pool>"],
    "replicas": ["-1", "two", "99999999999"],
    "auto-requests": ["yes", "True", "1", ""],
    "auto-limits": ["on"],
    "auto-replicas": ["enabled"],
    "workload-profile": ["<...>", "Upper"],
    "workload": ["a_b"],
    "generate-workload": ["no"],
    "inject-container": ["", "a,,b"],
    "is-local-gpu": ["local"],
    "no-standalone-worker-mode": ["maybe"],
    "autoscale": ["all"],
    "autoscale-target": ["memory"],
    "auto-resources": ["x"],
    "isolation": ["none"],
    "dedicated-gpu": ["2"],
    "autoscaling-paused": ["2030-01-31", "2030-01-31T18:00:00", "tomorrow", "2030-13-01T00:00:00Z"],
    "autoscaling-revert": ["maybe"],
    "model-params": ["7Gi", "0B", "-7B", "seven", "", "٧B"],
    "model-precision": ["fp12", ""],
    "model-context": ["8KB", "0", "8 thousand"],
    "model-users": ["0", "1.5", "four", "-1"],
}


def test_the_tables_of_this_test_cover_every_key() -> None:
    known = {spec.key.removeprefix(PREFIX) for spec in ANNOTATIONS}
    assert set(GOOD) == set(BAD) == known


@pytest.mark.parametrize("name", GOOD)
def test_a_good_value_is_read(name: str) -> None:
    text, value = GOOD[name]
    parsed = parse_annotations({PREFIX + name: text})
    field = next(spec.field for spec in ANNOTATIONS if spec.key == PREFIX + name)
    assert getattr(parsed.values, field) == value
    assert (parsed.problems, parsed.warnings) == ((), ())


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BAD.items() for text in texts])
def test_a_bad_value_is_a_problem_with_key_value_and_what_is_allowed(name: str, text: str) -> None:
    parsed = parse_annotations({PREFIX + name: text})
    [problem] = parsed.problems
    assert (problem.path, problem.value) == (PREFIX + name, text)
    assert len(problem.allowed) > 5


def test_all_problems_are_named_at_once() -> None:
    parsed = parse_annotations({PREFIX + name: texts[0] for name, texts in BAD.items()})
    assert {problem.path for problem in parsed.problems} == {PREFIX + name for name in BAD}


@pytest.mark.parametrize("value", [1, True, None, ["a"]])
def test_a_value_without_quotes_is_refused_as_kubernetes_does(value: object) -> None:
    [problem] = parse_annotations({keys.REPLICAS: value}).problems
    assert problem.allowed.endswith("in quotes")


@pytest.mark.parametrize(
    ("text", "pause"),
    [
        ("true", Pause(up=True, down=True)),
        ("down", Pause(down=True)),
        ("false", Pause()),
        ("2030-01-31T18:00:00Z", Pause(True, True, datetime(2030, 1, 31, 18, tzinfo=UTC).timestamp())),
        ("2030-01-31t20:00:00.5+02:00", Pause(True, True, datetime(2030, 1, 31, 18, tzinfo=UTC).timestamp() + 0.5)),
    ],
)
def test_a_pause_is_a_direction_or_a_moment(text: str, pause: Pause) -> None:
    assert parse_annotations({keys.AUTOSCALING_PAUSED: text}).values.pause == pause


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("tflop-limit", "tflops-limit"), ("vram_request", "vram-request"), ("auto-request", "auto-requests"),
     ("QoS", "qos"), ("workload-profil", "workload-profile"), ("autoscaling-pause", "autoscaling-paused")],
)  # fmt: skip
def test_a_key_that_looks_like_a_typo_is_warned_about(typo: str, meant: str) -> None:
    [warning] = parse_annotations({PREFIX + typo: "1"}).warnings
    assert PREFIX + typo in warning
    assert warning.endswith(f"did you mean {PREFIX}{meant}?")


@pytest.mark.parametrize("key", [PREFIX + "gpu-indices", PREFIX + "partition", PREFIX + "colour", "example.com/qoss"])
def test_keys_of_others_are_left_alone(key: str) -> None:
    parsed = parse_annotations({key: "1"})
    assert (parsed.problems, parsed.warnings) == ((), ())


def test_a_named_container_must_exist_and_the_problem_names_those_that_do() -> None:
    [problem] = container_problems(("python", "ghost"), ["python", "sidecar", "inject-lib"])
    assert (problem.path, problem.value) == (keys.INJECT_CONTAINER, "ghost")
    assert problem.allowed == "a container of the pod: python, sidecar"


def test_one_of_several_containers_must_be_named_and_the_library_is_not_one() -> None:
    assert len(container_problems(None, ["a", "b"])) == 1
    assert container_problems(None, ["a", "inject-lib"]) == []
    assert container_problems(("anything",), None) == []


@given(st.dictionaries(st.sampled_from([spec.key for spec in ANNOTATIONS]), st.text(max_size=20)))
def test_no_text_whatever_breaks_the_parser(annotations: dict[str, str]) -> None:
    parsed = parse_annotations(annotations)
    assert {problem.path for problem in parsed.problems} <= set(annotations)
