"""Samples to ratios: the mean over the time that a process's samples cover, whatever the driver sends."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.attribute import OVERLAP, attribute
from agent.model.samples import DeviceSample, NodeSample, Worker
from agent.nvml.processes import Listed, uses_of
from agent.utilization import HOLD_US, UtilizationSample, UtilizationWindow

SECOND = 1_000_000
NOW = 1_700_000_000 * SECOND
GIB = 1 << 30


class Directory:
    """Processes 1 and 2 are worker a's, 3 is b's, 4 nobody's."""

    def workers(self):
        return tuple(Worker(f"uid-{name}", "team", f"pod-{name}", "main", "work") for name in "ab")

    def worker_of(self, pid):
        one, other = self.workers()
        return {1: one, 2: one, 3: other}.get(pid)


@pytest.fixture
def window():
    return UtilizationWindow(Counter())


def test_several_samples_of_a_process_weigh_by_the_time_they_cover(window):
    window.take([UtilizationSample(1, NOW, 0)], NOW, busy=False)
    samples = [
        UtilizationSample(1, NOW + 800_000, 50),
        UtilizationSample(1, NOW + SECOND, 100),
        UtilizationSample(2, NOW + SECOND, 30),
    ]
    assert window.take(samples, NOW + SECOND, busy=True) == {1: pytest.approx(0.6), 2: 0.3}


def test_the_first_sample_after_a_rest_weighs_no_more_than_those_that_follow(window):
    window.take([UtilizationSample(1, NOW, 50)], NOW, busy=False)
    window.take([], NOW + 9 * SECOND - 200_000, busy=False)
    begun = [UtilizationSample(1, NOW + 9 * SECOND + step * 200_000, percent) for step, percent in enumerate((10, 100))]
    assert window.take(begun, NOW + 9 * SECOND + 300_000, busy=True) == {1: pytest.approx(0.55)}


def test_a_process_without_a_sample_is_idle_as_soon_as_another_has_a_newer_one(window):
    window.take([UtilizationSample(1, NOW, 80)], NOW, busy=True)
    assert window.take([UtilizationSample(2, NOW + SECOND, 10)], NOW + SECOND, busy=True) == {2: 0.1}


