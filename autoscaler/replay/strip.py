"""Runs as pictures need them: a few hundred columns of time, in which no peak is lost; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from autoscaler.model.usage import Bools, Floats, Ints
from autoscaler.replay.demand import Demand
from autoscaler.replay.loop import Run

MOST_COLUMNS: Final = 360
FLEET_COLUMNS: Final = 240


@dataclass(frozen=True, slots=True, eq=False)
class DemandStrip:
    """A demand in P columns: mean and largest of the known steps, (2, P) by Resource; NaN where none is known."""

    start: float
    column_seconds: float
    mean: Floats
    most: Floats
    censored: Bools


@dataclass(frozen=True, slots=True, eq=False)
class RunStrip:
    """A run in the same columns: least and largest figure in force (4, P), lost share of the demand, kills (P,)."""

    least: Floats
    most: Floats
    lost_share: Floats
    ooms: Ints


@dataclass(frozen=True, slots=True)
class Span:
    """The time that all demands together cover, in FLEET_COLUMNS columns."""

    start: float
    end: float

    @property
    def column_seconds(self) -> float:
        """Return the width of a column."""
        return (self.end - self.start) / FLEET_COLUMNS


def demand_strip(demand: Demand) -> DemandStrip:
    """Return a demand in at most MOST_COLUMNS columns of whole steps."""
    firsts, width = _firsts(len(demand.compute))
    vram = np.full(len(demand.compute), np.nan) if demand.vram is None else demand.vram
    both = np.stack([demand.compute, vram])
    known = ~np.isnan(both)
    count = np.add.reduceat(known, firsts, axis=1, dtype=float)
    sums = np.add.reduceat(np.where(known, both, 0.0), firsts, axis=1)
    mean = np.full(count.shape, np.nan)
    np.divide(sums, count, out=mean, where=count > 0)
    censored = np.logical_or.reduceat(demand.censored, firsts, axis=1)
    return DemandStrip(
        demand.start, width * demand.step, mean, np.fmax.reduceat(both, firsts, axis=1), censored.astype(np.bool_)
    )


def run_strip(demand: Demand, run: Run) -> RunStrip:
    """Return a run in the columns of its demand."""
    firsts, _ = _firsts(len(demand.compute))
    lost = np.add.reduceat(run.lost, firsts)
    wanted = np.add.reduceat(np.nan_to_num(demand.compute), firsts)
    share = np.zeros(len(firsts))
    np.divide(lost, wanted, out=share, where=wanted > 0)
    return RunStrip(
        least=np.minimum.reduceat(run.figures, firsts, axis=1),
        most=np.maximum.reduceat(run.figures, firsts, axis=1),
        lost_share=share,
        ooms=np.add.reduceat(run.oom, firsts, dtype=np.int64),
    )


def over_time(demand: Demand, values: Floats, span: Span) -> Floats:
    """Return values (N, T) of one worker, times the workers, averaged over a span's columns; absent counts as 0."""
    at = demand.start + demand.step * np.arange(len(demand.compute))
    column = np.clip(((at - span.start) / span.column_seconds).astype(np.int64), 0, FLEET_COLUMNS - 1)
    held = np.nan_to_num(values * demand.workers) * (demand.step / span.column_seconds)
    return np.stack([np.bincount(column, weights=row, minlength=FLEET_COLUMNS) for row in held])


def _firsts(steps: int) -> tuple[Ints, int]:
    """Return the first step of each column, and a column's width in steps."""
    width = -(-steps // MOST_COLUMNS)
    return np.arange(0, steps, width), width
