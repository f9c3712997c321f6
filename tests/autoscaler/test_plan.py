"""What is written, and what a node is sent, in which order."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.apply.difference import Told
from autoscaler.apply.fit import Held
from autoscaler.apply.plan import documents, intents, kept_quotas, quotas_of, texts_of
from autoscaler.contract import keys
from autoscaler.contract.keys import Effect, QoS
from autoscaler.model.config import Mode
from autoscaler.model.decision import Field
from autoscaler.model.reasons import Verdict
from autoscaler.model.resources import GIB
from autoscaler.model.steps import Annotate, Scale
from autoscaler.model.workload import ObjectRef
from tests.autoscaler.apply_cases import (
    GPU,
    KEY,
    NODE,
    Agent,
    amounts,
    decision,
    device,
    figure,
    quota,
    retold,
    told,
    worker,
    workload,
)

LIMIT, VRAM_REQUEST = Field.COMPUTE_LIMIT, Field.VRAM_REQUEST
STATED = texts_of(amounts())


def vram_of(document):
    return {entry.pod: entry.devices[0].vram_request_bytes / GIB for entry in document.quotas}


def test_a_changed_limit_is_annotated_on_every_worker_and_the_first_patch_keeps_the_original():
    crew = (worker(annotations=STATED), worker("chat-1", annotations=STATED))
    writes = intents(workload(crew), decision({LIMIT: 40.0}))
    assert [write.ref.name for write in writes] == ["chat-0", "chat-1"]
    patch = writes[0].annotations
    assert patch[keys.TFLOPS_LIMIT] == "40"
    assert set(patch) == {keys.TFLOPS_LIMIT, keys.AUTOSCALING_ORIGINAL, keys.AUTOSCALING_APPLIED}
    assert json.loads(patch[keys.AUTOSCALING_ORIGINAL]) == {
        "tflops-request": "10",
        "tflops-limit": "20",
        "vram-request": "4Gi",
        "vram-limit": "4Gi",
    }


def test_the_original_is_never_overwritten():
    crew = (worker(annotations=STATED | {keys.AUTOSCALING_ORIGINAL: "{}"}),)
    (write,) = intents(workload(crew), decision({LIMIT: 40.0}))
    assert {key: text for key, text in write.annotations.items() if key != keys.AUTOSCALING_APPLIED} == {
        keys.TFLOPS_LIMIT: "40"
    }


@pytest.mark.parametrize("stated", [{}, {keys.TFLOPS_LIMIT: "20"}])
def test_beside_a_figure_that_moves_the_other_is_told_too_where_the_worker_does_not_state_it(stated):
    crew = (worker(annotations=stated),)
    (write,) = intents(workload(crew), decision({LIMIT: 40.0}))
    assert (write.annotations[keys.TFLOPS_REQUEST], write.annotations[keys.TFLOPS_LIMIT]) == ("10", "40")
    assert keys.VRAM_LIMIT not in write.annotations


@pytest.mark.parametrize("mode", [Mode.OFF, Mode.RECOMMEND])
def test_what_is_not_on_is_not_written(mode):
    assert intents(workload(), decision({LIMIT: figure(LIMIT, 20.0, 40.0, mode=mode)})) == ()


def test_nothing_is_written_when_nothing_changes():
    assert intents(workload(), decision()) == ()


def test_a_newborn_worker_with_the_template_s_figures_is_brought_to_the_workload_s():
    crew = (worker(current=amounts((12.0, 24.0))), worker("born"))
    decided = decision(held=amounts((12.0, 24.0)))
    (write,) = intents(workload(crew, amounts((12.0, 24.0))), decided)
    assert (write.ref.name, write.annotations[keys.TFLOPS_LIMIT]) == ("born", "24")


def test_a_paused_workload_s_newborn_keeps_what_it_was_born_with():
    crew = (worker(current=amounts((10.0, 24.0))), worker("born"))
    held = figure(LIMIT, 24.0, 30.0, allowed=24.0, verdict=Verdict.PAUSED)
    assert intents(workload(crew), decision({LIMIT: held})) == ()


def test_an_unknown_figure_is_never_written():
    assert intents(workload(), decision({LIMIT: figure(LIMIT, 20.0, math.nan, verdict=Verdict.STALE)})) == ()


def test_a_request_that_is_ours_yields_to_a_limit_that_is_not():
    limit = figure(LIMIT, 20.0, 20.0, mode=Mode.OFF)
    crew = (worker(annotations=STATED),)
    (write,) = intents(workload(crew), decision({Field.COMPUTE_REQUEST: 30.0, LIMIT: limit}))
    assert write.annotations[keys.TFLOPS_REQUEST] == "20"
    assert keys.TFLOPS_LIMIT not in write.annotations


def test_what_was_written_is_noted_beside_it_without_what_is_not_ours():
    limit = figure(LIMIT, 20.0, 20.0, mode=Mode.OFF)
    crew = (worker(annotations=STATED),)
    (write,) = intents(workload(crew), decision({VRAM_REQUEST: 3.0 * GIB, LIMIT: limit}))
    assert json.loads(write.annotations[keys.AUTOSCALING_APPLIED]) == {
        "tflops-request": "10",
        "vram-request": "3Gi",
        "vram-limit": "4Gi",
    }


def test_replicas_go_to_the_owner_first_and_to_the_workload_last():
    writes = intents(workload(), decision({Field.REPLICAS: 3.0}))
    scales = [(write.ref.kind, write.replicas) for write in writes[:-1]]
    assert scales == [("Deployment", 3), ("TensorFusionWorkload", 3)]
    assert writes[-1] == Annotate(workload().ref, {keys.AUTOSCALING_APPLIED: '{"replicas":"3"}'})


def test_shared_workers_have_no_single_owner_to_scale():
    owners = tuple(ObjectRef("apps/v1", "Deployment", "prod", name) for name in ("a", "b"))
    write, _note = intents(workload(owners=owners), decision({Field.REPLICAS: 3.0}))
    assert write == Scale(workload().ref, 3)


def test_a_job_is_never_scaled():
    owners = (ObjectRef("batch/v1", "Job", "prod", "train"),)
    writes = intents(workload(owners=owners), decision({Field.REPLICAS: 3.0}))
    assert [write.ref.kind for write in writes if isinstance(write, Scale)] == ["TensorFusionWorkload"]


def test_a_quota_is_per_device_and_rounds_bytes_up():
    crew = worker(devices=("GPU-a", "GPU-b"))
    made = quotas_of(workload(), crew, amounts(vram_gib=(1 + 0.5 / GIB, 4.0)), Agent().state())
    assert [one.uuid for one in made.devices] == ["GPU-a", "GPU-b"]
    assert made.devices[0].vram_request_bytes == GIB + 1
    assert (made.pod_uid, made.workload, made.qos) == ("uid-chat-0", "chat", QoS.MEDIUM)


def test_devices_are_learned_from_the_agent_when_the_cluster_does_not_name_them():
    agent = Agent()
    agent.put(documents(agent.state(), (quota("chat-0"),), 1).documents[0])
    made = quotas_of(workload(), worker(devices=()), amounts(), agent.state())
    assert [one.uuid for one in made.devices] == [GPU]


def test_a_worker_whose_devices_nobody_knows_has_no_quota_but_a_reason():
    made = quotas_of(workload(), worker(devices=()), amounts(), Agent().state())
    assert isinstance(made, Held)
    assert made.reason.startswith("DevicesUnknown")
    assert NODE in made.reason


def test_a_fresh_node_gets_one_document_of_generation_one():
    plan = documents(Agent().state(), (quota("a"), quota("b")), 7)
    (document,) = plan.documents
    assert (document.epoch, document.generation, document.node) == (7, 1, NODE)
    assert plan.held == ()


def test_a_node_that_has_it_is_sent_nothing_even_by_a_new_leader():
    agent = told(quota("a"))
    assert documents(agent.state(), (quota("a"),), 1).documents == ()
    assert documents(agent.state(), (quota("a"),), 2).documents == ()


def test_shrink_and_growth_on_one_device_are_two_documents():
    agent = told(quota("a", (16.0, 16.0)), quota("b", (8.0, 8.0)))
    plan = documents(agent.state(), (quota("a", (8.0, 8.0)), quota("b", (16.0, 16.0))), 1)
    assert [vram_of(document) for document in plan.documents] == [{"a": 8, "b": 8}, {"a": 8, "b": 16}]
    assert [document.generation for document in plan.documents] == [2, 3]


def test_shrink_and_growth_on_different_devices_are_one_document():
    agent = told(
        quota("a", (16.0, 16.0)),
        quota("b", (8.0, 8.0), uuid="GPU-b"),
        agent=Agent(devices=(device(), device(uuid="GPU-b"))),
    )
    plan = documents(agent.state(), (quota("a", (8.0, 8.0)), quota("b", (16.0, 16.0), uuid="GPU-b")), 1)
    assert len(plan.documents) == 1


def test_one_worker_s_memory_shrinks_and_its_compute_grows_in_one_document():
    agent = told(quota("a", (8.0, 8.0), (10.0, 20.0)))
    assert len(documents(agent.state(), (quota("a", (4.0, 4.0), (20.0, 40.0)),), 1).documents) == 1


def test_growth_waits_for_a_shrink_that_is_not_in_force():
    agent = told(quota("a", (16.0, 16.0)), quota("b", (8.0, 8.0)))
    agent.stuck = {"uid-a"}
    desired = quota("a", (8.0, 8.0)), quota("b", (16.0, 16.0))
    agent.put(documents(agent.state(), desired, 1).documents[0])
    plan = documents(agent.state(), desired, 1)
    assert plan.documents == ()
    assert [(held.pod_uid, held.reason.split(":")[0]) for held in plan.held] == [("uid-b", "WaitingForShrink")]
    assert "a was told 8Gi and still has 16Gi" in plan.held[0].reason
    agent.stuck = set()
    agent.settle()
    (document,) = documents(agent.state(), desired, 1).documents
    assert vram_of(document) == {"a": 8, "b": 16}


def test_a_backend_that_supports_nothing_is_not_waited_for():
    agent = Agent(effect=Effect.UNSUPPORTED)
    agent.stuck = {"uid-a", "uid-b"}  # what is in force is not known, and never will be
    told(quota("a", (16.0, 16.0)), quota("b", (8.0, 8.0)), agent=agent)
    (document,) = documents(agent.state(), (quota("a", (16.0, 16.0)), quota("b", (8.0, 12.0))), 1).documents
    assert document.quotas[1].devices[0].vram_limit_bytes == 12 * GIB


def test_growth_that_does_not_fit_stays_where_it_is_and_says_why():
    agent = told(quota("a", (16.0, 16.0)), quota("b", (8.0, 8.0)))
    plan = documents(agent.state(), (quota("a", (16.0, 16.0)), quota("b", (12.0, 12.0))), 1)
    (document,) = plan.documents
    assert vram_of(document) == {"a": 16, "b": 8}
    assert document.quotas[1].devices[0].vram_limit_bytes == 12 * GIB
    assert plan.held[0].pod_uid == "uid-b"
    assert "12Gi" in plan.held[0].reason


def test_the_higher_service_level_grows_first():
    agent = told(quota("a", (8.0, 8.0)), quota("b", (8.0, 8.0), qos=QoS.CRITICAL))
    desired = quota("a", (16.0, 16.0)), quota("b", (16.0, 16.0), qos=QoS.CRITICAL)
    (document,) = documents(agent.state(), desired, 1).documents
    assert vram_of(document) == {"a": 8, "b": 16}


def test_a_new_worker_without_room_is_left_out():
    agent = told(quota("a", (16.0, 16.0)))
    plan = documents(agent.state(), (quota("a", (16.0, 16.0)), quota("b", (12.0, 12.0))), 1)
    assert plan.documents == ()
    assert plan.held[0].pod_uid == "uid-b"


def test_a_ceiling_over_the_device_is_the_device():
    plan = documents(Agent().state(), (quota("a", (4.0, 30.0), (10.0, 300.0)),), 1)
    sent = plan.documents[0].quotas[0].devices[0]
    assert (sent.tflops_limit, sent.vram_limit_bytes) == (100.0, 24 * GIB)
    assert [held.reason.split(":")[0] for held in plan.held] == ["CapacityLimited", "CapacityLimited"]


def test_one_nonsensical_quota_does_not_stop_the_node():
    plan = documents(Agent().state(), (quota("a", (8.0, 4.0)), quota("b"), quota("c", uuid="GPU-gone")), 1)
    assert vram_of(plan.documents[0]) == {"b": 4}
    assert {held.pod_uid: held.reason.split(":")[0] for held in plan.held} == {
        "uid-a": "InvalidQuota",
        "uid-c": "DeviceUnknown",
    }


def test_a_worker_that_vanished_leaves_the_document_at_once():
    agent = told(quota("a", (16.0, 16.0)), quota("b", (8.0, 8.0)))
    (document,) = documents(agent.state(), (quota("b", (20.0, 20.0)),), 1).documents
    assert vram_of(document) == {"b": 20}


def test_an_agent_that_is_away_is_sent_nothing():
    plan = documents(replace(Agent().state(), error="timeout"), (quota("a"),), 1)
    assert plan.documents == ()
    assert plan.held[0].reason == "AgentUnreachable: timeout"


def test_a_superseded_controller_sends_nothing():
    agent = told(quota("a"))
    plan = documents(retold(agent.state(), epoch=5), (quota("a", (8.0, 8.0)),), 4)
    assert plan.documents == ()
    assert plan.held[0].reason.startswith("Superseded")


def test_a_new_service_level_is_sent_though_no_figure_moves():
    agent = told(quota("a"))
    (document,) = documents(agent.state(), (quota("a", qos=QoS.HIGH),), 1).documents
    assert document.quotas[0].qos is QoS.HIGH


def test_a_worker_named_without_container_is_the_pod_s_only_one():
    agent = told(quota("a"))
    workers = agent.state().quotas.workers
    named = retold(
        agent.state(),
        workers=tuple(
            type(w)(**{f: getattr(w, f) for f in w.__struct_fields__} | {"container": "main"}) for w in workers
        ),
    )
    assert documents(named, (quota("a"),), 1).documents == ()


def test_quotas_of_a_workload_that_cannot_be_judged_are_told_again():
    agent = told(quota("a"), quota("b"))
    assert kept_quotas(agent.state(), {KEY}) == (quota("a"), quota("b"))
    assert kept_quotas(agent.state(), frozenset()) == ()


SIZES = st.integers(1, 12)


@st.composite
def sizes(draw):
    """VRAM requests and limits (GiB), compute requests and limits of up to 5 workers, each maybe absent."""
    made = []
    for name in "abcde":
        if draw(st.booleans()):
            low, high = sorted((draw(SIZES), draw(SIZES)))
            slow, fast = sorted((draw(SIZES), draw(SIZES)))
            made.append(quota(name, (low, high), (float(slow), float(fast)), qos=draw(st.sampled_from(QoS))))
    return tuple(made)


@settings(max_examples=150, deadline=None)
@given(old=sizes(), new=sizes(), stuck=st.sets(st.sampled_from("abcde")), crash_after=st.integers(0, 2))
def test_no_document_ever_passes_the_device_and_every_crash_converges(old, new, stuck, crash_after):
    agent = Agent()
    for document in documents(agent.state(), old, 1).documents:
        agent.put(document)
    agent.stuck = {f"uid-{name}" for name in stuck}
    in_force_before = dict(agent.in_force)
    plan = documents(agent.state(), new, 1)
    assert len(plan.documents) <= 2
    for document in plan.documents[: min(crash_after, 1)]:
        agent.put(document)  # refuses whatever passes the device
        if len(plan.documents) == 2:
            for entry in document.quotas:
                before = in_force_before[entry.pod_uid, GPU]
                assert entry.devices[0].vram_request_bytes <= before.vram_request_bytes
    for epoch in (2, 3):  # the next leaders, while some shrinks hang
        while (again := documents(agent.state(), new, epoch)).documents:
            agent.put(again.documents[0])
    agent.stuck = set()
    agent.settle()
    rounds = 0
    while (again := documents(agent.state(), new, 4)).documents:
        agent.put(again.documents[0])
        rounds += 1
        assert rounds <= 2
    fits = sum(entry.devices[0].vram_request_bytes for entry in new) <= 24 * GIB
    if fits:
        assert set(agent.document.quotas) == set(new)
        assert again.held == ()
    sent = [(document.epoch, document.generation) for document in agent.received]
    assert sent == sorted(set(sent))


@settings(max_examples=80, deadline=None)
@given(old=sizes(), new=sizes())
def test_growth_is_never_in_force_beside_memory_that_was_not_given_back(old, new):
    """Σ of the VRAM limits that may be in force never rises above the larger of the two plans."""
    agent = Agent(devices=(device(vram_gib=80.0),))
    for document in documents(agent.state(), old, 1).documents:
        agent.put(document)
    peak = max(_total(old), _total(new))
    while (plan := documents(agent.state(), new, 1)).documents:
        before = dict(agent.in_force)
        agent.put(plan.documents[0])
        both = {
            key: max(one.vram_limit_bytes, before[key].vram_limit_bytes if key in before else 0)
            for key, one in agent.in_force.items()
        }
        assert sum(both.values()) <= peak
    assert set(agent.document.quotas) == set(new)


def _total(quotas):
    return sum(entry.devices[0].vram_limit_bytes for entry in quotas)


def test_annotations_and_quotas_carry_the_same_figure():
    decided = decision({LIMIT: 33.3})
    (write, _) = intents(workload(), decided)
    assert isinstance(write, Annotate)
    assert write.annotations[keys.TFLOPS_LIMIT] == "33.3"


@settings(max_examples=100, deadline=None)
@given(old=sizes(), new=sizes())
def test_what_is_known_of_a_node_never_changes_its_plan(old, new):
    agent = told(*old, agent=Agent(devices=(device(vram_gib=80.0),)))
    state = agent.state()
    known = Told(1, state.quotas.generation, old, state.devices)
    assert documents(state, new, 1, known) == documents(state, new, 1)


def test_a_node_that_lost_its_document_is_planned_whole_whatever_was_known():
    known = Told(1, 7, (quota("a"),), (device(),))
    (document,) = documents(Agent().state(), (quota("a"),), 1, known).documents
    assert vram_of(document) == {"a": 4}


def test_a_device_that_shrank_has_its_ceilings_lowered_when_its_neighbour_moves():
    """One quota over its device would have the agent refuse the whole document."""
    wide = device(), device(uuid="GPU-b")
    agent = told(quota("a", (4.0, 20.0)), quota("b", uuid="GPU-b"), agent=Agent(devices=wide))
    known = Told(1, 1, agent.document.quotas, wide)
    agent.devices = (device(vram_gib=16.0), device(uuid="GPU-b"))
    desired = quota("a", (4.0, 20.0)), quota("b", (8.0, 8.0), uuid="GPU-b")
    for told_before in (None, known):
        (document,) = documents(agent.state(), desired, 1, told_before).documents
        assert [entry.devices[0].vram_limit_bytes // GIB for entry in document.quotas] == [16, 8]


def test_a_device_on_which_nothing_moves_is_told_as_it_was():
    agent = told(quota("a"), quota("b", uuid="GPU-b"), agent=Agent(devices=(device(), device(uuid="GPU-b"))))
    (document,) = documents(agent.state(), (quota("a", (8.0, 8.0)), quota("b", uuid="GPU-b")), 1).documents
    assert document.quotas == (quota("a", (8.0, 8.0)), quota("b", uuid="GPU-b"))
