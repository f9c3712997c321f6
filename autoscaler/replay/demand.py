"""What workers would have used had nothing held them back: the input of every replay; pure.

Neighbours: `trace` reads it from files, `recorded` from Prometheus' history.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from autoscaler.model.resources import SPECS, Resource
from autoscaler.model.usage import Bools, Floats, WorkloadKey


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """The demand of one worker of a workload in T steps; NaN is unknown.

    `start`: when the first step begins, in seconds (since the epoch, or of the trace's own clock). `step`: seconds.
    `compute` (T,): mean TFLOPs. `vram` (T,): peak bytes; None where the workload has no VRAM figures at all.
    `workers` (T,): how many workers hold the same figures. `censored` (2, T): by Resource, where the demand is only
    estimated, because the recorded use was clipped.
    """

    key: WorkloadKey
    start: float
    step: float
    compute: Floats
    vram: Floats | None
    workers: Floats
    censored: Bools

    @property
    def end(self) -> float:
        """Return when the last step ends."""
        return self.start + len(self.compute) * self.step

    @property
    def censored_hours(self) -> float:
        """Return the hours in which the demand of either resource is only estimated."""
        return float(self.censored.any(axis=0).sum() * self.step / 3600.0)

    def most(self, resource: Resource) -> float:
        """Return the largest known demand of a resource, at least the smallest figure ever written for it."""
        values = self.compute if resource is Resource.COMPUTE else self.vram
        known = np.zeros(1) if values is None else values[~np.isnan(values)]
        return max(float(known.max(initial=0.0)), SPECS[resource].floor)


@dataclass(frozen=True, slots=True)
class Demands:
    """What a source holds; `notes` are sentences about what was done to it on the way in."""

    demands: tuple[Demand, ...]
    source: str
    notes: tuple[str, ...] = ()


Progress = Callable[[int, int], None]
"""Told how much is done of how much."""
Telling = Callable[[str], Progress]
"""Begins to show a piece of work."""


def key_of(text: str) -> WorkloadKey:
    """Return the key in `namespace/name`; without a namespace it is `default`."""
    namespace, slash, name = text.partition("/")
    return WorkloadKey(namespace, name) if slash else WorkloadKey("default", text)


def steady(key: WorkloadKey, start: float, step: float, compute: Floats, vram: Floats | None) -> Demand:
    """Return the demand of one worker of which every known step was seen as it was."""
    if vram is not None and np.isnan(vram).all():
        vram = None
    censored = np.zeros((len(Resource), len(compute)), dtype=np.bool_)
    return Demand(key, start, step, compute, vram, np.ones(len(compute)), censored)
