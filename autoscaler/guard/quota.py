"""The guard on what a namespace may have together: its GPUResourceQuota, where one is installed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from autoscaler.guard.bounds import PAIRS, at_most
from autoscaler.guard.case import Case
from autoscaler.model.decision import AMOUNT_FIELDS, Field
from autoscaler.model.reasons import Verdict
from autoscaler.model.resource_quota import Quotas
from autoscaler.model.usage import Bools, Floats

COUNT: Final = Field.REPLICAS
LIMITS_FIRST: Final = tuple(field for pair in PAIRS for field in reversed(pair))
"""A request is cut to its limit, so that is known first."""


def quota(case: Case) -> Case:
    """Growth takes no more than its namespace's resource quota has left, higher levels first; shrinking always may.

    `total`: sums of requests and of limits over all workers and devices. What is used is what the fleet's workloads
    hold now, or what the quota's own status counts where that is more; growth adds (figure - current) x gpu-count x
    replicas of an amount, and all four amounts x gpu-count of every new worker, of whom there are at most `maxWorkers`.
    `single`: no request or limit of one worker grows over its maximum. What shrinks in this pass is free in the next.
    Before `capacity`, so that nobody gives for growth that the quota refuses.
    """
    quotas = case.fleet.quotas
    if quotas is None or not (case.up & (quotas.row >= 0)[:, None]).any():
        return case
    single = np.where((quotas.row >= 0)[:, None], quotas.single[quotas.row], np.inf)
    figure = np.where(case.up, np.fmin(case.figure, np.fmax(single, case.fleet.current)), case.figure)
    left = _left(case, quotas)
    short = _short(case, quotas, figure, left)
    rows = np.flatnonzero(short)
    account = Account(case, quotas, left.copy())
    for row in rows[np.lexsort((rows, -case.fleet.knobs.rank[rows]))]:
        account.cut(int(row), figure)
    for request, limit in PAIRS:
        capped = case.up[:, request] & (figure[:, request] > figure[:, limit])
        figure[:, request] = np.where(capped, figure[:, limit], figure[:, request])
    for field in Field:
        cut = figure[:, field] < case.figure[:, field]
        if cut.any():
            case = case.noting(field, quota_left=np.where(cut, np.fmax(left[quotas.row, field], 0.0), np.nan))
    return case.move(figure, Verdict.QUOTA_LIMITED)


def _left(case: Case, quotas: Quotas) -> Floats:
    """Return what each namespace has left, (N, 5)."""
    held = _held(case, case.fleet.current)
    inside = quotas.row >= 0
    used = np.zeros(quotas.total.shape)
    np.add.at(used, quotas.row[inside], np.nan_to_num(held[inside]))
    return quotas.total - np.fmax(used, quotas.used)


def _held(case: Case, figure: Floats) -> Floats:
    """Return what workloads with these figures (W, 5) hold together over workers and devices, and their workers."""
    workers = figure[:, [COUNT]]
    together = figure * workers * case.fleet.gpu_count[:, None]
    together[:, [COUNT]] = workers
    return np.asarray(together, dtype=np.float64)


def _short(case: Case, quotas: Quotas, figure: Floats, left: Floats) -> Bools:
    """Return the workloads that grow in a namespace in which not all growth fits, (W,)."""
    grown = np.fmax(figure, case.fleet.current)
    growth = np.fmax(np.nan_to_num(_held(case, grown) - _held(case, case.fleet.current)), 0.0)
    inside = quotas.row >= 0
    demand = np.zeros(left.shape)
    np.add.at(demand, quotas.row[inside], growth[inside])
    lacks = np.asarray(((demand > left) & (demand > 0)).any(axis=1), dtype=np.bool_)
    return np.asarray(inside & lacks[quotas.row] & (growth > 0).any(axis=1), dtype=np.bool_)


@dataclass(frozen=True, slots=True, eq=False)
class Account:
    """What is left of the quotas (N, 5), used up workload by workload."""

    case: Case
    quotas: Quotas
    left: Floats

    def cut(self, row: int, figure: Floats) -> None:
        """Cut a workload's growth to what is left, amounts before workers, and book it."""
        left, current = self.left[self.quotas.row[row]], self.case.fleet.current[row]
        gpus, workers = float(self.case.fleet.gpu_count[row]), float(current[COUNT])
        for field in LIMITS_FIRST:
            wanted, held = figure[row, field], current[field]
            if wanted > held and workers > 0:
                most = held + max(0.0, left[field]) / (gpus * workers)
                assert field.resource is not None
                figure[row, field] = wanted if most >= wanted else max(held, at_most(most, field.resource))
                left[field] -= (figure[row, field] - held) * gpus * workers
        added = figure[row, COUNT] - workers
        if added > 0:
            each = [figure[row, field] * gpus for field in AMOUNT_FIELDS]
            fits = [
                max(0.0, left[field]) // one
                for field, one in zip(AMOUNT_FIELDS, each, strict=True)
                if one > 0 and np.isfinite(left[field])
            ]
            added = max(0.0, min(added, left[COUNT], *fits))
            figure[row, COUNT] = workers + added
            left[COUNT] -= added
            for field, one in zip(AMOUNT_FIELDS, each, strict=True):
                left[field] -= one * added
