"""A new revision of a workload: its history stays as a prior, but what is seen from now on outweighs it.

Within half an hour the old samples are at most half of each histogram. A histogram's weight is its samples, each 1 when
new, so old ones are scaled to less than half an hour of bins; aging takes from both. Peaks stay until they expire:
they only keep a limit up.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from autoscaler.model.defaults import MINUTE
from autoscaler.model.fleet import Fleet
from autoscaler.model.usage import Bools
from autoscaler.recommend.memory import Learnt

OUTWEIGHED_SECONDS: Final = 30 * MINUTE
PRIOR_SHARE: Final = 0.9
"""Of the bins of that time: new samples age too, and a few are missing around a rollout."""
HISTOGRAMS: Final = ("request_weights", "limit_weights", "vram_weights")


def revise(memory: Learnt, fleet: Fleet, bin_seconds: float) -> Bools:
    """Notice workloads that run another revision than before and make their history a prior; return which (W,)."""
    before, now = memory["revision"], fleet.revision
    known = ~np.isnan(now)
    changed: Bools = np.asarray(known & ~np.isnan(before) & (before != now), dtype=np.bool_)
    before[known] = now[known]
    if not changed.any():
        return changed
    most = PRIOR_SHARE * OUTWEIGHED_SECONDS / bin_seconds
    for name in HISTOGRAMS:
        weights = memory.weights(name)
        total = weights[changed].sum(axis=1, dtype=np.float64)
        with np.errstate(divide="ignore"):
            weights[changed] *= np.minimum(1.0, most / total).astype(np.float32)[:, None]
    # Nor has it proven calm yet, or that its request is too large.
    memory["vram_samples"][changed] = np.minimum(memory["vram_samples"][changed], most)
    memory["surplus"][changed] = 0.0
    return changed
