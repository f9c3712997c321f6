"""Going around a limit is found after ten seconds, and nobody who obeys is accused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.evidence.bypass import BYPASS_SECONDS, GUST_SECONDS, SETTLING_SECONDS, Bypass
from agent.model.applied import Applied
from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import Observed

KEY = ("uid-a", "main", "GPU-a")
GIB = 1 << 30
CAPACITY = {"GPU-a": (100.0, 80.0 * GIB)}


def seen(limit: float | None = 30.0, used: float | None = 20.0, effect=Effect.IMMEDIATE, vram=(8.0, 4.0)) -> dict:
    limit_bytes, used_bytes = (round(gib * GIB) for gib in vram)
    return {KEY: Applied(effect, Observed(limit, limit_bytes, used, used_bytes))}


@pytest.fixture
def bypass() -> Bypass:
    return Bypass()


def play(bypass: Bypass, ticks, start: float = 0.0) -> list[bool]:
    """Take one second a tick; return what was found at each."""
    found = []
    for second, applied in enumerate(ticks):
        bypass.tick(start + second, applied, CAPACITY)
        found.append(bypass.found().get(KEY, False))
    return found


def test_use_above_the_limit_for_ten_seconds_is_found_with_the_figures(bypass):
    found = play(bypass, [seen(used=62.0)] * 13)
    assert found == [False] * 10 + [True] * 3
    assert bypass.reasons()[KEY] == "LimitBypassed: 62 TFLOPs in use, above the effective limit of 30 for 12 s"


def test_memory_above_its_limit_is_found_too(bypass):
    found = play(bypass, [seen(vram=(8, 6))] + [seen(vram=(8, 12))] * 12)
    assert found[-1]
    assert str(12 * GIB) in bypass.reasons()[KEY]


def beyond(bypass: Bypass, ticks, start: float = 0.0) -> list[tuple[float, int]]:
    """Take one second a tick; return what was told to be beyond a limit at each: TFLOPs of 100, bytes."""
    told = []
    for second, applied in enumerate(ticks):
        bypass.tick(start + second, applied, CAPACITY)
        one = bypass.beyond().get(KEY)
        told.append((100 * one.compute_ratio, one.vram_bytes) if one is not None else (0.0, 0))
    return told


def test_what_is_beyond_a_limit_is_told_from_its_first_second_on_and_through_the_ten(bypass):
    told = beyond(bypass, [seen(used=30.0)] * 3 + [seen(used=75.0)] * 20 + [seen()])
    # The limit, and the five points that enforcement is coarse, are the worker's.
    assert [tflops for tflops, _ in told] == pytest.approx([0.0] * 3 + [40.0] * 20 + [0.0])
    assert bypass.found() == {KEY: False}


def test_short_pauses_hide_nothing(bypass):
    told = beyond(bypass, ([seen(used=75.0)] * 9 + [seen(used=30.0)]) * 5)
    assert sum(tflops for tflops, _ in told) == pytest.approx(9 * 5 * 40.0)


def test_memory_beyond_its_limit_is_told_with_the_first_look_at_it_and_also_by_an_agent_that_just_started():
    above = [seen(vram=(8, 12))] * 3
    slack = 0.8  # one point of the device's 80 GiB
    expected = [round((12 - 8 - slack) * GIB)] * 3
    for before in ([seen(vram=(8, 6))], []):
        told = beyond(Bypass(), [*before, *above])
        assert [held for _, held in told[len(before) :]] == pytest.approx(expected)


def test_memory_that_may_be_kept_is_not_beyond(bypass):
    told = beyond(bypass, [seen(vram=(8, 6))] * 3 + [seen(vram=(4, 6))] * 60)
    assert not any(held for _, held in told)


def test_a_limiter_that_lets_through_in_gusts_takes_nothing_beyond(bypass):
    gusts = [seen(used=90.0), seen(used=0.0), seen(used=0.0)] * 10
    told = beyond(bypass, [seen(used=0.0)] * 3 + gusts)
    assert not any(tflops for tflops, _ in told)


def test_one_tick_below_the_limit_begins_the_ten_seconds_anew(bypass):
    assert not any(play(bypass, ([seen(used=62.0)] * 10 + [seen()]) * 4))


def test_what_enforcement_cannot_hold_finer_is_no_bypass(bypass):
    assert not any(play(bypass, [seen(used=34.9)] * 30))


def test_a_lowered_limit_has_a_moment_to_act(bypass):
    settling = [seen(limit=80.0, used=70.0)] * 5 + [seen(limit=30.0, used=70.0)] * int(SETTLING_SECONDS - 1)
    assert not any(play(bypass, settling + [seen(limit=30.0, used=29.0)] * 20))


def test_a_limit_that_moves_all_the_time_still_binds(bypass):
    moving = [seen(limit=30.0 + second % 3, used=70.0) for second in range(40)]
    assert play(bypass, [seen(limit=100.0, used=70.0), *moving])[-1]


def test_memory_held_when_the_limit_went_below_it_may_be_kept_but_not_added_to(bypass):
    kept = [seen(vram=(8, 6))] * 3 + [seen(vram=(4, 6))] * 60
    assert not any(play(bypass, kept))
    assert play(bypass, [seen(vram=(4, 7.9))] * 12, start=100.0)[-1]


def test_memory_given_back_below_a_lowered_limit_may_not_be_taken_again(bypass):
    play(bypass, [seen(vram=(8, 7))] * 3 + [seen(vram=(4, 7))] * 30 + [seen(vram=(4, 3))] * 30)
    assert play(bypass, [seen(vram=(4, 7))] * 12, start=100.0)[-1]


@pytest.mark.parametrize("effect", [Effect.NEXT_PROCESS, Effect.RESTART, Effect.UNSUPPORTED])
def test_a_limit_that_does_not_reach_the_running_worker_accuses_nobody(bypass, effect):
    """What the next process will be held to is not observed on the one that runs."""
    unheld = {KEY: Applied(effect, Observed(None, None, 62.0, 60 * GIB))}
    assert not any(play(bypass, [unheld] * 30))
    assert bypass.found() == {}


def test_memory_is_judged_though_nobody_holds_the_worker_to_its_compute(bypass):
    """The effect of both together is the slower one; a kernel's memory limit holds all the same."""
    held = {KEY: Applied(Effect.UNSUPPORTED, Observed(None, 8 * GIB, 62.0, 12 * GIB))}
    assert play(bypass, [held] * 12)[-1]


