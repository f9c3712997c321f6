"""How many replicas there are, and who moved them: the object's count, the owner's, and the one that was set here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from autoscaler.contract import keys
from autoscaler.model.steps import Annotate, Emit, Scale
from autoscaler.model.workload import ClusterView, Discovered, Workload
from autoscaler.read.discovery import discover
from autoscaler.read.generate import new_workload
from autoscaler.read.upkeep import takeover
from tests.autoscaler.test_discovery import AMOUNTS, Manifest, chat, deployment, obj, only, owned_by, pod, template

ON = AMOUNTS | {keys.AUTO_REPLICAS: "true"}
GENERATED = {"app.kubernetes.io/managed-by": "tensor-fusion-autoscaler"}


def scene(
    own: int | None,
    theirs: int,
    *,
    annotations: dict[str, str] = ON,
    noted: int | None = None,
    generated: bool = True,
    remote: bool = False,
) -> ClusterView:
    """A Deployment of `theirs`, and its object of `own` replicas; `noted`: the count that was last set here."""
    made = chat(annotations)
    owner = deployment("chat", annotations, theirs, version=str(theirs))
    notes = {} if noted is None else {keys.AUTOSCALING_APPLIED: f'{{"replicas":"{noted}"}}'}
    spec = {} if own is None else {"replicas": own}
    facts = {"labels": GENERATED if generated else {}, "annotations": notes, "version": str(own)}
    workload = obj("TensorFusionWorkload", "chat", spec=spec, **facts)  # type: ignore[arg-type]
    workers = tuple(
        pod(f"vgpu-{n}", AMOUNTS, worker_of="chat", ownerReferences=owned_by("TensorFusionWorkload", "chat"))
        for n in range(2)
    )
    pods = (*made.pods, *workers) if remote else made.pods
    return replace(made, owners=(owner, *made.owners[1:]), workloads=(workload,), pods=pods)


def seen(view: ClusterView, before: Discovered | None = None) -> Workload:
    return only(discover(view, {}, before))


def story(workload: Workload) -> tuple[int, str]:
    (found,) = workload.found or (None,)
    return workload.replicas, "" if found is None else found.where


@pytest.mark.parametrize(
    ("own", "theirs", "noted", "expected"),
    [
        (2, 2, 2, (2, "")),
        (None, 2, None, (2, "")),
        (2, 5, 2, (5, "Deployment chat")),
        (2, 5, None, (5, "Deployment chat")),
        (4, 2, 2, (4, "TensorFusionWorkload chat")),
        (1, 3, 2, (3, "Deployment chat")),
    ],
)
def test_whichever_count_was_moved_is_followed(
    own: int | None, theirs: int, noted: int | None, expected: tuple[int, str]
) -> None:
    assert story(seen(scene(own, theirs, noted=noted))) == expected


def test_where_nothing_was_set_here_yet_the_pass_before_tells_who_moved() -> None:
    before = discover(scene(2, 2), {})
    assert story(seen(scene(2, 5), before)) == (5, "Deployment chat")
    assert story(seen(scene(4, 2), before)) == (4, "TensorFusionWorkload chat")


def test_an_object_that_a_user_made_keeps_its_count_until_somebody_moves_the_owner() -> None:
    first = discover(scene(7, 2, generated=False), {})
    assert story(only(first)) == (7, "")
    assert story(seen(scene(7, 3, generated=False), first)) == (3, "Deployment chat")


def test_clients_and_workers_that_are_counted_apart_stay_apart() -> None:
    apart = ON | {keys.REPLICAS: "4"}
    workload = seen(scene(4, 2, annotations=apart, remote=True))
    assert story(workload) == (4, "")
    assert any("4 workers, but the owner's replicas are 2" in warning for warning in workload.warnings)
    assert story(seen(scene(4, 2, annotations=apart))) == (2, ""), "where the owner's pods are the workers, they count"


def test_a_count_that_was_set_here_is_no_mismatch_to_warn_about() -> None:
    two = ON | {keys.REPLICAS: "2"}
    for noted, warned in ((3, False), (2, True)):
        said = " ".join(seen(scene(3, 3, annotations=two, noted=noted)).warnings)
        assert ("but the owner's replicas are 3" in said) is warned


def test_the_annotation_names_the_workers_of_the_object_that_is_made() -> None:
    view = replace(scene(None, 2, annotations=ON | {keys.REPLICAS: "4"}), workloads=())
    creation = new_workload(seen(view))
    assert creation is not None
    assert creation.manifest["spec"]["replicas"] == 4


def test_workers_that_somebody_else_starts_follow_their_object_and_the_clients_stay() -> None:
    workload = seen(scene(4, 2, noted=2, remote=True))
    assert story(workload) == (4, "")


def test_several_owners_have_no_count_of_their_own() -> None:
    view = scene(3, 2)
    two = deployment("two", ON | {keys.WORKLOAD: "chat"}, 9)
    workload = seen(replace(view, owners=(*view.owners, two)))
    assert (workload.replicas, workload.scale_target, workload.found) == (3, None, ())


@pytest.mark.parametrize(
    ("kind", "spec", "replicas"),
    [("Job", {"parallelism": 3}, 3), ("CronJob", {}, 1), ("DaemonSet", {}, 1)],
)
def test_an_owner_that_nobody_can_scale_says_so(kind: str, spec: dict[str, Any], replicas: int) -> None:
    body = {"jobTemplate": {"spec": {"template": template(ON)}}} if kind == "CronJob" else {"template": template(ON)}
    one = pod("one", ON, ownerReferences=owned_by(kind, "train"))
    owners = () if kind == "DaemonSet" else (obj(kind, "train", spec={**spec, **body}),)

    workload = seen(ClusterView(owners=owners, pods=(one,)))

    assert workload.unscalable == f"{kind} train has no scale subresource"
    assert (workload.scale_target, workload.replicas) == (None, replicas)
    assert any("only recommended" in warning for warning in workload.warnings)


def fleet_owner(**more: Any) -> Manifest:
    return {**obj("Fleet", "llm"), "apiVersion": "example.com/v1", **more}


@pytest.mark.parametrize(
    ("owner", "replicas", "unscalable"),
    [
        (fleet_owner(scale={"spec": {"replicas": 5}}), 5, ""),
        (fleet_owner(scale={"spec": {}}), 1, ""),
        (fleet_owner(unscalable="can't be read: 403"), 1, "Fleet llm can't be read: 403"),
        (fleet_owner(unscalable=""), 1, "Fleet llm has no scale subresource"),
    ],
)
def test_an_owner_of_any_kind_counts_by_its_scale_and_its_pods_speak_for_it(
    owner: Manifest, replicas: int, unscalable: str
) -> None:
    one = pod("one", ON, ownerReferences=owned_by("Fleet", "llm"))

    workload = seen(ClusterView(owners=(owner,), pods=(one,)))

    assert workload.key.name == "llm"
    assert [ref.kind for ref in workload.owners] == ["Fleet"]
    assert workload.original.compute.limit == 20.0
    assert (workload.replicas, workload.unscalable) == (replicas, unscalable)
    assert (workload.scale_target is None) is bool(unscalable)


def test_a_kind_that_only_bears_a_known_name_is_scaled_by_its_own_scale() -> None:
    clone = {**obj("StatefulSet", "llm", spec={"replicas": 9}), "scale": {"spec": {"replicas": 5}}}
    clone["apiVersion"] = "apps.kruise.io/v1beta1"
    workload = seen(
        ClusterView(owners=(clone,), pods=(pod("one", ON, ownerReferences=owned_by("StatefulSet", "llm")),))
    )
    assert workload.replicas == 5
    assert workload.scale_target is not None
    assert workload.scale_target.api_version == "apps.kruise.io/v1beta1"


# What is done about it


def test_a_count_moved_by_hand_is_noted_mirrored_and_told_on_the_workload_and_its_owner() -> None:
    writes = takeover(seen(scene(2, 5, noted=2)), 1_800_000_000.0)

    assert [type(write) for write in writes] == [Annotate, Scale, Annotate, Emit, Emit]
    assert writes[1] == Scale(seen(scene(2, 5, noted=2)).ref, 5)
    assert [write.ref.kind for write in writes if isinstance(write, Emit)] == ["TensorFusionWorkload", "Deployment"]


def test_where_replicas_are_not_scaled_here_the_count_is_only_mirrored() -> None:
    writes = takeover(seen(scene(2, 5, annotations=AMOUNTS)), 1_800_000_000.0)
    assert [type(write) for write in writes] == [Scale, Annotate]


def test_what_an_hpa_moves_is_mirrored_without_a_word() -> None:
    target = {"apiVersion": "x/v1", "kind": "Deployment", "name": "chat"}
    hpa = obj("HorizontalPodAutoscaler", "load", spec={"scaleTargetRef": target})
    writes = takeover(seen(replace(scene(2, 5), scalers=(hpa,))), 1_800_000_000.0)
    assert [type(write) for write in writes] == [Scale, Annotate]


def test_a_users_own_object_is_not_scaled_where_replicas_are_not_ours() -> None:
    before = discover(scene(7, 2, annotations=AMOUNTS, generated=False), {})
    assert takeover(seen(scene(7, 3, annotations=AMOUNTS, generated=False), before), 0.0) == ()
