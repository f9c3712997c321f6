"""A History in memory, fed with what agents expose on /metrics: for the embedded cluster and for tests."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from autoscaler.errors import HistoryError
from autoscaler.model.usage import Usage, Window, WorkloadKey
from autoscaler.read.bins import Binned, gap_seconds
from autoscaler.read.readings import DEVICE_MEMORY_SECONDS, FALLBACK, READINGS, Reading, Reduction, lacks_peak, reduced
from autoscaler.read.samples import Identity, Samples, identity_of, samples_of
from autoscaler.read.series import usage_of

_READINGS = {reading.name: reading for reading in (*READINGS, FALLBACK)}
_LINE = re.compile(r'([a-zA-Z_:][\w:]*\{(?:[^"}]|"(?:[^"\\]|\\.)*")*\})\s+(\S+)')


@dataclass(slots=True)
class _Series:
    """One series' samples in order of time; what lies before `first` is forgotten."""

    identity: Identity
    times: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))
    first: int = 0

    def add(self, at: float, value: float, retention_seconds: float) -> None:
        self.times.append(at)
        self.values.append(value)
        while self.times[self.first] < at - retention_seconds:
            self.first += 1
        if self.first > len(self.times) // 2:
            del self.times[: self.first], self.values[: self.first]
            self.first = 0


class MemoryHistory:
    """Samples of the last `retention_seconds`; targets that are scraped every `scrape_interval_seconds`."""

    def __init__(self, scrape_interval_seconds: float, retention_seconds: float) -> None:
        self._scrape_interval_seconds = scrape_interval_seconds
        self._retention_seconds = retention_seconds
        self._series: dict[Reading, dict[str, _Series]] = {reading: {} for reading in _READINGS.values()}
        self._swept_at = 0.0

    def ingest(self, at: float, text: str) -> None:
        """Keep the samples of one scrape, in the text format, taken at `at` seconds since the epoch.

        Raises:
            HistoryError: a line that is needed can't be read, or the scrape is not newer; nothing of it is kept.

        """
        found: list[tuple[_Series, float]] = []
        for line in text.splitlines():
            reading = _READINGS.get(line.partition("{")[0])
            if reading is not None:
                series, value = self._sample(reading, line)
                if series.times and at <= series.times[-1]:
                    raise HistoryError(f"the scrape at {at:.3f} is not newer than that at {series.times[-1]:.3f}")
                found.append((series, value))
        for series, value in found:
            series.add(at, value, self._retention_seconds)
        if at > self._swept_at + self._retention_seconds:
            self._forget_before(at - self._retention_seconds)
            self._swept_at = at

    def parts(self, window: Window) -> tuple[Window, ...]:
        """Return the window whole: what could be read of it is in memory already."""
        return (window,)

    async def read(self, window: Window) -> Usage:
        """Return the fleet's use in a window."""
        binned = self._binned(READINGS, window)
        return usage_of(window, binned | self._binned((FALLBACK,), window) if lacks_peak(binned) else binned)

    def only(self, key: WorkloadKey) -> MemoryHistory:  # noqa: ARG002  what is in memory costs nothing
        """Return the history as it is."""
        return self

    async def close(self) -> None:
        """Nothing is held but memory."""

    def _binned(self, readings: Iterable[Reading], window: Window) -> dict[Reading, Binned]:
        gap = gap_seconds(self._scrape_interval_seconds)
        return {reading: reduced(reading, self._samples(reading, window), window, gap) for reading in readings}

    def _forget_before(self, oldest: float) -> None:
        for reading, known in self._series.items():
            self._series[reading] = {name: series for name, series in known.items() if series.times[-1] >= oldest}

    def _sample(self, reading: Reading, line: str) -> tuple[_Series, float]:
        known = self._series[reading]
        name, _, value = line.rpartition(" ")
        try:
            if name not in known:
                name, value = _parted(line)
            if name not in known:
                (family,) = text_string_to_metric_families(f"{name} 0\n")
                known[name] = _Series(identity_of(family.samples[0].labels))
            return known[name], float(value)
        except ValueError as error:
            raise HistoryError(f"the exposition holds {line[:120]!r}: {error}") from error

    def _samples(self, reading: Reading, window: Window) -> Samples:
        start, end = window.start, window.end
        if reading.reduction.needs_neighbours:
            start -= gap_seconds(self._scrape_interval_seconds)
            end += self._scrape_interval_seconds
        if reading.reduction is Reduction.DEVICE:
            start -= DEVICE_MEMORY_SECONDS
        found = []
        for series in self._series[reading].values():
            times = series.times
            low, high = bisect_left(times, start, series.first), bisect_right(times, end, series.first)
            if low < high:
                found.append((series.identity, np.array(times[low:high]), np.array(series.values[low:high])))
        return samples_of(found)


def _parted(line: str) -> tuple[str, str]:
    """Return series and value of a line that may have a timestamp or an exemplar behind them."""
    matched = _LINE.match(line)
    if matched is None:
        raise ValueError("no value after the labels")
    return matched[1], matched[2]
