"""Sharing a device's time: worked numbers, and what must hold for any workers on any device, tick after tick."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.govern.activity import Activity
from agent.govern.pool import Claim, Room, Share, govern, lay_out
from agent.govern.timeshare import Credit, Metered, accrue, share_time
from agent.model.samples import Attribution, Worker, WorkerUse
from autoscaler.contract.keys import QoS
from autoscaler.contract.quota import DeviceQuota, QuotaDocument, WorkerQuota

GPU = "GPU-a"
TOTAL = 100.0


def share(name: str, request: float, limit: float, qos: QoS = QoS.MEDIUM) -> Share:
    quota = DeviceQuota(GPU, request, limit, 0, 0)
    return Share(Worker(name, "ns", name, "main", "load", qos), quota, quota)


def limits(
    shares: list[Share],
    used: Mapping[str, float | None],
    under: Mapping[str, float] | None = None,
    credit: Mapping[str, Credit] | None = None,
) -> dict[str, float]:
    names = [one.worker.pod_uid for one in shares]
    metered = [Metered(used[name], (under or {}).get(name)) if name in used else None for name in names]
    found, _ = share_time(shares, metered, [(credit or {}).get(name) for name in names], {GPU: TOTAL})
    return {one.worker.pod_uid: one.effective.tflops_limit for one in found}


def test_while_the_demand_fits_every_ceiling_stands() -> None:
    both = [share("a", 20, 80), share("b", 20, 80)]
    assert limits(both, {"a": 40.0, "b": 30.0}) == {"a": 80, "b": 80}


def test_when_it_does_not_fit_guarantees_come_first_and_bursts_by_level() -> None:
    # Saturated: both want 80. 20 each is guaranteed, and the 60 left go to the higher level.
    both = [share("a", 20, 80, QoS.CRITICAL), share("b", 20, 80)]
    assert limits(both, {"a": 80.0, "b": 79.0}) == {"a": 80, "b": 20}


def test_inside_a_level_all_bursts_rise_alike_over_their_requests() -> None:
    both = [share("a", 10, 80), share("b", 30, 80)]
    assert limits(both, {"a": 78.0, "b": 78.0}) == {"a": 40, "b": 60}


def test_a_worker_that_idles_keeps_its_ceiling_and_costs_the_others_nothing() -> None:
    found = limits([share("a", 40, 90), share("b", 20, 90)], {"a": 0.0, "b": 89.0})
    assert found == {"a": 90, "b": 90}


def test_a_worker_that_comes_back_has_its_guarantee_at_once_and_the_burst_gives_way_in_the_same_tick() -> None:
    # a is held nowhere below its request; its use of 35 may become 45.5, b's burst leaves room for the 40 of them.
    found = limits([share("a", 40, 90), share("b", 20, 90)], {"a": 35.0, "b": 89.0})
    assert found["a"] >= 40
    assert found["b"] <= 60


def test_low_bursts_on_credit_only() -> None:
    alone = [share("a", 20, 80, QoS.LOW)]
    assert limits(alone, {"a": 70.0}, credit={"a": Credit(100.0)}) == {"a": 80}
    assert limits(alone, {"a": 70.0}, credit={"a": Credit(0.0, spent=True)}) == {"a": 20}


def test_medium_without_credit_bursts_after_medium_with_credit() -> None:
    both = [share("a", 20, 80), share("b", 20, 80)]
    found = limits(both, {"a": 79.0, "b": 79.0}, credit={"a": Credit(9.0), "b": Credit(0.0, spent=True)})
    assert found == {"a": 80, "b": 20}


def test_a_worker_whose_limit_cannot_be_moved_while_it_runs_is_left_alone() -> None:
    assert limits([share("a", 20, 80), share("b", 20, 80)], {"b": 79.0})["a"] == 80


def test_a_worker_whose_limit_cannot_be_moved_takes_its_part_before_the_rest_is_divided() -> None:
    both = [share("a", 30, 80), share("b", 20, 80)]
    fixed = Metered(25.0, 80.0, is_movable=False, least_tflops=30.0, claims=True)
    found, _ = share_time(both, [fixed, Metered(75.0, 80.0)], [None] * 2, {GPU: TOTAL})
    assert [one.effective.tflops_limit for one in found] == [80, 67]


def test_a_device_of_unknown_capacity_is_left_alone() -> None:
    both = [share("a", 20, 80), share("b", 20, 80)]
    assert share_time(both, [Metered(79.0, None)] * 2, [None] * 2, {}) == (tuple(both), [None] * 2)


def test_credit_is_earned_under_the_request_and_spent_above_it() -> None:
    one = share("a", 20, 80, QoS.LOW)
    first = accrue(None, one, 0.0, 1.0)
    assert first == Credit(1200.0)
    assert accrue(first, one, 5.0, 10.0) == Credit(1350.0)
    assert accrue(first, one, 50.0, 10.0) == Credit(900.0)
    assert accrue(Credit(11_990.0), one, 0.0, 10.0) == Credit(12_000.0)


def test_spent_credit_counts_again_only_when_enough_was_saved() -> None:
    one = share("a", 20, 80, QoS.LOW)
    spent = accrue(Credit(10.0), one, 80.0, 1.0)
    assert spent == Credit(0.0, spent=True)
    assert accrue(spent, one, 0.0, 9.0) == Credit(180.0, spent=True)
    assert accrue(spent, one, 0.0, 10.0) == Credit(200.0)


def test_what_is_not_known_earns_nothing_and_high_levels_need_no_credit() -> None:
    assert accrue(Credit(5.0), share("a", 20, 80, QoS.LOW), None, 10.0) == Credit(5.0)
    assert accrue(None, share("a", 20, 80, QoS.HIGH), 0.0, 10.0) is None


@st.composite
def crews(draw: st.DrawFn) -> tuple[list[Share], dict[str, float | None], dict[str, Credit]]:
    shares, used, credit = [], {}, {}
    room = TOTAL
    for number in range(draw(st.integers(1, 6))):
        request = draw(st.floats(0.0, room))
        room -= request
        limit = request + draw(st.floats(0.0, TOTAL))
        one = share(f"w{number}", request, limit, draw(st.sampled_from(QoS)))
        shares.append(one)
        used[one.worker.pod_uid] = draw(st.none() | st.floats(0.0, limit))
        if one.worker.qos in {QoS.LOW, QoS.MEDIUM}:
            credit[one.worker.pod_uid] = Credit(draw(st.floats(0.0, 1e4)), draw(st.booleans()))
    return shares, used, credit


@given(crews())
def test_no_limit_falls_under_the_request_or_passes_the_ceiling(
    crew: tuple[list[Share], dict[str, float | None], dict[str, Credit]],
) -> None:
    shares, used, credit = crew
    found = limits(shares, used, credit=credit)
    for one in shares:
        quota = one.quota
        assert quota.tflops_request <= found[one.worker.pod_uid] + 1e-9
        assert found[one.worker.pod_uid] <= quota.tflops_limit


@given(crews(), st.randoms(use_true_random=False))
def test_the_order_of_the_workers_decides_nothing(
    crew: tuple[list[Share], dict[str, float | None], dict[str, Credit]], chance: object
) -> None:
    shares, used, credit = crew
    mixed = list(shares)
    chance.shuffle(mixed)  # type: ignore[attr-defined]
    assert limits(mixed, used, credit=credit) == pytest.approx(limits(shares, used, credit=credit))


def run(crew: list[Share], demand: Mapping[str, float], ticks: int) -> list[dict[str, float]]:
    """Return use by tick of workers that take what they want of what they may, on a device that divides time fairly."""
    under = {one.worker.pod_uid: one.quota.tflops_limit for one in crew}
    history = []
    for _ in range(ticks):
        used = {name: min(demand[name], limit) for name, limit in under.items()}
        excess = sum(used.values()) / TOTAL
        used = {name: value / max(excess, 1.0) for name, value in used.items()}
        history.append(used)
        under = limits(crew, used, under)
    return history


@given(
    st.lists(
        st.tuples(st.floats(5.0, 25.0), st.floats(0.0, 75.0), st.sampled_from([QoS.MEDIUM, QoS.HIGH])),
        min_size=2,
        max_size=4,
    ),
    st.data(),
)
def test_nobody_is_under_its_guarantee_while_another_bursts_for_more_than_two_ticks(
    made: list[tuple[float, float, QoS]], data: st.DataObject
) -> None:
    crew = [share(f"w{number}", request, request + more, qos) for number, (request, more, qos) in enumerate(made)]
    demand = {one.worker.pod_uid: data.draw(st.floats(0.0, 120.0)) for one in crew}
    last = run(crew, demand, 8)[3:]
    for used in last:
        for one in crew:
            name, request = one.worker.pod_uid, one.quota.tflops_request
            short = used[name] < min(demand[name], request) - 0.02 * TOTAL
            others_burst = any(
                used[other.worker.pod_uid] > other.quota.tflops_request + 0.02 * TOTAL
                for other in crew
                if other is not one
            )
            assert not (short and others_burst), (used, demand)


def test_what_one_level_leaves_is_used_by_the_next() -> None:
    crew = [share("a", 20, 50, QoS.CRITICAL), share("b", 20, 90, QoS.MEDIUM)]
    last = run(crew, {"a": 120.0, "b": 120.0}, 8)[-1]
    assert last["a"] == pytest.approx(50, abs=1.5)
    assert last["b"] == pytest.approx(50, abs=1.5)


GIB = 2**30


def test_on_a_full_device_head_room_goes_to_work_before_it_goes_to_idleness() -> None:
    names = ("idle", "busy")
    entries = tuple(
        WorkerQuota(name, "ns", name, "load", QoS.HIGH, (DeviceQuota(GPU, 0, 0, 4 * GIB, 20 * GIB),), "main")
        for name in names
    )
    workers = tuple(Worker(name, "ns", name, "main", "load", QoS.HIGH) for name in names)
    document = QuotaDocument(1, 1, "n", entries)
    activity, layout = Activity(), None
    for second in range(200):
        uses = tuple(
            WorkerUse(one, GPU, second, 0.5 if one.pod_uid == "busy" or second == 0 else 0.0, 3 * GIB)
            for one in workers
        )
        attribution = Attribution(float(second), uses, ())
        layout = lay_out(document, workers, attribution, layout)
        working = activity.working_bytes(layout, attribution, {GPU: 30 * GIB})
        wanted = [
            Claim(worker, quota, 3 * GIB, working.get(place, 2**62)) for place, (worker, quota) in layout.places.items()
        ]
        shares = govern(wanted, {GPU: Room(30 * GIB)})
        found = {one.worker.pod_uid: one.effective.vram_limit_bytes for one in shares}
        assert sum(found.values()) <= 30 * GIB
        if second == 30:
            assert found["idle"] == found["busy"]
    # Three fifths of its ceiling is what an idle worker may need for its first step back into work.
    assert found == pytest.approx({"idle": 12 * GIB, "busy": 18 * GIB}, rel=0.01)


def test_a_device_with_room_gates_nobody() -> None:
    claim = Claim(share("a", 0, 0).worker, DeviceQuota(GPU, 0, 0, GIB, 8 * GIB), GIB, 2 * GIB)
    (one,) = govern([claim], {GPU: Room(24 * GIB)})
    assert one.effective.vram_limit_bytes == 8 * GIB
