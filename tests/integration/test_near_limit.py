"""Near its VRAM limit a worker's use reaches its limiter between two ticks: the agent's process, the driver's library.

The agent ticks once a minute here, so whatever the limiter is told meanwhile was seen by the looks between.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from agent.enforce import tfshm_layout as layout
from agent.enforce.mapped import MappedFile
from autoscaler.contract import keys
from tests.agent.nvml_standin import GIB, Device, NvmlStandIn, Process, State
from tests.integration.parts import Program, until

pytestmark = pytest.mark.integration
GPU, PID, UID, CONTAINER = "GPU-0", 4711, "0123abcd-0000-4000-8000-000000004711", "ab" * 32
TICK_SECONDS = 60.0


def hold(standin: NvmlStandIn, used_bytes: int) -> None:
    device = Device(GPU, "NVIDIA L4", 24 * GIB, used_bytes, 0)
    standin.write(State(devices=(device,), processes=(Process(0, PID, used_bytes),)))


def node(folder: Path) -> None:
    """Lay out one worker's process, pod and limiter folder."""
    (folder / "shm" / "chat" / "a").mkdir(parents=True)
    place = folder / "proc" / str(PID)
    place.mkdir(parents=True)
    (place / "stat").write_text(f"{PID} (python) S " + " ".join(str(number) for number in range(4, 53)))
    (place / "cgroup").write_text(f"0::/kubepods/pod{UID}/{CONTAINER}\n")
    annotations = {keys.TFLOPS_LIMIT: "60", keys.VRAM_LIMIT: "4Gi"}
    containers = [{"name": "main", "id": CONTAINER}]
    pod = {"uid": UID, "namespace": "chat", "name": "a", "labels": {keys.ENABLED: "true"}, "annotations": annotations}
    (folder / "pods.json").write_text(json.dumps([{**pod, "containers": containers}]))


def test_what_a_worker_near_its_limit_takes_is_told_between_two_ticks(tmp_path: Path) -> None:
    node(tmp_path)
    standin, shared = NvmlStandIn(tmp_path), tmp_path / "shm" / "chat" / "a" / "shm"
    hold(standin, 3 * GIB)
    command = [
        "agent", "run", "--node", "n1", "--listen", "127.0.0.1:0", "--port-file", str(tmp_path / "port"),
        "--tick", str(TICK_SECONDS), "--state-dir", str(tmp_path / "state"), "--pods-file", str(tmp_path / "pods.json"),
        "--proc-root", str(tmp_path / "proc"), "--tfshm-root", str(tmp_path / "shm"),
        "--vram-backends", "tfshm", "--compute-backends", "tfshm",
    ]  # fmt: skip
    agent = Program("tf-agent", command, tmp_path / "agent.log", standin.environment())
    started = time.monotonic()
    try:
        agent.start()
        until("the agent serves", (tmp_path / "port").exists, check=agent.check)
        with MappedFile(shared, layout.SIZE) as file:
            for used_bytes in (7 * GIB // 2, 15 * GIB // 4, 4 * GIB - 1, 7 * GIB // 2):
                hold(standin, used_bytes)

                def is_told(wanted: int = used_bytes) -> bool:
                    return file.u64(layout.DEVICES + layout.POD_MEMORY_USED).value == wanted

                until(f"{used_bytes} bytes are told", is_told, check=agent.check)
            assert time.monotonic() - started < TICK_SECONDS  # No tick but the first can have told it.
    finally:
        agent.kill()
