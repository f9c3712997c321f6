"""What is in force, and what somebody else has set: newborn, written to, reborn, edited by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from autoscaler.contract import keys
from autoscaler.model.decision import Field
from autoscaler.model.resources import Amount
from autoscaler.model.steps import Annotate, Emit
from autoscaler.model.takeover import Found, TakenOver, taken_over
from autoscaler.model.workload import ClusterView
from autoscaler.read.discovery import discover
from autoscaler.read.upkeep import takeover
from tests.autoscaler.test_discovery import AMOUNTS, Manifest, chat, obj, only

NOW = 1_800_000_000.0
ON = AMOUNTS | {keys.AUTO_LIMITS: "true", keys.AUTO_REQUESTS: "true"}
ORIGINAL = '{"tflops-request":"10","tflops-limit":"20","vram-request":"4Gi","vram-limit":"8Gi"}'
LIMIT = Field.COMPUTE_LIMIT


def written(limit: str = "30", *, told: str = "", **more: str) -> dict[str, str]:
    """Annotations of a worker that was written `limit` (or `told`, if it carries another by now)."""
    applied = {"tflops-limit": told or limit}
    marks = {keys.TFLOPS_LIMIT: limit, keys.AUTOSCALING_APPLIED: json.dumps(applied)}
    return ON | marks | {keys.AUTOSCALING_ORIGINAL: ORIGINAL} | more


def status(limit: str = "30", own: str = "20") -> dict[str, Any]:
    def sides(value: str) -> dict[str, Any]:
        return {"requests": {"tflops": "10", "vram": "4Gi"}, "limits": {"tflops": value, "vram": "8Gi"}}

    return {"autoscaling": {"current": sides(limit), "original": sides(own)}}


def view(
    *pods: Mapping[str, str],
    template: Mapping[str, str] = ON,
    stored: Manifest | None = None,
    adopted: str = "",
    version: str = "1",
) -> ClusterView:
    """A Deployment whose pods carry these annotations, with its workload's object."""
    made = chat(template, pods=len(pods))
    for pod, marks in zip(made.pods, pods, strict=True):
        pod["metadata"]["annotations"] = dict(marks)
        pod["metadata"]["resourceVersion"] = f"{version}-{marks.get(keys.TFLOPS_LIMIT)}"
    notes = {keys.AUTOSCALING_ADOPTED: adopted} if adopted else {}
    labels = {"app.kubernetes.io/managed-by": "tensor-fusion-autoscaler"}
    workload = obj("TensorFusionWorkload", "chat", labels=labels, annotations=notes) | {"status": stored or {}}
    return replace(made, workloads=(workload,))


def in_force(seen: ClusterView) -> Amount:
    return only(discover(seen, {})).current.compute


# In force


def test_a_newborn_beside_workers_that_were_written_to_says_nothing() -> None:
    assert in_force(view(written("30"), ON)) == Amount(10.0, 30.0)
    assert in_force(view(written("12"), ON)) == Amount(10.0, 12.0), "also where it was born with more"


def test_where_all_were_born_anew_the_status_remembers_what_is_in_force() -> None:
    assert in_force(view(ON, ON, stored=status("30"))) == Amount(10.0, 30.0)
    assert in_force(view(ON, stored=status("12"))) == Amount(10.0, 12.0)
    assert in_force(view(stored=status("30"))) == Amount(10.0, 30.0), "also while there is no pod at all"


@pytest.mark.parametrize(
    ("pods", "template", "stored", "limit"),
    [
        ((ON,), ON, {}, 20.0),
        ((AMOUNTS,), AMOUNTS, status("30"), 20.0),
        ((ON | {keys.TFLOPS_LIMIT: "50"},), ON | {keys.TFLOPS_LIMIT: "50"}, status("30"), 50.0),
        ((ON | {keys.TFLOPS_LIMIT: "25"},), ON, status("30"), 25.0),
        ((ON | {keys.AUTOSCALING_PAUSED: "true"},), ON | {keys.AUTOSCALING_PAUSED: "true"}, status("30"), 20.0),
    ],
    ids=["nothing remembered", "layer off", "template edited since", "not as it was born", "paused"],
)
def test_the_status_is_no_memory_where_it_was_decided_for_something_else(
    pods: tuple[dict[str, str], ...], template: dict[str, str], stored: dict[str, Any], limit: float
) -> None:
    assert in_force(view(*pods, template=template, stored=stored)).limit == limit


def test_one_that_an_older_version_wrote_to_says_all_its_figures() -> None:
    old = ON | {keys.TFLOPS_LIMIT: "30", keys.AUTOSCALING_ORIGINAL: ORIGINAL}
    assert in_force(view(old, ON)) == Amount(10.0, 30.0)


# Set by somebody else


def test_a_figure_that_is_not_what_was_written_was_set_by_somebody_else() -> None:
    (found,) = only(discover(view(written("50", told="30")), {})).found
    assert (found.field, found.before, found.value, found.where) == (LIMIT, 30.0, 50.0, "Pod chat-7f-0")


@pytest.mark.parametrize(
    "marks",
    [
        written("30"),
        written("30", told="30.0"),
        written("half", told="30"),
        ON,
        ON | {keys.TFLOPS_LIMIT: "50"},
        AMOUNTS | {keys.TFLOPS_LIMIT: "50", keys.AUTOSCALING_APPLIED: '{"tflops-limit":"30"}'},
        ON | {keys.TFLOPS_LIMIT: "50", keys.AUTOSCALING_APPLIED: "{oops"},
    ],
    ids=["as written", "same amount", "unreadable", "newborn", "born otherwise", "layer off", "broken note"],
)
def test_nothing_else_is_taken_for_somebody_elses_word(marks: dict[str, str]) -> None:
    template = AMOUNTS if keys.AUTO_LIMITS not in marks else ON
    assert only(discover(view(marks, template=template), {})).found == ()


