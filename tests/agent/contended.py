"""A device in simulated time whose workers want more than it has, seen through a driver that publishes now and then.

Time goes in small steps: what the workers get in one is what they want under their limits, scaled to the device, and a
limit acts some time after it was written. The driver counts whole percents over its own period; the agent's window makes
ratios of them. Truth is kept beside it, step by step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.enforce.live import LastUse
from agent.enforce.simulated import SimulatedBackend
from agent.enforce.transition import Enforcer
from agent.export.exporter import Exporter
from agent.gpus import load_gpu_table
from agent.loop import Agent, Parts
from agent.model.samples import DeviceSample, NodeSample, ProcessUse, Worker
from agent.quotas.store import QuotaStore
from agent.utilization import UtilizationSample, UtilizationWindow
from autoscaler.contract.keys import QoS
from autoscaler.contract.quota import DeviceQuota
from tests.agent.scenes import A100, A100_TFLOPS, GIB

GPU = "GPU-0"
STEPS_PER_SECOND = 60
ACTS_STEPS = 12
"""A limit acts with the next refill of the worker's tokens: a fifth of a second."""

Demand = Callable[[float], float]
"""Seconds since the start to the share of the device that is wanted, 0..1."""


@dataclass
class Tenant:
    """One worker: what it is guaranteed and may have at most, as shares of the device, and what it wants."""

    request: float
    limit: float
    qos: QoS
    demand: Demand
    written: list[float] = field(default_factory=list)
    got: list[float] = field(default_factory=list)
    wanted: list[float] = field(default_factory=list)


class Contended:
    """DeviceSource and ProcessDirectory of one device; `play` moves time, and lets an agent tick in it."""

    def __init__(
        self, state_dir: Path, tenants: Mapping[str, Tenant], period_steps: int, driver_phase: int = 0
    ) -> None:
        self.tenants, self._period, self._phase = tenants, period_steps, driver_phase
        self._workers = {name: _worker(name, one) for name, one in tenants.items()}
        self._rows: list[UtilizationSample] = []
        self._window, self._step, self._seen_step = UtilizationWindow(Counter()), 0, 0
        gpus, live_use = load_gpu_table(), LastUse()
        self._backend = SimulatedBackend(live_use)
        parts = Parts(self, self, Enforcer(self._backend), live_use, QuotaStore(state_dir), Exporter(gpus, 60.0), gpus)
        self._agent = Agent("n1", parts)

    def play(self, seconds: float, tick_steps: int, first_tick: int) -> None:
        """Go on for this long; the agent ticks at `first_tick` and then each `tick_steps`."""
        for _ in range(round(seconds * STEPS_PER_SECOND)):
            self._go()
            if self._step % tick_steps == first_tick % tick_steps:
                self._agent.tick(self.now)

    @property
    def now(self) -> float:
        """The time in seconds since the epoch."""
        return 1_700_000_000.0 + self._step / STEPS_PER_SECOND

    def sample(self, now: float) -> NodeSample:
        """Show the device as NVML's source does."""
        since, self._seen_step = self._seen_step, self._step
        whole = [sum(one.got[step] for one in self.tenants.values()) for step in range(since, self._step)]
        busy = sum(whole) / max(len(whole), 1)
        rows, self._rows = self._rows, []
        ratios = self._window.take(rows, round(now * 1e6), busy=busy > 0)
        processes = tuple(ProcessUse(pid, ratios.get(pid, 0.0), GIB) for pid in range(1, len(self.tenants) + 1))
        busy = max([busy, *ratios.values()])
        return NodeSample(now, (DeviceSample(0, GPU, A100, now, 80 * GIB, GIB, busy, 1.0, processes),))

    def close(self) -> None:
        """Hold nothing."""

    def worker_of(self, pid: int) -> Worker:
        """Return the worker of a process."""
        return list(self._workers.values())[pid - 1]

    def workers(self) -> tuple[Worker, ...]:
        """Return all workers."""
        return tuple(self._workers.values())

    def _go(self) -> None:
        seconds = self._step / STEPS_PER_SECOND
        wants = []
        for name, one in self.tenants.items():
            limits = self._backend.limits_of(self._workers[name], GPU)
            one.written.append(1.0 if limits is None else limits.tflops_limit / A100_TFLOPS)
            acting = one.written[max(0, len(one.written) - 1 - ACTS_STEPS)]
            one.wanted.append(one.demand(seconds))
            wants.append(min(one.wanted[-1], acting))
        share = min(1.0, 1.0 / sum(wants)) if sum(wants) else 1.0
        for one, want in zip(self.tenants.values(), wants, strict=True):
            one.got.append(want * share)
        self._step += 1
        if (self._step - self._phase) % self._period == 0:
            self._publish()

    def _publish(self) -> None:
        for pid, one in enumerate(self.tenants.values(), start=1):
            percent = round(100 * sum(one.got[-self._period :]) / self._period)
            if percent:
                self._rows.append(UtilizationSample(pid, round(self.now * 1e6), percent))


def _worker(name: str, one: Tenant) -> Worker:
    born = DeviceQuota("", one.request * A100_TFLOPS, one.limit * A100_TFLOPS, GIB, 2 * GIB)
    return Worker(f"uid-{name}", "ns", name, "main", name, one.qos, born, (GPU,))
