"""What was learnt of each workload: the columns of the recommender's memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from autoscaler.model.forecast import ForecastModel
from autoscaler.model.rows import Column, Rows
from autoscaler.recommend.histogram import COMPUTE_BUCKETS, VRAM_BUCKETS
from autoscaler.recommend.series import new_series

DAYS: Final = 7
"""Daily peaks kept: the current day's and the last six."""
HOURS: Final = 4
"""Hourly VRAM peaks kept: bursts come in clusters, so the last hours say more than the last day."""
NEVER: Final = -np.inf
UNTIL: Final = "until"
"""Mark: end of the last bin learnt; absent before the first."""
WATCHED_AT: Final = "watched_at"
"""Mark: when use was last held against the figures in force."""

COLUMNS: Final[Mapping[str, Column]] = {
    # learnt from usage
    "request_weights": Column((COMPUTE_BUCKETS.count,), dtype=np.float32),
    "limit_weights": Column((COMPUTE_BUCKETS.count,), dtype=np.float32),
    "vram_weights": Column((VRAM_BUCKETS.count,), dtype=np.float32),
    "compute_peaks": Column((DAYS,)),
    "vram_peaks": Column((HOURS,)),
    "vram_day_peaks": Column((DAYS,)),
    "compute_reference": Column(),
    "vram_last": Column(fill=np.nan),
    "vram_square": Column(),
    "vram_samples": Column(),
    "active_at": Column(fill=NEVER),
    "active_share": Column(),
    "oom_at": Column(fill=NEVER),
    "samples": Column(),
    "first_at": Column(fill=np.nan),
    "last_at": Column(fill=np.nan),
    "load": Column((2,), fill=np.nan),
    "use": Column((2,), fill=np.nan),
    "reporting": Column(),
    # learnt from usage against the figures in force
    "exceeded_at": Column((2,), fill=NEVER),
    "exceeded_peak": Column(),
    "saturated": Column(),
    "saturated_at": Column(fill=NEVER),
    "oom_level": Column(),
    "seen": Column((4,), fill=np.nan),
    "limit_changed_at": Column(fill=NEVER),
    # where the request's band stands
    "surplus": Column(),
    "judged_at": Column(fill=np.nan),
    # since when limits want to grow, and from where; how many workers the request's history counts for, and since when
    # they share the load
    "growth_since": Column((2,), fill=np.nan),
    "growth_from": Column((2,), fill=np.nan),
    "spread": Column(fill=np.nan),
    "settled_since": Column(fill=np.nan),
    # what ran when it was learnt
    "revision": Column(fill=np.nan),
}


@dataclass(eq=False)
class Learnt(Rows):
    """What was learnt of each workload; `series`: of those with a forecast, `model`: the one in force, None without."""

    series: Rows = field(default_factory=new_series)
    model: ForecastModel | None = None


def new_memory(model: ForecastModel | None = None) -> Learnt:
    """Return the memory of a recommender that has seen nothing; without a model nothing is forecast."""
    return Learnt(COLUMNS, model=model)
