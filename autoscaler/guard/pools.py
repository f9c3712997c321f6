"""What each rule leaves free on the devices, and who stands on them; pure arithmetic for the guard `capacity`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from autoscaler.contract.keys import QoS
from autoscaler.guard.bounds import PAIRS
from autoscaler.guard.case import Case
from autoscaler.model.decision import Field
from autoscaler.model.defaults import RANK
from autoscaler.model.resources import Resource
from autoscaler.model.usage import Bools, Floats, Ints

LENDABLE: Final = frozenset({Resource.COMPUTE})
"""Use above a request can be taken back within a tick; what can't, must be known to fit before a figure grows."""


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """What one rule leaves of a resource on each device.

    `free` (D,): used up as growth is granted; NaN is no limit. `base` (W,): the figure up to which a workload takes
    nothing of it. `yields`: whether a request that shrinks leaves more of it.
    """

    free: Floats
    base: Floats
    yields: bool


@dataclass(frozen=True, slots=True, eq=False)
class Rules:
    """The fields of a resource whose growth takes room, the limit first, each with the pools it must fit."""

    resource: Resource
    pools: tuple[tuple[Field, tuple[Pool, ...]], ...]

    @property
    def yielding(self) -> tuple[Floats, ...]:
        """Return what there is more of when a request shrinks, each array once."""
        return tuple({id(pool.free): pool.free for _, pools in self.pools for pool in pools if pool.yields}.values())


@dataclass(frozen=True, slots=True, eq=False)
class Edges:
    """Workers on devices, (E,) each, as rows of workloads and devices; `devices`: how many there are."""

    workload: Ints
    device: Ints
    devices: int

    def summed(self, values: Floats) -> Floats:
        """Return the sum over each device's workers (D,) of what their workloads have (W,)."""
        summed = np.bincount(self.device, weights=values[self.workload], minlength=self.devices)
        return np.asarray(summed, dtype=np.float64)

    def on(self, devices: Bools) -> Ints:
        """Return the rows of the workloads that have a worker on any of these devices (D,)."""
        return np.unique(self.workload[devices[self.device]])

    def of_any(self, rows: Ints) -> Bools:
        """Return the devices of any of these workloads, (D,)."""
        devices = np.zeros(self.devices, dtype=np.bool_)
        devices[self.device[np.isin(self.workload, rows)]] = True
        return devices

    def of(self, rows: Iterable[int]) -> dict[int, tuple[Ints, Ints]]:
        """Return the devices of each of these workloads, and how many workers it has on each."""
        return _grouped(self.workload, self.device, rows)

    def members(self, devices: Iterable[int]) -> dict[int, tuple[Ints, Ints]]:
        """Return the workloads on each of these devices, and how many workers each has there."""
        return _grouped(self.device, self.workload, devices)


def _grouped(by: Ints, what: Ints, wanted: Iterable[int]) -> dict[int, tuple[Ints, Ints]]:
    chosen = np.fromiter(wanted, dtype=np.int64)
    mine = np.isin(by, chosen)
    by, what = by[mine], what[mine]
    order = np.argsort(by, kind="stable")
    starts, ends = (np.searchsorted(by[order], chosen, side=side) for side in ("left", "right"))
    return {
        int(one): np.unique(what[order[start:end]], return_counts=True)
        for one, start, end in zip(chosen, starts, ends, strict=True)
    }


def critical(case: Case) -> Bools:
    """Return the workloads whose head-room is never lent, (W,)."""
    return np.asarray(case.fleet.knobs.rank == RANK[QoS.CRITICAL], dtype=np.bool_)


def rules_of(case: Case, edges: Edges, resource: Resource) -> Rules:
    """Return what growth of a resource has to fit.

    A compute limit is none of them: it only borrows what is idle, and the node takes that back within a tick.
    """
    request, limit = PAIRS[resource]
    current = case.fleet.current
    sums = _free(case, edges, resource, current[:, request])
    promised = Pool(sums, current[:, request], yields=True)
    if resource in LENDABLE:
        return Rules(resource, ((request, (promised,)),))
    top = critical(case)
    never = np.full(len(top), np.inf)
    held = np.where(top, current[:, limit], current[:, request])
    kept = Pool(_free(case, edges, resource, held) - _reserve(case, edges, resource, top), held, yields=True)
    of_request = Pool(kept.free, np.where(top, never, held), yields=True)
    of_limit = Pool(kept.free, np.where(top, held, never), yields=True)
    room = case.fleet.placement.capacity[resource] - _joint(case, edges, resource)
    used = case.memory["use_peaks"][:, resource].max(axis=1)
    request_or_use = np.where(top, never, np.fmax(current[:, request], used))
    of_limit_together = Pool(room, np.fmax(current[:, limit], used), yields=False)
    of_request_together = Pool(room.copy(), request_or_use, yields=False)
    return Rules(
        resource, ((limit, (of_limit, of_limit_together)), (request, (promised, of_request, of_request_together)))
    )


def _free(case: Case, edges: Edges, resource: Resource, held: Floats) -> Floats:
    placement = case.fleet.placement
    return np.asarray(placement.capacity[resource] - placement.foreign[resource] - edges.summed(held), dtype=np.float64)


def _reserve(case: Case, edges: Edges, resource: Resource, top: Bools) -> Floats:
    """Return z x sqrt(sum of (limit - request)^2) per device, of what is wanted; critical's head-room is its own."""
    request, limit = PAIRS[resource]
    burst = np.where(top, 0.0, np.fmax(case.figure[:, limit] - case.figure[:, request], 0.0))
    return np.asarray(case.limits.vram_reserve * np.sqrt(edges.summed(burst**2)), dtype=np.float64)


def _joint(case: Case, edges: Edges, resource: Resource) -> Floats:
    """Return the most that the members of each device used together in the last hours, (D,).

    Those who left count no longer: the sum of the present members' own peaks, and of what is in use besides, is as much
    as it can have been.
    """
    placement = case.fleet.placement
    together = case.memory.devices["use_peaks"][:, resource].max(axis=1)
    own = edges.summed(case.memory["use_peaks"][:, resource].max(axis=1))
    besides = np.fmax(placement.used[resource] - edges.summed(np.nan_to_num(case.fleet.live[:, resource])), 0.0)
    return np.asarray(np.fmin(together, own + besides), dtype=np.float64)
