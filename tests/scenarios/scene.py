"""A story played: demand in, metered (clipped) use to the engine, and what it decides in force from the next minute.

What decides is the product: `consult`, `learn`, `watch`, `recommend`, `guard`, and `intents` for what is written. Played
are the meters, the scheduler (workers are pending, then start, then share the load), the kernel that ends a worker whose
memory does not fit, and time. Beside `stage` and `town_load` of the engine's own tests, which have one workload each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from autoscaler.apply.plan import ANNOTATION, intents
from autoscaler.contract.keys import AUTOSCALING_ORIGINAL, Effect
from autoscaler.contract.quota import DeviceStatus, Observed, QuotaStatus, WorkerStatus
from autoscaler.gateways.external_scaler import MemoryScalers
from autoscaler.guard import guard, note
from autoscaler.guard import new_memory as new_guard_memory
from autoscaler.model.decision import AMOUNT_FIELDS, Decision
from autoscaler.model.external import Failure, ScalerReason, ScalerState
from autoscaler.model.fleet import to_fleet
from autoscaler.model.proposal import Allowed
from autoscaler.model.quantity import format_amount, parse_amount
from autoscaler.model.resources import Amount, Amounts
from autoscaler.model.snapshot import NodeState, Snapshot
from autoscaler.model.steps import Annotate, ClusterWrite, Scale
from autoscaler.model.usage import Floats, Usage, Window, WorkloadKey, censored
from autoscaler.model.workload import Discovered, ObjectRef, Worker, Workload
from autoscaler.read.scalers import consult
from autoscaler.recommend import learn, new_memory, recommend, watch
from autoscaler.state.models import built_in_model
from tests.autoscaler.stage import LIMITS
from tests.scenarios.demand import MINUTE
from tests.scenarios.story import Role, Story

PENDING_SECONDS, STARTING_SECONDS, RESTART_SECONDS = 60.0, 180.0, 300.0
NODE = "node-a"
LONG_AGO = -1e12


@dataclass
class Member:
    """A worker: its pod's annotations, and since when it exists."""

    annotations: dict[str, str]
    born: float


@dataclass(frozen=True)
class Minute:
    """What the meters say of one workload in one minute; figures by Resource where there are two."""

    peak: tuple[float, float]
    total: tuple[float, float]
    ceiling: tuple[float, float]
    throttled: float
    ooms: int
    placed: int


@dataclass
class Actor:
    """A workload on the scene; what it holds is read from its workers' annotations, as discovery does."""

    role: Role
    members: list[Member]
    noted_replicas: int | None = None
    down_until: float = 0.0
    held_bytes: float = 0.0
    ooms: int = 0
    clipped_minutes: int = 0

    @property
    def key(self) -> WorkloadKey:
        return WorkloadKey("default", self.role.name)

    @property
    def amounts(self) -> Amounts:
        return amounts_of(self.members[0].annotations)

    def placed(self, number: int, now: float) -> bool:
        return number < self.role.places and now - self.members[number].born >= PENDING_SECONDS

    def ready(self, number: int, now: float) -> bool:
        since_born = now - self.members[number].born
        return self.placed(number, now) and since_born >= PENDING_SECONDS + STARTING_SECONDS

    def meter(self, minute: int, now: float) -> Minute:
        """Return what happens in the minute from `now` on: use clipped at the limit, a death where memory is short."""
        count, amounts = range(len(self.members)), self.amounts
        placed, ready = (sum(test(number, now) for number in count) for test in (self.placed, self.ready))
        wanted, memory = float(self.role.compute[minute]), float(self.role.vram[minute])
        share = wanted / max(ready, 1) if self.role.shared else wanted
        down = now < self.down_until
        dies = not down and memory > amounts.vram.limit
        if dies:
            self.ooms, self.down_until = self.ooms + 1, now + RESTART_SECONDS
        works = ready > 0 and not (down or dies)
        clipped = works and share > amounts.compute.limit
        self.clipped_minutes += clipped
        use = min(share, amounts.compute.limit) if works else 0.0
        held = 0.0 if down else min(memory, amounts.vram.limit)
        self.held_bytes = held
        return Minute(
            peak=(use, held),
            total=(use * ready, held * placed),
            ceiling=(amounts.compute.limit, amounts.vram.limit),
            throttled=1 - amounts.compute.limit / share if clipped else 0.0,
            ooms=int(dies),
            placed=placed,
        )

    def workload(self, now: float, created_at: float) -> Workload:
        return Workload(
            key=self.key,
            ref=ObjectRef("tensor-fusion.ai/v1", "TensorFusionWorkload", *self.key, uid=f"w-{self.role.name}"),
            config=self.role.config,
            original=self.role.config.amounts,
            current=self.amounts,
            workers=tuple(self._worker(number, now) for number in range(len(self.members))),
            replicas=len(self.members),
            created_at=created_at,
            original_replicas=self.noted_replicas,
        )

    def _worker(self, number: int, now: float) -> Worker:
        placed, name = self.placed(number, now), f"{self.role.name}-{number}"
        return Worker(
            ref=ObjectRef("v1", "Pod", self.key.namespace, name, uid=f"pod-{name}"),
            node=NODE if placed else "",
            current=amounts_of(self.members[number].annotations),
            ready=self.ready(number, now),
            pending=not placed,
            devices=(f"GPU-{name}",) if placed else (),
            annotations=self.members[number].annotations,
        )

    def write(self, write: ClusterWrite, now: float) -> None:
        """Carry one intent out, as the cluster would; the newest workers go first, new ones are born as the rest are."""
        if isinstance(write, Scale):
            born = [Member(dict(self.members[0].annotations), now) for _ in range(write.replicas - len(self.members))]
            self.members = self.members[: write.replicas] + born
        elif isinstance(write, Annotate) and write.ref.kind == "Pod":
            member = self.members[int(write.ref.name.rpartition("-")[2])]
            member.annotations |= {key: text for key, text in write.annotations.items() if text is not None}
        elif isinstance(write, Annotate) and AUTOSCALING_ORIGINAL in write.annotations:
            noted = write.annotations[AUTOSCALING_ORIGINAL]
            self.noted_replicas = None if noted is None else len(self.members)


