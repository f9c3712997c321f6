"""From the driver's utilization samples to one mean ratio per process and tick: pure, one window per device.

NVML gives a sample only for a process that was active in the driver's last sample period, so absence means idle, unless
the device itself was busy: then the driver has not published yet, and the last value is held for a moment.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

HOLD_TICKS: Final = 2
"""Ticks for which a process keeps its last value while the device is busy and nothing newer was published."""

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
        self._held_ticks = 0
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
    ) -> Mapping[int, float]:
        """Return the mean SM ratio, 0..1, of each active process since the last tick; absent processes were idle.

        `samples` is None when the call failed. `busy` tells whether the device itself was busy, None if unknown.
        """
        start_us = self._last_seen_us = self.last_seen_us(now_us)
        fresh = [] if samples is None else self._believed(samples, now_us)
        if fresh:
            self._ratios, self._held_ticks = _means(fresh, start_us), 0
            self._last_seen_us = max(sample.at_us for sample in fresh)
        elif (samples is None or busy) and self._held_ticks < HOLD_TICKS:
            self._held_ticks += 1
        else:
            self._ratios = {}
        return dict(self._ratios)

    def held(self) -> bool:
        """Return whether the ratios given last were older than the last tick."""
        return bool(self._held_ticks and self._ratios)

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


def _means(samples: Iterable[UtilizationSample], start_us: int) -> dict[int, float]:
    """Weigh each sample with the time since the process's sample before it (the first: since the window's start)."""
    by_pid: dict[int, list[UtilizationSample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda sample: sample.at_us):
        by_pid[sample.pid].append(sample)
    means = {}
    for pid, own in by_pid.items():
        starts = [start_us, *(sample.at_us for sample in own)]
        percent_us = sum(s.sm_percent * (s.at_us - before) for s, before in zip(own, starts, strict=False))
        means[pid] = min(1.0, percent_us / (own[-1].at_us - start_us) / 100)
    return means
