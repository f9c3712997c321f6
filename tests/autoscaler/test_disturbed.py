"""Whose status has to be rendered again, because its node tells another thing of its workers."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from autoscaler.contract.quota import Observed
from autoscaler.report.disturbed import disturbed_workers
from tests.autoscaler.apply_cases import NODE, quota, retold, told


def changed_device(state, pod, **changes):
    """The node's state with fields of one worker's devices replaced."""
    workers = tuple(
        msgspec.structs.replace(
            one, devices=tuple(msgspec.structs.replace(device, **changes) for device in one.devices)
        )
        if one.pod == pod
        else one
        for one in state.quotas.workers
    )
    return retold(state, workers=workers)


def two():
    return told(quota("a"), quota("b")).state()


def found(now, before):
    return disturbed_workers({NODE: now}, {NODE: before})


def test_nobody_is_disturbed_where_a_node_tells_the_same_under_another_generation():
    assert found(retold(two(), generation=9), two()) == set()


def test_live_use_alone_disturbs_nobody():
    assert found(changed_device(two(), "a", observed=Observed(tflops_used=3.0)), two()) == set()


def test_only_the_worker_that_did_not_acknowledge_is_disturbed_and_not_its_neighbour():
    assert found(changed_device(two(), "a", applied=False, reason="Stuck: not in force"), two()) == {"uid-a"}


def test_another_reason_for_the_same_refusal_disturbs():
    before = changed_device(two(), "b", applied=False, reason="Stuck: not in force")
    assert found(changed_device(before, "b", reason="BackendFailed: gone"), before) == {"uid-b"}


def test_a_quota_that_was_never_told_before_disturbs():
    assert found(two(), changed_device(two(), "a", desired=None)) == {"uid-a"}


def test_an_agent_that_goes_away_disturbs_all_its_workers_and_so_does_its_return():
    away = replace(two(), error="timeout")
    assert found(away, two()) == found(two(), away) == {"uid-a", "uid-b"}
    assert found(away, away) == set()


def test_workers_that_come_and_go_are_disturbed_and_those_that_stay_are_not():
    assert found(told(quota("b"), quota("c")).state(), two()) == {"uid-a", "uid-c"}


def test_a_node_that_was_not_known_disturbs_its_workers():
    assert disturbed_workers({NODE: two()}, {}) == disturbed_workers({}, {NODE: two()}) == {"uid-a", "uid-b"}
