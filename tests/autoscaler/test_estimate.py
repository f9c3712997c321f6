"""First figures from a model's size: the formulas, every wrong option at once, and what the size means as annotations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from autoscaler.advise.estimate import estimate
from autoscaler.cli import app
from autoscaler.contract import keys
from autoscaler.contract.gpus import GpuTable, built_in_rows
from autoscaler.errors import ConfigError
from autoscaler.model import sizing
from autoscaler.model.fleet import to_fleet
from autoscaler.model.profile import parse_profile, parse_spec
from autoscaler.model.resolve import Defaults, Owner, resolve
from autoscaler.model.resources import GIB, Resource
from autoscaler.model.sizing import BYTES_PER_PARAMETER, ModelSize, Precision
from autoscaler.read.manifests import validate_files
from tests.autoscaler.stage import Stage, with_config

SIZE = ("--params", "7B", "--precision", "fp8", "--context", "8K", "--users", "4")
RUN = ("--measured-utilization", ".35", "--gpu", "A100", "--at-users", "1")
GPUS = GpuTable(built_in_rows())
MODEL = {
    keys.MODEL_PARAMS: "7B",
    keys.MODEL_PRECISION: "fp8",
    keys.MODEL_CONTEXT: "8K",
    keys.MODEL_USERS: "4",
}
TFLOPS = {keys.TFLOPS_REQUEST: "10"}


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["estimate", *arguments])
    return result.exit_code, result.stdout, result.stderr


def config_of(annotations: dict[str, str], defaults: Defaults | None = None, spec: object = None):
    return resolve(annotations, {}, parse_spec(spec), defaults or Defaults(), Owner())


def problems_of(annotations: dict[str, str], defaults: Defaults | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config_of(annotations, defaults)
    return [problem.path for problem in caught.value.problems]


def test_seven_billion_parameters_in_fp8_with_8k_for_four_users_need_39_gib():
    code, out, _ = run(*SIZE, "-o", "json")
    data = json.loads(out)
    assert (code, data["vram_bytes"], data["tflops"]) == (0, 39 * GIB, None)
    assert data["annotations"][keys.VRAM_REQUEST] == "39Gi"


def test_a_run_at_35_percent_of_an_a100_with_one_user_means_436_8_tflops_for_four():
    data = json.loads(run(*SIZE, *RUN, "-o", "json")[1])
    assert data["tflops"] == 436.8
    assert data["annotations"][keys.TFLOPS_REQUEST] == "436.8"
    assert data["profile"]["spec"]["resources"]["requests"] == {"tflops": "436.8", "vram": "39Gi"}


@pytest.mark.parametrize(
    ("precision", "gib"),
    [("fp32", 60), ("fp16", 46), ("bf16", 46), ("fp8", 39), ("int8", 39), ("fp4", 35.5), ("int4", 35.5)],
)
def test_each_precision_has_its_bytes(precision: str, gib: float):
    options = dict(zip(SIZE[::2], SIZE[1::2], strict=True)) | {"--precision": precision}
    assert estimate(options, GPUS).vram_bytes == gib * GIB


def test_without_a_run_tflops_are_left_out_and_it_is_said_how_to_get_them_and_what_holds_until_then():
    out = run(*SIZE)[1]
    assert "tflops-request:" not in out
    assert "--measured-utilization, --gpu and --at-users" in out
    assert "ConfigValid=False" in out
    assert problems_of(MODEL) == [keys.TFLOPS_REQUEST]


@pytest.mark.parametrize("more", [(), RUN, (*RUN, "--gpu-count", "2", "--name", "chat")])
def test_the_printed_yaml_is_a_profile_that_validates_and_can_be_parsed(tmp_path: Path, more: tuple[str, ...]):
    path = tmp_path / "profile.yaml"
    path.write_text(run(*SIZE, *more, "-o", "yaml")[1])
    assert validate_files([path]).ok
    spec = parse_profile(yaml.safe_load(path.read_text()))
    assert spec.resources.requests.vram == 39 * GIB / (2 if "--gpu-count" in more else 1)


def test_the_printed_annotations_resolve_to_the_printed_figures():
    annotations = json.loads(run(*SIZE, *RUN, "-o", "json")[1])["annotations"]
    config = config_of(annotations)
    assert (config.amounts.compute.request, config.amounts.vram.request) == (436.8, 39 * GIB)
    assert config.model_size == ModelSize(7e9, Precision.FP8, 8192, 4)


def test_more_than_one_gpu_has_is_said():
    notes = json.loads(run(*SIZE, *RUN, "-o", "json")[1])["notes"]
    assert notes == [
        "436.8 TFLOPs are more than one A100 has (312): spread the users over 2 workers and estimate for the users of one."
    ]
    large = json.loads(run(*SIZE[:-1], "20", *RUN[:-1], "20", "-o", "json")[1])["notes"]
    assert [note.split(":")[0] for note in large] == ["167Gi are more than one A100 has (80 GB)"]


def test_every_wrong_option_is_named_at_once_with_its_value_and_what_is_allowed():
    code, out, err = run("--params", "7G", "--precision", "fp12", "--context", "8KB", "--users", "0", "--gpu", "A1000")
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        "--params",
        "--precision",
        "--context",
        "--users",
        "--measured-utilization",
        "--gpu",
        "--at-users",
    ]
    assert all("allowed: " in line for line in lines)
    assert "'7G'" in lines[0]
    assert "is missing" in lines[4]
    assert "did you mean A100?" in lines[5]


@pytest.mark.parametrize(("text", "share"), [(".35", 0.35), ("35%", 0.35), ("0.35", 0.35), ("1", 1.0), ("100%", 1.0)])
def test_a_utilization_may_be_a_share_or_a_percentage(text: str, share: float):
    assert sizing.parse_utilization(text) == share


@pytest.mark.parametrize("text", ["0", "1.01", "35", "-.1", "%", "", "101%", "nan"])
def test_a_utilization_that_is_no_share_is_refused(text: str):
    with pytest.raises(ValueError, match="a share of the GPU"):
        sizing.parse_utilization(text)


@given(st.integers(min_value=1, max_value=10**13))
def test_parameters_are_written_as_they_are_read(params: int):
    assert sizing.parse_params(sizing.format_params(float(params))) == params


@given(st.integers(min_value=1, max_value=2**30))
def test_context_is_written_as_it_is_read(tokens: int):
    assert sizing.parse_context(sizing.format_context(float(tokens))) == tokens


@given(
    st.sampled_from(Precision),
    st.floats(min_value=0.1, max_value=1000),
    st.integers(min_value=1, max_value=10**6),
    st.integers(min_value=1, max_value=1000),
)
def test_vram_is_weights_plus_a_cache_for_each_user(precision: Precision, billions: float, tokens: int, users: int):
    size = ModelSize(billions * 1e9, precision, float(tokens), users)
    assert size.vram_bytes == pytest.approx((billions * BYTES_PER_PARAMETER[precision] + tokens / 1024 * users) * GIB)


def test_vram_that_nobody_requested_is_estimated_from_the_models_size():
    config = config_of(MODEL | TFLOPS)
    assert (config.amounts.vram.request, config.amounts.vram.limit) == (39 * GIB, 39 * GIB)


def test_over_several_gpus_each_takes_its_share():
    assert config_of(MODEL | TFLOPS | {keys.GPU_COUNT: "4"}).amounts.vram.request == 39 * GIB / 4


@pytest.mark.parametrize(
    ("annotations", "spec"),
    [
        ({keys.VRAM_REQUEST: "8Gi"}, None),
        ({keys.VRAM_LIMIT: "8Gi"}, None),
        ({}, {"resources": {"requests": {"vram": "8Gi"}}}),
    ],
)
def test_a_figure_of_the_annotation_or_the_profile_wins_over_the_estimate(annotations: dict[str, str], spec: object):
    assert config_of(MODEL | TFLOPS | annotations, spec=spec).amounts.vram.request == 8 * GIB


def test_the_estimate_wins_over_the_pools_default_which_knows_nothing_of_the_model():
    assert config_of(MODEL | TFLOPS, Defaults(requests=(1.0, 2.0 * GIB))).amounts.vram.request == 39 * GIB


def test_weights_alone_don_t_stand_for_a_request():
    assert problems_of({key: MODEL[key] for key in (keys.MODEL_PARAMS, keys.MODEL_PRECISION)} | TFLOPS) == [
        keys.VRAM_REQUEST
    ]


@pytest.mark.parametrize(
    ("given_keys", "missing"),
    [
        ((keys.MODEL_PARAMS,), [keys.MODEL_PRECISION]),
        ((keys.MODEL_PRECISION,), [keys.MODEL_PARAMS]),
        ((keys.MODEL_PARAMS, keys.MODEL_PRECISION, keys.MODEL_USERS), [keys.MODEL_CONTEXT]),
        ((keys.MODEL_CONTEXT, keys.MODEL_USERS), [keys.MODEL_PARAMS]),
    ],
)
def test_a_key_that_says_nothing_alone_is_a_problem_that_names_the_other(
    given_keys: tuple[str, ...], missing: list[str]
):
    annotations = {key: MODEL[key] for key in given_keys} | TFLOPS | {keys.VRAM_REQUEST: "8Gi"}
    assert problems_of(annotations) == missing


def test_a_pod_that_joins_another_workload_decides_nothing_by_its_models_size():
    joins = {keys.GENERATE_WORKLOAD: "false", keys.WORKLOAD: "shared"}
    spec = {"resources": {"requests": {"tflops": 1, "vram": "8Gi"}}}
    config = config_of(MODEL | joins, spec=spec)
    assert config.model_size is None
    assert any(keys.MODEL_PARAMS in warning for warning in config.warnings)


def test_a_typo_of_a_key_is_named():
    [warning] = config_of({keys.PREFIX + "model-parms": "7B", keys.VRAM_REQUEST: "8Gi"} | TFLOPS).warnings
    assert f"did you mean {keys.MODEL_PARAMS}?" in warning


@pytest.mark.parametrize("gpu_count", [1, 2])
def test_the_fleet_has_the_weights_as_prior_on_each_device(gpu_count: int):
    size = ModelSize(14e9, Precision.FP16)
    fleet = to_fleet(Stage(with_config(model_size=size, gpu_count=gpu_count)).snapshot(None))
    assert fleet.prior[0, Resource.VRAM] == 28 * GIB / gpu_count
    assert np.isnan(fleet.prior[0, Resource.COMPUTE])


def test_without_a_size_there_is_no_prior():
    assert np.isnan(to_fleet(Stage().snapshot(None)).prior).all()
