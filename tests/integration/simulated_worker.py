"""A vGPU worker without a GPU: a real process, whose use of the device is what it wants, as far as its limits let it.

It reads its limits where the simulated backend puts them and steers the C stand-in for NVML accordingly, so that the
agent measures what a real, throttled worker would show. Memory that it has is its own: a lower limit takes none of it.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.agent.nvml_standin import GIB, Device, NvmlStandIn, Process, State

POLL_SECONDS = 0.05
SAMPLE_PERIOD_US = 100_000
GPU = Device("GPU-3f1c", name="NVIDIA A10", total_bytes=24 * GIB)
TFLOPS = 125.0
"""What the agent's table says of that model: 1.25 TFLOPs a percent."""

CONTAINER_ID = "c0ffee00" * 8


@dataclass(frozen=True)
class InForce:
    """What the worker found in force at one moment, None before anything was."""

    tflops_limit: float | None
    vram_limit_bytes: int | None
    vram_used_bytes: int


@dataclass
class SimulatedWorker:
    """Demand may be changed at any time; `seen` has every change of limits or memory, polled 20 times a second.

    One that no longer `obeys` has gone around its limiter, and takes what it wants.
    """

    standin: NvmlStandIn
    limits_file: Path
    pid: int
    demand_tflops: float = 0.0
    demand_vram_bytes: int = 0
    obeys: bool = True
    seen: list[InForce] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    _shown: State | None = None

    def run(self) -> None:
        while not self.ended.wait(POLL_SECONDS):
            self.step()

    def step(self) -> None:
        limits = self._limits()
        vram_limit = limits.get("vram_limit_bytes")
        held = min(self.seen[-1].vram_used_bytes, self.demand_vram_bytes) if self.seen else 0
        vram = self.demand_vram_bytes if vram_limit is None else max(held, min(self.demand_vram_bytes, vram_limit))
        tflops = min(self.demand_tflops, limits.get("tflops_limit", TFLOPS), TFLOPS)
        if not self.obeys:
            vram, tflops = self.demand_vram_bytes, min(self.demand_tflops, TFLOPS)
        # A percent is all the resolution that the driver has; a limit is never passed for it.
        percent = math.floor(100 * tflops / TFLOPS + 1e-9)
        state = State(
            devices=(Device(GPU.uuid, GPU.name, GPU.total_bytes, vram, percent),),
            processes=(Process(0, self.pid, vram, percent, SAMPLE_PERIOD_US),),
        )
        if state != self._shown:
            self.standin.write(state)
            self._shown = state
        now = InForce(limits.get("tflops_limit"), vram_limit, vram)
        if not self.seen or self.seen[-1] != now:
            self.seen.append(now)

    def _limits(self) -> dict[str, float]:
        try:
            found: dict[str, float] = json.loads(self.limits_file.read_bytes())
        except FileNotFoundError:
            return {}
        return found


@contextmanager
def simulated_worker(
    standin: NvmlStandIn, limits_folder: Path, pod_uid: str, proc_root: Path
) -> Iterator[SimulatedWorker]:
    """Run a worker as container `main` of a pod; its process is found under `proc_root` with the pod's cgroup."""
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        _show_process(proc_root, child.pid, pod_uid)
        worker = SimulatedWorker(standin, limits_folder / f"{pod_uid}_main_{GPU.uuid}.json", child.pid)
        worker.step()
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            yield worker
        finally:
            worker.ended.set()
            thread.join()
    finally:
        child.kill()
        child.communicate()


def _show_process(proc_root: Path, pid: int, pod_uid: str) -> None:
    """Make a /proc in which the real process is in the pod's container, as containerd and systemd would place it."""
    process = proc_root / str(pid)
    process.mkdir(parents=True)
    (process / "stat").symlink_to(f"/proc/{pid}/stat")
    pod_slice = f"kubepods-burstable-pod{pod_uid.replace('-', '_')}.slice"
    (process / "cgroup").write_text(
        f"0::/kubepods.slice/kubepods-burstable.slice/{pod_slice}/cri-containerd-{CONTAINER_ID}.scope\n"
    )
