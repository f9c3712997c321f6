"""The town as scenario files of the node agents' simulation, one a node; pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from autoscaler.demo.services import Service, Town

NAMESPACE: Final = "default"
CONTAINER: Final = "main"
_SEEDS_PER_WORKER: Final = 7919
"""Apart far enough that two workers' noise never runs in step."""


def pod_name(service: Service, number: int) -> str:
    """Return the name of a service's worker."""
    return f"{service.name}-{number}"


def pod_uid(service: Service, number: int) -> str:
    """Return the UID of a service's worker, the same in manifests and scenarios."""
    return f"uid-{pod_name(service, number)}"


def scenario(town: Town, node: str, start_seconds: float) -> str:
    """Return the scenario of one node as JSON; `start_seconds` since the epoch, a midnight."""
    devices = [device for device in town.devices if device.node == node]
    here = {device.uuid for device in devices}
    return json.dumps(
        {
            "node": node,
            "start_seconds": start_seconds,
            "devices": [
                {"uuid": device.uuid, "model": device.model, "vram_bytes": device.vram_bytes} for device in devices
            ],
            "workers": [worker for worker in _workers(town) if worker["device"] in here],
        },
        indent=1,
    )


def _workers(town: Town) -> Iterator[dict[str, Any]]:
    seed = town.seed * _SEEDS_PER_WORKER
    for service in town.services:
        compute, vram = service.amounts.compute, service.amounts.vram
        for number, device in enumerate(service.workers):
            seed += 1
            yield {
                "pod_uid": pod_uid(service, number),
                "namespace": NAMESPACE,
                "pod": pod_name(service, number),
                "container": CONTAINER,
                "workload": service.name,
                "device": device,
                "character": service.character,
                "seed": seed,
                "qos": str(service.qos),
                "born": {
                    "tflops_request": compute.request,
                    "tflops_limit": compute.limit,
                    "vram_request_bytes": int(vram.request),
                    "vram_limit_bytes": int(vram.limit),
                },
                "parameters": dict(service.parameters),
            }
