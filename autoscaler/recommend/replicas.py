"""Layer 2, outward: as many workers as keep the limits' utilization at its target.

The Kubernetes HPA's calculation (replica_calculator): desired = ceil(count x utilization / target), here as
ceil(load / (target x limit x GPUs)), with a tolerance around the target. Ready workers without samples count as 100 %
of the target inward and as idle outward; workers that are not ready count as idle outward; where such a correction
turns the direction round, nothing moves. Of several resources the largest count holds. On top of it:

- clipped use is a lower bound of demand: with no help on its way it counts 1.15 times, from the second clipped sample
  in a row twice, which is a surge (more can't be seen);
- outward only for resources whose limit can't grow any more (`exhausted`): vertical first;
- inward only as far as the load at the smaller count stays under target x (1 - tolerance), so that N and N - 1 never
  alternate, and only once the requests and limits in force cover what each remaining worker takes over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from autoscaler.model import defaults
from autoscaler.model.decision import Field
from autoscaler.model.defaults import MINUTE
from autoscaler.model.fleet import Fleet
from autoscaler.model.knobs import ON
from autoscaler.model.reasons import Cause
from autoscaler.model.resources import GIB, Resource
from autoscaler.model.rows import Rows
from autoscaler.model.usage import SATURATED_RATIO, SATURATION_DEVICE_RATIO, SATURATION_SLACK_RATIO, Bools, Floats
from autoscaler.recommend.estimate import Estimate, choose
from autoscaler.recommend.learn import CLIPPED_GAIN

REQUEST_FIELDS: Final = [Field.COMPUTE_REQUEST, Field.VRAM_REQUEST]
LIMIT_FIELDS: Final = [Field.COMPUTE_LIMIT, Field.VRAM_LIMIT]
GROWN_RATIO: Final = 1.05
"""A limit that could grow by less than this is exhausted; one that wants to grow by more wants to grow."""
STUCK_SECONDS: Final = 5 * MINUTE
"""A limit that wanted to grow for so long and did not is exhausted, whatever holds it (quota, pause of its layer)."""
UNCLIPPED_RATIO: Final = SATURATED_RATIO - SATURATION_SLACK_RATIO
ROUNDING: Final = 1e-9
LEAST_SHARE: Final = 1e-6
UNITS: Final = np.array([1.0, GIB])
"""Loads and limits are shown in TFLOPs and GiB."""


@dataclass(frozen=True, slots=True, eq=False)
class Workers:
    """Workers as the HPA counts them, (W, 1) each: wanted, ready with samples, ready without, and not ready."""

    count: Floats
    measured: Floats
    missing: Floats
    unready: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Balance:
    """What the load alone asks for, before vertical comes first; (W, 2) by Resource, `fewest`, `least`, `last` (W,).

    `load`: Σ use over all workers, or the forecast if that is more. `gain`: what clipped use counts. `capacity`: target
    x limit x GPUs, the load of one worker at its target. `desired`: the HPA's count, NaN where replicas don't follow
    the resource or nothing is known. `fewest`: the least count whose load stays under the target with tolerance, NaN
    unknown. `least`, `last`: where fewer will do, the count after the next and after the last step inward, else NaN.
    `request`, `limit`: what each worker needs after the next one, NaN where nothing is asked of it.
    """

    workers: Workers
    load: Floats
    gain: Floats
    capacity: Floats
    desired: Floats
    fewest: Floats
    least: Floats
    last: Floats
    request: Floats
    limit: Floats


def hpa_count(workers: Workers, worth: Floats, tolerance: Floats) -> Floats:
    """Return the HPA's count for a load worth so many workers at their target (W, R); `tolerance` (W, 1).

    NaN where no ready worker was measured. Missing workers count as one worker's worth inward.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        measured = np.where(workers.measured > 0, workers.measured, np.nan)
        ratio = worth / measured
        others = np.select([ratio > 1, ratio < 1], [workers.missing + workers.unready, workers.missing], 0.0)
        assumed = np.where(ratio < 1, worth + workers.missing, worth)
        corrected = assumed / (measured + others)
    desired = np.ceil(assumed - ROUNDING)
    inside = np.abs(corrected - 1) <= tolerance + ROUNDING
    turned = ((ratio - 1) * (corrected - 1) < 0) | ((desired - workers.count) * (corrected - 1) < 0)
    figure = np.where(inside | turned, workers.count, desired)
    return np.where(np.isnan(ratio), np.nan, figure)


