"""What a device has, by worked numbers: the reserve, the joint check, who gives to whom; and that no sum passes it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.apply.plan import documents, quotas_of
from autoscaler.contract.keys import QoS
from autoscaler.contract.quota import WorkerQuota
from autoscaler.guard import Limits, guard
from autoscaler.model.allowed import allowed_amounts
from autoscaler.model.config import Bounds, Mode, Pause, RequestsPolicy
from autoscaler.model.decision import Field
from autoscaler.model.reasons import VERDICTS, Verdict
from autoscaler.model.resources import GIB
from tests.autoscaler.shared_devices import NOW, SCALE, Load, Town, sums, unexplained

REQUEST, LIMIT, COMPUTE = Field.VRAM_REQUEST, Field.VRAM_LIMIT, Field.COMPUTE_REQUEST


def test_a_growing_vram_request_leaves_the_reserve_for_its_neighbours_bursts():
    town = Town([Load("a"), Load("b", vram=(4, 12))], vram=20)
    allowed = town.decide(town.wants(a={REQUEST: 16, LIMIT: 16}))
    # 20 - 4 - 4 are free, and .25 x sqrt((12 - 4)^2) stay so
    assert town.told(allowed, "a", REQUEST) == (14, Verdict.CAPACITY_LIMITED)


def test_a_limit_grows_only_where_the_members_use_of_the_last_hours_leaves_room():
    town = Town([Load("a"), Load("b", vram=(4, 16), used=15)], vram=20)
    town.decide()
    town.loads[1].used, town.now = 2.0, NOW + 3 * 3600  # its burst is over, and may come back
    allowed = town.decide(town.wants(a={LIMIT: 16}))
    assert town.told(allowed, "a", LIMIT) == (12, Verdict.CAPACITY_LIMITED)  # 8 and the 20 - 15 - 1 that were left
    town.now += 8 * 3600
    assert town.told(town.decide(town.wants(a={LIMIT: 16})), "a", LIMIT)[0] == 16


def test_what_the_grower_used_itself_does_not_stand_in_its_own_way():
    town = Town([Load("a", vram=(2, 40), used=30), Load("b", vram=(4, 40), used=20)], vram=54)
    town.decide()
    town.loads[0].used, town.now = 1.5, NOW + 600
    allowed = town.decide(town.wants(a={REQUEST: 32}))
    assert town.told(allowed, "a", REQUEST) == (32, Verdict.PASSED)


def test_who_left_the_device_no_longer_counts_in_the_joint_check():
    town = Town([Load("a"), Load("b", used=11, vram=(4, 12))], vram=14)
    town.decide()
    town.loads.pop()
    town.now += 600
    assert town.told(town.decide(town.wants(a={LIMIT: 13})), "a", LIMIT) == (13, Verdict.PASSED)


def test_critical_is_held_with_its_limit_and_that_room_is_never_lent():
    town = Town([Load("a"), Load("top", QoS.CRITICAL, vram=(4, 10))], vram=16)
    allowed = town.decide(town.wants(a={REQUEST: 8}))
    assert town.told(allowed, "a", REQUEST) == (6, Verdict.CAPACITY_LIMITED)
    town.now += 600
    allowed = town.decide(town.wants(top={REQUEST: 10}))
    assert town.told(allowed, "top", REQUEST) == (10, Verdict.PASSED)  # its own reserve


def test_lower_levels_give_what_they_do_not_need_lowest_first_and_never_their_own_level():
    town = Town(
        [
            Load("low", QoS.LOW, vram=(6, 6)),
            Load("medium", QoS.MEDIUM, vram=(6, 6)),
            Load("peer", QoS.HIGH, vram=(6, 6)),
            Load("high", QoS.HIGH, vram=(6, 6)),
        ],
        vram=24,
    )
    allowed = town.decide(town.wants(high={REQUEST: 10, LIMIT: 10}))
    assert town.told(allowed, "high", REQUEST) == (10, Verdict.PASSED)
    assert town.told(allowed, "low", REQUEST) == (3, Verdict.GAVE_TO_HIGHER_QOS)  # all above its lower bound
    assert town.told(allowed, "medium", REQUEST) == (5, Verdict.GAVE_TO_HIGHER_QOS)
    assert town.told(allowed, "peer", REQUEST)[0] == 6
    assert allowed.decision(town.row("low"))[REQUEST].inputs["given"] == 3 * GIB
    assert max(sums(town, REQUEST).values()) <= 24


def test_the_largest_surplus_of_a_level_gives_first():
    town = Town(
        [Load("little", QoS.LOW, vram=(4, 6)), Load("much", QoS.LOW, vram=(8, 8)), Load("high", QoS.HIGH)], vram=16.5
    )
    allowed = town.decide(town.wants(high={REQUEST: 6}))
    assert town.told(allowed, "little", REQUEST)[0] == 4
    assert town.told(allowed, "much", REQUEST)[1] is Verdict.GAVE_TO_HIGHER_QOS


@pytest.mark.parametrize(
    "change",
    [
        lambda load: replace(load, qos=QoS.CRITICAL),
        lambda load: replace(load, used=5.9),
        lambda load: replace(load, used=None),
        lambda load: replace(load, config=replace(load.config, pause=Pause(down=True))),
        lambda load: replace(load, config=replace(load.config, requests=RequestsPolicy(Mode.RECOMMEND))),
    ],
    ids=["critical", "in use", "use unknown", "paused", "request not ours"],
)
def test_nobody_gives_what_is_in_use_or_not_ours_to_set(change):
    town = Town([change(Load("low", QoS.LOW, vram=(6, 6))), Load("top", QoS.CRITICAL, vram=(4, 4))], vram=10)
    allowed = town.decide(town.wants(top={REQUEST: 6, LIMIT: 6}))
    assert town.told(allowed, "low", REQUEST)[0] == 6
    assert town.told(allowed, "top", REQUEST) == (4, Verdict.CAPACITY_LIMITED)


def test_who_was_raised_a_moment_ago_gives_only_after_its_cool_down():
    town = Town([Load("low", QoS.LOW, vram=(5, 6)), Load("top", QoS.CRITICAL, vram=(4, 4))], vram=10)
    town.decide(town.wants(low={REQUEST: 6}))
    for seconds, expected in ((300, 4), (660, 6)):
        town.now = NOW + seconds
        allowed = town.decide(town.wants(top={REQUEST: 6, LIMIT: 6}))
        assert town.told(allowed, "top", REQUEST)[0] == expected


def test_who_is_not_due_for_evaluation_gives_all_the_same_and_says_why():
    town = Town([Load("low", QoS.LOW, vram=(6, 6)), Load("top", QoS.CRITICAL, vram=(4, 4))], vram=10)
    town.decide()
    town.now += 60
    allowed = town.decide(town.wants(urgent=True, top={REQUEST: 6, LIMIT: 6}))
    assert town.told(allowed, "low", REQUEST) == (4, Verdict.GAVE_TO_HIGHER_QOS)


def test_capacity_beats_the_owners_min_allowed_and_says_so():
    low = Load("low", QoS.LOW, vram=(6, 6))
    low.config = replace(low.config, bounds=Bounds(min_allowed=(None, 6 * GIB)))
    town = Town([low, Load("top", QoS.CRITICAL, vram=(4, 4))], vram=10)
    allowed = town.decide(town.wants(top={REQUEST: 6, LIMIT: 6}))
    assert town.told(allowed, "low", REQUEST) == (4, Verdict.GAVE_TO_HIGHER_QOS)
    town.now += 3600
    allowed = town.decide()  # its bound asks for 6 again, the device is full
    assert town.told(allowed, "low", REQUEST) == (4, Verdict.CAPACITY_LIMITED)


def test_compute_requests_are_shared_like_vram_without_a_reserve():
    town = Town([Load("low", QoS.LOW, compute=(60, 90)), Load("high", QoS.HIGH, compute=(40, 90))], tflops=100)
    allowed = town.decide(town.wants(high={COMPUTE: 80}))
    assert town.told(allowed, "low", COMPUTE) == (30, Verdict.GAVE_TO_HIGHER_QOS)
    assert town.told(allowed, "high", COMPUTE) == (70, Verdict.CAPACITY_LIMITED)


def test_a_workload_gives_and_grows_with_all_its_workers_on_all_their_devices():
    pair = (("GPU-0", "GPU-1"), ("GPU-1", "GPU-2"))
    low = Load("low", QoS.LOW, vram=(8, 8), places=pair)
    high = Load("high", QoS.HIGH, vram=(4, 8), places=(("GPU-0", "GPU-2"),))
    town = Town([low, high], vram=16)
    allowed = town.decide(town.wants(high={REQUEST: 8}))
    assert town.told(allowed, "high", REQUEST) == (8, Verdict.PASSED)  # 16 - 8 hold it on both of its devices
    high.vram, town.now = (4, 12), NOW + 600
    allowed = town.decide(town.wants(high={REQUEST: 12, LIMIT: 12}))
    assert town.told(allowed, "low", REQUEST)[0] == 4
    assert town.told(allowed, "high", REQUEST)[0] == 12
    assert sums(town, REQUEST) == {"GPU-0": 16, "GPU-1": 8, "GPU-2": 16}


def test_what_shrinks_by_itself_makes_room_in_the_same_pass_and_is_not_held_back_by_the_rate():
    loads = [Load("low", QoS.LOW, vram=(6, 6)), Load("high", QoS.HIGH, vram=(4, 4))]
    town = Town(loads, vram=10, limits=Limits(120.0, 1, 10))
    allowed = town.decide(town.wants(low={REQUEST: 4}, high={REQUEST: 6, LIMIT: 6}))
    # from 6 to 4 by itself, and for the burst that it may make above that .25 x 2 of the reserve
    assert town.told(allowed, "low", REQUEST)[0] == 3.5
    assert max(sums(town, REQUEST).values()) <= 10


def test_those_on_the_device_that_are_not_ours_keep_what_they_were_told():
    town = Town([Load("a"), Load("stranger")], vram=14)
    whole = town.fleet
    known = replace(town, loads=town.loads[:1])
    lonely = replace(known.fleet, placement=replace(known.fleet.placement, foreign=np.array([[10.0], [4.0 * GIB]])))
    assert whole.placement.foreign.tolist() == [[0.0], [0.0]]
    town.memory.align(lonely.keys, lonely.uids)
    allowed = guard(lonely, known.wants(a={REQUEST: 14, LIMIT: 14}), town.memory, town.limits)
    assert allowed.figure[0, REQUEST] == 10 * GIB


levels = st.sampled_from(list(QoS))
sizes = st.integers(min_value=1, max_value=12)
places = st.lists(
    st.lists(st.sampled_from(["GPU-0", "GPU-1", "GPU-2"]), min_size=1, max_size=1).map(tuple), min_size=1, max_size=2
)


@st.composite
def towns(draw):
    loads = []
    for number in range(draw(st.integers(min_value=1, max_value=6))):
        request, extra, compute = draw(sizes), draw(sizes), draw(sizes)
        used = draw(st.one_of(st.none(), st.floats(min_value=0, max_value=request + extra)))
        loads.append(
            Load(
                f"w{number}",
                draw(levels),
                compute=(10 * compute, 10 * compute + 50),
                vram=(request, request + extra),
                places=tuple(draw(places)),
                used=used,
            )
        )
    town = Town(loads)
    town.vram = max(24, *sums(town, REQUEST).values(), *(load.vram[1] for load in loads))
    town.tflops = max(170, *sums(town, COMPUTE).values())
    return town


@settings(max_examples=80, deadline=None)
@given(town=towns(), data=st.data())
def test_no_sum_of_requests_passes_a_device_at_any_instant_of_the_plan(town: Town, data: st.DataObject):
    ratios = st.sampled_from([0.2, 0.5, 1.0, 1.0, 1.3, 2.0, 5.0])
    before, state = town.fleet, town.state
    figure = before.current * np.array([[data.draw(ratios) for _ in range(4)] + [1.0] for _ in town.loads])
    wanted = town.wants(
        urgent=data.draw(st.booleans()),
        **{load.name: dict(zip(Field, row / SCALE, strict=True)) for load, row in zip(town.loads, figure, strict=True)},
    )
    workloads = [load.workload for load in town.loads]
    allowed = town.decide(wanted)
    quotas: list[WorkerQuota] = []
    for row, workload in enumerate(workloads):
        for worker in workload.workers:
            made = quotas_of(workload, worker, allowed_amounts(worker.current, allowed.decision(row)), state)
            assert isinstance(made, WorkerQuota)
            quotas.append(made)
    plan = documents(state, quotas, 1)
    assert not plan.held  # the node has nothing to refuse
    for document in plan.documents:
        for device in state.devices:
            told = [one for worker in document.quotas for one in worker.devices if one.uuid == device.uuid]
            assert sum(one.vram_request_bytes for one in told) <= device.vram_total_bytes
            assert device.tflops is not None
            assert sum(one.tflops_request for one in told) <= device.tflops + 1e-9
    figure = allowed.figure
    assert (figure[:, COMPUTE] <= figure[:, Field.COMPUTE_LIMIT]).all()
    assert (figure[:, REQUEST] <= figure[:, LIMIT]).all()
    assert (figure[:, LIMIT] <= town.vram * GIB).all()
    assert not unexplained(allowed)
    gave = allowed.verdict[:, :4] == VERDICTS.index(Verdict.GAVE_TO_HIGHER_QOS)
    assert not gave[before.knobs.rank == len(QoS) - 1].any()
    again = Town(town.loads, town.vram, town.tflops)
    assert not again.decide().changed.any()
