"""What a run comes to, in figures that add up over workloads; pure.

Everything is counted after the warm-up, in which a policy may learn, and only where the demand is known. Amounts are
per worker, times the workers that hold them, times the step: TFLOP-hours and GiB-hours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import reduce
from operator import add
from typing import Final, Self

import numpy as np

from autoscaler.model.resources import GIB
from autoscaler.model.usage import Floats
from autoscaler.replay.demand import Demand
from autoscaler.replay.loop import Run

HOUR: Final = 3600.0
DAY: Final = 86400.0
VISIBLE_CHANGE_RATIO: Final = 1e-3
"""A figure that moves by less has not changed."""
Device = tuple[float, float]
"""What one GPU has: TFLOPs and bytes."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Anything whose fields add up."""

    def __add__(self, other: Self) -> Self:
        """Return the field-wise sum."""
        return type(self)(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


@dataclass(frozen=True, slots=True)
class ResourceSums(Sums):
    """One resource. Amounts in TFLOP-hours or GiB-hours; `hours`, `short_hours` in workload-hours.

    `hours`: in which the demand is known. `demand`: what would have been used. `request`, `limit`: what was held.
    `unused`: the part of the request above the demand. `short_hours`: with a demand above the request.
    `lost`: demand above the limit that was throttled away (compute only).
    """

    hours: float = 0.0
    demand: float = 0.0
    request: float = 0.0
    limit: float = 0.0
    unused: float = 0.0
    short_hours: float = 0.0
    lost: float = 0.0

    @property
    def slack_share(self) -> float:
        """Return unused / request: the part of what was reserved that nobody needed."""
        return _ratio(self.unused, self.request)

    @property
    def under_share(self) -> float:
        """Return the share of the time in which the demand was above the request, so that it lived on burst room."""
        return _ratio(self.short_hours, self.hours)

    @property
    def throttled_share(self) -> float:
        """Return lost / demand: the part of the demand that the limit did not let through."""
        return _ratio(self.lost, self.demand)


@dataclass(frozen=True, slots=True)
class Measures(Sums):
    """One run, or several together.

    `hours`: workload-hours in which anything is known. `ooms`: out-of-memory kills. `down_hours`: restarting.
    `changes`: moments at which a request, of compute or of VRAM, moved by more than 0.1 %. `limit_changes`: the same of
    a limit in force (the agent's VRAM gate moves it too). `gpus`: the mean over time of the larger of the two shares
    of a GPU that the requests are, times the workers: GPU-equivalents, without regard to how they pack.
    """

    compute: ResourceSums = ResourceSums()
    vram: ResourceSums = ResourceSums()
    hours: float = 0.0
    ooms: int = 0
    down_hours: float = 0.0
    changes: int = 0
    limit_changes: int = 0
    gpus: float = 0.0

    @property
    def ooms_per_1000_hours(self) -> float:
        """Return out-of-memory kills per 1,000 hours of a workload."""
        return 1000.0 * _ratio(self.ooms, self.hours)

    @property
    def down_share(self) -> float:
        """Return the share of the time spent restarting after a kill."""
        return _ratio(self.down_hours, self.hours)

    @property
    def changes_per_day(self) -> float:
        """Return changes of requests per workload and day."""
        return DAY / HOUR * _ratio(self.changes, self.hours)

    @property
    def limit_changes_per_day(self) -> float:
        """Return changes of limits per workload and day."""
        return DAY / HOUR * _ratio(self.limit_changes, self.hours)


def saved_share(base: float, now: float) -> float:
    """Return what is saved against a base, as a share of it; NaN where there is no base."""
    return 1.0 - now / base if base > 0 else math.nan


def total(measures: Iterable[Measures]) -> Measures:
    """Return several workloads' measures as one."""
    return reduce(add, measures, Measures())


def warm_up_seconds(demand: Demand) -> float:
    """Return how long a policy may learn before it is counted: 24 h of more than three days, else a sixth."""
    length = demand.end - demand.start
    return DAY if length > 3 * DAY else length / 6.0


def measured(demand: Demand, run: Run, device: Device, warm_up: float) -> Measures:
    """Return what a run comes to; `device` is the GPU that GPU-equivalents are counted in, `warm_up` in seconds."""
    first = min(int(warm_up / demand.step), max(len(demand.compute) - 1, 0))
    counted = slice(first, None)
    hours = demand.step / HOUR
    figures, workers = run.figures[:, counted], demand.workers[counted]
    compute = demand.compute[counted]
    vram = np.full(len(compute), np.nan) if demand.vram is None else demand.vram[counted]
    known = ~(np.isnan(compute) & np.isnan(vram))
    shares = figures[0] / device[0]
    if demand.vram is not None:
        shares = np.maximum(shares, figures[2] / device[1])
    return Measures(
        compute=_resource(compute, figures[:2], workers * hours, hours, run.lost[counted]),
        vram=_resource(vram / GIB, figures[2:] / GIB, workers * hours, hours, np.zeros(len(vram))),
        hours=float(known.sum() * hours),
        ooms=int(run.oom[counted].sum()),
        down_hours=float(run.down[counted].sum() * hours),
        changes=_changes(figures[[0, 2]] if demand.vram is not None else figures[:1]),
        limit_changes=_changes(figures[[1, 3]] if demand.vram is not None else figures[1:2]),
        gpus=float((shares * workers)[known].mean()) if known.any() else 0.0,
    )


def _resource(demand: Floats, held: Floats, weight: Floats, hours: float, lost: Floats) -> ResourceSums:
    """Return one resource's sums: demand (T,), held (2, T) request and limit, weight (T,) worker-hours of a step."""
    known = ~np.isnan(demand)
    demand, (request, limit), weight, lost = demand[known], held[:, known], weight[known], lost[known]
    return ResourceSums(
        hours=float(known.sum() * hours),
        demand=float(demand @ weight),
        request=float(request @ weight),
        limit=float(limit @ weight),
        unused=float(np.maximum(request - demand, 0.0) @ weight),
        short_hours=float((demand > request * (1 + 1e-6)).sum() * hours),
        lost=float(lost @ weight),
    )


def _changes(figures: Floats) -> int:
    """Return at how many steps any of these figures (N, T) moved visibly."""
    before, after = figures[:, :-1], figures[:, 1:]
    moved = np.abs(after - before) > VISIBLE_CHANGE_RATIO * np.maximum(np.maximum(before, after), 1e-9)
    return int(moved.any(axis=0).sum())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def as_data(measures: Measures) -> dict[str, float | int]:
    """Return every figure under its public name, with its unit in the name."""
    both = {
        f"{name}_{figure}": value
        for name, unit, sums in (("compute", "tflop_hours", measures.compute), ("vram", "gib_hours", measures.vram))
        for figure, value in (
            (f"demand_{unit}", sums.demand),
            (f"request_{unit}", sums.request),
            (f"limit_{unit}", sums.limit),
            ("slack_ratio", sums.slack_share),
            ("under_ratio", sums.under_share),
        )
    }
    return {
        "hours": measures.hours,
        **both,
        "compute_throttled_ratio": measures.compute.throttled_share,
        "ooms": measures.ooms,
        "ooms_per_1000_hours": measures.ooms_per_1000_hours,
        "down_ratio": measures.down_share,
        "changes_per_day": measures.changes_per_day,
        "limit_changes_per_day": measures.limit_changes_per_day,
        "gpu_equivalents": measures.gpus,
    }
