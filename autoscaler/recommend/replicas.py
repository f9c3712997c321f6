"""Layer 2, outward: as many workers as keep the limits' utilization at its target.

desired = ceil(Σ use / (target x limit)), as the Kubernetes HPA computes it, with its corrections: a tolerance around
the target, missing workers counted against the move (100 % of the target inward, 0 % outward), and inward only if the
load at the smaller count stays under the target by the tolerance, so that N and N - 1 never alternate.
"""

from __future__ import annotations

import numpy as np

from autoscaler.model.decision import Field
from autoscaler.model.fleet import Fleet
from autoscaler.model.knobs import ON
from autoscaler.model.reasons import Cause
from autoscaler.model.resources import Resource
from autoscaler.model.rows import Rows
from autoscaler.model.usage import Bools, Floats
from autoscaler.recommend.estimate import Estimate, choose

LIMIT_FIELDS = (Field.COMPUTE_LIMIT, Field.VRAM_LIMIT)


def replicas(fleet: Fleet, memory: Rows, limits: tuple[Floats, Floats]) -> Estimate:
    """Return the wanted replicas; `limits` are the wanted limits by Resource.

    Outward only where no limit can still grow: vertical first.
    """
    count, tolerance = fleet.current[:, Field.REPLICAS], fleet.knobs.tolerance
    missing = np.maximum(0.0, count - memory["reporting"])
    out, inward, load = [], [], []
    for resource in Resource:
        target = fleet.knobs.target_utilization[:, resource]
        per_worker = target * fleet.current[:, LIMIT_FIELDS[resource]] * fleet.gpu_count
        used = memory["load"][:, resource]
        with np.errstate(divide="ignore", invalid="ignore"):
            out.append(used / per_worker)
            inward.append((used + missing * per_worker) / per_worker)
            load.append(used / (count * per_worker / target))
    needed_out, needed_in = np.fmax(*out), np.fmax(*inward)
    grow = (needed_out > count * (1 + tolerance)) & _exhausted(fleet, limits)
    fewer = np.maximum(1.0, np.ceil(needed_in / (1 - tolerance) - 1e-9))
    rules = (
        (np.isnan(needed_out) | (count < 1), count, Cause.NO_DATA),
        (grow, np.ceil(needed_out - 1e-9), Cause.LOAD),
        (fewer < count, fewer, Cause.LOAD),
    )
    figure, cause = choose(count, rules)
    return Estimate(
        figure=figure,
        lower=np.ceil(needed_out - 1e-9),
        upper=fewer,
        cause=cause,
        urgent=np.asarray(grow & (figure >= 2 * count), dtype=np.bool_),
        inputs={
            "target_ratio": fleet.knobs.target_utilization[:, Resource.COMPUTE],
            "utilization_ratio": np.fmax(*load),
            "tolerance_ratio": tolerance,
            "missing_workers": missing,
            "ready_workers": fleet.ready,
        },
    )


def _exhausted(fleet: Fleet, limits: tuple[Floats, Floats]) -> Bools:
    """Return where the limits of the steering resource can't grow: layer off, at a bound, or at the device."""
    stuck = np.zeros(len(fleet), dtype=bool)
    for resource, field in enumerate(LIMIT_FIELDS):
        steering = ~np.isnan(fleet.knobs.target_utilization[:, resource])
        ceiling = np.minimum(fleet.knobs.maximum[:, field], fleet.device[:, resource])
        ratio = fleet.knobs.max_ratio_to_requests * fleet.current[:, field - 1]
        ceiling = np.fmin(ceiling, np.where(np.isnan(ratio), np.inf, ratio))
        off = fleet.knobs.mode[:, field] != ON
        stuck |= steering & (off | (limits[resource] > ceiling) | (fleet.current[:, field] >= ceiling))
    return stuck
