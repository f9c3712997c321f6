"""What is worth a write: never what others keep in a status, nor what the server drops of ours."""

from __future__ import annotations

from autoscaler.model.stored import learnt, lost_fields, without
from autoscaler.report.compare import beside_others, changed, has_operator

OURS = {"type": "LimitsApplied", "status": "True", "reason": "Applied", "message": "x", "observedGeneration": 1}
THEIRS = {"type": "ResourceUpdate", "status": "True", "reason": "Updated", "message": "y"}
FULL = {
    "observedGeneration": 1,
    "conditions": [OURS],
    "recommendation": {"requests": {"tflops": "10"}},
    "autoscaling": {"applied": "1/1", "display": {"status": "Applied"}},
}


def test_what_an_operator_keeps_beside_ours_is_no_news():
    stored = FULL | {"phase": "Running", "workerCount": 3, "conditions": [OURS, THEIRS]}
    assert not changed(stored, FULL)
    assert changed(stored, FULL | {"conditions": [OURS | {"reason": "CapacityLimited"}]})


def test_a_condition_of_ours_that_went_is_news():
    gone = {"type": "ExternalScalerAvailable", "status": "True"}
    assert changed(FULL | {"conditions": [OURS, gone]}, FULL)


def test_what_the_definitions_drop_is_written_once_and_not_for_ever():
    condition = {key: value for key, value in OURS.items() if key != "observedGeneration"}
    kept = {"conditions": [condition], "recommendation": FULL["recommendation"]}
    lost = lost_fields(FULL, kept)
    assert lost == {("observedGeneration",), ("autoscaling",), ("conditions", "observedGeneration")}
    assert changed(kept, FULL)
    assert not changed(kept, FULL, lost)
    assert without(FULL, lost) == kept
    assert changed(kept, FULL | {"recommendation": {"requests": {"tflops": "12"}}}, lost)


def test_a_field_that_is_kept_after_all_is_dropped_no_more():
    lost = lost_fields(FULL, {"conditions": [OURS]})
    assert ("autoscaling",) in lost
    assert learnt(lost, {"autoscaling": {"applied": "1/1"}}, {"autoscaling": {"applied": "1/1"}}) == {
        path for path in lost if path != ("autoscaling",)
    }
    assert learnt(lost, {"conditions": [OURS]}, {"conditions": [OURS]}) == lost


def test_what_stays_though_it_was_left_out_is_someone_elses():
    stored = FULL | {"activeCronScalingRule": {"name": "night"}}
    assert changed(stored, FULL)
    assert not changed(stored, FULL, learnt(frozenset(), FULL, stored))


def test_conditions_of_others_are_carried_only_where_lists_may_be_replaced_whole():
    assert beside_others([OURS], {"conditions": [THEIRS]}) == [OURS, THEIRS]
    assert beside_others([OURS], {"conditions": [THEIRS], "autoscaling": {}}) == [OURS]


def test_an_operator_is_known_by_what_only_it_writes():
    assert has_operator({"phase": "Running"})
    assert not has_operator(FULL)
