"""Workloads that appear later: their older history is read once, backwards, bounded, and learnt as if seen from the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from autoscaler.errors import HistoryError
from autoscaler.model.fleet import Fleet, to_fleet
from autoscaler.model.usage import Usage, Window, WorkloadKey, empty_usage
from autoscaler.read.backfill import MAX_FAILURES, PARTS_PER_PASS, QUIET_PARTS, Backfill
from autoscaler.read.catchup import Reach
from autoscaler.recommend import UNTIL, learn, new_memory
from autoscaler.recommend.memory import COLUMNS, Learnt
from autoscaler.recommend.older import FROM_USE, relearn
from tests.autoscaler.stage import KEY, STEP, Stage, one_bin

OTHER = WorkloadKey("default", "other")
PART = 600.0
START = 1_700_000_000.0 // 86400 * 86400
REACH = Reach(STEP, 0.0, 12 * PART)
UNTIL_THEN = START + 12 * PART
ME = (KEY, "w-0")


@dataclass
class Recorded:
    """Ten-minute parts; known from `since` on, apart from the parts that start in `silent`; fails `failing` times."""

    since: float = START
    silent: Sequence[float] = ()
    failing: int = 0
    asked: list[tuple[WorkloadKey, float]] = field(default_factory=list)
    narrowed: WorkloadKey | None = None

    def parts(self, window: Window) -> tuple[Window, ...]:
        starts = np.arange(window.start, window.end, PART)
        return tuple(Window(float(start), float(min(start + PART, window.end)), window.step) for start in starts)

    def only(self, key: WorkloadKey) -> Recorded:
        self.narrowed = key
        return self

    async def read(self, window: Window) -> Usage:
        assert self.narrowed is not None
        self.asked.append((self.narrowed, window.start))
        if self.failing:
            self.failing -= 1
            raise HistoryError("away")
        if window.start < self.since or window.start in self.silent:
            return empty_usage(window, ())
        return use_in(window)

    async def close(self) -> None:
        """Nothing is held."""


def use_in(window: Window) -> Usage:
    """Use that tells which bin it is of."""
    ends = [window.start + STEP * bin_number for bin_number in range(1, window.bins + 1)]
    bins = [one_bin(end, 1.0 + end % 3600 / 3600, 2.0**30 * (1 + end % 600 / 600), (20.0, 2.0**33)) for end in ends]
    parts = {
        name: np.concatenate([getattr(one, name) for one in bins], axis=-1) for name in ("peak", "total", "ceiling")
    }
    return replace(
        bins[-1],
        window=window,
        clipped=np.concatenate([one.clipped for one in bins], axis=-1),
        ooms=np.concatenate([one.ooms for one in bins], axis=-1),
        workers=np.concatenate([one.workers for one in bins], axis=-1),
        **parts,
    )


async def until_done(backfill: Backfill, until: float = UNTIL_THEN, passes: int = 10):
    for number in range(1, passes + 1):
        older = await backfill.read(until)
        if older is not None:
            return older, number
    return None, passes


async def test_a_workloads_own_history_is_read_a_few_parts_a_pass_and_comes_in_order():
    history = Recorded()
    backfill = Backfill(history, REACH)
    backfill.notice([ME], UNTIL_THEN)
    await backfill.read(UNTIL_THEN)
    assert len(history.asked) == PARTS_PER_PASS
    older, passes = await until_done(backfill)
    assert older is not None
    assert [usage.window.start for usage in older.usages] == [START + PART * part for part in range(12)]
    assert passes == 12 // PARTS_PER_PASS
    assert {key for key, _ in history.asked} == {KEY}
    assert len(history.asked) == 12


async def test_one_that_is_really_new_costs_two_parts():
    history = Recorded(since=UNTIL_THEN)
    backfill = Backfill(history, REACH)
    backfill.notice([ME], UNTIL_THEN)
    assert (await until_done(backfill))[0] is None
    assert len(history.asked) == QUIET_PARTS


async def test_a_gap_of_one_part_does_not_end_it_and_a_longer_one_does():
    gap = Recorded(silent=[START + 9 * PART])
    backfill = Backfill(gap, REACH)
    backfill.notice([ME], UNTIL_THEN)
    older, _ = await until_done(backfill)
    assert older is not None
    assert len(older.usages) == 11
    long = Recorded(since=START + 8 * PART)
    backfill = Backfill(long, REACH)
    backfill.notice([ME], UNTIL_THEN)
    older, _ = await until_done(backfill)
    assert older is not None
    assert (len(older.usages), len(long.asked)) == (4, 4 + QUIET_PARTS)


async def test_it_is_asked_once_also_when_its_object_comes_later():
    history = Recorded()
    backfill = Backfill(history, REACH)
    backfill.notice([(KEY, "")], UNTIL_THEN)
    older, _ = await until_done(backfill)
    assert older is not None
    assert older.is_of(KEY, "w-0")
    assert not older.is_of(OTHER, "")
    asked = len(history.asked)
    backfill.notice([ME], UNTIL_THEN)
    assert await backfill.read(UNTIL_THEN) is None
    assert len(history.asked) == asked


async def test_what_was_learnt_live_meanwhile_belongs_to_it():
    history = Recorded()
    backfill = Backfill(history, REACH)
    backfill.notice([ME], UNTIL_THEN)
    later = UNTIL_THEN + 5 * STEP
    older, _ = await until_done(backfill, later)
    assert older is not None
    assert older.usages[-1].window == Window(UNTIL_THEN, later, STEP)


async def test_workloads_are_read_one_after_the_other():
    history = Recorded()
    backfill = Backfill(history, REACH)
    backfill.notice([ME, (OTHER, "o-0")], UNTIL_THEN)
    first, _ = await until_done(backfill)
    assert first is not None
    assert first.identity == ME
    assert {key for key, _ in history.asked} == {KEY}


async def test_a_failure_is_tried_again_and_given_up_at_last():
    once = Recorded(failing=1)
    backfill = Backfill(once, REACH)
    backfill.notice([ME], UNTIL_THEN)
    with pytest.raises(HistoryError, match="away"):
        await backfill.read(UNTIL_THEN)
    older, _ = await until_done(backfill)
    assert older is not None
    assert len(older.usages) == 12
    never = Recorded(failing=1000)
    backfill = Backfill(never, REACH)
    backfill.notice([ME], UNTIL_THEN)
    for _ in range(MAX_FAILURES):
        with pytest.raises(HistoryError, match="away"):
            await backfill.read(UNTIL_THEN)
    assert await backfill.read(UNTIL_THEN) is None
    assert len(never.asked) == MAX_FAILURES


def fleet() -> Fleet:
    return to_fleet(Stage().snapshot(None))


def learnt(windows: Sequence[Window]) -> Learnt:
    memory = new_memory()
    memory.align((KEY,), ("w-0",))
    for window in windows:
        learn(memory, use_in(window), fleet())
    return memory


def test_a_history_that_is_learnt_later_leaves_the_same_memory_as_one_that_was_seen():
    windows = Recorded().parts(Window(START, UNTIL_THEN, STEP))
    seen, late = learnt(windows), learnt(windows[-1:])
    late["exceeded_peak"][0] = 7.0
    assert relearn(late, [use_in(window) for window in windows], fleet())
    for name in FROM_USE:
        np.testing.assert_allclose(late.arrays[name], seen.arrays[name], rtol=1e-5, err_msg=name)
    assert late["exceeded_peak"][0] == 7.0
    assert late.marks[UNTIL] == UNTIL_THEN


def test_a_history_that_ends_at_another_moment_is_not_taken():
    windows = Recorded().parts(Window(START, UNTIL_THEN, STEP))
    late = learnt(windows[-1:])
    before = late.arrays["request_weights"].copy()
    assert not relearn(late, [use_in(window) for window in windows[:-1]], fleet())
    np.testing.assert_array_equal(late.arrays["request_weights"], before)


def test_a_workload_that_has_gone_meanwhile_takes_nothing():
    windows = Recorded().parts(Window(START, UNTIL_THEN, STEP))
    late = learnt(windows[-1:])
    late.align((OTHER,), ("o-0",))
    assert not relearn(late, [use_in(window) for window in windows], fleet())


def test_what_is_learnt_from_use_is_told_apart_from_what_is_held_against_figures():
    assert FROM_USE[0] == "request_weights"
    assert "samples" in FROM_USE
    assert {"exceeded_at", "saturated", "seen", "surplus"} <= set(COLUMNS) - set(FROM_USE)


def test_only_those_without_a_row_are_strangers():
    memory = new_memory()
    memory.align((KEY, OTHER), ("", "o-0"))
    assert memory.strangers((KEY, OTHER), ("w-0", "o-0")) == []
    assert memory.strangers((KEY, OTHER), ("w-0", "o-1")) == [(OTHER, "o-1")]
