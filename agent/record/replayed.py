"""A recorded node as a device source: what it showed then, at the pace it had, as if it were now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import msgspec

from agent.model.samples import DeviceSource, NodeSample, SourceError
from agent.record.capture import Captured
from agent.utilization import UtilizationSample

_EARLY_SECONDS: Final = 1e-6


class ReplayedSource(DeviceSource):
    """Plays ticks from the first sample on; times are moved, so that they lie before now as far as they did then."""

    def __init__(self, ticks: Sequence[Captured]) -> None:
        self._ticks = tuple(ticks)
        self._place, self._start, self._shift = 0, 0.0, 0.0
        self._is_playing = False

    def sample(self, now: float) -> NodeSample:
        """Return the tick that was the newest this long after the first one.

        Raises:
            SourceError: the capture has ended.
        """
        if not self._is_playing:
            self._is_playing, self._start = True, now
        then = self._ticks[0].sample.at + now - self._start
        while self._place + 1 < len(self._ticks) and self._ticks[self._place + 1].sample.at <= then + _EARLY_SECONDS:
            self._place += 1
        captured = self._ticks[self._place]
        if self._place == len(self._ticks) - 1 and then > captured.sample.at + self._pace:
            raise SourceError(f"the capture has ended after {len(self._ticks)} ticks")
        self._shift = now - captured.sample.at
        devices = tuple(
            replace(device, sampled_at=device.sampled_at + self._shift) for device in captured.sample.devices
        )
        return replace(captured.sample, at=now, devices=devices)

    def rows(self) -> Mapping[str, tuple[UtilizationSample, ...]]:
        """Return the rows behind the last sample."""
        shift_us = round(self._shift * 1e6)
        return {
            uuid: tuple(msgspec.structs.replace(row, at_us=row.at_us + shift_us) for row in rows)
            for uuid, rows in self._ticks[self._place].rows.items()
        }

    def cgroups(self) -> Mapping[int, str]:
        """Return the cgroup text of every process seen up to now, by pid."""
        return {pid: text for tick in self._ticks[: self._place + 1] for pid, text in tick.cgroups.items()}

    def close(self) -> None:
        """Hold nothing, release nothing."""

    @property
    def _pace(self) -> float:
        """The mean time between two ticks; a single tick lasts for ever."""
        span = self._ticks[-1].sample.at - self._ticks[0].sample.at
        return span / (len(self._ticks) - 1) if len(self._ticks) > 1 else float("inf")
