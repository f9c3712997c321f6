"""The workload whose demand steps to three times its limit: when it stepped, and when the limit in force covered it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from autoscaler.demo.processes import Truth
from autoscaler.model.snapshot import NodeState

PROMISED_PERIODS: Final = 3


@dataclass(frozen=True, slots=True)
class Surge:
    """What is known so far; times in seconds since the start, amounts in TFLOPs, None: not yet.

    `limit_before_tflops` was in force when demand stepped, `limit_tflops` is what covered `demand_tflops`, the mean
    demand in the minute before, as the simulation knows it.
    """

    workload: str
    owner_limit_tflops: float
    stepped_at_seconds: float
    evaluation_period_seconds: float
    limit_before_tflops: float | None = None
    demand_tflops: float | None = None
    limit_tflops: float | None = None
    covered_at_seconds: float | None = None

    @property
    def periods(self) -> int | None:
        """Return after how many evaluation periods the demand was covered."""
        if self.covered_at_seconds is None:
            return None
        return math.ceil((self.covered_at_seconds - self.stepped_at_seconds) / self.evaluation_period_seconds)

    @property
    def recovered(self) -> bool:
        """Return whether the demand was covered as soon as promised."""
        return self.periods is not None and self.periods <= PROMISED_PERIODS

    def sentence(self) -> str:
        """Return what happened."""
        step = f"{self.workload}: demand stepped past its limit at {_clock(self.stepped_at_seconds)}"
        if self.periods is None:
            return f"{step} and was never covered"
        return (
            f"{step} to {self.demand_tflops:.3g} TFLOPs, {self.demand_ratio:.2g} times the {self.limit_before_tflops:g}"
            f" in force; after {self.periods} evaluation periods of {self.evaluation_period_seconds:g} s"
            f" {self.limit_tflops:g} TFLOPs were in force"
        )

    @property
    def demand_ratio(self) -> float:
        """Return the demand in multiples of the limit that was in force when it came; NaN while not known."""
        if self.demand_tflops is None or not self.limit_before_tflops:
            return math.nan
        return self.demand_tflops / self.limit_before_tflops

    def seen(self, at_seconds: float, demand_tflops: float, limit_tflops: float) -> Surge:
        """Return what is known after one more minute: its mean demand, and the limit in force now."""
        if at_seconds <= self.stepped_at_seconds:
            return replace(self, limit_before_tflops=limit_tflops)
        if self.covered_at_seconds is not None:
            return self
        known = replace(self, demand_tflops=demand_tflops, limit_tflops=limit_tflops)
        return replace(known, covered_at_seconds=at_seconds) if limit_tflops >= demand_tflops else known


def demand_tflops(workload: str, before: Iterable[Truth], after: Iterable[Truth]) -> float:
    """Return a workload's mean demand between two truths; NaN when no time has passed."""
    wanted, seconds = (
        sum(
            getattr(one, name) * sign
            for sign, many in ((1, after), (-1, before))
            for one in many
            if one.workload == workload
        )
        for name in ("demand_tflops_seconds", "seconds")
    )
    return wanted / seconds if seconds else math.nan


def limit_in_force_tflops(workload: str, nodes: Mapping[str, NodeState]) -> float:
    """Return the smallest compute limit that the nodes observe on a workload's workers; NaN when none tells."""
    seen = (
        device.observed.tflops_limit
        for state in nodes.values()
        for worker in (state.quotas.workers if state.quotas is not None else ())
        if worker.workload == workload
        for device in worker.devices
    )
    return min((limit for limit in seen if limit is not None), default=math.nan)


def _clock(seconds: float) -> str:
    return f"{int(seconds // 3600):02d}:{int(seconds % 3600 // 60):02d}"
