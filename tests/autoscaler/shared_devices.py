"""Workloads that share devices, as their agents see them, and what they want: for the tests of the guards."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from autoscaler.contract.keys import Effect, QoS
from autoscaler.contract.quota import DeviceInfo, DeviceQuota, DeviceStatus, Observed, QuotaStatus, WorkerStatus
from autoscaler.guard import Limits, guard, new_memory, note
from autoscaler.model.config import Configuration, LimitsPolicy, Mode, ReplicasPolicy, RequestsPolicy
from autoscaler.model.decision import AMOUNT_FIELDS, Field
from autoscaler.model.fleet import Fleet, to_fleet
from autoscaler.model.proposal import Allowed, Wanted
from autoscaler.model.reasons import CAUSE_CODE, VERDICTS, Cause, Verdict
from autoscaler.model.resource_quota import ResourceQuota
from autoscaler.model.resources import GIB, Amount, Amounts
from autoscaler.model.snapshot import NodeState, Snapshot
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import Discovered, ObjectRef, Worker, Workload

NOW = 1_700_000_000.0
NODE = "node-a"
SCALE = np.array([1.0, 1.0, GIB, GIB, 1.0])
"""Figures in the tests are TFLOPs, GiB and counts."""


@dataclass
class Load:
    """A workload: figures (request, limit), one worker for each entry of `places`, its live use."""

    name: str
    qos: QoS = QoS.MEDIUM
    compute: tuple[float, float] = (10, 20)
    vram: tuple[float, float] = (4, 8)
    places: tuple[tuple[str, ...], ...] = (("GPU-0",),)
    used: float | None = 1.0
    config: Configuration = field(
        default_factory=lambda: Configuration(
            amounts=Amounts(Amount(10, 20), Amount(4 * GIB, 8 * GIB)),
            requests=RequestsPolicy(Mode.ON, stabilization_seconds=0),
            limits=LimitsPolicy(Mode.ON, stabilization_seconds=0),
            replicas_policy=ReplicasPolicy(Mode.ON),
        )
    )

    @property
    def amounts(self) -> Amounts:
        return Amounts(Amount(*self.compute), Amount(self.vram[0] * GIB, self.vram[1] * GIB))

    @property
    def workload(self) -> Workload:
        amounts = self.amounts
        workers = tuple(
            Worker(
                ObjectRef("v1", "Pod", "ns", f"{self.name}-{number}", uid=f"pod-{self.name}-{number}"),
                NODE,
                amounts,
                ready=True,
                devices=devices,
            )
            for number, devices in enumerate(self.places)
        )
        config = replace(self.config, qos=self.qos, gpu_count=len(self.places[0]), amounts=amounts)
        return Workload(
            key=WorkloadKey("ns", self.name),
            ref=ObjectRef("tensor-fusion.ai/v1", "TensorFusionWorkload", "ns", self.name, uid=f"uid-{self.name}"),
            config=config,
            original=amounts,
            current=amounts,
            workers=workers,
            replicas=len(workers),
            created_at=NOW - 86_400,
        )

    @property
    def statuses(self) -> tuple[WorkerStatus, ...]:
        use = Observed(self.compute[1], int(self.vram[1] * GIB), None, self.used and int(self.used * GIB))
        told = self.compute[0], self.compute[1], int(self.vram[0] * GIB), int(self.vram[1] * GIB)
        return tuple(
            WorkerStatus(
                f"pod-{self.name}-{number}",
                "ns",
                f"{self.name}-{number}",
                self.name,
                tuple(DeviceStatus(uuid, True, Effect.IMMEDIATE, use, DeviceQuota(uuid, *told)) for uuid in devices),
            )
            for number, devices in enumerate(self.places)
        )


@dataclass
class Town:
    """Devices of one size, loads on them, and guards that remember."""

    loads: list[Load]
    vram: float = 80
    tflops: float = 989
    now: float = NOW
    quotas: dict[str, ResourceQuota] = field(default_factory=dict)
    limits: Limits = field(default_factory=lambda: Limits(120.0, 100, 10))

    def __post_init__(self) -> None:
        self.memory = new_memory()

    @property
    def state(self) -> NodeState:
        uuids = sorted({uuid for load in self.loads for devices in load.places for uuid in devices})
        devices = tuple(DeviceInfo(uuid, "NVIDIA H100 80GB HBM3", int(self.vram * GIB), self.tflops) for uuid in uuids)
        statuses = tuple(status for load in self.loads for status in load.statuses)
        return NodeState(NODE, devices, QuotaStatus(NODE, 1, 1, statuses))

    @property
    def fleet(self) -> Fleet:
        workloads = tuple(load.workload for load in self.loads)
        return to_fleet(Snapshot(self.now, Discovered(workloads), {NODE: self.state}, self.quotas))

    def row(self, name: str) -> int:
        return [load.name for load in self.loads].index(name)

    def wants(self, cause: Cause = Cause.RAISED, *, urgent: bool = False, **figures: dict[Field, float]) -> Wanted:
        """Return what these loads want, by name and field; what is not named stays, with a lower bound of a half."""
        fleet = self.fleet
        figure, rows = fleet.current.copy(), len(fleet)
        codes = np.full(figure.shape, CAUSE_CODE[Cause.UNCHANGED], dtype=np.int8)
        for name, wanted in figures.items():
            for of, value in wanted.items():
                figure[self.row(name), of] = value * SCALE[of]
                codes[self.row(name), of] = CAUSE_CODE[cause]
        moved = figure != fleet.current
        return Wanted(
            figure=figure,
            lower=np.where(figure > fleet.current, figure, figure / 2),
            upper=figure,
            cause=codes,
            urgent=moved & urgent,
            inputs={of: {} for of in Field},
            samples=np.full(rows, 1440.0),
            first_at=np.full(rows, self.now - 86_400),
            last_at=np.full(rows, self.now - 30),
            trouble_at=np.full((rows, 2), -np.inf),
            trouble_samples=np.zeros((rows, 2)),
        )

    def decide(self, wanted: Wanted | None = None) -> Allowed:
        """Guard, and put the outcome into force."""
        fleet = self.fleet
        self.memory.align(fleet.keys, fleet.uids)
        allowed = guard(fleet, self.wants() if wanted is None else wanted, self.memory, self.limits)
        note(self.memory, fleet, allowed.figure)
        for load, row in zip(self.loads, allowed.figure, strict=True):
            figures = row / SCALE
            load.compute, load.vram = (figures[0], figures[1]), (figures[2], figures[3])
        return allowed

    def told(self, allowed: Allowed, name: str, of: Field) -> tuple[float, Verdict]:
        row = self.row(name)
        return float(allowed.figure[row, of] / SCALE[of]), VERDICTS[int(allowed.verdict[row, of])]


def unexplained(allowed: Allowed) -> list[tuple[int, Field]]:
    """Return the figures that move without a cause or a verdict."""
    moved = allowed.figure != allowed.fleet.current
    silent = (allowed.cause == CAUSE_CODE[Cause.UNCHANGED]) & (allowed.verdict == VERDICTS.index(Verdict.PASSED))
    return [(int(row), Field(of)) for row, of in zip(*np.nonzero(moved & silent), strict=True)]


def sums(town: Town, of: Field) -> dict[str, float]:
    """Return what a field sums up to on each device."""
    assert of in AMOUNT_FIELDS
    totals: dict[str, float] = {}
    for load in town.loads:
        for devices in load.places:
            for uuid in devices:
                totals[uuid] = totals.get(uuid, 0.0) + (*load.compute, *load.vram)[of]
    return totals
