"""A node for fault injection: real files and the real actuator over them, devices and processes in memory.

`Node.start` assembles an agent on what the disk and the shared files hold, as a restart does; `stops_at` ends a call at
its n-th step outside of the process (a file operation, a store into shared memory, a limit told to the driver), as a kill or a full disk would.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from agent.enforce.actuator import Surroundings
from agent.enforce.chosen import ChosenBackend
from agent.enforce.live import LastUse
from agent.enforce.mapped import LayoutError
from agent.enforce.registry import chosen_backend
from agent.enforce.tfshm import TfshmActuator
from agent.enforce.tfshm_layout import MEM_LIMIT, UNLIMITED_BYTES, LiveSlot, Slot, open_state, slots_of
from agent.enforce.transition import Enforcer
from agent.export.exporter import Exporter
from agent.gpus import load_gpu_table
from agent.loop import Agent, Parts
from agent.model.samples import DeviceSample, NodeSample, ProcessUse, SourceError, Worker
from agent.nvml.limits import NvmlMemoryLimits
from agent.quotas.store import CURRENT_NAME, QuotaStore
from autoscaler.contract.keys import QoS
from autoscaler.contract.quota import DeviceQuota, QuotaDocument, WorkerQuota

GIB = 2**30
GPU = "GPU-0"
A100 = "NVIDIA A100-SXM4-80GB"
TOTAL = 80 * GIB
NODE = "n1"


@dataclass(frozen=True)
class Asked:
    """What one worker is to have on the device, in GiB and TFLOPs."""

    name: str
    request_gib: float
    limit_gib: float
    tflops: float = 50.0
    qos: QoS = QoS.HIGH

    def quota(self, uuid: str = GPU) -> WorkerQuota:
        vram = (int(self.request_gib * GIB), int(self.limit_gib * GIB))
        device = DeviceQuota(uuid, min(10.0, self.tflops), self.tflops, *vram)
        return WorkerQuota(f"uid-{self.name}", "ns", self.name, "load", self.qos, (device,), "main")


def document(generation: int, *asked: Asked) -> QuotaDocument:
    return QuotaDocument(1, generation, NODE, tuple(one.quota() for one in asked))


class Killed(BaseException):
    """The process ended here."""


@dataclass
class Node:
    """The world around agents: it stays when they go. `uses` is (share of the device, bytes) by worker's name."""

    root: Path
    names: tuple[str, ...] = ("a", "b")
    at: float = 1_700_000_000.0
    uses: dict[str, tuple[float, int]] = field(default_factory=dict)
    unreadable: bool = False
    started: list[Agent] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in self.names:
            self.file(name).parent.mkdir(parents=True, exist_ok=True)

    def sample(self, now: float) -> NodeSample:
        if self.unreadable:
            raise SourceError("the driver is away")
        processes = tuple(ProcessUse(pid, *self.uses.get(name, (0.0, 0))) for pid, name in enumerate(self.names, 1))
        used = sum(held for _, held in self.uses.values())
        ratio = min(1.0, sum(share for share, _ in self.uses.values()))
        return NodeSample(now, (DeviceSample(0, GPU, A100, now, TOTAL, used, ratio, processes=processes),))

    def close(self) -> None:
        """Hold nothing."""

    def workers(self) -> tuple[Worker, ...]:
        return self.crew

    @cached_property
    def crew(self) -> tuple[Worker, ...]:
        return tuple(Worker(f"uid-{name}", "ns", name, "main", "load", devices=(GPU,)) for name in self.names)

    def worker_of(self, pid: int) -> Worker | None:
        return self.crew[pid - 1]

    def file(self, name: str) -> Path:
        return self.root / "shm" / "ns" / name / "shm"

    def start(self) -> Agent:
        live_use, gpus = LastUse(), load_gpu_table()
        around = Surroundings(
            live_use, live_use.tflops_of, live_use.index_of, self.root / "state", tfshm_root=self.root / "shm"
        )
        enforcer = Enforcer(chosen_backend(around, ("tfshm",), ("tfshm",)))
        store = QuotaStore(self.root / "state")
        agent = Agent(NODE, Parts(self, self, enforcer, live_use, store, Exporter(gpus, 3600.0), gpus))
        self.started.append(agent)
        return agent

    def tick(self, agent: Agent, seconds: float = 1.0) -> None:
        self.at += seconds
        agent.tick(self.at)

    def kill(self, agent: Agent) -> None:
        """End an agent without a word to anyone: its heart stops, nothing is written."""
        heart = actuator_of(agent)
        heart._stop.set()
        if heart._keeper is not None:
            heart._keeper.join()

    def limits(self) -> dict[str, int]:
        """Return the VRAM limits that limiters read now, by worker; one without a limit is left out."""
        found = {}
        for name in self.names:
            try:
                with open_state(self.file(name)) as file:
                    slot: Slot | None = slots_of(file).get(GPU.lower())
                    limit = slot.u64(MEM_LIMIT) if slot is not None else UNLIMITED_BYTES
                    del slot
            except (OSError, LayoutError):
                continue
            if limit < UNLIMITED_BYTES:
                found[name] = limit
        return found

    def check(self) -> None:
        """Hold to what must be true at every instant."""
        limits = self.limits()
        assert sum(limits.values()) <= TOTAL, limits
        stored = self.root / "state" / CURRENT_NAME
        if stored.exists():
            body = stored.read_bytes().partition(b"\n")[2]
            kept = msgspec.json.decode(body, type=QuotaDocument) if body else None
            requests = [one.vram_request_bytes for entry in (kept.quotas if kept else ()) for one in entry.devices]
            assert sum(requests) <= TOTAL, requests


