"""Devices of claims (dynamic resource allocation): joined with the slices that the API server has of this node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
from aiohttp import web
from aiohttp.test_utils import TestServer

from agent.kubeapi import ApiAddress, KubeApi
from agent.kubelet.resources import ClaimedDevice
from agent.kubelet.sockets import POD_RESOURCES
from agent.pods import allocated as allocating
from agent.pods.allocated import AllocatedDevices
from agent.pods.claims import SLICES, Claims, uuids_in
from agent.pods.placed import PlacedPods
from tests.agent.kubelets import GPU_A, GPU_B, MIG, NODE, given, kubelet_in, pod, running, until
from tests.agent.test_allocated import Pods, devices


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocating, "EVERY_SECONDS", 0.05)
    monkeypatch.setattr(allocating, "LEAST_SECONDS", 0.01)
    monkeypatch.setattr(allocating, "LONGEST_PAUSE_SECONDS", 0.05)


CLAIMED = ClaimedDevice("gpu.nvidia.com", NODE, "gpu-0")


def resource_slice(
    uuid: str, *, device: str = "gpu-0", generation: int = 1, driver: str = "gpu.nvidia.com"
) -> dict[str, Any]:
    attributes = {"uuid": {"string": uuid}, "type": {"string": "gpu"}, "index": {"int": 0}}
    pool = {"name": NODE, "generation": generation, "resourceSliceCount": 1}
    return {
        "spec": {
            "driver": driver,
            "pool": pool,
            "nodeName": NODE,
            "devices": [{"name": device, "attributes": attributes}],
        }
    }


def test_a_claimed_device_is_known_by_driver_pool_and_name_and_of_a_pool_the_newest_counts() -> None:
    slices = [
        resource_slice(GPU_A, generation=1),
        resource_slice(GPU_B, generation=2),
        resource_slice(MIG, device="gpu-9", driver="other.example.com"),
        {"spec": {"driver": "gpu.nvidia.com", "pool": {"name": "empty"}}},
    ]
    assert uuids_in(slices) == {CLAIMED: GPU_B}


class Slices:
    def __init__(self, *items: dict[str, Any]) -> None:
        self.items = list(items)
        self.queries: list[dict[str, str]] = []
        self.status = 200

    async def answer(self, request: web.Request) -> web.Response:
        self.queries.append(dict(request.query))
        return web.json_response({"items": self.items}, status=self.status)


@pytest.fixture
async def slices(tmp_path: Path) -> AsyncIterator[tuple[Slices, KubeApi]]:
    served = Slices(resource_slice(GPU_A))
    app = web.Application()
    app.router.add_get(SLICES, served.answer)
    (tmp_path / "token").write_text("t")
    async with TestServer(app) as server:
        api = KubeApi(ApiAddress(str(server.make_url("")).rstrip("/"), tmp_path / "token", None))
        yield served, api
        await api.close()


async def test_devices_of_claims_are_joined_with_the_nodes_slices(
    tmp_path: Path, slices: tuple[Slices, KubeApi]
) -> None:
    served, api = slices
    async with kubelet_in(tmp_path, pods=False) as kubelet:
        kubelet.allocations = (replace(given("web"), claimed=(CLAIMED,)),)
        allocated = AllocatedDevices(tmp_path / POD_RESOURCES, Claims(api, NODE, lambda: 0.0))
        source = PlacedPods(Pods(pod("web")), allocated)
        async with running(allocated):
            await until(lambda: devices(source) == {("uid-web", "main"): (GPU_A,)})
            await until(lambda: len(kubelet.calls) >= 4)
    assert served.queries == [{"fieldSelector": f"spec.nodeName={NODE}"}]


async def test_slices_are_asked_for_only_when_a_device_is_not_known_and_once_a_minute(
    slices: tuple[Slices, KubeApi],
) -> None:
    served, api = slices
    now = 0.0
    claims = Claims(api, NODE, lambda: now)
    new = ClaimedDevice("gpu.nvidia.com", NODE, "gpu-1")
    assert await claims.uuids({ClaimedDevice("other.example.com", "p", "d")}) == {}
    assert served.queries == []
    assert await claims.uuids({CLAIMED}) == {CLAIMED: GPU_A}
    served.items.append(resource_slice(GPU_B, device="gpu-1"))
    assert new not in await claims.uuids({CLAIMED, new})
    now = 60.0
    assert (await claims.uuids({CLAIMED, new}))[new] == GPU_B
    assert len(served.queries) == 2


async def test_who_may_not_list_slices_keeps_what_is_known_and_is_told_once(slices: tuple[Slices, KubeApi]) -> None:
    served, api = slices
    now = 0.0
    claims = Claims(api, NODE, lambda: now)
    await claims.uuids({CLAIMED})
    served.status = 403
    with structlog.testing.capture_logs() as lines:
        for minute in (1, 2):
            now = 60.0 * minute
            found = await claims.uuids({ClaimedDevice("gpu.nvidia.com", NODE, "gpu-1")})
    assert found == {CLAIMED: GPU_A}
    assert [line["event"] for line in lines] == ["claimed_devices_unknown"]
