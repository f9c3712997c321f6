"""Every "no" has its reason, and a status that did not change keeps its time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from msgspec import structs

from autoscaler.contract.keys import Effect
from autoscaler.errors import Problem
from autoscaler.model.config import Mode
from autoscaler.model.decision import Field
from autoscaler.model.reasons import Cause, Verdict
from autoscaler.report.conditions import GRAVEST_FIRST, conditions_of, gravest, headline
from autoscaler.report.reported import MetricsHealth, MetricsReason, Reported, acknowledged, timestamp
from tests.autoscaler.apply_cases import NODE, NOW, Agent, decision, figure, quota, told, worker, workload

LIMIT = Field.COMPUTE_LIMIT
AGENT = told(quota("chat-0"), quota("chat-1"))


def reported(decided=None, **more):
    settings = {
        "workload": workload(),
        "decision": decision() if decided is None else decided,
        "metrics": MetricsHealth(),
        "now": NOW,
        "nodes": {NODE: AGENT.state()},
    }
    return Reported(**(settings | more))


def conditions(one):
    return {found["type"]: found for found in conditions_of(one, acknowledged(one))}


def reasons(one):
    return {type_: (found["status"], found["reason"]) for type_, found in conditions(one).items()}


def test_a_settled_workload_is_true_everywhere():
    assert reasons(reported()) == {
        "ConfigValid": ("True", "Valid"),
        "MetricsAvailable": ("True", "Found"),
        "RecommendationProvided": ("True", "Ready"),
        "RequestsApplied": ("True", "Applied"),
        "LimitsApplied": ("True", "Applied"),
        "ReplicasApplied": ("True", "Applied"),
        "EnforcementInSync": ("True", "InSync"),
    }


def test_observed_generation_is_the_spec_s():
    assert {one["observedGeneration"] for one in conditions(reported()).values()} == {3}


def test_the_transition_time_stays_while_the_status_stays():
    old = {"type": "LimitsApplied", "status": "True", "reason": "Applied", "lastTransitionTime": "2020-01-01T00:00:00Z"}
    kept = conditions(reported(workload=workload(status={"conditions": [old]})))
    assert kept["LimitsApplied"]["lastTransitionTime"] == "2020-01-01T00:00:00Z"
    assert kept["RequestsApplied"]["lastTransitionTime"] == timestamp(NOW)
    moved = conditions(reported(workload=workload(status={"conditions": [old | {"status": "False"}]})))
    assert moved["LimitsApplied"]["lastTransitionTime"] == timestamp(NOW)


def test_an_invalid_configuration_names_key_value_and_what_is_allowed():
    problem = Problem("tensor-fusion.ai/qos", "urgent", "low, medium, high or critical")
    found = conditions(reported(workload=workload(problems=(problem,))))["ConfigValid"]
    assert (found["status"], found["reason"]) == ("False", "Invalid")
    assert "tensor-fusion.ai/qos: 'urgent'" in found["message"]
    assert "low, medium, high or critical" in found["message"]


@pytest.mark.parametrize("reason", [reason for reason in MetricsReason if reason is not MetricsReason.FOUND])
def test_metrics_that_are_not_there_say_why(reason):
    found = conditions(reported(metrics=MetricsHealth(reason, "newest sample is 9m old")))["MetricsAvailable"]
    assert (found["status"], found["reason"], found["message"]) == ("False", reason.value, "newest sample is 9m old")


def test_without_a_decision_nothing_is_recommended_or_applied():
    found = reasons(replace(reported(), decision=None))
    assert found["RecommendationProvided"] == ("False", "NoData")
    assert found["LimitsApplied"] == ("False", "NoData")


@pytest.mark.parametrize("verdict", [Verdict.LOW_CONFIDENCE, Verdict.INITIAL_DELAY])
def test_a_recommendation_from_few_samples_says_so(verdict):
    early = decision({LIMIT: figure(LIMIT, 20.0, 12.0, allowed=20.0, verdict=verdict)})
    found = reasons(reported(early))
    assert found["RecommendationProvided"] == ("True", verdict.value)
    assert found["LimitsApplied"] == ("False", verdict.value)


def test_an_estimate_without_data_is_no_recommendation():
    blind = decision({field: figure(field, 20.0, 20.0, cause=Cause.NO_DATA, verdict=Verdict.STALE) for field in Field})
    assert reasons(reported(blind))["RecommendationProvided"] == ("False", "NoData")


@pytest.mark.parametrize("verdict", [one for one in Verdict if one not in {Verdict.PASSED, Verdict.RECOMMEND_ONLY}])
def test_a_figure_that_a_guard_held_is_the_layer_s_reason(verdict):
    held = decision({LIMIT: figure(LIMIT, 20.0, 40.0, allowed=20.0, verdict=verdict)})
    found = conditions(reported(held))
    assert (found["LimitsApplied"]["status"], found["LimitsApplied"]["reason"]) == ("False", verdict.value)
    assert "compute limit held at 20 TFLOPs, wanted 40" in found["LimitsApplied"]["message"]
    assert found["RequestsApplied"]["status"] == "True"


@pytest.mark.parametrize("mode", [Mode.OFF, Mode.RECOMMEND])
def test_a_layer_that_is_not_on_only_recommends(mode):
    fields = (Field.COMPUTE_LIMIT, Field.VRAM_LIMIT)
    shown = decision(
        {one: figure(one, 20.0, 40.0, allowed=20.0, mode=mode, verdict=Verdict.RECOMMEND_ONLY) for one in fields}
    )
    assert reasons(reported(shown))["LimitsApplied"] == ("False", "RecommendOnly")


def test_a_failed_write_is_a_failure_of_the_layer_that_moved():
    found = reasons(reported(decision({LIMIT: 40.0}), error="409 conflict"))
    assert found["LimitsApplied"] == ("False", "WriteFailed")
    assert found["RequestsApplied"][1] != "WriteFailed"


def test_an_agent_that_is_away_is_named_everywhere():
    away = reported(nodes={NODE: replace(AGENT.state(), error="timeout")})
    found = conditions(away)
    assert found["EnforcementInSync"]["reason"] == "AgentUnreachable"
    assert "0 of 2 acknowledged; chat-0: node node-1: timeout" in found["EnforcementInSync"]["message"]
    assert found["LimitsApplied"]["reason"] == "AgentUnreachable"


def test_a_node_that_was_not_told_yet_is_not_in_sync():
    late = reported(decision({LIMIT: 40.0}))
    assert reasons(late)["EnforcementInSync"] == ("False", "NotAcknowledged")
    assert reasons(late)["LimitsApplied"] == ("False", "AppliedPartially")


@pytest.mark.parametrize(
    ("effect", "reason"),
    [
        (Effect.IMMEDIATE, "NotAcknowledged"),
        (Effect.NEXT_ALLOC, "NotAcknowledged"),
        (Effect.NEXT_PROCESS, "PendingEffect"),
        (Effect.RESTART, "PendingEffect"),
        (Effect.UNSUPPORTED, "Unsupported"),
    ],
)
def test_an_effect_that_has_not_come_is_shown_not_hidden(effect, reason):
    agent = Agent(effect=effect)
    agent.stuck = {"uid-chat-0", "uid-chat-1"}
    told(quota("chat-0"), quota("chat-1"), agent=agent)
    late = reported(nodes={NODE: agent.state()})
    assert reasons(late)["EnforcementInSync"] == ("False", reason)
    assert acknowledged(late).effect is effect


def test_a_bypassed_limit_is_shown_without_figures_that_change_and_counts_as_in_force():
    messages = set()
    for seconds in (12, 13):
        state = told(quota("chat-0"), quota("chat-1")).state()
        first, *others = state.quotas.workers
        said = f"LimitBypassed: 62 TFLOPs in use, above the effective limit of 20 for {seconds} s"
        devices = tuple(structs.replace(device, reason=said) for device in first.devices)
        quotas = structs.replace(state.quotas, workers=(structs.replace(first, devices=devices), *others))
        one = reported(nodes={NODE: replace(state, quotas=quotas)})
        assert reasons(one)["EnforcementInSync"] == ("True", "LimitBypassed")
        assert reasons(one)["LimitsApplied"] == ("True", "Applied")
        messages.add(conditions(one)["EnforcementInSync"]["message"])
    (message,) = messages
    assert "2 of 2 acknowledged; chat-0: uses more of" in message


def test_what_could_not_be_sent_is_the_reason():
    late = reported(decision({LIMIT: 40.0}), held={"uid-chat-0": "CapacityLimited: no room on GPU-a"})
    found = conditions(late)["EnforcementInSync"]
    assert found["reason"] == "CapacityLimited"
    assert "chat-0: no room on GPU-a" in found["message"]


def test_no_worker_is_neither_in_sync_nor_out_of_it():
    found = reasons(reported(workload=workload(workers=())))
    assert found["EnforcementInSync"] == ("Unknown", "NoWorkers")
    assert found["LimitsApplied"] == ("True", "Applied")


def test_one_of_two_workers_acknowledged():
    agent = told(quota("chat-0"), quota("chat-1", tflops=(10.0, 15.0)))
    found = acknowledged(reported(nodes={NODE: agent.state()}))
    assert (found.applied, found.workers) == (1, 2)


def test_a_ceiling_over_the_device_counts_as_the_device():
    big = decision({LIMIT: figure(LIMIT, 20.0, 300.0)})
    agent = told(quota("chat-0", tflops=(10.0, 100.0)), quota("chat-1", tflops=(10.0, 100.0)))
    assert acknowledged(reported(big, nodes={NODE: agent.state()})).in_sync


def test_the_gravest_verdict_speaks_and_every_verdict_has_its_place():
    assert set(GRAVEST_FIRST) == set(Verdict)
    shown = gravest(
        [
            figure(LIMIT, 20.0, 10.0, allowed=20.0, verdict=Verdict.STABILIZING),
            figure(Field.REPLICAS, 2.0, 3.0, allowed=2.0, verdict=Verdict.QUOTA_LIMITED),
        ]
    )
    assert shown.verdict is Verdict.QUOTA_LIMITED


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (reported(), "Applied"),
        (
            reported(decision({LIMIT: figure(LIMIT, 20.0, 40.0, allowed=20.0, verdict=Verdict.CAPACITY_LIMITED)})),
            "CapacityLimited",
        ),
        (reported(metrics=MetricsHealth(MetricsReason.STALE, "")), "Stale"),
        (reported(workload=workload(problems=(Problem("qos", "x", "y"),))), "Invalid"),
        (reported(error="409", decided=decision({LIMIT: 40.0})), "WriteFailed"),
        (reported(workload=workload((worker(node="bare"),))), "AgentUnreachable"),
        (
            reported(
                decision(
                    {f: figure(f, math.nan, math.nan, mode=Mode.OFF, verdict=Verdict.RECOMMEND_ONLY) for f in Field}
                ),
                workload=workload(workers=()),
            ),
            "RecommendOnly",
        ),
    ],
)
def test_one_reason_speaks_for_the_workload(one, expected):
    assert headline(conditions_of(one, acknowledged(one)), one.decision) == expected