@pytest.mark.parametrize(("tick_us", "held"), [(SECOND, 2), (SECOND // 2, 4)])
def test_a_failed_call_holds_the_last_value_for_two_seconds_whatever_the_tick(window, tick_us, held):
    window.take([UtilizationSample(1, NOW, 80)], NOW, busy=False)
    ticks = [window.take(None, NOW + number * tick_us, busy=False) for number in range(1, held + 2)]
    assert ticks == [{1: 0.8}] * held + [None]
    assert not window.held()


def test_a_period_longer_than_a_tick_is_shown_as_long_as_it_covers_and_no_longer(window):
    half = SECOND // 2
    window.take([UtilizationSample(1, NOW, 40)], NOW, busy=True)
    window.take([], NOW + half, busy=True)
    # Published at the second, and the device is at rest from then on: one second of .8 in two ticks.
    shown = [window.take([UtilizationSample(1, NOW + SECOND, 80)], NOW + SECOND, busy=False)]
    shown += [window.take([], NOW + SECOND + number * half, busy=False) for number in (1, 2)]
    assert shown == [{1: 0.8}, {1: 0.8}, {}]


def test_a_driver_that_samples_each_tick_gives_the_mean_of_the_demand(window):
    demand = [0, 20, 100, 0, 0, 65, 35, 0, 90, 10]
    seconds = 0.0
    for tick, percent in enumerate(demand, start=1):
        at_us = NOW + tick * SECOND
        rows = [UtilizationSample(1, at_us, percent)] if percent else []
        seconds += window.take(rows, at_us, busy=percent > 0).get(1, 0.0)
    assert seconds / len(demand) == pytest.approx(sum(demand) / len(demand) / 100, abs=0.01)


@given(
    st.lists(st.integers(0, 100) | st.just(0), max_size=12),
    st.sampled_from([SECOND // 2, SECOND]),
    st.integers(0, SECOND // 2),
)
def test_half_second_ticks_neither_double_nor_lose_what_a_driver_counted_over_longer_periods(
    percents, period_us, phase_us
):
    """The driver publishes each period in which the process worked; the device is busy when it worked since last."""
    window, tick_us, added = UtilizationWindow(Counter()), SECOND // 2, 0.0
    rows = [
        UtilizationSample(1, NOW + at_us, percents[(at_us - 1) // SECOND])
        for at_us in range(period_us, len(percents) * SECOND + 1, period_us)
        if percents[(at_us - 1) // SECOND]
    ]
    for at_us in range(phase_us, (len(percents) + 4) * SECOND, tick_us):
        fresh = [row for row in rows if NOW + at_us - tick_us < row.at_us <= NOW + at_us]
        since = max(0, at_us - tick_us) // SECOND
        busy = any(percents[since : (at_us + SECOND - 1) // SECOND])
        added += window.take(fresh, NOW + at_us, busy=busy).get(1, 0.0) * tick_us / SECOND
    assert added == pytest.approx(sum(percents) / 100)


rows = st.lists(
    st.builds(
        UtilizationSample,
        st.integers(1, 4),
        st.integers(NOW - 3 * SECOND, NOW + 3 * SECOND),
        st.integers(0, 2**32 - 1) | st.integers(0, 110),
    )
)


@given(
    st.lists(st.tuples(st.none() | rows, st.integers(-2 * SECOND, 2 * SECOND), st.booleans() | st.none()), max_size=8)
)
def test_ratios_stay_in_their_range_and_idleness_is_found_in_time(ticks):
    dropped: Counter[str] = Counter()
    window = UtilizationWindow(dropped)
    total = 0
    for samples, offset_us, busy in ticks:
        ratios = window.take(samples, NOW + offset_us, busy=busy)
        total += len(samples or ())
        assert ratios is not None or samples is None
        assert all(0 <= ratio <= 1 for ratio in (ratios or {}).values())
        assert 0 < window.last_seen_us(NOW + offset_us) <= NOW + offset_us
    window.take([], NOW + 9 * SECOND, busy=True)
    assert window.take([], NOW + 9 * SECOND + HOLD_US + 1, busy=True) == {}
    assert sum(dropped.values()) <= total


@given(st.lists(st.lists(rows, max_size=2), min_size=1, max_size=6), st.floats(0, 1), st.integers(0, 24 * GIB))
def test_whatever_a_driver_sends_workers_and_the_rest_add_up_to_the_device(ticks, busy, used_bytes):
    window, directory = UtilizationWindow(Counter()), Directory()
    for number, sent in enumerate(ticks):
        now_us = NOW + number * SECOND
        ratios = window.take([row for batch in sent for row in batch], now_us, busy=busy > 0)
        processes, _ = uses_of(ratios, Listed(dict.fromkeys(range(1, 4), GIB), frozenset()), is_idle=False)
        whole = max([busy, *ratios.values()])
        sample = DeviceSample(0, "GPU-a", "L4", now_us / 1e6, 24 * GIB, used_bytes, whole, processes=processes)
        attribution = attribute(NodeSample(now_us / 1e6, (sample,)), directory)
        (rest,) = attribution.unattributed
        shares = [use.compute_ratio for use in attribution.uses]
        assert all(0 <= share <= 1 for share in shares)
        assert whole - 1e-9 <= sum(shares) + rest.compute_ratio <= whole * OVERLAP + 1e-9
        held = sum(use.vram_bytes for use in attribution.uses)
        assert held + rest.vram_bytes == max(used_bytes, held)
        assert all(use.sampled_at <= attribution.at for use in attribution.uses)
