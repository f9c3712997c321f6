"""The status of a workload: what is recommended, what holds, what the nodes acknowledged."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import pytest

from autoscaler.contract.keys import QoS
from autoscaler.contract.quota import Observed
from autoscaler.errors import Problem
from autoscaler.model.config import LimitsPolicy, Mode, ReplicasPolicy, RequestsPolicy
from autoscaler.model.decision import Field
from autoscaler.model.reasons import Cause, Verdict
from autoscaler.model.resources import GIB
from autoscaler.model.status import TensorFusionWorkloadStatus, WorkloadProfileStatus
from autoscaler.model.workload import BrokenWorkload
from autoscaler.report.display import SHORT, STATUS_CHARACTERS, short_status
from autoscaler.report.events import EventReason, events_of
from autoscaler.report.profile_status import Member, profile_status
from autoscaler.report.status import MetricsHealth, MetricsReason, Reported, broken_status, changed, status_of
from tests.autoscaler.apply_cases import (
    NODE,
    NOW,
    Agent,
    amounts,
    decision,
    figure,
    quota,
    retold,
    told,
    worker,
    workload,
)

LIMIT = Field.COMPUTE_LIMIT
AGENT = told(quota("chat-0"), quota("chat-1"))


def reported(decided=None, **more):
    settings = {
        "workload": workload(),
        "decision": decided,
        "metrics": MetricsHealth(),
        "now": NOW,
        "nodes": {NODE: AGENT.state()},
    }
    return Reported(**(settings | more))


def grown(**more):
    """The limit went from 20 to 40 and the node has it."""
    agent = told(quota("chat-0", tflops=(10.0, 40.0)), quota("chat-1", tflops=(10.0, 40.0)))
    settings = {"nodes": {NODE: agent.state()}} | more
    return reported(decision({LIMIT: figure(LIMIT, 20.0, 40.0, lower_bound=30.0, upper_bound=50.0)}), **settings)


def held(verdict=Verdict.CAPACITY_LIMITED, wanted=40.0, **more):
    return reported(decision({LIMIT: figure(LIMIT, 20.0, wanted, allowed=20.0, verdict=verdict)}), **more)


def display(one):
    return status_of(one)["autoscaling"]["display"]


def test_every_field_is_in_the_schema():
    for one in (grown(), held(), reported(), reported(workload=workload(workers=()))):
        status = status_of(one)
        parsed = TensorFusionWorkloadStatus.model_validate(status)
        assert parsed.model_dump(by_alias=True, exclude_none=True, mode="json").keys() == status.keys()
        assert _names(TensorFusionWorkloadStatus, status) == []


def _names(model, value, path=""):
    """Return the paths of `value` that a model doesn't know (it ignores them silently)."""
    known = {field.alias or name: field for name, field in model.model_fields.items()}
    unknown = [f"{path}.{key}" for key in value if key not in known]
    parsed = model.model_validate(value)
    for key, inner in value.items():
        child = getattr(parsed, next((n for n, f in model.model_fields.items() if (f.alias or n) == key), ""), None)
        if isinstance(inner, dict) and hasattr(child, "model_fields_set"):
            unknown += _names(type(child), inner, f"{path}.{key}")
    return unknown


def test_an_applied_change_shows_what_now_holds():
    status = status_of(grown())
    shown = status["autoscaling"]["display"]
    assert (shown["tflops"], shown["status"], status["autoscaling"]["applied"]) == ("10/40", "Applied", "2/2")
    assert status["autoscaling"]["current"]["limits"] == {"tflops": "40", "vram": "4Gi"}
    assert status["recommendation"]["limits"] == {"tflops": "40", "vram": "4Gi"}
    assert status["autoscaling"]["tflops"]["limitTarget"] == "40"
    assert status["autoscaling"]["lastScaleTime"] == status["autoscaling"]["lastEvaluationTime"]
    assert status["autoscaling"]["effect"] == "immediate"
    assert (status["autoscaling"]["samples"], status["autoscaling"]["span"]) == (1440, "1d")


def test_a_held_change_shows_both_figures_and_the_reason():
    shown = display(held())
    assert (shown["tflops"], shown["vram"], shown["status"]) == ("10/20→10/40", "4Gi", "CapacityLim")
    assert "compute limit held at 20 TFLOPs, wanted 40" in shown["message"]


def test_counts_selector_and_generation():
    crew = (worker(), worker("chat-1", ready=False))
    status = status_of(reported(decision(), workload=workload(crew)))
    assert (status["workerCount"], status["readyWorkers"], status["observedGeneration"]) == (2, 1, 3)
    assert status["selector"] == "tensor-fusion.ai/workload=chat"
    assert status["recommendedReplicas"] == 2


