"""How the per-worker figures follow a load that spreads over more workers, or will have to be carried by fewer.

Outward from N to M: until the new workers are ready nothing shrinks (`guard.horizontal`). Once all are, each carries
N/M of what it did, so the request's histogram counts scaled by N/M - the per-worker request is re-read at once instead
of after hours -, use above the request is forgotten, and most of the evidence to lower it is given. The next samples
give the rest, or take it back should the load not spread evenly after all.

Inward from N to M: before it happens requests and limits are raised to, and kept at, the load of M workers (`cover`);
`replicas` moves only once they are in force. History is not scaled up: it was learnt at loads that are over.

Only compute is scaled, because memory doesn't spread: each worker holds the model. Only where layer 2 is on, because
then the owner has said that the load is shared by the workers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from autoscaler.model.decision import Field
from autoscaler.model.fleet import Fleet
from autoscaler.model.knobs import ON
from autoscaler.model.reasons import CAUSE_CODE, Cause
from autoscaler.model.resources import Resource
from autoscaler.model.rows import Rows
from autoscaler.model.usage import Bools, Floats, Floats32
from autoscaler.recommend.estimate import Estimate
from autoscaler.recommend.histogram import COMPUTE_BUCKETS
from autoscaler.recommend.requests import SURPLUS_LEVEL_MINUTES

SPREAD_EVIDENCE_RATIO: Final = 0.8
"""Of the evidence that lowers a request, what more workers to share the load are worth."""
COVER_GAIN: Final = 1.1
"""What is raised for fewer workers is raised by a little more, so that noise of the load does not undo it."""


def respread(fleet: Fleet, memory: Rows) -> None:
    """Let the compute request's history count for as many workers as share the load now, where more got ready."""
    count, spread = fleet.current[:, Field.REPLICAS], memory["spread"]
    settled = (fleet.ready >= count) & (memory["reporting"] >= count) & (count > 0)
    settled &= ~(fleet.flags.pending | fleet.flags.rollout)
    shared = (fleet.knobs.mode[:, Field.REPLICAS] == ON) & ~np.isnan(
        fleet.knobs.target_utilization[:, Resource.COMPUTE]
    )
    since = memory["settled_since"]
    since[:] = np.where(settled & (count == spread), np.fmin(since, fleet.now), np.where(settled, fleet.now, np.nan))
    grown: Bools = np.asarray(settled & shared & (count > spread), dtype=np.bool_)
    weights = memory.weights("request_weights")
    for row in np.flatnonzero(grown):
        weights[row] = _scaled_down(weights[row], float(count[row] / spread[row]))
    memory["exceeded_at"][grown] = -np.inf
    memory["exceeded_peak"][grown] = 0.0
    memory["surplus"][grown] = SPREAD_EVIDENCE_RATIO * SURPLUS_LEVEL_MINUTES
    spread[settled] = count[settled]


def _scaled_down(weights: Floats32, ratio: float) -> Floats32:
    """Return a histogram (B,) whose samples are divided by `ratio` >= 1, to the nearest bucket."""
    buckets = COMPUTE_BUCKETS.count
    source = np.arange(1, buckets)
    target = np.maximum(source - round(np.log(ratio) / np.log(COMPUTE_BUCKETS.growth)), 0)
    scaled = np.bincount(np.append(target, 0), weights=np.append(weights[1:], weights[0]), minlength=buckets)
    return scaled.astype(np.float32)


def cover(estimate: Estimate, current: Floats, needed: tuple[Floats, Floats]) -> Estimate:
    """Return the estimate, at least what fewer workers need, with a little to spare.

    `needed` (W,), NaN nothing: after the next step inward, which is raised to; and after the last one, below which what
    is in force does not shrink, only to be raised again.
    """
    least, last = needed
    spare = np.where(least > current, COVER_GAIN * least, np.fmin(COVER_GAIN * last, current))
    figure = np.fmax(estimate.figure, spare)
    raised = (figure > estimate.figure) & (figure > current)
    code = np.int8(CAUSE_CODE[Cause.COVER_FIRST])
    return replace(
        estimate,
        figure=np.where(np.isnan(least), estimate.figure, figure),
        lower=np.where(np.isnan(least), estimate.lower, np.fmax(estimate.lower, least)),
        cause=np.where(raised, code, estimate.cause).astype(np.int8),
        inputs={**estimate.inputs, "cover": least, "cover_last": np.where(np.isnan(least), np.nan, last)},
    )
