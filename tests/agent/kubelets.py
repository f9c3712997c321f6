"""Pods and allocations as a kubelet tells them, and waiting for what a task brings about."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from agent.kubelet.fake import FakeKubelet
from agent.kubelet.resources import Allocation
from autoscaler.contract import keys

NODE = "node-a"
GPU_A = "GPU-6f2c1f8a-0b1d-4c3e-9a57-0123456789ab"
GPU_B = "GPU-6f2c1f8a-0b1d-4c3e-9a57-ba9876543210"
MIG = "MIG-11111111-2222-3333-4444-555555555555"


def pod(name: str, *, uid: str = "", containers: tuple[str, ...] = ("main",), **annotations: str) -> dict[str, Any]:
    born = {keys.TFLOPS_LIMIT: "20", keys.VRAM_LIMIT: "8Gi"}
    return {
        "metadata": {
            "uid": uid or f"uid-{name}",
            "name": name,
            "namespace": "chat",
            "labels": {keys.ENABLED: "true", "pod-template-hash": "5d4f"},
            "annotations": {**born, **annotations},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "web-5d4f", "controller": True}],
        },
        "spec": {"nodeName": NODE, "containers": [{"name": one} for one in containers]},
        "status": {"containerStatuses": [{"name": "main", "containerID": "containerd://" + "ab" * 32}]},
    }


def given(name: str, *device_ids: str, container: str = "main") -> Allocation:
    return Allocation("chat", name, container, device_ids)


class Runs(Protocol):
    async def run(self) -> None: ...


@asynccontextmanager
async def running(*followers: Runs) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(follower.run()) for follower in followers]
    try:
        yield
        assert not any(task.done() for task in tasks), tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def kubelet_in(folder: Path, **services: bool) -> AsyncIterator[FakeKubelet]:
    fake = FakeKubelet(folder)
    await fake.start(**services)
    try:
        yield fake
    finally:
        await fake.stop()


async def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "it did not come about within 20 s"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def listening(
    socket: Path, behaves: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
) -> AsyncIterator[None]:
    """Something that listens on a socket and is no gRPC server."""
    socket.parent.mkdir(parents=True, exist_ok=True)
    server = await asyncio.start_unix_server(behaves, str(socket))
    try:
        yield
    finally:
        server.close()
