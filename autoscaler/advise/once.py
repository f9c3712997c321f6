"""What workloads should have, said once: the product's own learning and rules, for figures that then stay.

A controller may follow the minute, as it is back in the next one; advice is taken and kept. So the history that was
asked for stands in for the passes that are missing: all of it weighs in the request (half-life a quarter of it), its
peaks are remembered to its end, its idle hours release no memory, and what has been too large in it needs no more
evidence. A clipped limit is doubled, never quadrupled: there is no next minute that takes it back. Replicas are weighed
with the recommended limits, at the 95th percentile of the load.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from autoscaler.guard import Limits, guard
from autoscaler.guard import new_memory as new_guard_memory
from autoscaler.model.config import Mode
from autoscaler.model.decision import AMOUNT_FIELDS, Field
from autoscaler.model.fleet import Fleet, to_fleet
from autoscaler.model.proposal import Allowed
from autoscaler.model.resources import Resource
from autoscaler.model.snapshot import Snapshot
from autoscaler.model.usage import Floats, Floats32, Usage
from autoscaler.model.workload import Workload
from autoscaler.ports import History
from autoscaler.read.catchup import Catchup, Reach
from autoscaler.recommend import UNTIL, learn, new_memory, recommend, watch
from autoscaler.recommend.histogram import COMPUTE_BUCKETS, VRAM_BUCKETS, add, quantiles
from autoscaler.recommend.learn import OOM_GAIN
from autoscaler.recommend.memory import Learnt
from autoscaler.recommend.requests import SURPLUS_LEVEL_MINUTES

LIVE_SECONDS: Final = 7200.0
"""Use of the last two hours is held against the figures in force: is it clipped?"""
LOAD_PERCENTILE: Final = 0.95
NO_LIMITS: Final = Limits(fresh_seconds=np.inf, changes_per_pass=2**31, min_samples=0)
_LOADS: Final = (COMPUTE_BUCKETS, VRAM_BUCKETS)
"""By Resource."""


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What a history showed beside what the recommender keeps: by workload (W,) and resource (W, 2).

    `peak`: the largest worker's, raised where it ran out of memory. `loads`: histograms of Σ use. `ooms`: events.
    """

    peak: Floats
    loads: tuple[Floats32, Floats32]
    ooms: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """The fleet, what each workload should have (W, 5), and the events seen (W,)."""

    allowed: Allowed
    target: Floats
    ooms: Floats


def laid_out(snapshot: Snapshot, history_seconds: float, replicas: Mode) -> Fleet:
    """Return the fleet with requests and limits worked out together over the whole history, and this replicas layer.

    What a profile sets stays: percentiles, buffers, targets, bounds, and an aggregation period of its own.
    """
    workloads = [_advised(one, history_seconds, replicas) for one in snapshot.discovered.workloads]
    return to_fleet(replace(snapshot, discovered=replace(snapshot.discovered, workloads=tuple(workloads))))


def _advised(workload: Workload, history_seconds: float, replicas: Mode) -> Workload:
    config = workload.config
    aggregation = config.requests.aggregation_seconds or history_seconds
    advised = replace(
        config,
        requests=replace(config.requests, mode=Mode.ON, aggregation_seconds=aggregation),
        limits=replace(config.limits, mode=Mode.ON),
        replicas_policy=replace(config.replicas_policy, mode=replicas),
    )
    return replace(workload, config=advised)


async def say(
    snapshot: Snapshot, history: History, reach: Reach, progress: Callable[[int, int], None] = lambda _done, _all: None
) -> Said:
    """Return what the snapshot's workloads should have, by their history; `progress` hears of each part of it.

    Raises:
        HistoryError: the history can't be read.

    """
    fleet = laid_out(snapshot, reach.history_seconds, Mode.OFF)
    memory = new_memory()
    memory.align(fleet.keys, fleet.uids)
    seen = _nothing(len(fleet))
    async for usage, is_live in _read(history, reach, (fleet.now, memory), progress):
        learn(memory, usage, fleet)
        if is_live:
            watch(memory, usage, fleet)
        seen = _with(seen, usage, fleet)
    _settle(memory, fleet, seen)
    allowed = _allowed(fleet, memory)
    target = allowed.target.copy()
    target[:, Field.REPLICAS] = _replicas(laid_out(snapshot, reach.history_seconds, Mode.ON), memory, target)
    has_layer = [one.config.replicas_policy.mode is not Mode.OFF for one in snapshot.discovered.workloads]
    # Nobody but a profile or annotation with a replicas layer says how few are enough.
    fewest = np.where(np.array(has_layer, dtype=bool), 0.0, fleet.current[:, Field.REPLICAS])
    target[:, Field.REPLICAS] = np.fmax(target[:, Field.REPLICAS], fewest)
    return Said(allowed, target, seen.ooms)