def test_applied_counts_only_what_nodes_acknowledged():
    agent = Agent()
    agent.stuck = {"uid-chat-1"}
    told(quota("chat-0"), quota("chat-1"), agent=agent)
    assert status_of(reported(decision(), nodes={NODE: agent.state()}))["autoscaling"]["applied"] == "1/2"
    assert status_of(reported(decision(), nodes={}))["autoscaling"]["applied"] == "0/2"


def test_what_is_recommended_is_shown_though_the_layer_is_off():
    off = figure(LIMIT, 20.0, 40.0, allowed=20.0, mode=Mode.OFF, verdict=Verdict.RECOMMEND_ONLY)
    status = status_of(reported(decision({LIMIT: off})))
    assert status["recommendation"]["limits"]["tflops"] == "40"
    assert status["autoscaling"]["current"]["limits"]["tflops"] == "20"
    assert status["autoscaling"]["display"]["tflops"] == "10/20→10/40"


def test_a_failed_write_still_shows_the_old_figure_as_current():
    status = status_of(grown(error="409 conflict"))
    assert status["autoscaling"]["current"]["limits"]["tflops"] == "20"
    assert "lastScaleTime" not in status["autoscaling"]
    assert status["autoscaling"]["display"]["message"] == "409 conflict"


def test_without_a_decision_no_figure_is_invented():
    status = status_of(reported(metrics=MetricsHealth(MetricsReason.MISSING, "no samples yet")))
    assert "recommendation" not in status
    assert "tflops" not in status["autoscaling"]
    assert (display(reported()))["tflops"] == "10/20"
    assert status["autoscaling"]["display"]["status"] == "NoMetrics"
    assert status["autoscaling"]["display"]["message"] == "no samples yet"


def test_an_unknown_bound_is_absent_not_zero():
    resource = status_of(held())["autoscaling"]["tflops"]
    assert "lowerBound" not in resource
    assert (resource["target"], resource["reason"]) == ("10", "Raised")


def test_the_last_scale_time_is_carried_on():
    old = {"autoscaling": {"lastScaleTime": "2026-01-01T00:00:00Z"}}
    status = status_of(reported(decision(), workload=workload(status=old)))
    assert status["autoscaling"]["lastScaleTime"] == "2026-01-01T00:00:00Z"


def test_layers_and_service_level_are_named():
    config = replace(
        workload().config,
        qos=QoS.HIGH,
        requests=RequestsPolicy(Mode.ON),
        limits=LimitsPolicy(Mode.RECOMMEND),
        replicas_policy=ReplicasPolicy(Mode.ON),
    )
    shown = display(reported(decision(), workload=workload(config=config)))
    assert (shown["qos"], shown["auto"]) == ("high", "req,rep")
    assert display(reported(decision()))["auto"] == "off"


def test_live_use_of_the_busiest_worker_is_shown():
    state = AGENT.state()
    workers = [
        replace_observed(one, Observed(20.0, 4 * GIB, tflops, vram))
        for one, tflops, vram in zip(state.quotas.workers, (3.0, 7.5), (2 * GIB, GIB), strict=True)
    ]
    assert display(reported(decision(), nodes={NODE: retold(state, workers=tuple(workers))}))["usage"] == "7.5, 2Gi"
    assert "usage" not in display(reported(decision()))


def replace_observed(status, observed):

    devices = tuple(msgspec.structs.replace(one, observed=observed) for one in status.devices)
    return msgspec.structs.replace(status, devices=devices)


@pytest.mark.parametrize("reason", sorted({*SHORT, *Verdict, *MetricsReason}))
def test_the_status_column_is_never_wider_than_fifteen(reason):
    assert 0 < len(short_status(str(reason))) <= STATUS_CHARACTERS
    assert short_status(str(reason)) == SHORT.get(reason, reason), "a reason that must be cut needs a short form"


def test_the_same_pass_again_is_no_change():
    later = replace(grown(), now=NOW + 60)
    later = replace(later, workload=replace(later.workload, status=status_of(grown())))
    again = replace(later.decision, at=NOW + 60, samples=1441, span_seconds=86_460.0)
    steady = status_of(replace(later, decision=again))
    steady["autoscaling"]["lastScaleTime"] = status_of(grown())["autoscaling"]["lastScaleTime"]
    assert steady["autoscaling"]["lastEvaluationTime"] != status_of(grown())["autoscaling"]["lastEvaluationTime"]
    assert not changed(status_of(grown()), steady)


def test_a_drifting_band_is_no_change_until_it_really_moved():
    def banded(low):
        one = figure(Field.COMPUTE_REQUEST, 10.0, 10.0, lower_bound=low, upper_bound=20.0)
        return status_of(reported(decision({Field.COMPUTE_REQUEST: one})))

    assert not changed(banded(8.0), banded(8.2))
    assert changed(banded(8.0), banded(9.0))


@pytest.mark.parametrize("other", [held(wanted=41.0), held(Verdict.QUOTA_LIMITED), grown(), held(nodes={})])
def test_figures_reasons_and_acknowledgements_are_changes(other):
    assert changed(status_of(held()), status_of(other))
    assert changed({}, status_of(other))


