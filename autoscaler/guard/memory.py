"""What the guards remember of earlier passes: when figures last moved, and since when they want to shrink."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from autoscaler.model.rows import Column, Rows

NEVER: Final = -np.inf
WINDOW_SLOTS: Final = 11
"""Parts in which a stabilization window's highest count is kept: tenths, and one more, so that none is lost early."""
COLUMNS: Final[Mapping[str, Column]] = {
    "raised_at": Column((5,), fill=NEVER),
    "lowered_at": Column((5,), fill=NEVER),
    "shrink_since": Column((5,), fill=np.nan),
    "shrink_most": Column((5,), fill=np.nan),
    "evaluated_at": Column((5,), fill=NEVER),
    "verdict": Column((5,)),
    "cause": Column((5,)),
    "target": Column((5,), fill=np.nan),
    # replicas: counts of the window by slot, since when, the last surge, the count before the first step outward
    "count_most": Column((WINDOW_SLOTS,), fill=NEVER),
    "count_at": Column((WINDOW_SLOTS,), fill=NEVER),
    "count_since": Column(fill=np.nan),
    "surged_at": Column(fill=NEVER),
    "count_base": Column(fill=np.nan),
    "count_seen": Column(fill=np.nan),
}


def new_memory() -> Rows:
    """Return the memory of guards that have seen nothing."""
    return Rows(COLUMNS)
