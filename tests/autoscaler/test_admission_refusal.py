"""What is refused at admission, in the words of the condition, and what is only warned about."""

from __future__ import annotations

from typing import Any

import pytest

from autoscaler.admission.judge import judge_pod, judge_profile
from autoscaler.admission.pods import Surroundings, pod_of
from autoscaler.admission.review import Answer
from autoscaler.contract import keys
from autoscaler.model.workload import ClusterView
from autoscaler.read.discovery import discover
from autoscaler.report.conditions import config_valid
from tests.autoscaler.admission_cases import (
    ON,
    OWN,
    PLACE,
    around,
    pod,
    profile,
    review,
    tensor_fusion_workload,
)


def judged(manifest: Any, surroundings: Surroundings | None = None) -> Answer:
    read = pod_of(review(manifest))
    assert read is not None
    return judge_pod(read, surroundings or around())


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (keys.QOS, "urgent"),
        (keys.TFLOPS_LIMIT, "lots"),
        (keys.VRAM_REQUEST, "4GB"),
        (keys.GPU_COUNT, "0"),
        (keys.AUTO_LIMITS, "yes"),
        (keys.AUTOSCALING_PAUSED, "tomorrow"),
        (keys.INJECT_CONTAINER, "nobody"),
        (keys.TFLOPS_REQUEST, "30"),
        (keys.NO_STANDALONE_WORKER_MODE, "true"),
    ],
)
def test_a_bad_annotation_is_refused_in_the_words_of_the_condition(key, text):
    bad = pod(OWN | ON | {key: text})
    refusal = judged(bad).refusal
    template = {"metadata": {"labels": {keys.ENABLED: "true"}, "annotations": bad["metadata"]["annotations"]}}
    template["spec"] = bad["spec"]
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 1, "template": template}}
    deployment["metadata"] = {"name": "chat", "namespace": "prod", "uid": "d-uid"}
    (broken,) = discover(ClusterView(owners=(deployment,)), {}).broken
    assert refusal == config_valid(broken.problems)[2]
    assert key in refusal
    assert "allowed: " in refusal


def test_a_pod_that_nobody_can_size_is_refused_unless_somebody_named_may_still_bring_the_figures():
    assert "tflops-request: is missing" in judged(pod(ON), Surroundings(PLACE)).refusal
    for waiting in ({keys.WORKLOAD_PROFILE: "later"}, {keys.WORKLOAD: "later"}):
        answer = judged(pod(ON | waiting), Surroundings(PLACE))
        assert not answer.refusal
        assert answer.warnings


def test_a_profile_that_is_missing_or_cannot_be_read_is_a_warning_about_the_pod():
    broken = {"metadata": {"name": "small", "namespace": "prod"}, "spec": {"qos": "urgent"}}
    for found in (None, broken):
        answer = judged(pod({keys.WORKLOAD_PROFILE: "small"}), Surroundings(PLACE, profile=found))
        assert not answer.refusal
        assert any("small" in warning and "waited for" in warning for warning in answer.warnings)


def test_figures_of_a_workload_made_by_the_user_rule_and_contradicting_them_is_only_warned_about():
    ruling = tensor_fusion_workload({}, resources={"limits": {"tflops": "50", "vram": "8Gi"}})
    ruling["metadata"]["labels"] = {}
    answer = judged(pod(OWN), Surroundings(PLACE, ruling))
    assert not answer.refusal
    assert any("TensorFusionWorkload chat says" in warning for warning in answer.warnings)
    assert not judged(pod({}), Surroundings(PLACE, ruling)).refusal


def test_a_key_that_looks_like_a_typo_is_named_in_a_warning_also_beside_a_refusal():
    typo = OWN | {keys.PREFIX + "tflop-limits": "3"}
    answer = judged(pod(typo))
    assert not answer.refusal
    assert any("did you mean tensor-fusion.ai/tflops-limit?" in warning for warning in answer.warnings)
    both = judged(pod(typo | {keys.QOS: "urgent"}))
    assert both.refusal
    assert both.warnings


def test_what_is_wrong_with_the_pod_itself_is_refused_also_when_nothing_around_it_is_known():
    unknown = Surroundings(PLACE, complete=False)
    assert judged(pod({keys.QOS: "urgent"}), unknown).refusal
    assert not judged(pod(ON), unknown).refusal


LIMITS = {"limits": {"tflops": "20", "vram": "8Gi"}}


def config(**layers: Any) -> dict[str, Any]:
    return {"resources": LIMITS, "autoScalingConfig": layers}


RULE = {"name": "a", "enable": True, "start": "0 8 * * *", "end": "0 20 * * *", "desiredReplicas": 2}
BAD_SPECS = {
    "a percentile above one, as a number": (config(autoSetLimits={"percentile": 1.5}), "percentile"),
    "a percentile above one, as text": (config(autoSetLimits={"percentile": "150%"}), "percentile"),
    "a duration in words": (config(autoSetLimits={"evaluationPeriod": "5min"}), "evaluationPeriod"),
    "a zone on Mars": (config(cronScalingRules=[RULE | {"timeZone": "Mars/Olympus"}]), "timeZone"),
    "a minute past the hour": (config(cronScalingRules=[RULE | {"start": "61 * * * *"}]), "start"),
    "an unknown service level": ({"qos": "urgent", "resources": LIMITS}, "qos"),
    "a request above the limit": ({"resources": {"requests": {"tflops": "30"}, **LIMITS}}, "requests.tflops"),
    "fewest above most": (config(autoSetReplicas={"minReplicas": 3, "maxReplicas": 2}), "minReplicas"),
    "no mapping at all": ("text", "spec"),
}


@pytest.mark.parametrize("case", BAD_SPECS)
def test_a_profile_that_cannot_be_meant_is_refused_with_its_path(case):
    spec, path = BAD_SPECS[case]
    for kind in ("WorkloadProfile", "TensorFusionWorkload"):
        refusal = judge_profile(review(profile(spec, kind=kind))).refusal
        assert path in refusal
        assert "allowed: " in refusal


def test_a_good_profile_and_one_that_leaves_the_amounts_to_annotations_pass():
    assert judge_profile(review(profile(config(autoSetLimits={"enable": True})))) == Answer()
    assert judge_profile(review(profile({"qos": "high"}))) == Answer()


def test_an_update_is_refused_only_for_what_it_brings_in():
    bad = {"qos": "urgent", "resources": LIMITS}
    labelled = profile(bad)
    labelled["metadata"] = labelled["metadata"] | {"labels": {"a": "b"}, "finalizers": []}
    assert not judge_profile(review(labelled, "UPDATE", profile(bad))).refusal
    assert not judge_profile(review(profile(bad, status={"workloads": 1}), "UPDATE", profile(bad))).refusal
    answer = judge_profile(review(profile(bad | {"replicas": 3}), "UPDATE", profile(bad)))
    assert not answer.refusal
    assert any("spec.qos" in warning for warning in answer.warnings)
    worse = judge_profile(review(profile(bad | {"gpuCount": 0}), "UPDATE", profile(bad)))
    assert "gpuCount" in worse.refusal
    assert "spec.qos" not in worse.refusal
    assert judge_profile(review(profile(bad), "UPDATE", profile({"resources": LIMITS}))).refusal


def test_a_field_of_newer_definitions_is_warned_about_so_that_their_operator_can_go_on():
    answer = judge_profile(review(profile({"resources": LIMITS, "fancyNewField": 1})))
    assert not answer.refusal
    assert any("fancyNewField" in warning for warning in answer.warnings)