def test_a_corrected_problem_is_a_change():
    def wrong(*keys):
        return status_of(reported(workload=workload(problems=tuple(Problem(key, "x", "y") for key in keys))))

    assert changed(wrong("qos", "gpu-count"), wrong("qos"))
    assert not changed(wrong("qos"), wrong("qos"))


def test_a_workload_that_was_never_valid_says_so_and_keeps_what_it_said_before():
    before = {"phase": "Running", "conditions": [{"type": "MetricsAvailable", "status": "True"}]}
    broken = BrokenWorkload(workload().key, workload().ref, (Problem("qos", "urgent", "low"),), status=before)
    status = broken_status(broken, NOW)
    assert "phase" not in status  # whoever keeps it goes on to; it is not ours to state
    assert [one["type"] for one in status["conditions"]] == ["ConfigValid", "MetricsAvailable"]
    assert status["autoscaling"]["display"]["status"] == "ConfigInvalid"


def events(one):
    return [(emit.ref.kind, emit.reason, emit.warning) for emit in events_of(one)]


def test_a_change_is_told_on_the_workload_and_its_owner():
    assert events(grown()) == [
        ("TensorFusionWorkload", "ResourceScaledUp", False),
        ("Deployment", "ResourceScaledUp", False),
    ]
    assert events_of(grown())[0].message.startswith("compute limit 20 → 40 TFLOPs")


def test_each_direction_has_its_own_event():
    both = decision({LIMIT: 40.0, Field.VRAM_REQUEST: 3 * GIB, Field.REPLICAS: 1.0})
    told_reasons = {reason for _, reason, _ in events(reported(both))}
    assert told_reasons == {"ResourceScaledUp", "ResourceScaledDown", "ReplicasScaledDown"}


def test_nothing_is_told_of_what_was_not_written_or_is_not_on():
    assert events(grown(error="409")) == []
    assert events(reported(decision({LIMIT: figure(LIMIT, 20.0, 40.0, mode=Mode.OFF)}))) == []


def test_blocked_growth_warns_once():
    first = held()
    assert events(first)[0] == ("TensorFusionWorkload", "ScalingBlocked", True)
    known = replace(first, workload=workload(status=status_of(first)))
    assert events(known) == []
    assert events(held(wanted=12.0)) == [], "a shrink that does not come blocks nobody"


def test_running_out_of_memory_warns_once():
    oom = decision({Field.VRAM_LIMIT: figure(Field.VRAM_LIMIT, 4 * GIB, 6 * GIB, cause=Cause.OOM_SEEN)})
    first = reported(oom)
    assert ("TensorFusionWorkload", EventReason.OOM_DETECTED, True) in events(first)
    known = replace(first, workload=workload(status=status_of(first)))
    assert EventReason.OOM_DETECTED not in {reason for _, reason, _ in events(known)}


PROFILE = {"metadata": {"name": "llm", "generation": 2}, "spec": {"qos": "high"}}


def test_a_profile_sums_its_workloads():
    smaller = Member(workload(), decision({Field.COMPUTE_REQUEST: 5.0, Field.REPLICAS: 3.0}))
    two_gpus = replace(workload().config, gpu_count=2, requests=RequestsPolicy(Mode.ON))
    steady = Member(workload(config=two_gpus), decision())
    status = profile_status(PROFILE, (smaller, steady), (), NOW)
    assert status["workloads"] == 2
    # now 10 TFLOPs x 2 workers + 10 x 2 GPUs x 2 workers = 60; then 5 x 3 + 40 = 55
    assert status["summary"]["display"] == {"tflops": "60→55", "vram": "24Gi→28Gi", "replicas": "4→5"}
    assert status["summary"]["auto"] == "req"
    assert status["conditions"][0]["observedGeneration"] == 2
    assert _names(WorkloadProfileStatus, status) == []


def test_a_profile_that_nobody_uses_sums_to_nothing():
    status = profile_status(PROFILE, (), (Problem("spec.qos", "x", "y"),), NOW)
    assert status["summary"]["display"]["replicas"] == "0"
    assert status["conditions"][0]["status"] == "False"
    assert WorkloadProfileStatus.model_validate(status).workloads == 0


def test_an_unknown_recommendation_counts_as_what_holds():
    blind = decision({Field.COMPUTE_REQUEST: figure(Field.COMPUTE_REQUEST, 10.0, math.nan, allowed=10.0)})
    status = profile_status(PROFILE, (Member(workload(), blind),), (), NOW)
    assert status["summary"]["display"]["tflops"] == "20"


def test_current_amounts_are_the_workload_s_when_there_is_no_worker():
    status = status_of(reported(decision(), workload=workload((), amounts((3.0, 6.0)))))
    assert status["autoscaling"]["applied"] == "0/0"
