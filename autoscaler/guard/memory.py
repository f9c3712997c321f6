"""What the guards remember of earlier passes: when figures last moved, what was good before, and how much was in use.

Use is kept as the largest of the current and the last hours, of each workload and of each device as a whole: the sum
over a device's members at one moment, which is less than the sum of their peaks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from autoscaler.model.defaults import HOUR
from autoscaler.model.fleet import Fleet
from autoscaler.model.resources import Resource
from autoscaler.model.rows import Column, Rows
from autoscaler.model.usage import WorkloadKey

NEVER: Final = -np.inf
PEAK_HOURS: Final = 7
"""As far back as the recommender's own peaks of VRAM, from which ceilings are made."""
WINDOW_SLOTS: Final = 11
"""Parts in which a stabilization window's highest count is kept: tenths, and one more, so that none is lost early."""
BLOCK: Final = "use_block"
"""Mark: number of the hour in which use was last seen."""
USE_PEAKS: Final = Column((len(Resource), PEAK_HOURS))
COLUMNS: Final[Mapping[str, Column]] = {
    "raised_at": Column((5,), fill=NEVER),
    "lowered_at": Column((5,), fill=NEVER),
    "idled_at": Column((5,), fill=NEVER),
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
    # what a shrink that does harm goes back to, and how long none is tried again
    "good": Column((5,), fill=np.nan),
    "rolled_at": Column((5,), fill=NEVER),
    "freeze_seconds": Column((5,)),
    "use_peaks": USE_PEAKS,
}
DEVICE_COLUMNS: Final[Mapping[str, Column]] = {"use_peaks": USE_PEAKS}


@dataclass(eq=False)
class Memory(Rows):
    """One row per workload, and in `devices` one row per device."""

    devices: Rows = field(default_factory=lambda: Rows(DEVICE_COLUMNS))


def new_memory() -> Memory:
    """Return the memory of guards that have seen nothing."""
    return Memory(COLUMNS)


def remember_use(fleet: Fleet, memory: Memory) -> None:
    """Keep the peaks of use of this hour; hours that are over fall out. Unknown use leaves them as they are."""
    devices, uuids = memory.devices, fleet.placement.uuids
    if devices.uids != uuids:
        devices.align([WorkloadKey("", uuid) for uuid in uuids], uuids)
    block = int(fleet.now // HOUR)
    slot = block % PEAK_HOURS
    over = block - int(memory.marks.get(BLOCK, block))
    memory.marks[BLOCK] = float(block)
    for rows, use in ((memory, fleet.live), (devices, fleet.placement.used.T)):
        peaks = rows["use_peaks"]
        if over > 0:
            peaks[:, :, [(block - back) % PEAK_HOURS for back in range(min(over, PEAK_HOURS))]] = 0.0
        np.fmax(peaks[:, :, slot], use, out=peaks[:, :, slot])