async def _read(
    history: History, reach: Reach, at: tuple[float, Learnt], progress: Callable[[int, int], None]
) -> AsyncIterator[tuple[Usage, bool]]:
    """Yield the history part by part, and whether a part is of the live hours."""
    now, memory = at
    live = min(LIVE_SECONDS, reach.history_seconds)
    older = replace(reach, history_seconds=reach.history_seconds - live)
    first = older.due(now - live, None)
    count = (len(history.parts(first)) if first.bins else 0) + 1
    done = 0
    progress(done, count)
    for is_live, moment, due in ((False, now - live, older), (True, now, replace(reach, history_seconds=live))):
        async for usage in Catchup(history, due).read(moment, memory.marks.get(UNTIL)):
            yield usage, is_live
            done += 1
            progress(done, count)


def _nothing(rows: int) -> Seen:
    loads = tuple(np.zeros((rows, buckets.count), dtype=np.float32) for buckets in _LOADS)
    return Seen(np.zeros((rows, len(Resource))), (loads[0], loads[1]), np.zeros(rows))


def _with(seen: Seen, usage: Usage, fleet: Fleet) -> Seen:
    """Return what was seen, with a part more."""
    row_of = {key: row for row, key in enumerate(fleet.keys)}
    source = np.array([place for place, key in enumerate(usage.keys) if key in row_of], dtype=np.int64)
    target = np.array([row_of[key] for key in usage.keys if key in row_of], dtype=np.int64)
    if not source.size or not usage.window.bins:
        return seen
    peak, ooms = seen.peak.copy(), seen.ooms.copy()
    died = usage.ooms[source] > 0
    for resource, buckets in zip(Resource, _LOADS, strict=True):
        use = usage.peak[resource][source].astype(np.float64)
        if resource is Resource.VRAM:
            use = np.where(died, OOM_GAIN * np.fmax(use, usage.ceiling[resource][source]), use)
        peak[target, resource] = np.fmax(peak[target, resource], np.fmax.reduce(use, axis=1))
        total = np.full((len(fleet), usage.window.bins), np.nan)
        total[target] = usage.total[resource][source]
        add(seen.loads[resource], buckets, total, np.ones_like(total))
    ooms[target] += usage.ooms[source].sum(axis=1)
    return Seen(peak, seen.loads, ooms)


def _settle(memory: Learnt, fleet: Fleet, seen: Seen) -> None:
    """Let the history stand in for the passes that are missing; see the module."""
    for resource, name in ((Resource.COMPUTE, "compute_peaks"), (Resource.VRAM, "vram_peaks")):
        memory[name][:] = np.fmax(memory[name], seen.peak[:, resource][:, None])
    memory["surplus"][:] = 10 * SURPLUS_LEVEL_MINUTES
    memory["exceeded_at"][:] = -np.inf
    memory["saturated"][:] = np.minimum(memory["saturated"], 1.0)
    memory["active_at"][:] = fleet.now
    for place, (weights, buckets) in enumerate(zip(seen.loads, _LOADS, strict=True)):
        (load,) = quantiles(weights, buckets, np.full(len(fleet), LOAD_PERCENTILE))
        memory["load"][:, place] = load


def _allowed(fleet: Fleet, memory: Learnt) -> Allowed:
    guarded = new_guard_memory()
    guarded.align(fleet.keys, fleet.uids)
    return guard(fleet, recommend(fleet, memory), guarded, NO_LIMITS)


def _replicas(fleet: Fleet, memory: Learnt, target: Floats) -> Floats:
    """Return the workers that the load needs once the recommended amounts are in force (W,)."""
    current, amounts = fleet.current.copy(), list(AMOUNT_FIELDS)
    current[:, amounts] = np.where(np.isnan(target[:, amounts]), current[:, amounts], target[:, amounts])
    wanted = _allowed(replace(fleet, current=current), memory).target[:, Field.REPLICAS]
    return np.where(np.isnan(wanted), current[:, Field.REPLICAS], wanted)
