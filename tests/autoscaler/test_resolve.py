"""From annotations, profile and defaults to one configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.contract import keys
from autoscaler.contract.keys import QoS
from autoscaler.errors import ConfigError, Problem
from autoscaler.model.config import (
    Bounds,
    Configuration,
    CronRule,
    ExternalScaler,
    LimitsPolicy,
    Mode,
    Pause,
    Prediction,
    ReplicasPolicy,
    RequestsPolicy,
    Step,
)
from autoscaler.model.profile import WorkloadProfileSpec, parse_profile, parse_spec
from autoscaler.model.resolve import Defaults, Owner, resolve
from autoscaler.model.resources import GIB, Amount, Amounts, Resource

FIXTURES = Path(__file__).parent / "fixtures"
AMOUNTS = {keys.TFLOPS_LIMIT: "20", keys.VRAM_LIMIT: "4Gi"}
PLAIN = Amounts(Amount(20.0, 20.0), Amount(4 * GIB, 4 * GIB))


def resolved(
    annotations: dict[str, str] | None = None,
    spec: dict[str, Any] | WorkloadProfileSpec | None = None,
    defaults: Defaults | None = None,
    owner: Owner | None = None,
) -> Configuration:
    profile = parse_spec(spec) if isinstance(spec, dict) else spec
    return resolve(annotations or {}, {}, profile, defaults or Defaults(), owner or Owner())


def problems_of(*arguments: Any, **named: Any) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        resolved(*arguments, **named)
    return list(caught.value.problems)


def stored(name: str) -> WorkloadProfileSpec:
    return parse_profile(yaml.safe_load((FIXTURES / name).read_text()))


GOLDEN_FULL = Configuration(
    amounts=Amounts(Amount(10.0, 20.0), Amount(4 * GIB, 4 * GIB)),
    qos=QoS.HIGH,
    gpu_count=2,
    gpu_model="H100",
    pool="lab",
    replicas=2,
    requests=RequestsPolicy(
        mode=Mode.RECOMMEND,
        targets=frozenset({Resource.VRAM}),
        percentile=0.95,
        buffer_ratio=0.15,
        evaluation_seconds=300,
        aggregation_seconds=604800,
        stabilization_seconds=1500,
        prediction=Prediction(False, "auto", 14 * 86400, 1800),
    ),
    limits=LimitsPolicy(
        mode=Mode.ON,
        percentile=0.99,
        tflops_buffer_ratio=0.15,
        vram_buffer_ratio=0.15,
        ignored_delta_ratio=0.05,
        scale_up_step=2.0,
        max_ratio_to_requests=5.0,
        evaluation_seconds=60,
        aggregation_seconds=86400,
        stabilization_seconds=300,
        cool_down_seconds=90,
        prediction=Prediction(False, "auto", 14 * 86400, 1800),
    ),
    replicas_policy=ReplicasPolicy(
        mode=Mode.ON,
        target_tflops_ratio=0.7,
        target_vram_ratio=0.8,
        evaluation_seconds=60,
        min_replicas=1,
        max_replicas=10,
        scale_up_step=Step(1.0, is_ratio=True),
        scale_down_step=Step(1.0),
        scale_up_cool_down_seconds=60,
        scale_down_cool_down_seconds=600,
        stabilization_seconds=900,
        tolerance_ratio=0.1,
        prediction=Prediction(True, "linear", 7 * 86400, 5400),
    ),
    cron_rules=(
        CronRule(
            name="office",
            start="0 8 * * 1-5",
            end="0 20 * * MON-FRI",
            time_zone="Asia/Shanghai",
            priority=5,
            requests=(15.0, 5 * GIB),
            limits=(30.0, 5 * GIB),
            replicas=4,
        ),
    ),
    external=ExternalScaler(
        "https://scaler.lab.svc/recommend",
        timeout_seconds=3.0,
        initial_delay_seconds=600.0,
        secret_name="scaler",
        secret_key="token",
        secret_namespace="lab",
    ),
    bounds=Bounds((2.0, GIB), (100.0, 40 * GIB), (0.2, 0.2), (5.0, 5.0)),
    gang_members=2,
    initial_delay_seconds=1800,
)
GOLDEN_LATER = Configuration(
    amounts=Amounts(Amount(30.0, 60.0), Amount(10 * GIB, 20 * GIB)),
    replicas=1,
    requests=RequestsPolicy(
        mode=Mode.ON,
        targets=frozenset({Resource.COMPUTE}),
        percentile=0.5,
        vram_percentile=0.6,
        buffer_ratio=0.15,
        update_threshold_ratio=0.1,
        evaluation_seconds=30,
        aggregation_seconds=7200,
    ),
    limits=LimitsPolicy(
        mode=Mode.ON,
        targets=frozenset({Resource.COMPUTE}),
        percentile=0.95,
        vram_percentile=0.99,
        tflops_buffer_ratio=0.15,
        vram_buffer_ratio=0.15,
        ignored_delta_ratio=0.1,
        evaluation_seconds=30,
        aggregation_seconds=7200,
    ),
    bounds=Bounds(min_ratio=(0.1, 0.2), max_ratio=(10.0, 5.0)),
    initial_delay_seconds=1800,
)


@pytest.mark.parametrize(
    ("name", "golden"), [("workloadprofile-full.yaml", GOLDEN_FULL), ("workload-later-form.yaml", GOLDEN_LATER)]
)
def test_a_profile_resolves_to_its_golden_configuration(name: str, golden: Configuration) -> None:
    assert resolved(spec=stored(name)) == golden


@pytest.mark.parametrize(
    ("qos", "compute", "vram"), [("low", 0.5, 0.6), ("medium", 0.5, 0.6), ("high", 0.9, 0.98), ("critical", 0.95, 0.99)]
)
def test_the_later_form_takes_the_request_percentile_of_the_service_level(
    qos: str, compute: float, vram: float
) -> None:
    requests = resolved({keys.QOS: qos}, stored("workload-later-form.yaml")).requests
    assert (requests.percentile, requests.vram_percentile) == (compute, vram)


def test_annotations_win_over_the_profile_and_the_profile_over_defaults() -> None:
    spec = {
        "resources": {"limits": {"tflops": 30, "vram": "8Gi"}},
        "qos": "low", "gpuCount": 4, "poolName": "profile-pool", "replicas": 5, "isolation": "hard", "isLocalGPU": True,
    }  # fmt: skip
    defaults = Defaults((1.0, GIB), (2.0, GIB), QoS.CRITICAL, "default-pool", False)
    owner = Owner(replicas=7)
    bare = resolved(AMOUNTS, None, defaults, owner)
    assert (bare.qos, bare.gpu_count, bare.pool, bare.replicas) == (QoS.CRITICAL, 1, "default-pool", 7)
    assert (bare.isolation, bare.is_local_gpu, bare.amounts) == ("soft", False, PLAIN)
    profile = resolved({}, spec, defaults, owner)
    assert (profile.qos, profile.gpu_count, profile.pool, profile.replicas) == (QoS.LOW, 4, "profile-pool", 5)
    assert (profile.isolation, profile.is_local_gpu) == ("hard", True)
    assert profile.amounts == Amounts(Amount(30.0, 30.0), Amount(8 * GIB, 8 * GIB))
    own = {
        keys.QOS: "high", keys.GPU_COUNT: "2", keys.GPU_POOL: "own-pool", keys.REPLICAS: "6", keys.ISOLATION: "shared",
        keys.IS_LOCAL_GPU: "false",
    }  # fmt: skip
    annotated = resolved(AMOUNTS | own, spec, defaults, owner)
    assert (annotated.qos, annotated.gpu_count, annotated.pool, annotated.replicas) == (QoS.HIGH, 2, "own-pool", 6)
    assert (annotated.isolation, annotated.is_local_gpu, annotated.amounts) == ("shared", False, PLAIN)


@pytest.mark.parametrize(
    ("annotations", "profile", "compute"),
    [
        ({"tflops-request": "10"}, {}, Amount(10.0, 10.0)),
        ({"tflops-limit": "10"}, {}, Amount(10.0, 10.0)),
        ({"tflops-limit": "40"}, {"requests": {"tflops": 30}}, Amount(30.0, 40.0)),
        ({"tflops-request": "5"}, {"limits": {"tflops": 30}}, Amount(5.0, 30.0)),
        ({}, {"requests": {"tflops": 3}}, Amount(3.0, 3.0)),
        ({}, {}, Amount(7.0, 9.0)),
    ],
)
def test_a_missing_side_is_the_other_and_defaults_fill_only_what_nobody_set(
    annotations: dict[str, str], profile: dict[str, Any], compute: Amount
) -> None:
    defaults = Defaults(requests=(7.0, GIB), limits=(9.0, GIB))
    named = {keys.PREFIX + name: text for name, text in annotations.items()}
    assert resolved(named, {"resources": profile}, defaults).amounts.compute == compute


def test_a_request_above_the_limit_is_named_where_it_was_written() -> None:
    [own] = problems_of(AMOUNTS | {keys.VRAM_REQUEST: "5Gi"})
    assert (own.path, own.value, own.allowed) == (keys.VRAM_REQUEST, "5Gi", "at most the limit (4Gi)")
    [profile] = problems_of(AMOUNTS, {"resources": {"requests": {"tflops": 30}}})
    assert (profile.path, profile.value) == ("spec.resources.requests.tflops", "30")


def test_amounts_that_nobody_set_are_problems_for_each_resource() -> None:
    assert [problem.path for problem in problems_of()] == [keys.TFLOPS_REQUEST, keys.VRAM_REQUEST]


def test_a_bad_amount_is_one_problem_and_never_replaced_by_a_default() -> None:
    for defaults in (Defaults(), Defaults(limits=(5.0, GIB))):
        [problem] = problems_of(AMOUNTS | {keys.TFLOPS_LIMIT: "20TF"}, None, defaults)
        assert (problem.path, problem.value) == (keys.TFLOPS_LIMIT, "20TF")


ON = {"enable": True}
LAYERS = [
    ("absent", None, {}, Mode.OFF),
    ("empty config", {}, {}, Mode.OFF),
    ("block without enable", {"autoSetLimits": {}}, {}, Mode.RECOMMEND),
    ("block that is not enabled", {"autoSetLimits": {"enable": False}}, {}, Mode.RECOMMEND),
    ("enabled block", {"autoSetLimits": ON}, {}, Mode.ON),
    ("later form", {"autoSetResources": ON}, {}, Mode.ON),
    ("later form, recommended only", {"autoSetResources": {"enable": False}}, {}, Mode.RECOMMEND),
    ("annotation without a profile", None, {keys.AUTO_LIMITS: "true"}, Mode.ON),
    ("annotation over a block that is not enabled", {"autoSetLimits": {}}, {keys.AUTO_LIMITS: "true"}, Mode.ON),
    ("annotation turns an enabled block off", {"autoSetLimits": ON}, {keys.AUTO_LIMITS: "false"}, Mode.OFF),
    ("newer annotation", None, {keys.AUTOSCALE: "true"}, Mode.ON),
    ("older annotation", None, {keys.AUTO_RESOURCES: "true"}, Mode.ON),
    ("newer annotation turns off", {"autoSetLimits": ON}, {keys.AUTOSCALE: "false"}, Mode.OFF),
    ("the layer's own annotation wins", None, {keys.AUTOSCALE: "true", keys.AUTO_LIMITS: "false"}, Mode.OFF),
    ("autoscale wins over auto-resources", None, {keys.AUTOSCALE: "false", keys.AUTO_RESOURCES: "true"}, Mode.OFF),
]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "annotations", "mode"), [case[1:] for case in LAYERS], ids=[case[0] for case in LAYERS]
)
def test_a_layer_is_switched_by_its_annotation_else_by_its_block(
    config: dict[str, Any] | None, annotations: dict[str, str], mode: Mode
) -> None:
    spec = {} if config is None else {"autoScalingConfig": config}
    assert resolved(AMOUNTS | annotations, spec).limits.mode is mode


@pytest.mark.parametrize("layer", ["requests", "limits", "replicas"])
def test_each_annotation_switches_its_own_layer_only(layer: str) -> None:
    config = resolved(AMOUNTS | {f"{keys.PREFIX}auto-{layer}": "true"})
    modes = {"requests": config.requests.mode, "limits": config.limits.mode, "replicas": config.replicas_policy.mode}
    assert modes == {name: Mode.ON if name == layer else Mode.OFF for name in modes}


def test_a_layer_that_an_annotation_turns_on_keeps_the_values_of_the_profile() -> None:
    spec = {"autoScalingConfig": {"autoSetLimits": {"percentile": "0.9", "targetResource": "vram"}}}
    limits = resolved(AMOUNTS | {keys.AUTO_LIMITS: "true"}, spec).limits
    assert (limits.mode, limits.percentile, limits.targets) == (Mode.ON, 0.9, frozenset({Resource.VRAM}))


def test_the_target_annotation_narrows_both_vertical_layers() -> None:
    config = resolved(AMOUNTS | {keys.AUTOSCALE: "true", keys.AUTOSCALE_TARGET: "compute"})
    assert config.requests.targets == config.limits.targets == frozenset({Resource.COMPUTE})
    alone = resolved(AMOUNTS | {keys.AUTOSCALE_TARGET: "compute"})
    assert alone.limits == LimitsPolicy()
    assert keys.AUTOSCALE_TARGET in alone.warnings[0]


def test_a_profile_that_is_named_but_missing_is_a_problem() -> None:
    [problem] = problems_of(AMOUNTS | {keys.WORKLOAD_PROFILE: "small"})
    assert (problem.path, problem.value) == (keys.WORKLOAD_PROFILE, "small")


def test_joining_needs_a_name_and_an_object() -> None:
    [unnamed] = problems_of(
        AMOUNTS | {keys.GENERATE_WORKLOAD: "false"}, {"resources": {"limits": {"tflops": 1, "vram": 1}}}
    )
    assert unnamed.path == keys.GENERATE_WORKLOAD
    waits = problems_of({keys.GENERATE_WORKLOAD: "false", keys.WORKLOAD: "shared"})
    assert waits[0] == Problem(keys.WORKLOAD, "shared", "an existing TensorFusionWorkload; it is waited for")


def test_a_pod_that_joins_changes_nothing_there_and_is_told_so() -> None:
    own = {keys.GENERATE_WORKLOAD: "false", keys.WORKLOAD: "shared", keys.QOS: "critical", keys.REPLICAS: "9"}
    spec = {"resources": {"limits": {"tflops": 5, "vram": "1Gi"}}, "qos": "low", "replicas": 2}
    config = resolved(AMOUNTS | own, spec)
    assert config.amounts == Amounts(Amount(5.0, 5.0), Amount(GIB, GIB))
    assert (config.qos, config.replicas, config.generate_workload, config.workload) == (QoS.LOW, 2, False, "shared")
    told = {warning.split(" changes nothing")[0] for warning in config.warnings}
    assert told == {keys.TFLOPS_LIMIT, keys.VRAM_LIMIT, keys.QOS, keys.REPLICAS}


def test_the_workload_may_be_named_by_a_label() -> None:
    by_label = resolve(AMOUNTS, {keys.WORKLOAD: "shared"}, None, Defaults(), Owner())
    assert by_label.workload == "shared"
    both = resolve(AMOUNTS | {keys.WORKLOAD: "own"}, {keys.WORKLOAD: "shared"}, None, Defaults(), Owner())
    assert both.workload == "own"
    with pytest.raises(ConfigError):
        resolve(AMOUNTS, {keys.WORKLOAD: "Not A Name"}, None, Defaults(), Owner())


def test_only_the_only_container_receives_the_gpu_by_default() -> None:
    assert resolved(AMOUNTS, owner=Owner(1, ("app", "inject-lib"))).inject_containers == ("app",)
    assert resolved(AMOUNTS | {keys.INJECT_CONTAINER: "b, a"}, owner=Owner(1, ("a", "b", "c"))).inject_containers == (
        "b",
        "a",
    )
    [problem] = problems_of(AMOUNTS, owner=Owner(1, ("a", "b")))
    assert problem.path == keys.INJECT_CONTAINER


def test_a_pod_can_be_its_own_worker_only_on_a_local_gpu() -> None:
    [problem] = problems_of(AMOUNTS | {keys.NO_STANDALONE_WORKER_MODE: "true"})
    assert problem.path == keys.NO_STANDALONE_WORKER_MODE
    assert resolved(AMOUNTS | {keys.NO_STANDALONE_WORKER_MODE: "true"}, {"isLocalGPU": True}).no_standalone_worker


def test_replicas_that_differ_from_the_owner_are_warned_about_and_absent_ones_follow_it() -> None:
    assert resolved(AMOUNTS, owner=Owner(4)).replicas == 4
    differing = resolved(AMOUNTS | {keys.REPLICAS: "2"}, owner=Owner(4))
    assert differing.replicas == 2
    assert differing.warnings == (f"{keys.REPLICAS}: 2 workers, but the owner's replicas are 4",)
    assert resolved(AMOUNTS | {keys.REPLICAS: "4"}, owner=Owner(4)).warnings == ()


def test_pause_and_revert_are_carried() -> None:
    config = resolved(AMOUNTS | {keys.AUTOSCALING_PAUSED: "down", keys.AUTOSCALING_REVERT: "true"})
    assert (config.pause, config.revert) == (Pause(down=True), True)


def test_a_rule_that_does_nothing_is_warned_about() -> None:
    times = {"start": "0 8 * * *", "end": "0 9 * * *"}
    rules = [{"name": "idle", **times}, {"name": "empty", "enable": True, **times}]
    config = resolved(AMOUNTS, {"autoScalingConfig": {"cronScalingRules": rules}})
    assert [rule.enable for rule in config.cron_rules] == [False, True]
    assert len(config.warnings) == 2


@pytest.mark.parametrize(
    ("own", "later", "expected"),
    [
        ("10m", "20m", 600.0),
        (None, "20m", 1200.0),
        ("0s", "20m", 0.0),
        (None, None, None),
    ],
)
def test_the_initial_delay_of_the_configuration_wins(
    own: str | None, later: str | None, expected: float | None
) -> None:
    config = {"initialDelayPeriod": own, "autoSetResources": {"initialDelayPeriod": later}}
    assert resolved(AMOUNTS, {"autoScalingConfig": config}).initial_delay_seconds == expected


def test_problems_of_every_kind_come_together() -> None:
    annotations = {
        keys.TFLOPS_REQUEST: "ten", keys.VRAM_REQUEST: "5Gi", keys.VRAM_LIMIT: "4Gi", keys.QOS: "urgent",
        keys.WORKLOAD_PROFILE: "gone", keys.INJECT_CONTAINER: "ghost", keys.NO_STANDALONE_WORKER_MODE: "true",
    }  # fmt: skip
    paths = {problem.path for problem in problems_of(annotations, owner=Owner(1, ("app",)))}
    assert paths == set(annotations) - {keys.VRAM_LIMIT}


OPTIONAL_AMOUNT = st.none() | st.floats(0.1, 1000)


@given(st.lists(OPTIONAL_AMOUNT, min_size=6, max_size=6))
def test_whatever_resolves_has_a_request_at_most_its_limit(figures: list[float | None]) -> None:
    own_request, own_limit, request, limit, default_request, default_limit = figures
    annotations = {keys.VRAM_LIMIT: "1Gi"}
    annotations |= {keys.TFLOPS_REQUEST: str(own_request)} if own_request else {}
    annotations |= {keys.TFLOPS_LIMIT: str(own_limit)} if own_limit else {}
    spec = {"resources": {"requests": {"tflops": request}, "limits": {"tflops": limit}}}
    defaults = Defaults((default_request, None), (default_limit, None))
    try:
        compute = resolved(annotations, spec, defaults).amounts.compute
    except ConfigError:
        return
    assert compute.request <= compute.limit
    assert {compute.request, compute.limit} <= set(figures)
