"""What the guards remember of earlier passes: when figures last moved, and since when they want to shrink."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from autoscaler.model.rows import Column, Rows

NEVER: Final = -np.inf
COLUMNS: Final[Mapping[str, Column]] = {
    "raised_at": Column((5,), fill=NEVER),
    "lowered_at": Column((5,), fill=NEVER),
    "shrink_since": Column((5,), fill=np.nan),
    "shrink_most": Column((5,), fill=np.nan),
    "evaluated_at": Column((5,), fill=NEVER),
    "verdict": Column((5,)),
    "cause": Column((5,)),
    "target": Column((5,), fill=np.nan),
}


def new_memory() -> Rows:
    """Return the memory of guards that have seen nothing."""
    return Rows(COLUMNS)
