"""Scenarios for the agent's tests: small nodes with workers of chosen character."""

import json
from pathlib import Path

from agent.gpus import load_gpu_table
from agent.simulate.scenario import Scenario, load_scenario

GIB = 1 << 30
A100 = "NVIDIA A100-SXM4-80GB"
A100_TFLOPS = load_gpu_table().lookup(A100).tflops


def worker(name: str, character: str = "steady", **changes) -> dict:
    born = {"tflops_request": 20, "tflops_limit": 40, "vram_request_bytes": 8 * GIB, "vram_limit_bytes": 16 * GIB}
    base = {
        "pod_uid": f"uid-{name}", "namespace": "ns", "pod": name, "container": "main", "workload": name,
        "device": "GPU-0", "character": character, "seed": 1, "born": born, "parameters": {"noise_ratio": 0},
    }  # fmt: skip
    return {**base, **changes}


def write(
    directory: Path, *workers: dict, devices: int = 1, vram_bytes: int = 80 * GIB, start: float | None = 0
) -> Path:
    gpus = [{"uuid": f"GPU-{number}", "model": A100, "vram_bytes": vram_bytes} for number in range(devices)]
    path = directory / "scenario.json"
    path.write_text(json.dumps({"node": "n1", "devices": gpus, "workers": workers, "start_seconds": start}))
    return path


def scenario(directory: Path, *workers: dict, **changes) -> Scenario:
    return load_scenario(write(directory, *workers, **changes))
