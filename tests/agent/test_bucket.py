"""A bucket takes what it finds as it left it for settled; whatever happens, it comes out as if it had looked closely."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.enforce.bucket import Bucket
from agent.enforce.mapped import MappedFile
from agent.enforce.tfshm_layout import (
    CAPACITY,
    IS_ACTIVE,
    MEM_LIMIT,
    POD_MEMORY_USED,
    REFILL_RATE,
    TOKENS,
    UP_LIMIT,
    create_state,
    open_state,
    slots_of,
)

GIB = 2**30
SHORTCUTS = {"_right": b"", "_at_rest": None}
"""What a bucket remembers only to be spared a closer look."""


class Kept:
    """A bucket in a file of its own, on a clock that the test moves."""

    def __init__(self, path: Path) -> None:
        create_state(path, {3: "GPU-a"}, 0.0)
        self.file: MappedFile = open_state(path)
        self.bucket = Bucket(slots_of(self.file)["gpu-a"])
        self.slot = self.bucket.slot
        self.at = 100.0
        self.restored = 0

    def second(self, utilization: float | None, taken: float = 0.0) -> None:
        """Let one second pass, with a refill each fifth of it, and take these tokens in it."""
        for _ in range(5):
            self.at += 0.2
            self.slot.put_f64(TOKENS, self.slot.f64(TOKENS) - taken / 5)
            self.bucket.refill(self.at, self.at)
        self.bucket.steer(utilization, self.at)
        self.restored += self.bucket.put_right()

    def steered(self, utilization: float | None) -> None:
        """Let a second pass in which no refill comes."""
        self.at += 1.0
        self.bucket.steer(utilization, self.at)

    def limited(self, ratio: float) -> None:
        self.bucket.limit_compute(ratio, 100 * ratio)

    def forget(self) -> None:
        """Have the next look be a close one."""
        for name, value in SHORTCUTS.items():
            setattr(self.bucket, name, value)

    def state(self) -> tuple[object, ...]:
        """Return all there is, in the file and about it."""
        told = [
            getattr(self.bucket, one.name)
            for one in fields(self.bucket)
            if one.name not in {*SHORTCUTS, "slot", "_live", "_limits"}
        ]
        return self.file.raw(0, 2300), repr(told), self.restored

    def close(self) -> None:
        del self.slot, self.bucket
        self.file.close()


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    made = Kept(tmp_path / "shm")
    yield made
    made.close()


_TAMPERED = st.one_of(
    st.tuples(st.sampled_from(["put_u32"]), st.sampled_from([UP_LIMIT, IS_ACTIVE]), st.sampled_from([0, 30, 60, 100])),
    st.tuples(
        st.sampled_from(["put_u64"]), st.sampled_from([MEM_LIMIT, POD_MEMORY_USED]), st.sampled_from([0, GIB, 2**63])
    ),
    st.tuples(
        st.sampled_from(["put_f64"]),
        st.sampled_from([TOKENS, REFILL_RATE, CAPACITY]),
        st.sampled_from([0.0, 1e18, math.nan, -1e300]),
    ),
    st.tuples(st.just("put_name"), st.just(b"GPU-mine".ljust(64, b"\0"))),
)
_DONE = st.one_of(
    st.tuples(st.just("second"), st.sampled_from([0.0, 0.0, None, 0.3, 1.0]), st.sampled_from([0.0, 0.0, 10.0, 400.0])),
    st.tuples(st.just("steered"), st.sampled_from([0.0, 0.3])),
    st.tuples(st.just("limited"), st.sampled_from([0.1, 0.3, 1.0])),
    st.tuples(st.just("limit_vram"), st.sampled_from([GIB, 2 * GIB, 2**62])),
    st.tuples(st.just("tell_use"), st.sampled_from([0, GIB])),
    _TAMPERED,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(done=st.lists(st.tuples(_DONE, st.integers(1, 5)), min_size=3, max_size=25))
def test_whatever_is_done_to_it_a_bucket_that_remembers_is_as_one_that_looks_closely_each_time(
    tmp_path_factory: pytest.TempPathFactory, done: list[tuple[tuple[object, ...], int]]
) -> None:
    folder = tmp_path_factory.mktemp("twins")
    twins = Kept(folder / "quick"), Kept(folder / "close")
    for (name, *words), times in done:
        for _ in range(times):
            for one in twins:
                holder = next(each for each in (one, one.bucket, one.slot) if hasattr(each, str(name)))
                getattr(holder, str(name))(*words)
            twins[1].forget()
            assert twins[0].state() == twins[1].state()
    for one in twins:
        one.close()


def test_a_bucket_that_was_full_for_an_hour_is_refilled_for_the_time_since_and_no_more(kept: Kept) -> None:
    kept.limited(0.3)
    for _ in range(3600):
        kept.second(0.0)
    full, rate = kept.slot.f64(TOKENS), kept.slot.f64(REFILL_RATE)
    kept.slot.put_f64(TOKENS, 0.0)
    kept.at += 0.1
    kept.bucket.refill(kept.at, kept.at)
    assert kept.slot.f64(TOKENS) == pytest.approx(0.1 * rate)
    assert kept.slot.f64(TOKENS) < full


def test_a_limit_that_a_tenant_sets_back_to_the_one_before_is_put_right(kept: Kept) -> None:
    kept.bucket.limit_vram(8 * GIB)
    kept.limited(0.6)
    kept.second(0.0)

    kept.bucket.limit_vram(4 * GIB)
    kept.slot.put_u64(MEM_LIMIT, 8 * GIB)
    assert kept.bucket.put_right() == 1
    kept.second(0.0)

    kept.limited(0.3)
    kept.slot.put_u32(UP_LIMIT, 60)
    assert kept.bucket.put_right() == 1
    assert (kept.slot.u64(MEM_LIMIT), kept.slot.u32(UP_LIMIT)) == (4 * GIB, 30)


def test_a_worker_that_goes_on_as_before_under_another_limit_is_measured_by_the_new_one(kept: Kept) -> None:
    kept.limited(0.6)
    for _ in range(5):
        kept.second(0.3)
    assert [one.of_limit for one in kept.bucket.pulls] == [0.5, 0.5]
    kept.limited(0.3)
    kept.second(0.3)
    assert [one.of_limit for one in kept.bucket.pulls] == [0.5, 1.0]


def test_tokens_that_are_forged_again_and_again_are_counted_each_time(kept: Kept) -> None:
    kept.limited(0.3)
    for _ in range(5):
        kept.second(0.0)
    for count in range(1, 6):
        kept.slot.put_f64(TOKENS, 1e18)
        kept.steered(0.0)
        assert kept.bucket.put_right() == 1, count


def test_what_an_idle_workers_tenant_writes_over_its_refill_is_shown_right_again(kept: Kept) -> None:
    kept.limited(0.3)
    for _ in range(5):
        kept.second(0.0)
    right = kept.slot.f64(REFILL_RATE), kept.slot.f64(CAPACITY)
    kept.slot.put_f64(REFILL_RATE, math.nan)
    kept.slot.put_f64(CAPACITY, 1e9)
    kept.second(0.0)
    assert (kept.slot.f64(REFILL_RATE), kept.slot.f64(CAPACITY)) == right


@pytest.mark.parametrize("period", [0.5, 1.0])
@pytest.mark.parametrize("price", [300.0, 4000.0])
def test_a_worker_metered_each_half_second_meets_its_limit_however_seldom_the_driver_publishes(
    tmp_path: Path, period: float, price: float
) -> None:
    """The worker takes every token; the driver shows the mean of its last period until it publishes the next."""
    kept, uses, shown, since = Kept(tmp_path / "shm"), list[float](), 0.0, 0.0
    for second in range(60):
        if second % 20 == 0:
            kept.limited((0.3, 0.6, 0.3)[second // 20])
        uses.append(0.0)
        for tenth in range(10):
            kept.at += 0.1
            if tenth % 2:
                kept.bucket.refill(kept.at, kept.at)
                took = min(max(0.0, kept.slot.f64(TOKENS)), price * 0.2)
                kept.slot.put_f64(TOKENS, kept.slot.f64(TOKENS) - took)
                uses[-1] += took / price
                since += took / price
            if (second * 10 + tenth + 1) % round(period * 10) == 0:
                shown, since = round(min(1.0, since / period), 2), 0.0
            if tenth in {4, 9}:
                kept.bucket.steer(shown, kept.at)
    for start, target in ((0, 0.3), (20, 0.6), (40, 0.3)):
        assert uses[start + 10 : start + 20] == pytest.approx([target] * 10, abs=0.05)
        assert max(uses[start + 2 : start + 20]) <= target + 0.10
