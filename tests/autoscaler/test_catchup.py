"""History is read part by part, the next one while the last is learnt; what failed is asked again later."""

from __future__ import annotations

import asyncio

import pytest

from autoscaler.errors import HistoryError
from autoscaler.model.usage import Usage, Window, empty_usage
from autoscaler.read.catchup import Catchup, Reach


class PartedHistory:
    """Parts of two bins; a part that starts at `broken` fails, and one at `stuck` never comes."""

    def __init__(self, broken: float = -1.0, stuck: float = -1.0) -> None:
        self.broken, self.stuck = broken, stuck
        self.asked: list[float] = []
        self.cancelled: list[float] = []

    def parts(self, window: Window) -> tuple[Window, ...]:
        starts = range(int(window.start), int(window.end), 120)
        return tuple(Window(start, min(start + 120, window.end), window.step) for start in starts)

    async def read(self, window: Window) -> Usage:
        self.asked.append(window.start)
        try:
            if window.start == self.stuck:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.append(window.start)
            raise
        if window.start == self.broken:
            raise HistoryError("it broke")
        return empty_usage(window, ())

    async def close(self) -> None:
        """Nothing is held."""


def catchup(history: PartedHistory) -> Catchup:
    return Catchup(history, Reach(60.0, 0.0, 600.0))


async def gather(reader: Catchup, seen: list[float]) -> None:
    async for usage in reader.read(600.0, None):
        seen.append(usage.window.start)


async def test_parts_come_in_order_and_no_more_than_one_is_asked_ahead():
    history = PartedHistory()
    seen = []
    async for usage in catchup(history).read(600.0, None):
        seen.append(usage.window.start)
        assert len(history.asked) <= len(seen) + 1
    assert seen == [0, 120, 240, 360, 480]
    assert history.asked == seen


async def test_the_next_part_is_on_its_way_while_the_last_is_learnt():
    history = PartedHistory()
    parts = catchup(history).read(600.0, None)
    await anext(parts)
    assert history.asked == [0, 120]
    await parts.aclose()
    assert history.asked == [0, 120]


async def test_parts_before_a_failure_are_yielded_and_it_is_not_asked_again_at_once():
    history = PartedHistory(broken=240)
    reader = catchup(history)
    seen: list[float] = []
    for _ in range(2):
        with pytest.raises(HistoryError, match="it broke"):
            await gather(reader, seen)
    assert seen == [0, 120]
    assert 480 not in history.asked


async def test_what_is_under_way_is_cancelled_when_nobody_waits_for_it_any_more():
    history = PartedHistory(broken=0, stuck=120)
    with pytest.raises(HistoryError, match="it broke"):
        await anext(catchup(history).read(600.0, None))
    assert history.cancelled == [120]