@dataclass(frozen=True)
class Pass:
    """One pass: minutes since the story began, each workload's decision, and what it then had (W, 5), ready (W,)."""

    minute: int
    allowed: Allowed
    decisions: tuple[Decision, ...]
    in_force: Floats
    ready: tuple[int, ...]


@dataclass
class SceneClock:
    """The Clock port by hand."""

    at: float

    def now(self) -> float:
        return self.at


@dataclass
class Scene:
    """`play` returns the passes of a story."""

    story: Story
    passes: list[Pass] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = SceneClock(self.story.start)
        self.actors = [
            Actor(role, [Member(annotations_of(role), LONG_AGO) for _ in range(role.replicas)])
            for role in self.story.roles
        ]
        self.learnt, self.guarded = new_memory(built_in_model()), new_guard_memory()
        self.unread: list[list[Minute]] = []
        self.scalers = MemoryScalers(self.clock)
        self.known: Mapping[WorkloadKey, ScalerState] = {}
        self.before: Allowed | None = None

    def play(self, each: Callable[[Pass], None] | None = None) -> list[Pass]:
        """Play to the end; `each` is shown every pass as it happens."""
        for minute in range(self.story.minutes):
            at = self.story.start + MINUTE * minute
            self.unread.append([actor.meter(minute, at) for actor in self.actors])
            self.clock.at = at + MINUTE
            if (minute + 1) % self.story.every == 0:
                self.passes.append(self._pass(minute + 1))
                if each is not None:
                    each(self.passes[-1])
        return self.passes

    def _pass(self, minute: int) -> Pass:
        snapshot = self._snapshot(minute)
        fleet = to_fleet(snapshot, self.before.fleet if self.before is not None else None)
        self.learnt.align(fleet.keys, fleet.uids)
        self.guarded.align(fleet.keys, fleet.uids)
        away = self.story.troubled("prometheus", minute)
        if not away:
            usage = self._usage()
            learn(self.learnt, usage, fleet)
            watch(self.learnt, usage, fleet)
            self.unread.clear()
        limits = replace(LIMITS, fresh_seconds=-np.inf) if away else LIMITS  # as the controller judges it
        allowed = self.before = guard(fleet, recommend(fleet, self.learnt), self.guarded, limits)
        decisions = tuple(allowed.decision(row) for row in range(len(fleet)))
        pairs = zip(self.actors, snapshot.discovered.workloads, decisions, strict=True)
        for actor, workload, decision in pairs:
            for write in intents(workload, decision):
                actor.write(write, self.clock.at)
        note(self.guarded, fleet, allowed.figure)
        in_force = np.array([(*figures_of(actor.amounts), len(actor.members)) for actor in self.actors])
        return Pass(minute, allowed, decisions, in_force, tuple(self._ready(actor) for actor in self.actors))

    def _ready(self, actor: Actor) -> int:
        return sum(actor.ready(number, self.clock.at) for number in range(len(actor.members)))

    def _snapshot(self, minute: int) -> Snapshot:
        workloads = tuple(actor.workload(self.clock.at, self.story.start) for actor in self.actors)
        devices, statuses = [], []
        for actor, workload in zip(self.actors, workloads, strict=True):
            for worker in workload.workers:
                for uuid in worker.devices:
                    devices.append(msgspec.structs.replace(actor.role.device, uuid=uuid))
                    seen = DeviceStatus(uuid, True, Effect.IMMEDIATE, Observed(vram_used_bytes=int(actor.held_bytes)))
                    told = worker.ref.uid, worker.ref.namespace, worker.ref.name, workload.key.name, (seen,)
                    statuses.append(WorkerStatus(*told))
        node = NodeState(NODE, tuple(devices), QuotaStatus(NODE, 1, 1, tuple(statuses)))
        self.known = self._consulted(workloads, minute)
        return Snapshot(self.clock.at, Discovered(workloads), {NODE: node}, external=self.known)

    def _consulted(self, workloads: tuple[Workload, ...], minute: int) -> Mapping[WorkloadKey, ScalerState]:
        asked = [actor for actor in self.actors if actor.role.scaler is not None]
        if not asked:
            return {}
        dead = Failure(ScalerReason.UNREACHABLE, "connection refused")
        is_dead = self.story.troubled("scaler", minute)
        for actor in asked:
            assert actor.role.config.external is not None
            assert actor.role.scaler is not None
            self.scalers.answers[actor.role.config.external.url] = dead if is_dead else actor.role.scaler
        return asyncio.run(consult(self.scalers, workloads, self.before, self.known, self.clock.at))

    def _usage(self) -> Usage:
        """Return the minutes that were not read yet as the bins of one window."""
        bins, rows = len(self.unread), range(len(self.actors))
        by_row = [[minute[row] for minute in self.unread] for row in rows]
        peak, total, ceiling = (
            np.array([[getattr(one, name) for one in row] for row in by_row], dtype=np.float32).transpose(2, 0, 1)
            for name in ("peak", "total", "ceiling")
        )
        throttled, device = np.zeros(peak.shape), np.full(peak.shape, np.nan)
        throttled[0] = [[one.throttled for one in row] for row in by_row]
        device[0] = [[actor.role.device.tflops or np.nan] * bins for actor in self.actors]
        seen = [max((at for at, one in enumerate(row, 1) if one.placed), default=-1) for row in by_row]
        start = self.clock.at - MINUTE * bins
        return Usage(
            window=Window(start, self.clock.at, MINUTE),
            keys=tuple(actor.key for actor in self.actors),
            peak=peak,
            total=total,
            ceiling=ceiling,
            clipped=censored(peak.astype(float), ceiling.astype(float), device, throttled),
            ooms=np.array([[one.ooms for one in row] for row in by_row], dtype=np.float32),
            workers=np.array([[one.placed for one in row] for row in by_row], dtype=np.float32),
            last_seen=np.array([start + MINUTE * last if last > 0 else np.nan for last in seen]),
        )


def figures_of(amounts: Amounts) -> tuple[float, float, float, float]:
    return amounts.compute.request, amounts.compute.limit, amounts.vram.request, amounts.vram.limit


def amounts_of(annotations: Mapping[str, str]) -> Amounts:
    compute_request, compute_limit, vram_request, vram_limit = (
        float(parse_amount(one.resource, annotations[ANNOTATION[one]]))
        for one in AMOUNT_FIELDS
        if one.resource is not None
    )
    return Amounts(Amount(compute_request, compute_limit), Amount(vram_request, vram_limit))


def annotations_of(role: Role) -> dict[str, str]:
    pairs = zip(AMOUNT_FIELDS, figures_of(role.config.amounts), strict=True)
    return {ANNOTATION[one]: format_amount(one.resource, value) for one, value in pairs if one.resource is not None}