def test_an_edit_of_a_worker_that_was_never_written_to_is_seen_where_it_was_met_before() -> None:
    before = discover(view(ON), {})
    after = only(discover(view(ON | {keys.TFLOPS_LIMIT: "50"}), {}, before))
    assert [(one.field, one.before, one.value) for one in after.found] == [(LIMIT, 20.0, 50.0)]


def test_a_reborn_pod_of_the_same_name_is_not_an_edited_one() -> None:
    before = discover(view(written("30")), {})
    reborn = view(ON, stored=status("30"))
    reborn.pods[0]["metadata"]["uid"] = "another"
    after = only(discover(reborn, {}, before))
    assert after.found == ()
    assert after.current.compute.limit == 30.0


def test_of_several_edits_the_largest_counts() -> None:
    (found,) = only(discover(view(written("50", told="30"), written("40", told="30")), {})).found
    assert found.value == 50.0


# Taken over


def writes_of(seen: ClusterView) -> tuple[list[Annotate], list[Emit]]:
    writes = takeover(only(discover(seen, {})), NOW)
    annotations = [write for write in writes if isinstance(write, Annotate)]
    events = [write for write in writes if isinstance(write, Emit)]
    assert [*annotations, *events] == list(writes), "events come after everything that was done"
    return annotations, events


def test_the_record_comes_first_then_the_others_and_the_edited_worker_last() -> None:
    annotations, events = writes_of(view(written("50", told="30"), written("30")))

    assert [write.ref.kind for write in annotations] == ["TensorFusionWorkload", "Pod", "Pod"]
    assert [write.ref.name for write in annotations[1:]] == ["chat-7f-1", "chat-7f-0"]
    record = json.loads(str(annotations[0].annotations[keys.AUTOSCALING_ADOPTED]))
    assert record == {"tflops-limit": {"from": 20.0, "to": 50.0, "at": round(NOW), "times": 1}}
    for write in annotations[1:]:
        assert write.annotations[keys.TFLOPS_LIMIT] == "50"
        assert json.loads(str(write.annotations[keys.AUTOSCALING_APPLIED])) == {"tflops-limit": "50"}
        assert json.loads(str(write.annotations[keys.AUTOSCALING_ORIGINAL]))["tflops-limit"] == "50"
        assert write.was is not None, "an edit that comes between must not be lost"
    assert [event.ref.kind for event in events] == ["TensorFusionWorkload", "Deployment"]


def test_what_was_taken_over_is_the_users_own_figure_until_the_template_says_another() -> None:
    record = json.dumps({"tflops-limit": {"from": 20.0, "to": 50.0, "at": NOW, "times": 1}})
    settled = written("50")

    kept = only(discover(view(settled, adopted=record), {}))
    assert kept.original.compute == Amount(10.0, 50.0)
    assert kept.found == ()
    edited = only(discover(view(settled, template=ON | {keys.TFLOPS_LIMIT: "40"}, adopted=record), {}))
    assert edited.original.compute == Amount(10.0, 40.0)


def test_a_limit_set_below_the_request_takes_the_request_along() -> None:
    annotations, _ = writes_of(view(written("5", told="30")))
    (write,) = annotations[1:]
    assert (write.annotations[keys.TFLOPS_LIMIT], write.annotations[keys.TFLOPS_REQUEST]) == ("5", "5")


def test_memory_set_by_hand_is_written_in_bytes_and_the_rest_is_left_alone() -> None:
    marks = ON | {keys.VRAM_LIMIT: "6Gi", keys.AUTOSCALING_APPLIED: '{"vram-limit":"7Gi"}'}
    annotations, _ = writes_of(view(marks))
    assert annotations[1].annotations[keys.VRAM_LIMIT] == "6Gi"
    assert keys.TFLOPS_LIMIT not in annotations[1].annotations


@pytest.mark.parametrize("text", ["{oops", "[]", '{"tflops-limit": 3}', '{"speed": {"to": 1, "at": 2}}'])
def test_a_record_that_cannot_be_read_is_none(text: str) -> None:
    assert only(discover(view(written("30"), adopted=text), {})).taken == ()


def test_whoever_insists_lets_a_figure_rest_twice_as_long_up_to_a_day() -> None:
    found, known, rests = Found(LIMIT, 30.0, 20.0, "Pod chat"), None, []
    now = NOW
    for _ in range(12):
        known = taken_over(found, 20.0, known, now)
        rests.append((known.rests_until - now) / 60)
        now = known.rests_until + 60
    assert rests[:4] == [5, 10, 20, 40]
    assert rests[-1] == 24 * 60


def test_another_figure_or_a_day_of_peace_starts_anew_and_a_half_done_takeover_counts_once() -> None:
    known = TakenOver(LIMIT, 20.0, 50.0, NOW, 3)
    assert taken_over(Found(LIMIT, 30.0, 40.0, ""), 20.0, known, NOW + 3600).times == 1
    assert taken_over(Found(LIMIT, 30.0, 50.0, ""), 20.0, known, NOW + 2 * 86_400).times == 1
    assert taken_over(Found(LIMIT, 30.0, 50.0, ""), 20.0, known, NOW + 60) is known
