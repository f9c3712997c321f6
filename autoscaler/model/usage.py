"""Measured use of the fleet in consecutive time bins, as columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoscaler.model.resources import Resource

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

SATURATED_RATIO = 0.95
SATURATION_SLACK_RATIO = 0.05
SATURATION_DEVICE_RATIO = 0.01
THROTTLED_SHARE = 0.05


class WorkloadKey(NamedTuple):
    """Namespace and name of a TensorFusionWorkload; the `workload` label of its series."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Window:
    """A span of history: `(start, end]` in seconds since the epoch, cut in bins of `step` seconds."""

    start: float
    end: float
    step: float

    @property
    def bins(self) -> int:
        """Number of whole bins."""
        return max(0, round((self.end - self.start) / self.step))


@dataclass(frozen=True, slots=True, eq=False)
class Usage:
    """What the workloads used in each bin of a window. W workloads, T bins; NaN is unknown, 0 was measured as 0.

    `peak` (2, W, T): the largest worker and device, by Resource: mean TFLOPs over the bin (increase of the compute
    seconds times the device's capacity), peak bytes. `total` (2, W, T): the same summed over workers and devices.
    `ceiling` (2, W, T): the effective limit of the largest worker. `clipped` (2, W, T): the peak is a lower bound of
    demand, see `censored`. `ooms` (W, T): out-of-memory events. `workers` (W, T): workers that reported.
    `last_seen` (W,): time of the newest sample of any worker, NaN when there was none.
    """

    window: Window
    keys: tuple[WorkloadKey, ...]
    peak: Floats32
    total: Floats32
    ceiling: Floats32
    clipped: Bools
    ooms: Floats32
    workers: Floats32
    last_seen: Floats


def censored(use: Floats, ceiling: Floats, device: Floats, throttled_share: Floats) -> Bools:
    """Return where use is only a lower bound of demand (all arrays of one shape, one unit; NaN: not known).

    Throttled for more than 5 % of the time, or within enforcement's coarseness of the effective limit:
    use >= .95 x limit - max(.05 x limit, .01 x device).
    """
    slack = np.fmax(SATURATION_SLACK_RATIO * ceiling, SATURATION_DEVICE_RATIO * device)
    with np.errstate(invalid="ignore"):
        at_ceiling = (use > 0) & (use >= SATURATED_RATIO * ceiling - slack)
        return np.asarray(at_ceiling | (throttled_share > THROTTLED_SHARE), dtype=np.bool_)


def empty_usage(window: Window, keys: tuple[WorkloadKey, ...]) -> Usage:
    """Return a Usage in which nothing is known."""
    shape = (len(Resource), len(keys), window.bins)
    unknown = np.full(shape, np.nan, dtype=np.float32)
    return Usage(
        window=window,
        keys=keys,
        peak=unknown,
        total=unknown.copy(),
        ceiling=unknown.copy(),
        clipped=np.zeros(shape, dtype=np.bool_),
        ooms=np.zeros(shape[1:], dtype=np.float32),
        workers=np.zeros(shape[1:], dtype=np.float32),
        last_seen=np.full(len(keys), np.nan),
    )