def test_unknown_use_and_a_device_without_data_are_not_judged(bypass):
    assert not any(play(bypass, [seen(used=None)] * 30))
    bypass.tick(40.0, seen(used=62.0), {})
    assert bypass.found() == {}


@given(st.lists(st.tuples(st.floats(1, 100), st.floats(0, 1), st.floats(0.1, 8), st.floats(0, 1)), max_size=60))
def test_nobody_who_stays_within_the_limits_is_ever_accused(ticks):
    bypass = Bypass()
    assert not any(
        play(bypass, [seen(limit, limit * share, vram=(gib, gib * part)) for limit, share, gib, part in ticks])
    )


@given(st.lists(st.floats(1, 30), min_size=60, max_size=60))
def test_whoever_stays_far_above_any_limit_is_found_whatever_the_limit_does(limits):
    found = play(Bypass(), [seen(limit, 90.0) for limit in limits])
    assert all(found[int(BYPASS_SECONDS + SETTLING_SECONDS) :])


@given(
    st.lists(st.tuples(st.floats(1, 60), st.floats(0, 100)), min_size=1, max_size=60),
    st.floats(0.1, 3),
)
def test_what_is_left_after_leaving_out_what_is_beyond_never_passes_what_limits_allow(ticks, seconds):
    """Over any run of ticks evidence is at most the highest limit of late with its slack, and the last gust's worth."""
    bypass, evidence, allowed = Bypass(), 0.0, 0.0
    most = max(limit for limit, _ in ticks)
    for number, (limit, used) in enumerate(ticks):
        bypass.tick(number * seconds, seen(limit, used), CAPACITY)
        one = bypass.beyond().get(KEY)
        over = 100 * one.compute_ratio if one is not None else 0.0
        assert 0.0 <= over <= used
        evidence += (used - over) * seconds
        allowed += (most + max(5.0, 0.05 * most)) * seconds
    assert evidence <= allowed + GUST_SECONDS * most + 1e-6


@given(st.lists(st.tuples(st.floats(1, 100), st.floats(0, 1), st.floats(0.1, 8), st.floats(0, 1)), max_size=60))
def test_nothing_of_those_who_stay_within_their_limits_is_lost(ticks):
    told = beyond(Bypass(), [seen(limit, limit * share, vram=(gib, gib * part)) for limit, share, gib, part in ticks])
    assert told == [(0.0, 0)] * len(ticks)
