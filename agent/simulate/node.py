"""A node without a GPU: simulated workers whose demand meets the limits in force; device source and pods in one.

Compute above the limit is throttled, and what the device lacks is shared by want; an allocation above the VRAM limit,
or above what the device has left, kills the worker for a while. Beside what NVML would show it keeps the truth: what
was wanted, used and reserved. Neighbours: `scenario` says who is there, the simulated backend says what the limits are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from agent.gpus import GpuTable
from agent.model.samples import DeviceSample, NodeSample, ProcessUse, SourceError, Worker, WorkerKey
from agent.simulate.characters import CHARACTERS, Character, Demand
from agent.simulate.scenario import Scenario, ScenarioDevice, ScenarioWorker
from autoscaler.contract.quota import DeviceQuota

RESTART_SECONDS: Final = 300.0
"""How long a killed worker is away: pull, start and load of a model of some gigabytes."""

_PIDS_PER_WORKER: Final = 100_000

OOM_SOURCE: Final = "simulated"

LimitsOf = Callable[[Worker, str], DeviceQuota | None]


class Truth(msgspec.Struct):
    """What one worker wanted and got so far: integrals over time of TFLOPs and bytes, times in seconds, counts."""

    namespace: str
    workload: str
    pod: str
    uuid: str
    seconds: float = 0.0
    demand_tflops_seconds: float = 0.0
    used_tflops_seconds: float = 0.0
    request_tflops_seconds: float = 0.0
    limit_tflops_seconds: float = 0.0
    used_vram_byte_seconds: float = 0.0
    request_vram_byte_seconds: float = 0.0
    limit_vram_byte_seconds: float = 0.0
    throttled_seconds: float = 0.0
    contended_seconds: float = 0.0
    down_seconds: float = 0.0
    ooms: int = 0


@dataclass(slots=True)
class _Actor:
    """One simulated worker: what it is, and its state."""

    worker: Worker
    key: WorkerKey
    uuid: str
    seed: int
    character: Character
    parameters: Mapping[str, float]
    first_pid: int
    truth: Truth
    limits: DeviceQuota | None = None
    down_until: float = float("-inf")
    vram_bytes: int = 0
    demand: Demand = field(default=Demand(0.0, 0))
    ceiling_tflops: float = 0.0
    used_tflops: float = 0.0

    @property
    def pid(self) -> int:
        """Return the process; each restart has a new one."""
        return self.first_pid + self.truth.ooms


class Simulation:
    """DeviceSource and ProcessDirectory of a scenario; each sample moves it to the time of the sample."""

    def __init__(self, scenario: Scenario, limits_of: LimitsOf, gpus: GpuTable) -> None:
        """Set the scene.

        Raises:
            SourceError: a device's model is not in the GPU table, so that nothing could be throttled.
        """
        self.scenario = scenario
        self._limits_of = limits_of
        self._start, self._at = scenario.start_seconds, scenario.start_seconds
        self._capacity = {device.uuid: _capacity(device, gpus) for device in scenario.devices}
        self._actors = [_actor(entry, number) for number, entry in enumerate(scenario.workers)]

    def sample(self, now: float) -> NodeSample:
        """Move to `now` (seconds since the epoch) and return what the devices would show."""
        if self._start is None or self._at is None:
            self._start = self._at = now
        elapsed = max(0.0, now - self._at)
        self._at = max(now, self._at)
        devices = []
        for index, device in enumerate(self.scenario.devices):
            actors = [actor for actor in self._actors if actor.uuid == device.uuid]
            self._play(device, actors, now)
            for actor in actors:
                _account(actor, now, elapsed)
            devices.append(self._show(index, device, actors, now))
        return NodeSample(now, tuple(devices), "simulated")

    def close(self) -> None:
        """Hold nothing, release nothing."""

    def worker_of(self, pid: int) -> Worker | None:
        """Return the worker whose process has that id now."""
        number = pid // _PIDS_PER_WORKER - 1
        if not 0 <= number < len(self._actors) or self._actors[number].pid != pid:
            return None
        return self._actors[number].worker

    def workers(self) -> tuple[Worker, ...]:
        """Return all workers, those that are down too: their pods exist."""
        return tuple(actor.worker for actor in self._actors)

    def throttled(self) -> dict[WorkerKey, bool | None]:
        """Return whether the limit held each worker back at the last sample."""
        at = self._at or 0.0
        return {
            actor.key: at >= actor.down_until and actor.ceiling_tflops < actor.demand.tflops for actor in self._actors
        }

    def ooms(self) -> dict[tuple[str, str, str, str], int]:
        """Return the number of out-of-memory deaths of each worker."""
        return {(*actor.key, OOM_SOURCE): actor.truth.ooms for actor in self._actors}

    def truth(self) -> tuple[Truth, ...]:
        """Return the record of every worker so far."""
        return tuple(actor.truth for actor in self._actors)

    def _play(self, device: ScenarioDevice, actors: list[_Actor], now: float) -> None:
        capacity = self._capacity[device.uuid]
        for actor in actors:
            actor.demand = actor.character.demand(now - (self._start or 0.0), actor.parameters, actor.seed)
            actor.limits = self._limits_of(actor.worker, actor.uuid)
            _allocate(device, actors, actor, now)
            actor.ceiling_tflops = min(capacity, actor.limits.tflops_limit) if actor.limits is not None else capacity
        wants = [0.0 if now < actor.down_until else min(actor.demand.tflops, actor.ceiling_tflops) for actor in actors]
        share = min(1.0, capacity / total) if (total := sum(wants)) > 0 else 1.0
        for actor, want in zip(actors, wants, strict=True):
            actor.used_tflops = want * share

    def _show(self, index: int, device: ScenarioDevice, actors: list[_Actor], now: float) -> DeviceSample:
        capacity = self._capacity[device.uuid]
        up = [actor for actor in actors if now >= actor.down_until]
        processes = tuple(ProcessUse(actor.pid, actor.used_tflops / capacity, actor.vram_bytes) for actor in up)
        return DeviceSample(
            index=index,
            uuid=device.uuid,
            model=device.model,
            sampled_at=now,
            vram_total_bytes=device.vram_bytes,
            vram_used_bytes=sum(actor.vram_bytes for actor in up),
            compute_ratio=min(1.0, sum(actor.used_tflops for actor in up) / capacity),
            processes=processes,
        )


def _allocate(device: ScenarioDevice, actors: list[_Actor], actor: _Actor, now: float) -> None:
    if now < actor.down_until:
        return
    limits = actor.limits
    others = sum(other.vram_bytes for other in actors if other is not actor)
    free = device.vram_bytes - others
    if actor.demand.vram_bytes <= (free if limits is None else min(free, limits.vram_limit_bytes)):
        actor.vram_bytes = actor.demand.vram_bytes
        return
    actor.vram_bytes = 0
    actor.truth.ooms += 1
    actor.down_until = now + RESTART_SECONDS


def _account(actor: _Actor, now: float, elapsed: float) -> None:
    truth, limits = actor.truth, actor.limits
    down = now < actor.down_until
    truth.seconds += elapsed
    truth.demand_tflops_seconds += actor.demand.tflops * elapsed
    truth.used_tflops_seconds += actor.used_tflops * elapsed
    truth.used_vram_byte_seconds += actor.vram_bytes * elapsed
    truth.down_seconds += elapsed if down else 0.0
    if not down and actor.ceiling_tflops < actor.demand.tflops:
        truth.throttled_seconds += elapsed
    if not down and actor.used_tflops < min(actor.demand.tflops, actor.ceiling_tflops) * (1 - 1e-9):
        truth.contended_seconds += elapsed
    if limits is not None:
        truth.request_tflops_seconds += limits.tflops_request * elapsed
        truth.limit_tflops_seconds += limits.tflops_limit * elapsed
        truth.request_vram_byte_seconds += limits.vram_request_bytes * elapsed
        truth.limit_vram_byte_seconds += limits.vram_limit_bytes * elapsed


def _capacity(device: ScenarioDevice, gpus: GpuTable) -> float:
    row = gpus.lookup(device.model)
    if row is None:
        raise SourceError(f"device {device.uuid}: model {device.model!r} is not in the GPU table")
    return row.tflops


def _actor(entry: ScenarioWorker, number: int) -> _Actor:
    character = CHARACTERS[entry.character]
    return _Actor(
        worker=entry.worker(),
        key=(entry.pod_uid, entry.container, entry.device),
        uuid=entry.device,
        seed=entry.seed,
        character=character,
        parameters={**character.defaults, **entry.parameters},
        first_pid=(number + 1) * _PIDS_PER_WORKER,
        truth=Truth(entry.namespace, entry.workload, entry.pod, entry.device),
    )
