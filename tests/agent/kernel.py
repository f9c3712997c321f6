"""A faulty node whose memory is the kernel's: cgroups with the driver's limits, by the C stand-in, and a freezer.

What is reserved stands in the books of every folder above a container, as the driver keeps them, and stays there when
the container is gone.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent.enforce.actuator import Surroundings
from agent.enforce.freeze import FREEZE_FILE, Freezer
from agent.enforce.live import LastUse
from agent.enforce.preempting import Preempting
from agent.enforce.registry import chosen_backend
from agent.enforce.transition import Enforcer
from agent.export.exporter import Exporter
from agent.gpus import load_gpu_table
from agent.loop import Agent, Parts
from agent.model.samples import Worker
from agent.nvml.limits import NvmlMemoryLimits
from agent.quotas.store import QuotaStore
from tests.agent.faulty import GPU, TOTAL, Node

UNLIMITED = 2**64 - 1


@dataclass
class Kernel(Node):
    """`leaves` are the containers' folders by worker; who is `gone` runs no more."""

    leaves: dict[str, Path] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    with_freezer: bool = False
    compute: tuple[str, ...] = ("tfshm",)
    vram: tuple[str, ...] = ("dmem",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.top.mkdir(parents=True, exist_ok=True)
        (self.cgroups / "cgroup.controllers").write_text("cpu memory dmem\n")
        (self.top / "dmem.max").touch()
        for name in self.names:
            self.grow(name, "first")

    @property
    def cgroups(self) -> Path:
        return self.root / "cgroup"

    @property
    def top(self) -> Path:
        return self.cgroups / "kubepods"

    def grow(self, name: str, container: str) -> None:
        """Make a container of a pod, with the kernel's files."""
        leaf = self.leaves[name] = self.top / f"pod-{name}" / container
        leaf.mkdir(parents=True, exist_ok=True)
        for folder in (leaf, leaf.parent):
            (folder / "dmem.max").touch()
        (leaf / FREEZE_FILE).write_text("0")

    def cut(self, name: str, *, pod: bool) -> None:
        """Remove a container, or its pod with it."""
        leaf = self.leaves[name]
        shutil.rmtree(leaf.parent if pod else leaf)

    def workers(self) -> tuple[Worker, ...]:
        return tuple(one for one in self.crew if one.pod not in self.gone)

    def worker_of(self, pid: int) -> Worker | None:
        worker = super().worker_of(pid)
        return None if worker is None or worker.pod in self.gone else worker

    def start(self) -> Agent:
        live_use, gpus = LastUse(), load_gpu_table()
        around = Surroundings(
            live_use, live_use.tflops_of, live_use.index_of, self.root / "state",
            cgroup_of=lambda worker: self.path_of(worker.pod),
            memory_limits=NvmlMemoryLimits(), cgroup_root=self.cgroups, tfshm_root=self.root / "shm",
            hamicore_root=self.root / "containers",
        )  # fmt: skip
        enforcer = Enforcer(chosen_backend(around, self.compute, self.vram))
        store = QuotaStore(self.root / "state")
        parts = Parts(self, self, enforcer, live_use, store, Exporter(gpus, 3600.0), gpus)
        if self.with_freezer:
            parts = replace(parts, preempting=Preempting(self.freezer()))
        agent = Agent(self.node, parts)
        self.started.append(agent)
        return agent

    def path_of(self, name: str) -> str:
        return f"/{self.leaves[name].relative_to(self.cgroups)}"

    def freezer(self) -> Freezer:
        return Freezer(self.cgroups, self.root / "state", lambda name: self.path_of(name[0].removeprefix("uid-")))

    node = "n1"

    def books(self, folder: Path) -> tuple[int, int]:
        """Return what the kernel holds for a folder: soft and hard, in bytes."""
        path = folder / f"books.{GPU}"
        soft, hard, _ = map(int, path.read_text().split()) if path.exists() else (0, UNLIMITED, 0)
        return soft, hard

    def limits(self) -> dict[str, int]:
        found = {name: self.books(leaf)[1] for name, leaf in self.leaves.items() if leaf.is_dir()}
        return {name: limit for name, limit in found.items() if limit < UNLIMITED}

    def reserved(self) -> dict[str, int]:
        """Return what is reserved for each container that lives."""
        return {name: self.books(leaf)[0] for name, leaf in self.leaves.items() if leaf.is_dir()}

    def check(self) -> None:
        super().check()
        assert self.books(self.top)[0] <= TOTAL
        assert sum(self.reserved().values()) <= self.books(self.top)[0]
