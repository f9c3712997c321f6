"""Policy objects: one worker's samples in, the product's own figures out, sample by sample.

`low`, `medium`, `high` and `critical` make one of that service level with prediction on, `…_reactive` without it. What
runs is `learn`, `watch`, `recommend` and `guard` over a fleet of one, and the VRAM gate of a node. A sample that can't
move anything urgent is only kept; the bins are learnt together when the layers are next evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, Final

import numpy as np

from autoscaler.contract.gate import NEAR_RATIO, UNGATED, Gate
from autoscaler.contract.keys import QoS
from autoscaler.guard import Limits, at_rest, guard, note
from autoscaler.guard import new_memory as new_guard_memory
from autoscaler.model.config import Configuration, LimitsPolicy, Mode, Prediction, RequestsPolicy
from autoscaler.model.fleet import Fleet, to_fleet
from autoscaler.model.resources import Amount, Amounts, Resource
from autoscaler.model.snapshot import Snapshot
from autoscaler.model.usage import (
    SATURATED_RATIO,
    SATURATION_SLACK_RATIO,
    Floats,
    Floats32,
    Usage,
    Window,
    WorkloadKey,
    censored,
)
from autoscaler.model.workload import Discovered, ObjectRef, Worker, Workload
from autoscaler.recommend import learn, new_memory, recommend, watch
from autoscaler.state.models import built_in_model

KEY: Final = WorkloadKey("replay", "worker")
Figures = tuple[float, float, float, float]
"""Compute request and limit in TFLOPs, VRAM request and limit in bytes."""
EVALUATION_SECONDS: Final = 300.0
MIN_SAMPLES: Final = 10
CLIPPED_RATIO: Final = SATURATED_RATIO - SATURATION_SLACK_RATIO


@dataclass
class Policy:
    """One worker in the product's hands."""

    config: Configuration
    interval: float = 60.0
    _samples: list[tuple[float, float, float, bool, float, float]] = field(default_factory=list)

    def reset(self, ctx: Mapping[str, Any]) -> None:
        """Begin: `ctx` has the samples' `step` in seconds, `init`, the user's own figures, and `has_vram`."""
        self.step, self.has_vram = float(ctx["step"]), bool(ctx["has_vram"])
        self.figures: Figures = ctx["init"]
        self.effective = self.figures
        amounts = Amounts(Amount(*self.figures[:2]), Amount(*self.figures[2:]))
        targets = frozenset(Resource) if self.has_vram else frozenset({Resource.COMPUTE})
        config = replace(
            self.config,
            amounts=amounts,
            requests=replace(self.config.requests, targets=self.config.requests.targets & targets),
            limits=replace(self.config.limits, targets=self.config.limits.targets & targets),
        )
        ref = ObjectRef("v1", "Pod", *KEY, uid="worker")
        worker = Worker(ref, "node", amounts, ready=True, devices=())
        workload = Workload(
            key=KEY,
            ref=ref,
            config=config,
            original=amounts,
            current=amounts,
            workers=(worker,),
            replicas=1,
            created_at=0.0,
        )
        self.fleet = to_fleet(Snapshot(0.0, Discovered((workload,)), {}))
        self.learnt, self.guarded = new_memory(built_in_model()), new_guard_memory()
        for memory in (self.learnt, self.guarded):
            memory.align(self.fleet.keys, self.fleet.uids)
        self.limits = Limits(fresh_seconds=2 * max(self.step, 60.0), changes_per_pass=1, min_samples=MIN_SAMPLES)
        self.device = np.where(np.isinf(self.fleet.device), np.nan, self.fleet.device).T[:, :, None]
        self._samples = []
        self.urgent = False
        gated = self.has_vram and config.qos not in UNGATED
        self.gate = Gate(self.figures[3]) if gated else None

    def observe(self, t: float, c: float, v: float | None, oom: bool) -> None:
        """Keep one metered sample of `[t, t + step)`: TFLOPs, bytes (None without VRAM), killed in it."""
        vram = 0.0 if v is None else v
        limit = self.effective[1]
        self._samples.append((t, c, vram, oom, limit, self.effective[3]))
        if self.gate is not None:
            self.gate.sample(t + self.step, c, vram, oom=oom)
        short = c > self.figures[0] or c >= CLIPPED_RATIO * limit or vram > NEAR_RATIO * self.effective[3]
        self.urgent = self.urgent or oom or short

    def recommend(self, t: float) -> Figures | None:
        """Return the figures in force from `t` on, or None where they stay."""
        before = self.effective
        if self.urgent or t % EVALUATION_SECONDS < self.step:
            self._evaluate(t)
        self.effective = self._gated(t)
        return None if self.effective == before else self.effective

    def _evaluate(self, t: float) -> None:
        usage = self._usage(t)
        live = usage.peak[:, :, -1].T.astype(float)
        fleet: Fleet = replace(self.fleet, now=t, current=np.array([[*self.figures, 1.0]]), live=live)
        learn(self.learnt, usage, fleet)
        watch(self.learnt, usage, fleet)
        self.urgent = False
        wanted = recommend(fleet, self.learnt, horizontal=False)
        if at_rest(fleet, wanted, self.guarded):
            return
        allowed = guard(fleet, wanted, self.guarded, self.limits, told=False)
        note(self.guarded, fleet, allowed.figure)
        request, limit, vram_request, vram_limit, _ = allowed.figure[0].tolist()
        self.figures = (request, limit, vram_request, vram_limit)

    def _gated(self, t: float) -> Figures:
        if self.gate is None:
            return self.figures
        return (*self.figures[:3], self.gate.limit(t, self.figures[2], self.figures[3]))

    def _usage(self, t: float) -> Usage:
        rows = np.array(self._samples, dtype=float).T
        self._samples.clear()
        peak, ceiling = rows[1:3, None], rows[4:6, None]
        zero, unknown, one = _blank(rows.shape[1])
        return Usage(
            window=Window(rows.item(0), t, self.step),
            keys=(KEY,),
            peak=peak.astype(np.float32),
            total=unknown,
            ceiling=ceiling.astype(np.float32),
            clipped=censored(peak, ceiling, self.device, zero),
            ooms=rows[3:4].astype(np.float32),
            workers=one,
            last_seen=np.array([t]),
        )


@lru_cache(maxsize=64)
def _blank(bins: int) -> tuple[Floats, Floats32, Floats32]:
    """Return what is the same of every window of so many bins: no throttling, unknown totals, one worker."""
    shape = len(Resource), 1, bins
    zero, unknown, one = np.zeros(shape), np.full(shape, np.nan, np.float32), np.ones((1, bins), np.float32)
    for array in (zero, unknown, one):
        array.flags.writeable = False
    return zero, unknown, one


def policy(qos: QoS, *, predict: bool) -> Policy:
    """Return a policy with the defaults of a service level, all vertical layers on."""
    prediction = Prediction(enable=predict)
    blank = Amounts(Amount(0.0, 0.0), Amount(0.0, 0.0))
    return Policy(
        Configuration(
            amounts=blank,
            qos=qos,
            requests=RequestsPolicy(mode=Mode.ON, prediction=prediction),
            limits=LimitsPolicy(mode=Mode.ON, prediction=prediction),
        )
    )


low, medium, high, critical = (partial(policy, level, predict=True) for level in QoS)
low_reactive, medium_reactive, high_reactive, critical_reactive = (
    partial(policy, level, predict=False) for level in QoS
)
