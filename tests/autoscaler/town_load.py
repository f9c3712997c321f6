"""A service in a closed loop: its total demand spreads over the workers that are ready, new ones take minutes to start.

Beside `stage`, where one worker has a demand of its own. Workers are first pending (nowhere placed), then start (placed,
not ready, idle), then share the load; limits clip what each can use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import DeviceInfo, DeviceStatus, Observed, QuotaStatus, WorkerStatus
from autoscaler.guard import guard, note
from autoscaler.guard import new_memory as new_guard_memory
from autoscaler.model.config import Configuration
from autoscaler.model.decision import Decision, Field
from autoscaler.model.fleet import to_fleet
from autoscaler.model.resources import GIB, Amount, Amounts
from autoscaler.model.snapshot import NodeState, Snapshot
from autoscaler.model.usage import Usage, Window, censored
from autoscaler.model.workload import Discovered, ObjectRef, Worker, Workload
from autoscaler.recommend import learn, new_memory, recommend, watch
from tests.autoscaler.stage import KEY, LIMITS, START, STEP

VRAM = 2 * GIB


class Pass(NamedTuple):
    """One minute: total demand and use in TFLOPs, workers ready in it, the amounts then in force, and the decision."""

    demand: float
    used: float
    ready: int
    amounts: Amounts
    decision: Decision

    @property
    def replicas(self) -> float:
        return self.decision[Field.REPLICAS].allowed


@dataclass
class Service:
    """`run` advances minute by minute; workers beyond `places` stay pending, as in a cluster that is full."""

    config: Configuration
    replicas: int = 2
    device_tflops: float = 100.0
    pending_minutes: int = 1
    starting_minutes: int = 3
    places: int = 100
    now: float = START
    passes: list[Pass] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.figures = self.config.amounts
        self.learnt, self.guarded = new_memory(), new_guard_memory()
        self.born = [-1e9] * self.replicas

    def placed(self, worker: int) -> bool:
        return worker < self.places and self.now - self.born[worker] >= 60 * self.pending_minutes

    def ready(self, worker: int) -> bool:
        waits = self.pending_minutes + self.starting_minutes
        return self.placed(worker) and self.now - self.born[worker] >= 60 * waits

    def run(self, minutes: int, demand: Callable[[float], float] | float) -> list[Pass]:
        """Advance; the demand of the whole service is constant or a function of minutes since it began."""
        first = len(self.passes)
        for _ in range(minutes):
            at = (self.now - START) / 60
            self.minute(demand(at) if callable(demand) else demand)
        return self.passes[first:]

    def minute(self, demand: float) -> None:
        amounts, ready = self.figures, sum(map(self.ready, range(len(self.born))))
        usage = self._meter(demand)
        self.now += STEP
        fleet = to_fleet(self._snapshot())
        self.learnt.align(fleet.keys, fleet.uids)
        self.guarded.align(fleet.keys, fleet.uids)
        learn(self.learnt, usage, fleet)
        watch(self.learnt, usage, fleet)
        allowed = guard(fleet, recommend(fleet, self.learnt), self.guarded, LIMITS)
        note(self.guarded, fleet, allowed.figure)
        figures = allowed.figure[0]
        self.figures = Amounts(Amount(figures[0], figures[1]), Amount(figures[2], figures[3]))
        self._scale(int(figures[Field.REPLICAS]))
        used = float(usage.total[0, 0, 0])
        self.passes.append(Pass(demand, used, ready, amounts, allowed.decision(0)))

    def _scale(self, replicas: int) -> None:
        """The newest go first, as in a StatefulSet."""
        self.replicas = replicas
        self.born = self.born[:replicas] + [self.now] * (replicas - len(self.born))

    def _meter(self, demand: float) -> Usage:
        limit, workers = self.figures.compute.limit, range(len(self.born))
        ready, placed = sum(map(self.ready, workers)), sum(map(self.placed, workers))
        share = demand / ready
        use = min(share, limit)
        peak = np.array([use, VRAM], dtype=np.float32).reshape(2, 1, 1)
        ceiling = np.array([limit, self.figures.vram.limit], dtype=np.float32).reshape(2, 1, 1)
        throttled = np.array([1 - limit / share if share > limit else 0.0, 0.0]).reshape(2, 1, 1)
        device = np.array([self.device_tflops, np.nan]).reshape(2, 1, 1)
        return Usage(
            window=Window(self.now, self.now + STEP, STEP),
            keys=(KEY,),
            peak=peak,
            total=np.array([use * ready, VRAM * placed], dtype=np.float32).reshape(2, 1, 1),
            ceiling=ceiling,
            clipped=censored(peak.astype(float), ceiling.astype(float), device, throttled),
            ooms=np.zeros((1, 1), dtype=np.float32),
            workers=np.full((1, 1), placed, dtype=np.float32),
            last_seen=np.array([self.now + STEP]),
        )

    def _snapshot(self) -> Snapshot:
        devices = tuple(
            DeviceInfo(f"GPU-{worker}", "NVIDIA Test", 80 * GIB, self.device_tflops) for worker in range(len(self.born))
        )
        workers, statuses = [], []
        for worker, device in enumerate(devices):
            ref = ObjectRef("v1", "Pod", KEY.namespace, f"llm-{worker}", uid=f"pod-{worker}")
            placed = self.placed(worker)
            places = (device.uuid,) if placed else ()
            node = "node-a" if placed else ""
            workers.append(Worker(ref, node, self.figures, self.ready(worker), pending=not placed, devices=places))
            if placed:
                observed = DeviceStatus(device.uuid, True, Effect.IMMEDIATE, Observed(vram_used_bytes=VRAM))
                statuses.append(WorkerStatus(ref.uid, KEY.namespace, ref.name, KEY.name, (observed,)))
        workload = Workload(
            key=KEY,
            ref=ObjectRef("tensor-fusion.ai/v1", "TensorFusionWorkload", *KEY, uid="w-0"),
            config=self.config,
            original=self.config.amounts,
            current=self.figures,
            workers=tuple(workers),
            replicas=self.replicas,
            created_at=START,
        )
        state = NodeState("node-a", devices, QuotaStatus("node-a", 1, 1, tuple(statuses)))
        return Snapshot(self.now, Discovered((workload,)), {"node-a": state})
