"""A node for the agent's benchmarks: devices by the driver's stand-in, processes, pods, and what they do."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from autoscaler.contract.keys import QoS
from autoscaler.contract.quota import DeviceQuota, QuotaDocument, WorkerQuota
from tests.agent.nvml_standin import Device, NvmlStandIn, Process, State

GIB = 1024**3


@dataclass
class Load:
    """What one worker does: its memory in bytes, and whether it computes."""

    vram_bytes: int
    is_active: bool


class Fleet:
    """A node's devices, processes and pods in a directory, drawn from a seed; two thirds of the workers compute."""

    def __init__(self, root: Path, gpus: int, workers: int, seed: int) -> None:
        self.root, self.gpus, self.workers = root, gpus, workers
        self.random = random.Random(seed)
        self.standin = NvmlStandIn(root)
        self.names = [(gpu, number) for gpu in range(gpus) for number in range(workers)]
        self.loads = {name: Load(self.random.randrange(GIB), self.random.random() < 2 / 3) for name in self.names}
        for gpu, number in self.names:
            self._run(gpu, number)
        (root / "pods.json").write_text(json.dumps([self._pod(*name) for name in self.names]), encoding="utf-8")

    def stir(self, period_us: int = 500) -> None:
        """Give every active process new use, one in fifty new memory; one in a hundred begins or ends its work."""
        for load in self.loads.values():
            load.vram_bytes = self.random.randrange(GIB) if self.random.random() < 0.02 else load.vram_bytes
            load.is_active ^= self.random.random() < 0.01
        most = 180 // self.workers
        processes = tuple(
            Process(
                gpu,
                self.pid(gpu, number),
                load.vram_bytes,
                self.random.randint(1, most) if load.is_active else 0,
                period_us=period_us,
            )
            for (gpu, number), load in self.loads.items()
        )
        devices = tuple(
            Device(f"GPU-{gpu}", "NVIDIA H100 80GB HBM3", 80 * GIB, 60 * GIB, 95) for gpu in range(self.gpus)
        )
        self.standin.write(State(devices, processes))

    def document(self) -> QuotaDocument:
        quotas = (
            WorkerQuota(
                self.uid(gpu, number),
                "team",
                f"pod-{gpu}-{number}",
                f"work-{number}",
                QoS.MEDIUM,
                (DeviceQuota(f"GPU-{gpu}", 10.0, 100.0, GIB, 2 * GIB),),
                "main",
            )
            for gpu, number in self.names
        )
        return QuotaDocument(1, 1, "node-1", tuple(quotas))

    def pid(self, gpu: int, number: int) -> int:
        return 1000 + gpu * self.workers + number

    def uid(self, gpu: int, number: int) -> str:
        return f"00000000-0000-0000-{gpu:04x}-{number:012x}"

    def _container(self, gpu: int, number: int) -> str:
        return f"{gpu:032x}{number:032x}"

    def _pod(self, gpu: int, number: int) -> dict[str, object]:
        return {
            "uid": self.uid(gpu, number),
            "namespace": "team",
            "name": f"pod-{gpu}-{number}",
            "labels": {"tensor-fusion.ai/workload": f"work-{number}"},
            "containers": [{"name": "main", "id": self._container(gpu, number)}],
        }

    def _run(self, gpu: int, number: int) -> None:
        directory = self.root / "proc" / str(self.pid(gpu, number))
        directory.mkdir(parents=True)
        (directory / "stat").write_text(f"1 (python) S {'0 ' * 18}100 {'0 ' * 30}\n", encoding="utf-8")
        path = f"0::/kubepods/burstable/pod{self.uid(gpu, number)}/{self._container(gpu, number)}\n"
        (directory / "cgroup").write_text(path, encoding="utf-8")
