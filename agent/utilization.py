"""From the driver's utilization samples to one mean ratio per process and tick: pure, one window per device.

NVML gives a sample only for a process that was active in the driver's last sample period, so absence means idle, unless
the device itself was busy: then the driver has not published yet, and the last value is held for a moment. A period may
be longer than a tick: a sample is shown for as long as it covers, so that who adds up ticks counts it once, and whole.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from operator import attrgetter
from typing import Final

import msgspec

HOLD_US: Final = 2_000_000
"""For so long a process keeps its last value while the device is busy and nothing newer was published."""

LONGEST_PERIOD_US: Final = 1_000_000
"""The longest sample period that NVML speaks of; taken for the driver's until a shorter one was seen."""

SHORTEST_PERIOD_US: Final = 100_000
"""Two samples closer than this are of one period (NVML speaks of 1/6 s at least)."""

FUTURE_SLACK_US: Final = 1_000_000
"""A time stamp may be this far ahead of our own reading of the clock."""


class UtilizationSample(msgspec.Struct, frozen=True, gc=False):
    """One process over one sample period of the driver: end of the period in µs since the epoch, SM time in percent."""

    pid: int
    at_us: int
    sm_percent: int


class UtilizationWindow:
    """Remembers what was seen of one device, and turns each tick's samples into ratios; counts what it drops."""

    def __init__(self, dropped: Counter[str]) -> None:
        self._last_seen_us: int | None = None
        self._ratios: dict[int, float] = {}
        self._period_us = LONGEST_PERIOD_US
        self._taken_us: int | None = None
        self._fresh_us: int | None = None
        self._owed_us = 0
        self._rested = True
        self._dropped = dropped

    def last_seen_us(self, now_us: int) -> int:
        """Return the time to ask samples from: the newest one believed, or a second ago at the start.

        Never 0, which would bring the driver's whole buffer; never later than now, so that a clock set back does not
        hide every sample to come.
        """
        start = now_us - 1_000_000 if self._last_seen_us is None else self._last_seen_us
        return max(1, min(start, now_us))

    def take(
        self, samples: Iterable[UtilizationSample] | None, now_us: int, *, busy: bool | None
    ) -> Mapping[int, float] | None:
        """Return the mean SM ratio, 0..1, of each active process since the last tick; absent processes were idle.

        `samples` is None when the call failed; when it goes on failing, nobody is known to be idle: None. `busy` tells
        whether the device itself was busy, None if unknown.
        """
        before_us = self._last_seen_us if self._fresh_us is not None else None
        start_us = self._last_seen_us = self.last_seen_us(now_us)
        elapsed_us = max(0, now_us - self._taken_us) if self._taken_us is not None else LONGEST_PERIOD_US
        self._taken_us = now_us
        fresh = [] if samples is None else self._believed(samples, now_us)
        if fresh:
            self._last_seen_us, self._fresh_us = max(sample.at_us for sample in fresh), now_us
            # A window that begins at no sample of the driver's tells nothing of its pace.
            published = {sample.at_us for sample in fresh} | ({start_us} if start_us == before_us else set())
            self._period_us = min((self._period_us, *_gaps(published)))
            first_us = min(sample.at_us for sample in fresh) - self._period_us
            # What came after a rest speaks for a period, not for the rest.
            self._ratios = _means(fresh, first_us if first_us - start_us > elapsed_us else start_us)
            self._rested = not busy
            self._owed_us = min(self._last_seen_us - start_us, self._period_us) - elapsed_us
        elif self._is_held(now_us, elapsed_us, None if samples is None else bool(busy)):
            self._owed_us -= elapsed_us
        else:
            self._ratios, self._owed_us = {}, 0
            if samples is None:
                return None
        return dict(self._ratios)

    def held(self) -> bool:
        """Return whether the ratios given last were older than the last tick."""
        return bool(self._ratios) and self._fresh_us != self._taken_us

    def _is_held(self, now_us: int, elapsed_us: int, busy: bool | None) -> bool:
        """Return whether the last value is this tick's too; `busy` is None when nothing could be asked.

        It is while it covers most of it, or while the device goes on without a rest: nothing newer can be known then.
        """
        if self._fresh_us is None or not 0 <= now_us - self._fresh_us <= HOLD_US:
            return False
        self._rested |= busy is False
        return busy is None or self._owed_us * 2 > elapsed_us or not self._rested

    def _believed(self, samples: Iterable[UtilizationSample], now_us: int) -> list[UtilizationSample]:
        since_us = self.last_seen_us(now_us)
        believed = []
        for sample in samples:
            reason = _doubt(sample, since_us, now_us)
            if reason:
                self._dropped[reason] += 1
            else:
                believed.append(sample)
        return believed


def _doubt(sample: UtilizationSample, since_us: int, now_us: int) -> str:
    if sample.sm_percent > 100:
        return "over_100_percent"
    if sample.at_us <= since_us:
        return "stale"
    return "future" if sample.at_us > now_us + FUTURE_SLACK_US else ""


def _gaps(published: Iterable[int]) -> list[int]:
    """Return the distances of the times, in microseconds, at which the driver published."""
    gaps = (after - before for before, after in pairwise(sorted(published)))
    return [gap for gap in gaps if gap >= SHORTEST_PERIOD_US]


def _means(samples: Iterable[UtilizationSample], start_us: int) -> dict[int, float]:
    """Weigh each sample with the time since the process's sample before it (the first: since the window's start)."""
    by_pid: dict[int, list[UtilizationSample]] = defaultdict(list)
    for sample in sorted(samples, key=attrgetter("at_us")):
        by_pid[sample.pid].append(sample)
    # One alone speaks for all of its period, however long that is.
    return {pid: own[0].sm_percent / 100 if len(own) == 1 else _mean(own, start_us) for pid, own in by_pid.items()}


def _mean(samples: Sequence[UtilizationSample], start_us: int) -> float:
    starts = [start_us, *(sample.at_us for sample in samples)]
    percent_us = sum(s.sm_percent * (s.at_us - before) for s, before in zip(samples, starts, strict=False))
    return min(1.0, percent_us / (samples[-1].at_us - start_us) / 100)
