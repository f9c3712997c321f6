"""WorkloadProfile and TensorFusionWorkload: every field is read, every mistake is named with its path."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.errors import ConfigError, Problem
from autoscaler.model.crd import structural_schema
from autoscaler.model.profile import WorkloadProfile, parse_profile, parse_spec

FIXTURES = Path(__file__).parent / "fixtures"


def document(name: str) -> dict[str, Any]:
    return yaml.safe_load((FIXTURES / name).read_text())


def field_paths(schema: dict[str, Any], prefix: str = "") -> set[str]:
    paths = set()
    for name, field in schema.get("properties", {}).items():
        paths.add(prefix + name)
        paths |= field_paths(field, f"{prefix}{name}.")
        paths |= field_paths(field.get("items", {}), f"{prefix}{name}.")
    return paths


def used_paths(value: Any, prefix: str = "") -> set[str]:
    if isinstance(value, list):
        return {path for item in value for path in used_paths(item, prefix)}
    if not isinstance(value, dict):
        return set()
    return {path for key, item in value.items() for path in {prefix + key} | used_paths(item, f"{prefix}{key}.")}


def test_the_full_fixtures_set_every_field_of_the_spec() -> None:
    known = field_paths(structural_schema(WorkloadProfile)["properties"]["spec"])
    used = used_paths(document("workloadprofile-full.yaml")["spec"])
    used |= used_paths(document("workload-later-form.yaml")["spec"])
    assert known - used == {
        f"autoScalingConfig.{path}"
        for path in (
            "bounds.minAllowed.compute", "bounds.maxAllowed.compute",
            "cronScalingRules.desiredResources.requests.compute", "cronScalingRules.desiredResources.limits.compute",
        )
    }  # fmt: skip


@pytest.mark.parametrize("name", ["workloadprofile.yaml", "workloadprofile-full.yaml", "workload-later-form.yaml"])
def test_a_spec_written_back_reads_the_same(name: str) -> None:
    spec = parse_profile(document(name))
    written = spec.model_dump(by_alias=True, exclude_none=True, mode="json")
    assert parse_spec(written) == spec


def test_values_are_typed_seconds_ratios_and_bytes() -> None:
    spec = parse_profile(document("workloadprofile-full.yaml"))
    assert spec.resources is not None
    assert spec.resources.requests is not None
    assert spec.resources.requests.vram == 4 * 2**30
    config = spec.auto_scaling_config
    assert config is not None
    assert config.auto_set_limits is not None
    assert config.auto_set_limits.extra_vram_buffer_ratio == 0.15
    assert config.auto_set_limits.prediction is not None
    assert config.auto_set_limits.prediction.history_data_period == 14 * 86400
    assert config.initial_delay_period == 1800


def test_extras_of_upstream_are_kept() -> None:
    spec = parse_profile(document("workloadprofile-full.yaml"))
    written = spec.model_dump(by_alias=True, exclude_none=True, mode="json")
    full = document("workloadprofile-full.yaml")["spec"]
    for field in ("gangScheduling", "vendor", "gpuIndices", "workerPodTemplate", "sidecarWorker", "nodeAffinity"):
        assert written[field] == full[field]


def problems_of(spec: Any) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        parse_spec(spec)
    return list(caught.value.problems)


A = "autoScalingConfig"
WRONG = [
    ({"qos": "urgent"}, "spec.qos", "urgent", "low, medium, high or critical"),
    ({"gpuCount": 0}, "spec.gpuCount", "0", "greater than or equal to 1"),
    ({"replicas": "2"}, "spec.replicas", "2", "a whole number"),
    ({"isLocalGPU": "yes"}, "spec.isLocalGPU", "yes", "true or false"),
    ({"resources": {"requests": {"vram": "4GB"}}}, "spec.resources.requests.vram", "4GB", "4Gi"),
    ({"resources": {"requests": {"compute": 120}}}, "spec.resources.requests.compute", "120", "at most 100"),
    ({"resource": {}}, "spec.resource", "{}", "did you mean resources?"),
    ({"pool_name": "x"}, "spec.pool_name", "x", "did you mean poolName?"),
    ({"zzz": 1}, "spec.zzz", "1", "a known field: autoScalingConfig"),
    ({A: {"autoSetLimit": {}}}, f"spec.{A}.autoSetLimit", "{}", "did you mean autoSetLimits?"),
    ({A: {"autoSetLimits": {"percentil": 1}}}, f"spec.{A}.autoSetLimits.percentil", "1", "did you mean percentile?"),
    ({A: {"autoSetLimits": {"percentile": 1.5}}}, f"spec.{A}.autoSetLimits.percentile", "1.5", "from 0 to 1"),
    ({A: {"autoSetLimits": {"percentile": "95"}}}, f"spec.{A}.autoSetLimits.percentile", "95", "from 0 to 1"),
    ({A: {"autoSetLimits": {"percentile": True}}}, f"spec.{A}.autoSetLimits.percentile", "true", "a ratio such as"),
    ({A: {"autoSetLimits": {"evaluationPeriod": "5min"}}}, f"spec.{A}.autoSetLimits.evaluationPeriod", "5min", "5m"),
    ({A: {"autoSetLimits": {"evaluationPeriod": "0s"}}}, f"spec.{A}.autoSetLimits.evaluationPeriod", "0s", "above 0"),
    ({A: {"autoSetLimits": {"scaleUpStep": 0}}}, f"spec.{A}.autoSetLimits.scaleUpStep", "0", "from 1 to 1000"),
    ({A: {"autoSetLimits": {"extraTFlopsBufferRatio": -1}}}, f"spec.{A}.autoSetLimits.extraTFlopsBufferRatio", "-1", "a ratio"),
    ({A: {"autoSetLimits": {"targetResource": "cpu"}}}, f"spec.{A}.autoSetLimits.targetResource", "cpu", "vram"),
    ({A: {"autoSetReplicas": {"scaleUpStep": "0%"}}}, f"spec.{A}.autoSetReplicas.scaleUpStep", "0%", "at least 1"),
    ({A: {"autoSetReplicas": {"targetTFlopsOfLimits": 0}}}, f"spec.{A}.autoSetReplicas.targetTFlopsOfLimits", "0", "above 0"),
    ({A: {"autoSetReplicas": {"minReplicas": 3, "maxReplicas": 2}}}, f"spec.{A}.autoSetReplicas.minReplicas", "3", "maxReplicas (2)"),
    ({A: {"bounds": {"minRatio": 0}}}, f"spec.{A}.bounds.minRatio", "0", "above 0"),
    ({A: {"bounds": {"minRatio": 2, "maxRatio": "50%"}}}, f"spec.{A}.bounds.minRatio", "2", "maxRatio (0.5)"),
    ({A: {"bounds": {"minAllowed": {"vram": "2Gi"}, "maxAllowed": {"vram": "1Gi"}}}}, f"spec.{A}.bounds.minAllowed.vram", "2Gi", "1Gi"),
    ({A: {"autoSetResources": {"marginFraction": 0.1, "updateThreshold": 0.2}}}, f"spec.{A}.autoSetResources.updateThreshold", "0.2", "marginFraction (0.1)"),
    ({A: {"autoSetResources": {}, "autoSetLimits": {}}}, f"spec.{A}.autoSetLimits", "set beside autoSetResources", "one form"),
    ({A: {"externalScaler": {"enable": True}}}, f"spec.{A}.externalScaler.url", "", "URL"),
    ({"gangScheduling": {"minMembers": 1}}, "spec.gangScheduling.minMembers", "1", "at least 2"),
    ({A: None, "resources": {"requests": {"tflops": 3}, "limits": {"tflops": "2500m"}}}, "spec.resources.requests.tflops", "3", "limits.tflops (2.5)"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "path", "value", "allowed"), WRONG, ids=[case[1] + "=" + case[2] for case in WRONG])
def test_a_mistake_is_named_with_path_value_and_what_is_allowed(
    spec: dict[str, Any], path: str, value: str, allowed: str
) -> None:
    [problem] = problems_of(spec)
    assert (problem.path, problem.value) == (path, value)
    assert allowed in problem.allowed


def rule(**fields: object) -> dict[str, object]:
    return {"name": "r", "enable": True, "start": "0 8 * * *", "end": "0 20 * * *"} | fields


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"start": "0 8 * *"}, "start"),
        ({"start": "0 0 8 * * *"}, "start"),
        ({"start": "61 * * * *"}, "start"),
        ({"start": "0 0 30 2 *"}, "start"),
        ({"end": "0 0 31 4,6 *"}, "end"),
        ({"end": "soon"}, "end"),
        ({"end": "0 8 * * *"}, "end"),
        ({"timeZone": "Mars/Olympus"}, "timeZone"),
        ({"timeZone": "../../etc/passwd"}, "timeZone"),
        ({"timeZone": "America"}, "timeZone"),
        ({"name": ""}, "name"),
        ({"desiredReplicas": -1}, "desiredReplicas"),
        (
            {"desiredResources": {"requests": {"vram": "2Gi"}, "limits": {"vram": "1Gi"}}},
            "desiredResources.requests.vram",
        ),
    ],
)
def test_a_rule_that_can_never_work_is_a_problem(fields: dict[str, object], field: str) -> None:
    [problem] = problems_of({A: {"cronScalingRules": [rule(**fields)]}})
    assert problem.path == f"spec.{A}.cronScalingRules[0].{field}"


@pytest.mark.parametrize("start", ["@daily", "*/5 * * * ?", "0 0 29 2 *", "0 0 L * *", "30 6 * jan-mar mon,wed"])
def test_every_cron_form_that_can_fire_is_accepted(start: str) -> None:
    parse_spec({A: {"cronScalingRules": [rule(start=start)]}})


def test_rules_that_share_a_name_are_a_problem() -> None:
    [problem] = problems_of({A: {"cronScalingRules": [rule(), rule(priority=1)]}})
    assert (problem.path, problem.value) == (f"spec.{A}.cronScalingRules[1].name", "r")


def test_all_mistakes_are_named_at_once() -> None:
    spec = copy.deepcopy(document("workloadprofile-full.yaml")["spec"])
    spec["qos"] = "urgent"
    spec["resources"]["requests"]["vram"] = "4GB"
    spec[A]["autoSetLimits"]["percentile"] = 99
    spec[A]["autoSetReplicas"]["minReplicas"] = 11
    spec[A]["cronScalingRules"][0]["timeZone"] = "Asia/Shanghia"
    spec[A]["bound"] = {}
    assert {problem.path.removeprefix(f"spec.{A}.") for problem in problems_of(spec)} == {
        "spec.qos", "spec.resources.requests.vram", "autoSetLimits.percentile", "autoSetReplicas.minReplicas",
        "cronScalingRules[0].timeZone", "bound",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"apiVersion": "v1"}, "apiVersion"),
        ({"kind": "WorkloadProfil"}, "kind"),
        ({"metadata": {"name": "<...>"}}, "metadata.name"),
        ({"metadata": {"name": "a", "namespace": "B"}}, "metadata.namespace"),
        ({"metadata": "a"}, "metadata"),
        ({"specs": {}}, "specs"),
        ({"spec": []}, "spec"),
    ],
)
def test_the_envelope_is_judged_too(change: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_profile(document("workloadprofile.yaml") | change)
    assert [problem.path for problem in caught.value.problems] == [path]


def test_a_stored_status_is_nobodys_mistake() -> None:
    manifest = document("workloadprofile.yaml") | {"status": {"anything": ["goes"]}}
    assert parse_profile(manifest) == parse_profile(document("workloadprofile.yaml"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=8), inner, max_size=2),
    max_leaves=4,
)
TOP_FIELDS = sorted(structural_schema(WorkloadProfile)["properties"]["spec"]["properties"])


@given(st.dictionaries(st.sampled_from(TOP_FIELDS), JSON, max_size=3))
def test_no_json_whatever_breaks_the_parser(spec: dict[str, Any]) -> None:
    assert all(problem.path.startswith("spec.") and problem.allowed for problem in found(spec))


def found(spec: dict[str, Any]) -> tuple[Problem, ...]:
    try:
        parse_spec(spec)
    except ConfigError as error:
        return error.problems
    return ()
