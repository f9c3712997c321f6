"""The size that pods are born with: what is in force, only where it was decided, and never at the user's cost."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.admission.pods import Surroundings, place_of, pod_of, resolution_of
from autoscaler.apply.plan import annotate, intents
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
from autoscaler.read.upkeep import takeover
from autoscaler.read.workers import make_worker
from tests.autoscaler.admission_cases import (
    ON,
    OWN,
    PLACE,
    answered,
    around,
    born,
    changed,
    figures,
    moved_status,
    pod,
    review,
    tensor_fusion_workload,
)
from tests.autoscaler.apply_cases import NOW, amounts, decision, workload


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


def test_the_controller_sees_the_users_figures_behind_a_newborn_pod_and_finds_it_as_it_would_have_made_it():
    made = answered(pod(), born(pod()))
    made["metadata"] |= {"name": "chat-x", "namespace": "prod", "uid": "u", "ownerReferences": []}
    made["metadata"]["annotations"][keys.WORKLOAD] = "chat"
    found = discover(ClusterView(pods=(made,), workloads=(tensor_fusion_workload(),)), {})
    (workload,) = found.workloads
    assert workload.original == amounts()
    held = amounts((12.0, 24.0), (3.0, 5.0))
    assert (workload.current, workload.workers[0].current) == (held, held)
    # Nothing is left to write, and nobody else is taken to have set them.
    assert intents(workload, decision(held=held)) == ()
    assert tuple(takeover(workload, NOW)) == ()


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
