"""A worker's demand against a policy, in a closed loop: what the policy sets decides what it will see; pure.

The policy is shown metered use, min(demand, limit in force), as a real meter would be: demand above its own limit is
hidden from it. What it returns at t is in force from the step that begins at t. Compute above the limit is throttled
and lost. VRAM above the limit is an out-of-memory kill: the worker is away for 300 s, uses nothing and can't die again,
then tries again with the demand of that moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from autoscaler.model.usage import Bools, Floats
from autoscaler.replay.demand import Demand

RESTART_SECONDS: Final = 300.0
Figures = tuple[float, float, float, float]
"""Compute request and limit in TFLOPs, VRAM request and limit in bytes."""


class Judged(Protocol):
    """Whoever decides; `interval` is the time between two questions, in seconds."""

    interval: float

    def reset(self, ctx: Mapping[str, Any]) -> None:
        """Begin: `ctx` has the samples' `step` in seconds, `init`, the Figures in force, and `has_vram`."""
        ...

    def observe(self, t: float, c: float, v: float | None, oom: bool) -> None:
        """Take what the meter saw in [t, t + step): TFLOPs, bytes (None without VRAM), and whether it was killed."""
        ...

    def recommend(self, t: float) -> Figures | None:
        """Return the figures in force from t on, None where they stay."""
        ...


@dataclass
class Held:
    """A policy that never changes anything: what static allocation would have been."""

    interval: float = float("inf")

    def reset(self, ctx: Mapping[str, Any]) -> None:
        """Begin."""

    def observe(self, t: float, c: float, v: float | None, oom: bool) -> None:
        """Take nothing in."""

    def recommend(self, t: float) -> Figures | None:  # noqa: ARG002  the judge's protocol
        """Keep what is set."""
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What happened in T steps.

    `figures` (4, T): the Figures in force. `lost` (T,): compute demand above the limit, TFLOPs. `oom` (T,): killed in
    this step. `down` (T,): restarting after a kill.
    """

    figures: Floats
    lost: Floats
    oom: Bools
    down: Bools


def replay(demand: Demand, policy: Judged, init: Figures) -> Run:
    """Return what would have been had the policy set this worker's figures, beginning with `init`.

    A step of unknown demand is shown to the policy as unknown (NaN): nothing is lost and nobody dies in it.
    """
    steps, step, has_vram = len(demand.compute), demand.step, demand.vram is not None
    compute = demand.compute.tolist()
    vram = demand.vram.tolist() if demand.vram is not None else [float("nan")] * steps
    figures, lost = np.empty((4, steps)), np.zeros(steps)
    oom, down = np.zeros(steps, dtype=np.bool_), np.zeros(steps, dtype=np.bool_)
    every = steps_between(policy, step, steps)
    force, down_until = init, float("-inf")
    policy.reset({"step": step, "init": init, "has_vram": has_vram})
    for place in range(steps):
        at = demand.start + place * step
        if place and place % every == 0:
            force = policy.recommend(at) or force
        figures[:, place] = force
        if at < down_until:
            down[place] = True
            policy.observe(at, 0.0, 0.0 if has_vram else None, False)
            continue
        # In this order min() keeps a NaN: what is not known stays not known.
        used, held = min(compute[place], force[1]), min(vram[place], force[3])
        killed = vram[place] > force[3]
        if killed:
            oom[place], down_until = True, at + RESTART_SECONDS
        lost[place] = compute[place] - used
        policy.observe(at, used, held if has_vram else None, killed)
    return Run(figures, np.nan_to_num(lost), oom, down)


def steps_between(policy: Judged, step: float, most: int) -> int:
    """Return how many steps lie between two questions to a policy, at least one."""
    return max(1, round(min(policy.interval / step, most)))
