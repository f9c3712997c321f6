"""Guards on what there is: a request grows only into free device capacity, and not everything moves at once."""

from __future__ import annotations

import numpy as np

from autoscaler.guard.case import Case
from autoscaler.model.decision import Field
from autoscaler.model.reasons import Verdict
from autoscaler.model.usage import Bools, Floats, Ints

REQUESTS = (Field.COMPUTE_REQUEST, Field.VRAM_REQUEST)


def capacity(case: Case) -> Case:
    """Requests on a device never sum up past it: growth shares what is free now, higher service levels first.

    What others give in the same pass is free in the next one, once their nodes have acknowledged it.
    """
    figure = case.figure.copy()
    for resource, field in enumerate(REQUESTS):
        figure[:, field] = _share_free(case, resource, field)
    return case.move(figure, Verdict.CAPACITY_LIMITED)


def _share_free(case: Case, resource: int, field: Field) -> Floats:
    placement, figure = case.fleet.placement, case.figure[:, field].copy()
    current = case.fleet.current[:, field]
    free = placement.capacity[resource] - placement.requested[resource]
    growers: Ints = np.flatnonzero(case.up[:, field]).astype(np.int64)
    if not growers.size:
        return figure
    starts, ends, devices = _edges_by_workload(case, growers)
    importance = np.lexsort((growers, -case.fleet.knobs.rank[growers]))
    for position in importance:
        row, mine = growers[position], devices[starts[position] : ends[position]]
        if not mine.size:
            continue
        unique, workers = np.unique(mine, return_counts=True)
        room = np.nanmin(np.append(np.maximum(free[unique], 0.0) / workers, np.inf))
        growth = min(figure[row] - current[row], room)
        figure[row] = current[row] + growth
        free[unique] -= growth * workers
    return figure


def _edges_by_workload(case: Case, rows: Ints) -> tuple[Ints, Ints, Ints]:
    """Return start and end of each row's devices in a list of devices sorted by workload."""
    placement = case.fleet.placement
    by_workload = np.argsort(placement.workload, kind="stable")
    sorted_rows = placement.workload[by_workload]
    starts = np.searchsorted(sorted_rows, rows, side="left")
    ends = np.searchsorted(sorted_rows, rows, side="right")
    return starts, ends, placement.device[by_workload]


def rate(case: Case) -> Case:
    """At most so many workloads move per pass, shortage first: a restart with a thousand off target spreads out."""
    applied = case.figure != case.fleet.current
    moving: Bools = np.asarray(applied.any(axis=1), dtype=np.bool_)
    if moving.sum() <= case.limits.changes_per_pass:
        return case
    urgent = (case.wanted.urgent & applied).any(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.nan_to_num(np.abs(case.figure / case.fleet.current - 1), posinf=1.0).max(axis=1)
    queue = np.lexsort((-size, ~urgent, ~moving))
    waits = moving.copy()
    waits[queue[: case.limits.changes_per_pass]] = False
    return case.hold(waits[:, None] & ~urgent[:, None], Verdict.RATE_LIMITED)
