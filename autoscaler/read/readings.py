"""Which metrics of the agents are read and what becomes of each; one table, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

import numpy as np

from autoscaler.contract import metrics
from autoscaler.model.usage import Window
from autoscaler.read import bins
from autoscaler.read.bins import Binned
from autoscaler.read.samples import Samples

HIGHEST_BYTES: Final = 100 * 2.0**40
HIGHEST_TFLOPS: Final = 1e6
HIGHEST_COUNTER: Final = 1e12
DEVICE_MEMORY_SECONDS: Final = 3600.0
"""What a device is made of is still true when it was last reported this long before the window."""


class Reduction(Enum):
    """How the samples of a metric become one figure a bin; counters need the samples around the window too."""

    SHARE = auto()
    EVENTS = auto()
    HIGHEST = auto()
    LATEST = auto()
    DEVICE = auto()

    @property
    def needs_neighbours(self) -> bool:
        """Whether samples left and right of the window matter."""
        return self in {Reduction.SHARE, Reduction.EVENTS}


@dataclass(frozen=True, slots=True)
class Reading:
    """One metric that is read: its name, its reduction, and the highest sample that can be a measurement."""

    name: str
    reduction: Reduction
    highest: float


COMPUTE: Final = Reading(metrics.WORKER_COMPUTE_SECONDS.name, Reduction.SHARE, HIGHEST_COUNTER)
THROTTLED: Final = Reading(metrics.WORKER_THROTTLED_SECONDS.name, Reduction.SHARE, HIGHEST_COUNTER)
OOMS: Final = Reading(metrics.WORKER_OOM.name, Reduction.EVENTS, HIGHEST_COUNTER)
VRAM_PEAK: Final = Reading(metrics.WORKER_VRAM_PEAK.name, Reduction.HIGHEST, HIGHEST_BYTES)
VRAM_USED: Final = Reading(metrics.WORKER_VRAM_USED.name, Reduction.HIGHEST, HIGHEST_BYTES)
TFLOPS_CEILING: Final = Reading(metrics.WORKER_EFFECTIVE_TFLOPS_LIMIT.name, Reduction.LATEST, HIGHEST_TFLOPS)
VRAM_CEILING: Final = Reading(metrics.WORKER_EFFECTIVE_VRAM_LIMIT.name, Reduction.LATEST, HIGHEST_BYTES)
COMPUTE_BEYOND: Final = Reading(metrics.WORKER_COMPUTE_BEYOND_LIMIT.name, Reduction.SHARE, HIGHEST_COUNTER)
VRAM_BEYOND: Final = Reading(metrics.WORKER_VRAM_BEYOND_LIMIT.name, Reduction.HIGHEST, HIGHEST_BYTES)
TFLOPS_CAPACITY: Final = Reading(metrics.DEVICE_COMPUTE_CAPACITY.name, Reduction.DEVICE, HIGHEST_TFLOPS)
VRAM_CAPACITY: Final = Reading(metrics.DEVICE_VRAM_TOTAL.name, Reduction.DEVICE, HIGHEST_BYTES)

READINGS: Final = (
    COMPUTE, VRAM_PEAK, TFLOPS_CEILING, VRAM_CEILING, THROTTLED, OOMS, COMPUTE_BEYOND, VRAM_BEYOND, TFLOPS_CAPACITY,
    VRAM_CAPACITY,
)  # fmt: skip
FALLBACK: Final = VRAM_USED
"""Read too where some worker has no peak: a gauge sees less of the use between two scrapes."""


def reduced(reading: Reading, samples: Samples, window: Window, gap: float) -> Binned:
    """Return one metric's samples as bins; `gap` as in `bins.gap_seconds`."""
    plausible = samples.plausible(reading.highest)
    match reading.reduction:
        case Reduction.SHARE:
            return bins.shares(plausible, window, gap)
        case Reduction.EVENTS:
            return bins.events(plausible, window)
        case Reduction.HIGHEST:
            return bins.highest(plausible, window)
        case Reduction.LATEST:
            return bins.latest(plausible, window)
        case Reduction.DEVICE:
            return bins.last_known(plausible, window.end)


def lacks_peak(binned: Mapping[Reading, Binned]) -> bool:
    """Return whether a worker reports compute or a ceiling but no VRAM peak, so that the fallback must be read."""
    told = binned[VRAM_PEAK].identities
    # Most often all metrics name the same workers, and comparing costs nothing then.
    others = [binned[reading] for reading in (COMPUTE, TFLOPS_CEILING, VRAM_CEILING)]
    peaks = set(told) if any(other.identities != told for other in others) else set()
    return any(
        other.identities[series] not in peaks
        for other in others
        if other.identities != told
        for series in np.flatnonzero(other.reported.any(axis=1))
    )
