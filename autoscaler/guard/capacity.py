"""Guards on what there is: figures grow only into what the devices have, and not everything moves at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoscaler.guard.bounds import PAIRS, at_most
from autoscaler.guard.case import Case
from autoscaler.guard.giving import Givers, givers_of
from autoscaler.guard.pools import Edges, Pool, Rules, critical, rules_of
from autoscaler.model.decision import Field
from autoscaler.model.reasons import Verdict
from autoscaler.model.resources import Resource
from autoscaler.model.usage import Bools, Floats, Ints

TAKING = {Resource.COMPUTE: [Field.COMPUTE_REQUEST], Resource.VRAM: [Field.VRAM_REQUEST, Field.VRAM_LIMIT]}
"""Fields whose growth takes room."""


def capacity(case: Case) -> Case:
    """What is promised on a device never passes it: growth shares what is free, and what lower service levels give.

    On each device, per worker that a workload has there:
    1. Requests sum up to no more than the device (both resources), the requests of others on it included.
    2. VRAM: a reserve of z x sqrt(sum of (limit - request)^2) stays free, because VRAM that is lent can't be recalled;
       a critical workload counts with its limit and adds nothing to the reserve: its head-room is its own, never lent.
    3. VRAM: the most that all members used together in the last hours, and the growth beyond the grower's own use, fit
       the device (joint check); of requests and of limits.
    Higher levels come first, in a level a shortage. Where they are still short lower levels give (see `giving`), in the
    same decision: nodes shrink first and grow once that is acknowledged. The requests that shrink on such a device by
    themselves count, too, and from then on no guard may hold them. No more ask than may move in one pass.
    """
    edges: Edges | None = None
    placement = case.fleet.placement
    if not placement.device.size:
        return case
    for resource, taking in TAKING.items():
        if not case.up[:, taking].any():
            continue
        edges = edges or Edges(placement.workload, placement.device, placement.capacity.shape[1])
        case = _shared(case, edges, resource)
    return case


def _shared(case: Case, edges: Edges, resource: Resource) -> Case:
    rules = rules_of(case, edges, resource)
    short = _settle_those_that_fit(case, edges, rules)
    if not short.any():
        return case
    request = PAIRS[resource][0]
    rows = np.flatnonzero(short.any(axis=1))
    tight = edges.of_any(rows)
    case = _count_shrinks(case, edges, tight, rules)
    givers = givers_of(case, edges, tight, rules)
    sharing = Sharing(case, givers, edges.of(rows))
    figure = case.figure.copy()
    calm = ~np.logical_or(*(case.wanted.urgent[rows, field] for field in PAIRS[resource]))
    ranks = case.fleet.knobs.rank[rows]
    for asked, place in enumerate(np.lexsort((rows, calm, -ranks))):
        row, rank = int(rows[place]), int(ranks[place]) if asked < case.limits.changes_per_pass else 0
        for field, pools in rules.pools:
            if short[row, field]:
                most = figure[row, field + 1] if field is request else np.inf
                figure[row, field] = sharing.grant((row, rank), field, pools, min(figure[row, field], most))
    given = givers.figure < case.figure[:, request]
    case = case.move(figure, Verdict.CAPACITY_LIMITED)
    return _given(case, givers, request, given) if given.any() else case


def _settle_those_that_fit(case: Case, edges: Edges, rules: Rules) -> Bools:
    """Grant growth where all that is wanted on a device fits it; return which figures (W, 5) are left to share out."""
    growth = [
        (field, pool.free, np.where(case.up[:, field], np.fmax(case.figure[:, field] - pool.base, 0.0), 0.0))
        for field, pools in rules.pools
        for pool in pools
    ]
    demand: dict[int, Floats] = {}
    for _, free, wanted in growth:
        demand[id(free)] = demand.get(id(free), 0.0) + edges.summed(wanted)
    lacks = np.zeros(edges.devices, dtype=np.bool_)
    for _, free, _ in growth:
        lacks |= (demand[id(free)] > free) & (demand[id(free)] > 0)
    short = np.zeros(case.figure.shape, dtype=np.bool_)
    if lacks.any():
        for field, _ in rules.pools:
            short[edges.on(lacks), field] = True
        short &= case.up
        for field, free, wanted in growth:
            np.subtract(free, edges.summed(np.where(short[:, field], 0.0, wanted)), out=free)
    return short


def _count_shrinks(case: Case, edges: Edges, tight: Bools, rules: Rules) -> Case:
    """Add to what is free what shrinks by itself on tight devices (D,), and let nobody hold that any more."""
    request = PAIRS[rules.resource][0]
    shrinks = case.down[:, request] & ~critical(case)
    if not shrinks.any():
        return case
    pinned = np.zeros(case.figure.shape, dtype=np.bool_)
    pinned[edges.on(tight), request] = True
    pinned[:, request] &= shrinks
    freed = edges.summed(np.where(pinned[:, request], case.fleet.current[:, request] - case.figure[:, request], 0.0))
    for free in rules.yielding:
        np.add(free, freed, out=free)
    return case.pin(case.figure, pinned)


@dataclass(frozen=True, slots=True, eq=False)
class Sharing:
    """Grants growth one workload after the other; `places`: their devices, and how many workers they have there."""

    case: Case
    givers: Givers
    places: dict[int, tuple[Ints, Ints]]

    def grant(self, who: tuple[int, int], field: Field, pools: tuple[Pool, ...], wanted: float) -> float:
        """Return the figure that a workload grows to, after lower levels gave what is missing; use up what it takes.

        `who`: its row, and the level below which others are asked. What is left after rounding and inside the
        dead band is not worth a change.
        """
        row, rank = who
        current = float(self.case.fleet.current[row, field])
        pools = tuple(pool for pool in pools if pool.base[row] < wanted)  # of the others it takes nothing
        figure = min([wanted, *(self._reach(row, rank, pool) for pool in pools)])
        if figure < wanted:
            figure = at_most(figure, self.givers.resource)
            if figure <= (1 + self.case.fleet.knobs.dead_band[row, field]) * current:
                return current
        devices, workers = self.places[row]
        for pool in pools:
            growth = max(0.0, figure - pool.base[row])
            for device, count in zip(devices, workers, strict=True) if pool.yields and growth else ():
                self.givers.give(int(device), rank, float(growth * count - pool.free[device]))
        for pool in pools:
            pool.free[devices] -= max(0.0, figure - pool.base[row]) * workers
        return figure

    def _reach(self, row: int, rank: int, pool: Pool) -> float:
        """Return how far a workload could grow on all its devices, with all that lower levels can give."""
        devices, workers = self.places[row]
        could = pool.free[devices]
        if pool.yields:
            could = could + np.array([self.givers.potential(int(device), rank) for device in devices])
        room = np.maximum(could, 0.0) / workers
        return float(pool.base[row] + (np.inf if np.isnan(room).all() else np.nanmin(room)))


def _given(case: Case, givers: Givers, request: Field, given: Bools) -> Case:
    """Put what lower levels gave into force with the growth that it is for."""
    figure = case.figure.copy()
    figure[:, request] = np.where(given, givers.figure, figure[:, request])
    where = np.zeros(figure.shape, dtype=np.bool_)
    where[:, request] = given
    amount = np.where(given, case.fleet.current[:, request] - givers.figure, np.nan)
    return case.pin(figure, where, Verdict.GAVE_TO_HIGHER_QOS).noting(request, given=amount)


def rate(case: Case) -> Case:
    """At most so many workloads move per pass, shortage first: a restart with a thousand off target spreads out.

    A shortage doesn't wait, nor what shrinks to make room for a growth of this pass.
    """
    applied: Bools = np.asarray(case.figure != case.fleet.current, dtype=np.bool_)
    moving: Bools = np.asarray(applied.any(axis=1), dtype=np.bool_)
    if moving.sum() <= case.limits.changes_per_pass:
        return case
    urgent = (case.wanted.urgent & applied).any(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        size: Floats = np.nan_to_num(np.abs(case.figure / case.fleet.current - 1), posinf=1.0).max(axis=1)
    queue = np.lexsort((-size, ~urgent, ~moving))
    waits = moving.copy()
    waits[queue[: case.limits.changes_per_pass]] = False
    waits &= ~urgent
    return case.hold(waits[:, None], Verdict.RATE_LIMITED)