def balance(fleet: Fleet, memory: Rows, forecast: Floats | None = None) -> Balance:
    """Weigh the load against the limits in force.

    `forecast` (W, 2): the load expected when a worker added now is useful, in TFLOPs and bytes over all workers; NaN or
    None where there is none. The larger of it and the load now counts.
    """
    workers, tolerance = _workers(fleet, memory), fleet.knobs.tolerance[:, None]
    load, gain = memory["load"], _gain(fleet, memory)
    if forecast is not None:
        load = np.where(forecast > gain * load, forecast, load)
        gain = np.where(load > memory["load"], 1.0, gain)
    target = fleet.knobs.target_utilization
    capacity = target * fleet.current[:, LIMIT_FIELDS] * fleet.gpu_count[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        worth = gain * load / capacity
    desired = hpa_count(workers, worth, tolerance)
    inward = np.ceil((worth + workers.missing) / np.maximum(1 - tolerance, LEAST_SHARE) - ROUNDING)
    fewest = np.maximum(_most(np.fmax(inward, desired), ~np.isnan(target)), 1.0)
    least, last = _inward(fleet, fewest)
    request, limit = _cover(fleet, memory, (load, least, workers))
    return Balance(workers, load, gain, capacity, desired, fewest, least, last, request, limit)


def _workers(fleet: Fleet, memory: Rows) -> Workers:
    count, ready = fleet.current[:, Field.REPLICAS], fleet.ready
    missing = np.maximum(0.0, ready - memory["reporting"])
    columns = (count, ready - missing, missing, np.maximum(0.0, count - ready))
    return Workers(*(column[:, None] for column in columns))


def _gain(fleet: Fleet, memory: Rows) -> Floats:
    """Return what clipped compute use counts (W, 2).

    It counts once while new workers start: help is on its way. Samples from before they shared the load say nothing.
    """
    current, streak = fleet.current[:, Field.COMPUTE_LIMIT], memory["saturated"]
    judged = (memory["seen"][:, Field.COMPUTE_LIMIT] == current) & (memory["saturated_at"] > memory["limit_changed_at"])
    judged &= fleet.ready >= fleet.current[:, Field.REPLICAS]
    with np.errstate(invalid="ignore"):
        shared = np.where(judged, np.nan_to_num(memory["saturated_at"] - memory["settled_since"], nan=0.0), 0.0)
    twice, once = (streak > 1) & (shared >= 2 * MINUTE), (streak > 0) & (shared >= MINUTE)
    compute = np.select([twice, once], [defaults.SURGE_RATIO, CLIPPED_GAIN], 1.0)
    return np.stack([compute, np.ones(len(fleet))], axis=1)


def _most(counts: Floats, steered: Bools) -> Floats:
    """Return the largest count over the resources that steer (W,), NaN where one of them is unknown, or none does."""
    known = np.where(steered, counts, -np.inf).max(axis=1)
    return np.where(np.isfinite(known), known, np.nan)


def _inward(fleet: Fleet, fewest: Floats) -> tuple[Floats, Floats]:
    """Return the count after the next and the last step inward, NaN where nobody may take one or none is due, (W,)."""
    count, flags = fleet.current[:, Field.REPLICAS], fleet.flags
    lowest = np.maximum(fewest, fleet.knobs.minimum[:, Field.REPLICAS])
    stepped = np.maximum(lowest, count - fleet.knobs.largest_step(count)[:, 1])
    ours = (fleet.knobs.mode[:, Field.REPLICAS] == ON) & ~flags.managed_elsewhere & ~flags.paused_down
    return np.where(ours & (stepped < count), stepped, np.nan), lowest


def _cover(fleet: Fleet, memory: Rows, inward: tuple[Floats, Floats, Workers]) -> tuple[Floats, Floats]:
    """Return the request and limit (W, 2) that each worker needs after the next step inward; NaN where none is due.

    Request: its mean share of the load, where that layer is on. Limit: its share at the target less the tolerance, and
    the largest worker's use not taken for clipped, through enforcement's coarseness: a step inward after which it was
    would be followed by one outward.
    """
    load, least, workers = inward
    target, tolerance = fleet.knobs.target_utilization, fleet.knobs.tolerance[:, None]
    share = load / (least * fleet.gpu_count)[:, None]
    grown = np.maximum(workers.measured / least[:, None], 1.0) * memory["use"]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = share / (target * np.maximum(1 - tolerance, LEAST_SHARE))
    coarse = np.where(np.isfinite(fleet.device), SATURATION_DEVICE_RATIO * fleet.device, 0.0)
    coarse[:, Resource.VRAM] = 0.0  # a byte in use is a byte
    unclipped = np.fmax(grown / UNCLIPPED_RATIO, (grown + coarse) / SATURATED_RATIO)
    limit = np.where(np.isnan(target), np.nan, np.fmax(mean, unclipped))
    requested = ~np.isnan(target) & (fleet.knobs.mode[:, REQUEST_FIELDS] == ON)
    return np.where(requested, share, np.nan), limit


def replicas(fleet: Fleet, memory: Rows, weighed: Balance, limits: tuple[Floats, Floats]) -> Estimate:
    """Return the wanted replicas; `limits` are the wanted limits (W,) by Resource."""
    count = fleet.current[:, Field.REPLICAS]
    exhausted = _exhausted(fleet, memory, np.stack(limits, axis=1))
    outward = weighed.desired > count[:, None]
    allowed = np.where(outward & exhausted, weighed.desired, -np.inf).max(axis=1)
    fewer = weighed.fewest
    outgrown: Bools = np.asarray(outward.any(axis=1), dtype=np.bool_)
    with np.errstate(invalid="ignore"):
        covered = ~(fleet.current[:, REQUEST_FIELDS] < weighed.request * (1 - ROUNDING)).any(axis=1)
        covered &= ~(fleet.current[:, LIMIT_FIELDS] < weighed.limit * (1 - ROUNDING)).any(axis=1)
    rules = (
        (np.isnan(weighed.fewest) | (count < 1), count, Cause.NO_DATA),
        (np.asarray(allowed > count), allowed, Cause.LOAD),
        (outgrown, count, Cause.VERTICAL_FIRST),
        ((fewer < count) & ~covered, count, Cause.COVER_FIRST),
        (fewer < count, fewer, Cause.LOAD),
    )
    figure, cause = choose(count, rules)
    return Estimate(
        figure=figure,
        lower=_lower(fleet, weighed),
        upper=weighed.fewest,
        cause=cause,
        urgent=np.asarray((figure > count) & (figure >= defaults.SURGE_RATIO * count), dtype=np.bool_),
        inputs=_inputs(fleet, weighed, exhausted),
    )


def _exhausted(fleet: Fleet, memory: Rows, limits: Floats) -> Bools:
    """Return whose limits (W, 2) can't grow: layer off, at a bound, ratio or device, or stuck; keeps since when."""
    current, flags, knobs = fleet.current[:, LIMIT_FIELDS], fleet.flags, fleet.knobs
    ratio = knobs.max_ratio_to_requests[:, None] * fleet.current[:, REQUEST_FIELDS]
    ceiling = np.fmin(np.minimum(knobs.maximum[:, LIMIT_FIELDS], fleet.device), ratio)
    off = (knobs.mode[:, LIMIT_FIELDS] != ON) | (flags.dedicated | flags.unsupported)[:, None]
    wants, since, start = limits > GROWN_RATIO * current, memory["growth_since"], memory["growth_from"]
    anew = wants & (np.isnan(since) | (start != current))
    since[:] = np.where(anew, fleet.now, np.where(wants, since, np.nan))
    start[anew] = current[anew]
    with np.errstate(invalid="ignore"):
        stuck = wants & (fleet.now - since >= STUCK_SECONDS)
    return np.asarray(off | (GROWN_RATIO * current > ceiling) | stuck, dtype=np.bool_)


def _lower(fleet: Fleet, weighed: Balance) -> Floats:
    """Return the least count whose utilization is inside the tolerance (W,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        worth = weighed.gain * weighed.load / weighed.capacity
    most: Floats = np.fmax(worth[:, Resource.COMPUTE], worth[:, Resource.VRAM])
    return np.ceil(most / (1 + fleet.knobs.tolerance) - ROUNDING)


def _inputs(fleet: Fleet, weighed: Balance, exhausted: Bools) -> dict[str, Floats]:
    """Return every number that the count follows from; TFLOPs and GiB per worker over its GPUs, NaN: not used."""
    workers, target, tolerance = weighed.workers, fleet.knobs.target_utilization, fleet.knobs.tolerance
    unsteered = np.isnan(target)
    limit = fleet.current[:, LIMIT_FIELDS] * fleet.gpu_count[:, None]
    per_resource = {
        "load": np.where(unsteered, np.nan, weighed.load) / UNITS,
        "limit": np.where(unsteered, np.nan, limit) / UNITS,
        "target": target,
        "exhausted": np.where(unsteered, np.nan, exhausted.astype(np.float64)),
        "cover_request": weighed.request / UNITS,
        "cover_limit": weighed.limit / UNITS,
    }
    ends = {"target": ("ratio", "vram_ratio"), "exhausted": ("limit_count", "vram_limit_count")}
    named = {
        f"{name}_{end}": values[:, resource].copy()
        for name, values in per_resource.items()
        for resource, end in zip(Resource, ends.get(name, ("tflops", "gib")), strict=True)
    }
    gain = weighed.gain[:, Resource.COMPUTE]
    return {
        **named,
        "tolerance_ratio": tolerance,
        "clipped_gain_ratio": np.where(gain > 1, gain, np.nan),
        "ready_workers": fleet.ready,
        "missing_workers": workers.missing[:, 0],
        "unready_workers": workers.unready[:, 0],
        "step_in_workers": fleet.knobs.largest_step(workers.count[:, 0])[:, 1],
        "next_workers": weighed.least,
    }
