"""Admission: the size that pods are born with, what is refused, and that no question is ever left unanswered."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.admission.birth import birth_annotations
from autoscaler.admission.judge import judge_pod, judge_profile
from autoscaler.admission.metrics import AdmissionMetrics
from autoscaler.admission.pods import Surroundings, place_of, pod_of, resolution_of
from autoscaler.admission.review import (
    MAX_WARNING_CHARACTERS,
    Answer,
    MalformedReviewError,
    Review,
    parse_review,
    render_answer,
)
from autoscaler.admission.server import (
    MAX_BODY_BYTES,
    MUTATE_PODS,
    VALIDATE_PODS,
    VALIDATE_PROFILES,
    Admission,
    admission_application,
    metrics_application,
)
from autoscaler.apply.plan import annotate
from autoscaler.contract import keys
from autoscaler.contract.quantity import parse_quantity
from autoscaler.model.allowed import overlay_of
from autoscaler.model.decision import Field
from autoscaler.model.quantity import format_amount, round_amount
from autoscaler.model.resources import Resource
from autoscaler.model.takeover import TakenOver
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import ClusterView
from autoscaler.read.discovery import discover
from autoscaler.read.standing import render_record
from autoscaler.read.workers import make_worker
from autoscaler.report.conditions import config_valid
from tests.autoscaler.admission_cases import (
    ON,
    OWN,
    PLACE,
    UID,
    around,
    changed,
    moved_status,
    patched,
    pod,
    question,
    tensor_fusion_workload,
)
from tests.autoscaler.apply_cases import NOW, amounts, decision, workload

FIGURES = ("tflops-request", "tflops-limit", "vram-request", "vram-limit")


def review(manifest: Any, operation: str = "CREATE", old: Any = None) -> Review:
    return parse_review(json.dumps(question(manifest, operation, old)).encode())


def born(manifest: Any, surroundings: Surroundings | None = None, now: float = NOW) -> dict[str, str]:
    read = pod_of(review(manifest))
    assert read is not None
    return birth_annotations(read, surroundings or around(), now)


def figures(annotations: dict[str, str]) -> tuple[str | None, ...]:
    return tuple(annotations.get(keys.PREFIX + name) for name in FIGURES)


def answered(manifest: Any, annotations: dict[str, str]) -> Any:
    asked = review(manifest)
    return patched(manifest, json.loads(render_answer(asked, Answer(annotations=annotations)))["response"])


# Born at the size of its siblings.


def test_a_pod_is_born_with_the_figures_that_are_in_force_and_says_whose_they_are():
    annotations = born(pod())
    assert figures(annotations) == ("12", "24", "3Gi", "5Gi")
    assert json.loads(annotations[keys.AUTOSCALING_BORN]) == {
        "workload": "chat",
        "generation": 3,
        "decided": "2027-01-15T08:00:00Z",
        "tflops-request": "12",
        "tflops-limit": "24",
        "vram-request": "3Gi",
        "vram-limit": "5Gi",
    }


def test_it_is_patched_as_the_controller_itself_would_have_patched_it_so_that_the_users_figures_are_kept():
    decided = decision(
        {
            Field.COMPUTE_REQUEST: 12.0,
            Field.COMPUTE_LIMIT: 24.0,
            Field.VRAM_REQUEST: 3.0 * 2**30,
            Field.VRAM_LIMIT: 5.0 * 2**30,
        }
    )
    read = pod_of(review(pod()))
    assert read is not None
    first_patch = annotate(make_worker(read, (), "", amounts()), overlay_of(decided), amounts())
    assert first_patch is not None
    annotations = born(pod())
    del annotations[keys.AUTOSCALING_BORN]
    assert annotations == first_patch.annotations
    assert json.loads(annotations[keys.AUTOSCALING_ORIGINAL]) == {
        key.removeprefix(keys.PREFIX): text for key, text in OWN.items()
    }


def test_discovery_sees_the_users_figures_behind_a_newborn_pod():
    made = answered(pod(), born(pod()))
    made["metadata"] |= {"name": "chat-x", "namespace": "prod", "uid": "u", "ownerReferences": []}
    made["metadata"]["annotations"][keys.WORKLOAD] = "chat"
    found = discover(ClusterView(pods=(made,), workloads=(tensor_fusion_workload(),)), {})
    (workload,) = found.workloads
    assert workload.original == amounts()
    assert workload.workers[0].current == amounts((12.0, 24.0), (3.0, 5.0))


def test_asked_again_about_its_own_answer_it_has_nothing_to_add():
    made = answered(pod(), born(pod()))
    assert born(made) == {}
    assert born(pod()) == born(pod())


def test_a_pod_without_any_annotation_takes_its_figures_from_the_profile_and_is_told_all_of_them():
    profile = {
        "metadata": {"name": "small", "namespace": "prod"},
        "spec": {
            "resources": {"requests": {"tflops": "10", "vram": "4Gi"}, "limits": {"tflops": "20", "vram": "4Gi"}},
            "autoScalingConfig": {"autoSetLimits": {"enable": True}},
        },
    }
    newborn = pod({keys.WORKLOAD_PROFILE: "small"})
    annotations = born(newborn, around(profile=profile))
    assert figures(annotations) == ("10", "24", "4Gi", "5Gi")
    assert born(answered(newborn, annotations), around(profile=profile)) == {}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ({keys.AUTO_REQUESTS: "true"}, ("12", None, "3Gi", None)),
        ({keys.AUTO_LIMITS: "true"}, (None, "24", None, "5Gi")),
        ({keys.AUTO_REQUESTS: "false", keys.AUTO_LIMITS: "false"}, (None, None, None, None)),
        ({keys.AUTOSCALE: "true", keys.AUTOSCALE_TARGET: "vram"}, (None, None, "3Gi", "5Gi")),
        ({}, (None, None, None, None)),
    ],
)
def test_only_figures_of_layers_that_are_on_are_touched(layers, expected):
    assert figures(born(pod(OWN | layers))) == expected


def beside(original: Any) -> Surroundings:
    """Return surroundings in which the figures in force were decided beside these of the user."""
    return around(tensor_fusion_workload(moved_status(workload=workload(original=original))))


def test_a_request_alone_yields_to_a_limit_that_is_not_ours():
    low = OWN | {keys.TFLOPS_REQUEST: "5", keys.TFLOPS_LIMIT: "8", keys.AUTO_REQUESTS: "true"}
    assert born(pod(low), beside(amounts((5.0, 8.0))))[keys.TFLOPS_REQUEST] == "8"


def test_a_figure_that_the_user_has_changed_since_is_meant_and_the_others_are_born_as_decided():
    annotations = born(pod(OWN | ON | {keys.VRAM_LIMIT: "30Gi"}))
    assert figures(annotations) == ("12", "24", "3Gi", None)
    assert json.loads(annotations[keys.AUTOSCALING_ORIGINAL])["vram-limit"] == "30Gi"
    assert figures(born(pod(OWN | ON | {keys.TFLOPS_REQUEST: "15"}))) == (None, "24", "3Gi", "5Gi")


def test_a_figure_that_was_taken_over_from_somebody_else_counts_as_the_users_own():
    record = TakenOver(Field.COMPUTE_LIMIT, 20.0, 22.0, NOW, 1)
    adopted = tensor_fusion_workload(moved_status(workload=workload(original=amounts((10.0, 22.0)))))
    adopted["metadata"]["annotations"] = {keys.AUTOSCALING_ADOPTED: render_record([record])}
    annotations = born(pod(), around(adopted))
    assert figures(annotations) == ("12", "24", "3Gi", "5Gi")
    assert json.loads(annotations[keys.AUTOSCALING_ORIGINAL])["tflops-limit"] == "22"


@pytest.mark.parametrize(
    ("kind", "truth", "reason"),
    [
        ("RecommendationProvided", "True", "LowConfidence"),
        ("RecommendationProvided", "True", "InitialDelay"),
        ("RecommendationProvided", "False", "NoData"),
        ("LimitsApplied", "False", "RecommendOnly"),
        ("LimitsApplied", "False", "Paused"),
        ("LimitsApplied", "False", "ConfigInvalid"),
        ("LimitsApplied", "False", "WriteFailed"),
    ],
)
def test_what_the_controller_has_not_decided_is_not_given_to_newborn_pods(kind, truth, reason):
    status = changed(moved_status(), kind, truth, reason)
    annotations = born(pod(), around(tensor_fusion_workload(status)))
    assert keys.TFLOPS_LIMIT not in annotations


@pytest.mark.parametrize("reason", ["WithinTolerance", "CapacityLimited", "CoolingDown", "AgentUnreachable"])
def test_what_holds_a_workload_where_it_is_holds_its_newborn_pods_there_too(reason):
    status = changed(moved_status(), "LimitsApplied", "False", reason)
    assert born(pod(), around(tensor_fusion_workload(status)))[keys.TFLOPS_LIMIT] == "24"


def test_before_anything_was_changed_the_template_stands():
    status = moved_status()
    del status["autoscaling"]["lastScaleTime"]
    assert born(pod(), around(tensor_fusion_workload(status))) == {}


@pytest.mark.parametrize("status", [{}, {"conditions": None}, {"autoscaling": "x", "conditions": [1, "a", {}]}])
def test_a_status_that_says_nothing_gives_nothing(status):
    assert born(pod(), around(tensor_fusion_workload(status))) == {}


@pytest.mark.parametrize(
    ("pause", "expected"),
    [
        ("true", (None, None, None, None)),
        ("up", (None, None, "3Gi", None)),
        ("down", ("12", "24", None, "5Gi")),
        ("2027-01-15T09:00:00Z", (None, None, None, None)),
        ("2027-01-15T07:00:00Z", ("12", "24", "3Gi", "5Gi")),
    ],
)
def test_a_pause_holds_newborn_pods_in_the_direction_that_it_holds(pause, expected):
    assert figures(born(pod(OWN | ON | {keys.AUTOSCALING_PAUSED: pause}))) == expected


@pytest.mark.parametrize("extra", [{keys.DEDICATED_GPU: "true"}, {keys.ISOLATION: "hard"}])
def test_a_pod_whose_quota_cannot_move_is_left_alone(extra):
    assert born(pod(OWN | ON | extra)) == {}


def test_a_pod_with_a_bad_annotation_is_not_touched():
    assert born(pod(OWN | ON | {keys.QOS: "urgent"})) == {}


def test_while_others_do_its_work_a_client_keeps_its_figures_and_the_worker_gets_them():
    assert born(pod(), around(has_workers=True)) == {}
    worker = pod(labels={keys.WORKLOAD: "chat"})
    assert figures(born(worker, around(has_workers=True))) == ("12", "24", "3Gi", "5Gi")


def test_nothing_is_given_while_something_around_the_pod_is_not_known():
    assert born(pod(), replace(around(), complete=False)) == {}
    assert born(pod(), Surroundings(PLACE)) == {}
    assert born(pod(), Surroundings()) == {}


def test_a_rule_by_the_clock_that_is_in_force_gives_its_figures_without_any_layer():
    status = changed(moved_status(), "RecommendationProvided", "False", "NoData")
    status["autoscaling"]["activeCronRule"] = "office"
    rule = {"name": "office", "enable": True, "start": "0 8 * * *", "end": "0 20 * * *"}
    rule["desiredResources"] = {"limits": {"tflops": "24"}}
    profile = {
        "metadata": {"name": "p", "namespace": "prod"},
        "spec": {"autoScalingConfig": {"cronScalingRules": [rule]}},
    }
    annotations = born(pod(OWN | {keys.WORKLOAD_PROFILE: "p"}), around(tensor_fusion_workload(status), profile=profile))
    assert figures(annotations) == (None, "24", None, None)


def test_a_figure_that_reads_like_the_one_in_force_is_left_as_exact_as_it_was_written():
    exact = OWN | ON | {keys.TFLOPS_REQUEST: "12.0004", keys.TFLOPS_LIMIT: "24.001"}
    annotations = born(pod(exact), beside(amounts((12.0004, 24.001))))
    assert keys.TFLOPS_REQUEST not in annotations
    assert keys.TFLOPS_LIMIT not in annotations
    assert annotations[keys.VRAM_LIMIT] == "5Gi"


def test_a_pod_without_annotations_gets_the_object_first_and_one_with_annotations_keeps_them():
    bare = pod({})
    assert answered(bare, {keys.TFLOPS_LIMIT: "24"})["metadata"]["annotations"] == {keys.TFLOPS_LIMIT: "24"}
    kept = answered(pod({"other/key": "x", "a~b": "y"}), {keys.TFLOPS_LIMIT: "24", "tilde~slash/": "z"})
    assert kept["metadata"]["annotations"] == {
        "other/key": "x",
        "a~b": "y",
        keys.TFLOPS_LIMIT: "24",
        "tilde~slash/": "z",
    }


# Where a pod belongs.


def owner(kind: str, name: str, uid: str, above: dict[str, Any] | None = None) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "namespace": "prod", "uid": uid}
    if above is not None:
        metadata["ownerReferences"] = [
            {
                "kind": above["kind"],
                "name": above["metadata"]["name"],
                "uid": above["metadata"]["uid"],
                "controller": True,
            }
        ]
    template = {"metadata": {"labels": {keys.ENABLED: "true"}}, "spec": {"containers": [{"name": "python"}]}}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": metadata, "spec": {"template": template}}


def test_a_pod_belongs_to_its_top_owner_by_reference_not_by_name():
    read = pod_of(review(pod()))
    assert read is not None
    deployment = owner("Deployment", "chat", "d-uid")
    replica_set = owner("ReplicaSet", "chat-5d8f7b6c9d", "rs-uid", deployment)
    assert place_of(read, [replica_set, deployment]) == PLACE
    named = pod_of(review(pod(OWN | {keys.WORKLOAD: "shared"})))
    assert named is not None
    assert place_of(named, [replica_set, deployment]).key == WorkloadKey("prod", "shared")
    assert place_of(read, []) is None


# What is refused.


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
    for profile in (None, broken):
        answer = judged(pod({keys.WORKLOAD_PROFILE: "small"}), Surroundings(PLACE, profile=profile))
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


def profile(spec: Any, **more: Any) -> dict[str, Any]:
    metadata = {"name": "small", "namespace": "prod", "generation": 1}
    return {"apiVersion": "tensor-fusion.ai/v1", "kind": "WorkloadProfile", "metadata": metadata, "spec": spec, **more}


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


# Answers.


def test_every_answer_carries_the_uid_and_warnings_stay_short():
    asked = review(pod())
    body = json.loads(render_answer(asked, Answer(refusal="no", warnings=("w" * 500, "w" * 500, *map(str, range(30))))))
    assert (body["apiVersion"], body["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    response = body["response"]
    assert (response["uid"], response["allowed"], response["status"]["message"]) == (UID, False, "no")
    assert len(response["warnings"]) == 10
    assert all(len(warning) <= MAX_WARNING_CHARACTERS for warning in response["warnings"])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}',
        b'{"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "request": {"uid": "a", "operation": "CREATE"}}',
        b'{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": "", "operation": "CREATE"}}',
        b'{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": 7, "operation": "CREATE"}}',
    ],
)
def test_what_is_no_review_is_said_to_be_none(body):
    with pytest.raises(MalformedReviewError):
        parse_review(body)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-10, 10)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
known = st.sampled_from([*OWN, *ON, keys.QOS, keys.WORKLOAD, keys.WORKLOAD_PROFILE, keys.AUTOSCALING_ORIGINAL, "x~/y"])
texts = st.sampled_from(["true", "false", "12", "4Gi", "high", "{}", '{"a":1}', "small", "", "x"]) | st.text(max_size=6)
annotation_maps = st.none() | st.dictionaries(known, texts, max_size=6) | json_values
pods = st.builds(
    lambda metadata, spec, extra: {"kind": "Pod", "metadata": metadata, "spec": spec, **extra},
    st.fixed_dictionaries(
        {"labels": st.just({keys.ENABLED: "true"}) | st.just({keys.WORKLOAD: "chat"}) | json_values},
        optional={
            "annotations": annotation_maps,
            "name": st.text(max_size=5) | json_values,
            "generateName": st.just("chat-"),
            "ownerReferences": st.lists(json_values, max_size=2) | json_values,
        },
    )
    | json_values,
    st.none() | st.fixed_dictionaries({"containers": st.lists(st.fixed_dictionaries({"name": texts}), max_size=2)}) | json_values,
    st.dictionaries(st.sampled_from(["status", "other"]), json_values),
)  # fmt: skip


@dataclass
class FixedLookup:
    """Surroundings that are always the same, at the place the pod says."""

    found: Surroundings = field(default_factory=around)

    async def around(self, pod):
        alone = {**pod, "metadata": {**pod["metadata"], "ownerReferences": []}}
        return replace(self.found, place=place_of(alone, ()))


@dataclass
class FixedClock:
    def now(self) -> float:
        return NOW


statuses = st.just(moved_status()) | st.fixed_dictionaries(
    {},
    optional={
        "conditions": st.lists(json_values, max_size=2) | json_values,
        "autoscaling": json_values
        | st.fixed_dictionaries({"lastScaleTime": texts, "current": json_values, "activeCronRule": json_values}),
    },
)


@settings(deadline=None)
@given(pods | json_values, statuses, st.sampled_from([MUTATE_PODS, VALIDATE_PODS, VALIDATE_PROFILES]), st.booleans())
def test_whatever_comes_is_answered_and_every_patch_applies(manifest, status, path, updating):
    workload = tensor_fusion_workload(status)
    admission = Admission(FixedLookup(around(workload)), FixedClock())
    text = json.dumps(question(manifest, "UPDATE" if updating else "CREATE", manifest if updating else None))
    asked = parse_review(text.encode())
    answer = asyncio.run(_ask(admission, path, asked))
    response = json.loads(render_answer(asked, answer))["response"]
    assert response["uid"] == UID
    made = patched(manifest, response)
    if path == MUTATE_PODS and answer.annotations:
        # What was there is still there, and what is there now needs no more.
        before = manifest["metadata"].get("annotations") or {}
        assert {**before, **answer.annotations} == made["metadata"]["annotations"]
        again = asyncio.run(_ask(admission, path, review(made)))
        assert again.annotations == {}


def amount_text(resource: Resource, figure: float) -> str:
    return format_amount(resource, round_amount(resource, figure))


tflops = st.floats(0.1, 500.0).map(lambda figure: amount_text(Resource.COMPUTE, figure))
vram = st.floats(2.0**28, 2.0**36).map(lambda figure: amount_text(Resource.VRAM, figure))
stated = st.fixed_dictionaries(
    {},
    optional={
        keys.TFLOPS_REQUEST: tflops,
        keys.TFLOPS_LIMIT: tflops,
        keys.VRAM_REQUEST: vram,
        keys.VRAM_LIMIT: vram,
        keys.AUTO_REQUESTS: st.sampled_from(["true", "false"]),
        keys.AUTO_LIMITS: st.sampled_from(["true", "false"]),
        keys.AUTOSCALING_PAUSED: st.sampled_from(["up", "down", "false"]),
    },
)
in_force = st.fixed_dictionaries(
    {side: st.fixed_dictionaries({"tflops": tflops, "vram": vram}) for side in ("requests", "limits")}
)


@settings(deadline=None)
@given(stated, in_force)
def test_whatever_is_in_force_a_newborn_pod_keeps_its_original_and_a_request_below_its_limit(annotations, current):
    for name in ("tflops", "vram"):
        sides = sorted((current[side][name] for side in ("requests", "limits")), key=parse_quantity)
        current["requests"][name], current["limits"][name] = sides
    status = moved_status()
    status["autoscaling"]["current"] = current
    manifest = pod(annotations)
    before = settle_alone(manifest, around())
    if before is not None:
        status["autoscaling"]["original"] = moved_status(workload=workload(original=before.amounts))["autoscaling"][
            "original"
        ]
    surroundings = around(tensor_fusion_workload(status))
    made = answered(manifest, born(manifest, surroundings))
    after = settle_alone(made, surroundings)
    assert born(made, surroundings) == {}
    assert after == before
    if before is None:
        assert made == manifest
        return
    read = pod_of(review(made))
    assert read is not None
    held = make_worker(read, (), "", before.amounts).current
    assert held.compute.request <= held.compute.limit
    assert held.vram.request <= held.vram.limit


def settle_alone(manifest: Any, surroundings: Surroundings) -> Any:
    read = pod_of(review(manifest))
    assert read is not None
    return resolution_of(read, surroundings).config


async def _ask(admission: Admission, path: str, asked: Review) -> Answer:
    return await admission.judges[path](asked)


# The servers.


@dataclass
class BrokenLookup:
    async def around(self, pod):
        raise RuntimeError("a defect")


async def ask(admission: Admission, path: str, body: bytes) -> tuple[int, str, str]:
    metrics = AdmissionMetrics()
    async with TestClient(TestServer(admission_application(admission, metrics, lambda: 0.0))) as client:
        answer = await client.post(path, data=body)
        return answer.status, await answer.text(), metrics.render().decode()


async def test_a_pod_is_sized_over_http_and_counted():
    named = question(pod(OWN | ON | {keys.WORKLOAD: "chat"}))
    status, text, metrics = await ask(Admission(FixedLookup(), FixedClock()), MUTATE_PODS, json.dumps(named).encode())
    assert status == 200
    assert (
        patched(named["request"]["object"], json.loads(text)["response"])["metadata"]["annotations"][keys.TFLOPS_LIMIT]
        == "24"
    )
    assert 'admission_requests_total{operation="mutate_pods",result="sized"} 1.0' in metrics
    assert 'admission_seconds_count{operation="mutate_pods"} 1.0' in metrics


async def test_malformed_large_and_unforeseen_questions_have_a_status_and_a_sentence():
    admission = Admission(BrokenLookup(), FixedClock())
    status, text, metrics = await ask(admission, MUTATE_PODS, b"{")
    assert (status, "AdmissionReview" in text) == (400, True)
    assert 'result="malformed"} 1.0' in metrics
    status, text, _ = await ask(admission, MUTATE_PODS, b"x" * (MAX_BODY_BYTES + 1))
    assert (status, str(MAX_BODY_BYTES) in text) == (413, True)
    status, text, metrics = await ask(admission, MUTATE_PODS, json.dumps(question(pod())).encode())
    assert (status, UID in text) == (500, True)
    assert 'result="failed"} 1.0' in metrics
    assert (await ask(admission, "/elsewhere", b"{}"))[0] == 404


async def test_an_update_of_a_pod_and_a_deletion_of_a_profile_are_not_judged():
    admission = Admission(BrokenLookup(), FixedClock())
    for path in (MUTATE_PODS, VALIDATE_PODS):
        status, text, _ = await ask(admission, path, json.dumps(question(pod(), "UPDATE", pod())).encode())
        assert (status, json.loads(text)["response"]) == (200, {"uid": UID, "allowed": True})
    _, text, _ = await ask(
        admission, VALIDATE_PROFILES, json.dumps(question(None, "DELETE", profile({"qos": 1}))).encode()
    )
    assert json.loads(text)["response"] == {"uid": UID, "allowed": True}


async def test_probes_say_why_nobody_should_be_sent_here():
    trouble = ["no certificate is served yet"]
    async with TestClient(TestServer(metrics_application(AdmissionMetrics(), lambda: trouble[0]))) as client:
        ready = await client.get("/readyz")
        assert (ready.status, await ready.text()) == (503, "no certificate is served yet\n")
        assert (await client.get("/healthz")).status == 200
        trouble[0] = ""
        assert (await client.get("/readyz")).status == 200
        assert "text/plain" in (await client.get("/metrics")).headers["Content-Type"]
