"""The guard on where another worker would go: replicas grow by as many as the cluster's GPUs have room for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from autoscaler.guard.bounds import PAIRS
from autoscaler.guard.case import Case
from autoscaler.model.decision import Field
from autoscaler.model.gpu_models import canonical
from autoscaler.model.reasons import Verdict
from autoscaler.model.resources import Resource
from autoscaler.model.usage import Bools, Floats, Ints

COUNT: Final = Field.REPLICAS
_SLACK: Final = 1e-9


def room(case: Case) -> Case:
    """Another worker needs gpu-count devices of one node, of its gpu-model and gpupool, that have its requests free.

    Free is what others' requests leave, those that grow in this pass included; higher levels come first. Only where all
    GPUs of the cluster are known: what is not known may have room.
    """
    rows = np.flatnonzero(case.up[:, COUNT])
    placement = case.fleet.placement
    if not rows.size or not placement.sites.is_whole or not case.limits.needs_room:
        return case
    space = Space(case, _free(case))
    figure, fits = case.figure.copy(), np.full(len(case.fleet), np.nan)
    for row in map(int, rows[np.lexsort((rows, -case.fleet.knobs.rank[rows]))]):
        wanted = int(figure[row, COUNT] - case.fleet.current[row, COUNT])
        fits[row] = space.take(row, wanted)
        figure[row, COUNT] = case.fleet.current[row, COUNT] + min(wanted, fits[row])
    cut = figure[:, COUNT] < case.figure[:, COUNT]
    return case.move(figure, Verdict.CAPACITY_LIMITED).noting(COUNT, room_workers=np.where(cut, fits, np.nan))


def _free(case: Case) -> Floats:
    """Return what requests leave on each device (2, D); inf of what is not known."""
    placement = case.fleet.placement
    known = np.where(np.isnan(placement.capacity), np.inf, placement.capacity)
    free = known - placement.foreign
    for resource, (request, _) in enumerate(PAIRS):
        held = np.fmax(case.figure[:, request], case.fleet.current[:, request])
        np.subtract.at(free[resource], placement.device, np.nan_to_num(held[placement.workload]))
    return np.asarray(free, dtype=np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """What is free on each device (2, D), used up worker by worker."""

    case: Case
    free: Floats

    def take(self, row: int, wanted: int) -> int:
        """Return how many workers more, of at most `wanted`, find a place, and take it."""
        config = self.case.fleet.laid.configs[row]
        need = np.array([self.case.figure[row, request] for request, _ in PAIRS])
        eligible = self._eligible(config.gpu_model, config.pool)
        taken = 0
        for node in np.unique(self.case.fleet.placement.sites.node[eligible]):
            devices = np.flatnonzero(eligible & (self.case.fleet.placement.sites.node == node))
            while taken < wanted and self._place(devices, need, config.gpu_count):
                taken += 1
        return taken

    def _place(self, devices: Ints, need: Floats, gpus: int) -> bool:
        """Put one worker on the emptiest of a node's devices, where they have room for it."""
        fits = devices[(self.free[:, devices] >= need[:, None] * (1 - _SLACK)).all(axis=0)]
        if len(fits) < gpus:
            return False
        chosen = fits[np.argsort(-self.free[Resource.VRAM, fits], kind="stable")[:gpus]]
        self.free[:, chosen] -= need[:, None]
        return True

    def _eligible(self, model: str, pool: str) -> Bools:
        """Return the devices that a worker may be put on, (D,); a pool counts where any device tells its own."""
        sites = self.case.fleet.placement.sites
        eligible = sites.usable.copy()
        if model:
            eligible &= np.array([one == canonical(model) for one in sites.models], dtype=np.bool_)
        if pool and any(sites.pools):
            eligible &= np.array([one == pool for one in sites.pools], dtype=np.bool_)
        return eligible
