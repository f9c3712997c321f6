"""Built-in defaults: what a field means when nobody set it. One risk knob per service level, the rest is shared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from autoscaler.contract.keys import QoS
from autoscaler.model.config import Step

MINUTE: Final = 60.0
HOUR: Final = 3600.0
DAY: Final = 86400.0


@dataclass(frozen=True, slots=True)
class Level:
    """What a service level changes.

    `percentile`: of the decaying histogram of use, for the compute request. `exceedances`: samples above the request
    within half an hour that raise it. `burst_cap`: VRAM ceiling in multiples of the q95 working level. `vram_margin`:
    VRAM request over the working level. `cool_seconds`: idle time after which the VRAM request cools down.
    `forecast_quantile`: of the largest compute use of the coming hours, for the compute request with a forecast, and
    `forecast_surplus_minutes`: evidence that lowers it (minutes x relative surplus; the histogram's request waits 25).
    """

    percentile: float
    exceedances: int
    burst_cap: float
    vram_margin: float
    cool_seconds: float
    forecast_quantile: float
    forecast_surplus_minutes: float


LEVELS: Final[dict[QoS, Level]] = {
    QoS.LOW: Level(0.90, 2, 1.7, 0.10, 10 * MINUTE, 0.60, 10.0),
    QoS.MEDIUM: Level(0.95, 2, 1.85, 0.10, 60 * MINUTE, 0.68, 10.0),
    QoS.HIGH: Level(0.98, 2, 2.0, 0.10, float("inf"), 0.77, 11.0),
    QoS.CRITICAL: Level(0.99, 1, 2.1, 0.15, float("inf"), 0.88, 20.0),
}
RANK: Final[dict[QoS, int]] = {level: rank for rank, level in enumerate(QoS)}

REQUEST_BUFFER_RATIO: Final = 0.15
REQUEST_HALF_LIFE_SECONDS: Final = 2 * HOUR
LIMIT_AGGREGATION_SECONDS: Final = DAY
HALF_LIVES_PER_AGGREGATION: Final = 4.0
"""A sample that leaves an explicit aggregationPeriod weighs 1/16 of a fresh one."""
LIMIT_PERCENTILE: Final = 0.99
LIMIT_BUFFER_RATIO: Final = 0.15
SCALE_UP_STEP: Final = 2.0
MAX_RATIO_TO_REQUESTS: Final = 5.0

EVALUATION_SECONDS: Final = (5 * MINUTE, MINUTE, 5 * MINUTE, MINUTE, MINUTE)
"""By Field, as are the next four."""
DEAD_BAND_RATIO: Final = (0.05, 0.05, 0.05, 0.05, 0.0)
STABILIZATION_SECONDS: Final = (0.0, 5 * MINUTE, 25 * MINUTE, 5 * MINUTE, 5 * MINUTE)
"""The compute request has none of its own: its CUSUM is one."""
UP_COOL_DOWN_SECONDS: Final = (10 * MINUTE, 10 * MINUTE, 10 * MINUTE, 10 * MINUTE, MINUTE)
"""Of amounts: after a lowering, unless there is a shortage; of replicas: after any change."""
DOWN_COOL_DOWN_SECONDS: Final = (10 * MINUTE, 10 * MINUTE, 10 * MINUTE, 10 * MINUTE, 10 * MINUTE)

INITIAL_DELAY_SECONDS: Final = 30 * MINUTE
MIN_SAMPLES: Final = 10
"""Bins of history before anything is lowered, whatever the initial delay."""

TARGET_UTILIZATION_RATIO: Final = 0.7
TOLERANCE_RATIO: Final = 0.1
SCALE_OUT_STEP: Final = Step(1.0, is_ratio=True)
SCALE_IN_STEP: Final = Step(1.0)
MIN_REPLICAS: Final = 1
MAX_REPLICAS: Final = 10
SURGE_RATIO: Final = 2.0
VRAM_HEADROOM_RATIO: Final = 0.05
VRAM_RESERVE: Final = 0.25
"""Free VRAM that a growing request leaves on a device: z x sqrt(sum of (limit - request)^2) over its workers.

A larger z halves the out-of-memory events of a packed device about once per .25, for 4 to 10 % more devices.
"""
COOLED_VRAM_BYTES: Final = 250.0 * 2**20
"""Least VRAM kept for an idle worker."""
