"""Whose replicas somebody else scales: by group, kind and name, whatever the version."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from autoscaler.read.discovery import discover
from autoscaler.read.elsewhere import scalers_by_target, target_of
from tests.autoscaler.test_discovery import Manifest, chat, obj, only

HPA, KEDA = "HorizontalPodAutoscaler", "ScaledObject"


def scaler(kind: str, name: str, /, **target: str) -> Manifest:
    return obj(kind, name, spec={"scaleTargetRef": target})


def chat_of_apps() -> Any:
    view = chat()
    owners = tuple({**owner, "apiVersion": "apps/v1"} for owner in view.owners)
    return replace(view, owners=owners)


@pytest.mark.parametrize(
    ("manifest", "named"),
    [
        (scaler(HPA, "load", apiVersion="apps/v1", kind="Deployment", name="chat"), "HorizontalPodAutoscaler load"),
        (scaler(HPA, "old", apiVersion="apps/v1beta2", kind="Deployment", name="chat"), "HorizontalPodAutoscaler old"),
        (scaler(KEDA, "queue", name="chat"), "ScaledObject queue"),
        (scaler(KEDA, "queue", apiVersion="apps/v1", kind="Deployment", name="chat"), "ScaledObject queue"),
        (scaler(HPA, "other", apiVersion="apps/v1", kind="Deployment", name="chat-2"), ""),
        (scaler(HPA, "other", apiVersion="apps/v1", kind="StatefulSet", name="chat"), ""),
        (scaler(HPA, "other", apiVersion="example.com/v1", kind="Deployment", name="chat"), ""),
        (scaler(KEDA, "other", apiVersion="argoproj.io/v1alpha1", kind="Rollout", name="chat"), ""),
        (scaler(HPA, "empty"), ""),
    ],
)
def test_a_scaler_on_the_owner_is_found_whatever_its_version_and_no_other(manifest: Manifest, named: str) -> None:
    workload = only(discover(replace(chat_of_apps(), scalers=(manifest,)), {}))

    assert workload.managed_elsewhere == (f"{named} of Deployment chat" if named else "")
    assert any("only recommended" in warning for warning in workload.warnings) is bool(named)


def test_a_scaler_on_the_workload_itself_is_found_too() -> None:
    target = {"apiVersion": "tensor-fusion.ai/v1", "kind": "TensorFusionWorkload", "name": "chat"}
    found = {**obj("TensorFusionWorkload", "chat"), "apiVersion": "tensor-fusion.ai/v1"}
    view = replace(chat_of_apps(), workloads=(found,), scalers=(scaler(HPA, "load", **target),))

    assert only(discover(view, {})).managed_elsewhere == "HorizontalPodAutoscaler load of TensorFusionWorkload chat"


def test_kedas_own_hpa_is_not_named_beside_the_object_that_made_it() -> None:
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"}
    both = (scaler(HPA, "keda-hpa-queue", **target), scaler(KEDA, "queue", **target))

    assert list(scalers_by_target(both).values()) == ["ScaledObject queue"]


def test_a_scaler_of_another_namespace_or_one_that_is_being_deleted_scales_nothing() -> None:
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"}
    abroad, going = scaler(HPA, "abroad", **target), scaler(HPA, "going", **target)
    abroad["metadata"]["namespace"] = "elsewhere"
    going["metadata"]["deletionTimestamp"] = "2026-01-02T00:00:00Z"

    assert only(discover(replace(chat_of_apps(), scalers=(abroad, going)), {})).managed_elsewhere == ""


def test_a_scaler_that_comes_later_is_seen_though_nothing_else_changed() -> None:
    first = discover(chat_of_apps(), {})
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"}

    workload = only(discover(replace(chat_of_apps(), scalers=(scaler(HPA, "load", **target),)), {}, first))

    assert workload.managed_elsewhere
    assert target_of(workload.owners[0]).name == "chat"
