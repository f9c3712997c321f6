"""One workload in a closed loop: demand in, metered (clipped) use to the engine, its figures back in force."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import DeviceInfo, DeviceStatus, Observed, QuotaStatus, WorkerStatus
from autoscaler.guard import Limits, guard, note
from autoscaler.guard import new_memory as new_guard_memory
from autoscaler.guard.trace import record_of
from autoscaler.model.config import Configuration, LimitsPolicy, Mode, RequestsPolicy
from autoscaler.model.decision import Decision, Field
from autoscaler.model.fleet import to_fleet
from autoscaler.model.record import Record
from autoscaler.model.resources import GIB, Amount, Amounts
from autoscaler.model.snapshot import NodeState, Snapshot
from autoscaler.model.usage import Usage, Window, WorkloadKey, censored
from autoscaler.model.workload import Discovered, ObjectRef, Worker, Workload
from autoscaler.recommend import learn, new_memory, recommend, watch

KEY = WorkloadKey("default", "llm")
START = 1_700_000_000.0 // 86400 * 86400
STEP = 60.0
LIMITS = Limits(fresh_seconds=120.0, changes_per_pass=100, min_samples=10)
ON = Configuration(
    amounts=Amounts(Amount(10, 20), Amount(4 * GIB, 8 * GIB)),
    requests=RequestsPolicy(mode=Mode.ON),
    limits=LimitsPolicy(mode=Mode.ON),
)


@dataclass
class Stage:
    """`run` advances minute by minute; `decisions` and `records` keep each pass's decision, short and long."""

    config: Configuration = ON
    device: DeviceInfo = field(default_factory=lambda: DeviceInfo("GPU-0", "NVIDIA H100 80GB HBM3", 80 * GIB, 989.0))
    now: float = START
    replicas: int = 1

    def __post_init__(self) -> None:
        self.figures = self.config.amounts
        self.learnt, self.guarded = new_memory(), new_guard_memory()
        self.decisions: list[Decision] = []
        self.records: list[Record] = []
        self.ooms = 0
        self.down_until = 0.0

    @property
    def workload(self) -> Workload:
        ref = ObjectRef("v1", "Pod", KEY.namespace, "llm-0", uid="pod-0")
        worker = Worker(ref, "node-a", self.figures, ready=True, devices=(self.device.uuid,))
        return Workload(
            key=KEY,
            ref=ObjectRef("tensor-fusion.ai/v1", "TensorFusionWorkload", *KEY, uid="w-0"),
            config=self.config,
            original=self.config.amounts,
            current=self.figures,
            workers=(worker,),
            replicas=self.replicas,
            created_at=START,
        )

    def snapshot(self, vram: float | None) -> Snapshot:
        observed = Observed(vram_used_bytes=None if vram is None else int(vram))
        status = DeviceStatus(self.device.uuid, True, Effect.IMMEDIATE, observed)
        worker = WorkerStatus("pod-0", KEY.namespace, "llm-0", KEY.name, (status,))
        node = NodeState("node-a", (self.device,), QuotaStatus("node-a", 1, 1, (worker,)))
        return Snapshot(self.now, Discovered((self.workload,)), {"node-a": node})

    def meter(self, compute: float, vram: float) -> Usage:
        """What a real meter shows for one bin: use clipped at the limit, a death when VRAM doesn't fit."""
        limit = self.figures.compute.limit
        down = self.now < self.down_until
        oom = not down and vram > self.figures.vram.limit
        if oom:
            self.ooms += 1
            self.down_until = self.now + 300
        alive = not (down or oom)
        use = min(compute, limit) if alive else 0.0
        held = min(vram, self.figures.vram.limit) if not down else 0.0
        throttled = 1 - limit / compute if alive and compute > limit else 0.0
        return one_bin(self.now + STEP, use, held, (limit, self.figures.vram.limit), throttled, float(oom))

    def minute(self, compute: float, vram: float) -> Decision:
        usage = self.meter(compute, vram)
        self.now += STEP
        held = float(usage.peak[1, 0, 0])
        fleet = to_fleet(self.snapshot(held))
        self.learnt.align(fleet.keys, fleet.uids)
        self.guarded.align(fleet.keys, fleet.uids)
        learn(self.learnt, usage, fleet)
        watch(self.learnt, usage, fleet)
        allowed = guard(fleet, recommend(fleet, self.learnt), self.guarded, LIMITS)
        note(self.guarded, fleet, allowed.figure)
        figures = allowed.figure[0]
        self.figures = Amounts(Amount(figures[0], figures[1]), Amount(figures[2], figures[3]))
        self.replicas = int(figures[Field.REPLICAS])
        decision = allowed.decision(0)
        self.decisions.append(decision)
        self.records.append(record_of(allowed, 0))
        return decision

    def run(
        self, minutes: int, compute: Callable[[float], float] | float, vram: Callable[[float], float] | float = 2 * GIB
    ) -> list[Decision]:
        """Advance; demand is constant or a function of minutes since the stage began."""
        first = len(self.decisions)
        for _ in range(minutes):
            at = (self.now - START) / 60
            self.minute(compute(at) if callable(compute) else compute, vram(at) if callable(vram) else vram)
        return self.decisions[first:]


def one_bin(
    end: float, compute: float, vram: float, ceiling: tuple[float, float], throttled: float = 0.0, ooms: float = 0.0
) -> Usage:
    """Usage of one workload with one worker in the bin that ends at `end`."""
    peak = np.array([compute, vram], dtype=np.float32).reshape(2, 1, 1)
    limits = np.array(ceiling, dtype=np.float32).reshape(2, 1, 1)
    device = np.array([989.0, np.nan]).reshape(2, 1, 1)
    share = np.array([throttled, 0.0]).reshape(2, 1, 1)
    clipped = censored(peak.astype(float), limits.astype(float), device, share)
    return Usage(
        window=Window(end - STEP, end, STEP),
        keys=(KEY,),
        peak=peak,
        total=peak.copy(),
        ceiling=limits,
        clipped=clipped,
        ooms=np.full((1, 1), ooms, dtype=np.float32),
        workers=np.ones((1, 1), dtype=np.float32),
        last_seen=np.array([end]),
    )


def with_config(**changes: object) -> Configuration:
    """The standard configuration with some fields replaced."""
    return replace(ON, **changes)  # type: ignore[arg-type]
