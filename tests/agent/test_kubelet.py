"""The gateway to the kubelet: real gRPC over unix sockets, and bytes put together by hand or by Kubernetes' own messages."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from agent.kubelet import messages
from agent.kubelet.pods import EventKind, PodEvent, read_pod, watch_pods
from agent.kubelet.resources import Allocation, ClaimedDevice, list_allocations
from agent.kubelet.sockets import POD_RESOURCES, PODS, KubeletError
from tests.agent.kubelets import GPU_A, NODE, kubelet_in, pod, until


def varint(number: int) -> bytes:
    """Encode as the wire format does: seven bits a byte, the lowest first."""
    low, high = number & 0x7F, number >> 7
    return bytes([low]) if not high else bytes([low | 0x80]) + varint(high)


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def text(field: int, *content: bytes | str) -> bytes:
    """Encode what has a length: a string, or a message of parts."""
    joined = b"".join(part.encode() if isinstance(part, str) else part for part in content)
    return varint(field << 3 | 2) + varint(len(joined)) + joined


async def events_of(folder: Path, count: int) -> list[PodEvent]:
    found = []
    async with aclosing(watch_pods(folder / PODS)) as events:
        async for event in events:
            found.append(event)
            if len(found) == count:
                break
    return found


async def test_the_kubelet_tells_which_container_was_given_what(tmp_path: Path) -> None:
    async with kubelet_in(tmp_path) as kubelet:
        claimed = ClaimedDevice("gpu.nvidia.com", NODE, "gpu-0")
        told = (
            Allocation("chat", "web-0", "main", (GPU_A, "GPU-x::1")),
            Allocation("chat", "web-0", "side", (), (claimed,)),
            Allocation("team", "train", "main", ("nvidia0",)),
        )
        kubelet.allocations = (*told, Allocation("team", "idle", "main"))
        assert await list_allocations(tmp_path / POD_RESOURCES) == told


async def test_an_answer_of_a_thousand_pods_is_read_whole(tmp_path: Path) -> None:
    async with kubelet_in(tmp_path) as kubelet:
        kubelet.allocations = tuple(Allocation("chat", f"web-{n}", "main", (GPU_A * 20,)) for n in range(1000))
        assert await list_allocations(tmp_path / POD_RESOURCES) == kubelet.allocations


async def test_a_watch_tells_all_pods_then_that_these_were_all_then_what_changes(tmp_path: Path) -> None:
    async with kubelet_in(tmp_path) as kubelet:
        kubelet.tell(EventKind.ADDED, pod("a"))
        watching = asyncio.create_task(events_of(tmp_path, 4))
        await until(lambda: bool(kubelet.watchers))
        kubelet.tell(EventKind.MODIFIED, pod("b"))
        kubelet.tell(EventKind.DELETED, pod("a"))
        first, synced, changed, deleted = await watching
    assert (first.kind, synced, changed.kind, deleted.kind) == (1, PodEvent(EventKind.SYNCED), 2, 3)
    assert first.pod["metadata"] == pod("a")["metadata"]
    assert first.pod["spec"] == pod("a")["spec"]
    assert changed.pod["status"]["containerStatuses"][0]["containerID"] == "containerd://" + "ab" * 32
    assert deleted.pod["metadata"]["uid"] == "uid-a"


# --- bytes that were put together by the public definitions, not by the messages under test


def test_an_answer_of_pod_resources_is_read_by_its_public_numbers() -> None:
    devices = text(2, text(1, "nvidia.com/gpu"), text(2, GPU_A), text(3, text(1, number(1, 1))))
    claim = text(
        5,
        text(2, "claim"),
        text(3, "chat"),
        text(4, text(1, text(1, "cdi")), text(2, "d"), text(3, "p"), text(4, "gpu-0")),
    )
    container = text(3, text(1, "main"), devices, number(3, 7), text(4, text(1, "memory"), number(2, 9)), claim)
    answer = messages.ListPodResourcesResponse.FromString(
        text(1, text(1, "web-0"), text(2, "chat"), container, number(4, 3))
    )
    (found,) = answer.pod_resources
    (box,) = found.containers
    assert (found.namespace, found.name, box.name) == ("chat", "web-0", "main")
    assert [list(one.device_ids) for one in box.devices] == [[GPU_A]]
    (one,) = box.dynamic_resources[0].claim_resources
    assert (one.driver_name, one.pool_name, one.device_name) == ("d", "p", "gpu-0")


def hand_made_pod() -> bytes:
    """A pod as Kubernetes marshals it: metadata 1, spec 2, status 3, with fields that nobody here reads in between."""
    entry = text(1, "app"), text(2, "chat")
    owner = text(1, "ReplicaSet"), text(3, "web-5d4f"), text(4, "u"), text(5, "apps/v1"), number(6, 1), number(7, 1)
    created = text(8, number(1, 1_700_000_000))
    metadata = text(1, "web"), text(2, "web-"), text(3, "chat"), text(5, "uid-1"), text(6, "42"), number(7, 3), created
    named = text(11, *entry), text(12, text(1, "k"), text(2, "v")), text(13, *owner), text(17, text(1, "kubelet"))
    spec = (
        text(1, text(1, "volume")),
        text(2, text(1, "main"), text(2, "image")),
        text(2, text(1, "side")),
        text(10, NODE),
    )
    ended = text(
        3, number(1, 137), text(3, "OOMKilled"), text(6, number(1, 1_700_000_100)), text(7, "containerd://old")
    )
    running = text(2, text(2, text(1, number(1, 1_700_000_101))))
    status = (
        text(1, "Running"),
        text(8, text(1, "main"), running, text(3, ended), number(4, 1), text(8, "containerd://new")),
    )
    return text(1, *metadata, *named) + text(2, *spec) + text(3, *status)


def test_a_pod_is_read_by_its_public_numbers() -> None:
    event = messages.WatchPodsEvent.FromString(number(1, 2) + text(2, hand_made_pod()))
    assert (event.type, event.pod) == (EventKind.MODIFIED, hand_made_pod())
    read = read_pod(event.pod)
    assert read["metadata"] == {
        "uid": "uid-1",
        "namespace": "chat",
        "name": "web",
        "labels": {"app": "chat"},
        "annotations": {"k": "v"},
        "ownerReferences": [{"kind": "ReplicaSet", "name": "web-5d4f", "controller": True}],
    }
    assert read["spec"] == {"nodeName": NODE, "containers": [{"name": "main"}, {"name": "side"}]}
    (status,) = read["status"]["containerStatuses"]
    assert (status["name"], status["containerID"], status["state"]) == ("main", "containerd://new", {})
    assert status["lastState"] == {"terminated": {"exitCode": 137, "finishedAt": "2023-11-14T22:15:00Z"}}


def captured(name: str) -> bytes:
    capture = Path(__file__).parents[1] / "captures" / "kubelet.json"
    return base64.b64decode(json.loads(capture.read_text())[name])


def test_an_answer_of_kubernetes_own_messages_is_read() -> None:
    (found,) = messages.ListPodResourcesResponse.FromString(captured("ListPodResourcesResponse")).pod_resources
    main, side = found.containers
    assert (found.namespace, found.name, main.name, side.name) == ("chat", "web-0", "main", "side")
    assert [list(one.device_ids) for one in main.devices] == [[f"{GPU_A}::2"]]
    (claimed,) = main.dynamic_resources[0].claim_resources
    assert (claimed.driver_name, claimed.pool_name, claimed.device_name) == ("gpu.nvidia.com", "node-a", "gpu-0")


def test_an_event_of_kubernetes_own_messages_is_read() -> None:
    event = messages.WatchPodsEvent.FromString(captured("WatchPodsEvent"))
    read = read_pod(event.pod)
    assert event.type == EventKind.ADDED
    assert {name: read["metadata"][name] for name in ("uid", "namespace", "name")} == {
        "uid": "uid-0",
        "namespace": "chat",
        "name": "web-0",
    }
    assert read["metadata"]["annotations"] == {
        "tensor-fusion.ai/tflops-limit": "20",
        "tensor-fusion.ai/vram-limit": "8Gi",
    }
    assert read["metadata"]["ownerReferences"] == [{"kind": "ReplicaSet", "name": "web-5d4f", "controller": True}]
    assert read["spec"] == {"nodeName": "node-a", "containers": [{"name": "main"}, {"name": "side"}]}
    (status,) = read["status"]["containerStatuses"]
    assert status["containerID"] == "containerd://" + "ab" * 32
    assert status["lastState"]["terminated"] == {"exitCode": 137, "finishedAt": "2023-11-14T22:15:00Z"}


def test_an_end_without_a_time_has_none() -> None:
    status = text(3, text(8, text(1, "main"), text(2, text(3, number(1, 1), text(6)))))
    (read,) = read_pod(status)["status"]["containerStatuses"]
    assert read["state"] == {"terminated": {"exitCode": 1, "finishedAt": ""}}


@settings(max_examples=200, deadline=None)
@drawn(st.binary(max_size=200), st.integers(0, 400), st.binary(min_size=1, max_size=4))
def test_bytes_that_are_no_pod_are_read_or_refused_never_worse(noise: bytes, place: int, cut: bytes) -> None:
    whole = hand_made_pod()
    for content in (noise, whole[:place] + cut + whole[place + len(cut) :]):
        try:
            read_pod(content)
        except KubeletError:
            continue


def imported(code: str) -> set[str]:
    told = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in told.stdout.split()}


@pytest.mark.parametrize("module", ["agent.assemble", "agent.run", "agent.pods.known"])
def test_without_a_socket_no_client_is_loaded(module: str) -> None:
    assert not imported(f"import {module}") & {"grpclib", "h2", "google"}