def actuator_of(agent: Agent) -> TfshmActuator:
    backend = agent._parts.enforcer.backend
    assert isinstance(backend, ChosenBackend)
    one = backend.actuators[0]
    assert isinstance(one, TfshmActuator)
    return one


_STORES = frozenset(
    store.__code__
    for store in (
        Slot.put_u32,
        Slot.put_u64,
        Slot.put_f64,
        LiveSlot.put_use,
        LiveSlot.put_refill,
        NvmlMemoryLimits.write,
    )
)
_WRITES = frozenset({"open", "write", "flush", "fsync", "replace", "posix_fallocate", "mkdir", "link"})
_CALLS = _WRITES | {"rename", "unlink", "close", "fchmod"}


NEVER = 10**9


@dataclass
class Steps:
    """Counts a call's steps, and stops the call at one of them, after a look at the world.

    `NEVER` looks at each step and stops at none.
    """

    look: Callable[[], None]
    stop_at: int
    error: Callable[[], BaseException] = Killed
    writes_only: bool = False
    count: int = 0

    @property
    def was_stopped(self) -> bool:
        return self.count > self.stop_at

    def __call__(self, frame: FrameType, event: str, called: Any) -> None:
        is_store = event == "call" and frame.f_code in _STORES and not self.writes_only
        names = _WRITES if self.writes_only else _CALLS
        is_call = event == "c_call" and called.__name__ in names and _is_outside(called)
        if not (is_store or is_call):
            return
        # The steps before it were looked at by the runs that stopped there.
        if self.stop_at in {self.count, NEVER}:
            self.look()
        self.count += 1
        if self.count > self.stop_at:
            raise self.error()


def _is_outside(called: Any) -> bool:
    return called.__module__ in {"posix", "io", "_io"} or type(called.__self__).__module__ == "_io"


@contextmanager
def stopping(steps: Steps) -> Iterator[Steps]:
    """Run a block of this thread under watch; a stop leaves it."""
    sys.setprofile(steps)
    try:
        yield steps
    except Killed:
        return
    finally:
        sys.setprofile(None)


def no_space() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")
