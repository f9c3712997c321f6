"""The gateway to the kubelet: real gRPC over unix sockets, bytes put together by hand, and servers that misbehave."""

from __future__ import annotations

import asyncio
import socket as sockets
import struct
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from grpclib.const import Status
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from agent.kubelet import messages
from agent.kubelet.pods import EventKind, PodEvent, read_pod, watch_pods
from agent.kubelet.resources import Allocation, ClaimedDevice, list_allocations
from agent.kubelet.sockets import POD_RESOURCES, PODS, KubeletError, why_absent
from tests.agent.kubelets import GPU_A, NODE, kubelet_in, listening, pod, until


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


# --- what goes wrong


@pytest.mark.parametrize("status", [Status.UNIMPLEMENTED, Status.FAILED_PRECONDITION, Status.RESOURCE_EXHAUSTED])
async def test_a_refusal_is_told_in_its_words(tmp_path: Path, status: Status) -> None:
    async with kubelet_in(tmp_path) as kubelet:
        kubelet.refuses = status
        with pytest.raises(KubeletError, match=f"{status.name}: not now"):
            await list_allocations(tmp_path / POD_RESOURCES)
        with pytest.raises(KubeletError, match=status.name):
            await events_of(tmp_path, 1)


async def test_a_kubelet_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    async with kubelet_in(tmp_path) as kubelet:
        kubelet.hangs = True
        with pytest.raises(KubeletError, match="no answer in time"):
            await list_allocations(tmp_path / POD_RESOURCES, seconds=0.05)


async def test_a_kubelet_that_ends_breaks_the_watch_off(tmp_path: Path) -> None:
    async with kubelet_in(tmp_path) as kubelet:
        watching = asyncio.create_task(events_of(tmp_path, 2))
        await until(lambda: bool(kubelet.watchers))
        await kubelet.stop()
        with pytest.raises(KubeletError):
            await watching


async def test_a_socket_that_nobody_listens_on_is_an_error_in_words(tmp_path: Path) -> None:
    path = tmp_path / "left.sock"
    with sockets.socket(sockets.AF_UNIX) as left:
        left.bind(str(path))
    with pytest.raises(KubeletError, match="refused"):
        await list_allocations(path)


def test_only_a_socket_is_asked(tmp_path: Path) -> None:
    assert why_absent(tmp_path / "no.sock").endswith("is not there")
    (tmp_path / "file.sock").touch()
    assert why_absent(tmp_path / "file.sock").endswith("is no socket")
    (tmp_path / "file").touch()
    assert why_absent(tmp_path / "file" / "no.sock")
    with sockets.socket(sockets.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "a.sock"))
        assert why_absent(tmp_path / "a.sock") == ""


async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, content: bytes) -> None:
    await reader.read(1)
    writer.write(content)
    await writer.drain()
    writer.close()


NONSENSE = {
    "nothing": b"",
    "HTTP/1.1": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    "zeros": bytes(4096),
    "a frame of no kind": struct.pack(">I", 5)[1:] + bytes([0xFF, 0, 0, 0, 0, 1]) + b"hello",
    "settings, then the end": bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]),
    "headers that are none": bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    + bytes([0, 0, 4, 1, 4, 0, 0, 0, 1])
    + b"\xff\xff\xff\xff",
}


@pytest.mark.parametrize("content", NONSENSE.values(), ids=NONSENSE)
async def test_a_server_that_talks_nonsense_is_an_error_in_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "k.sock"
    async with listening(path, lambda reader, writer: say(reader, writer, content)):
        with pytest.raises(KubeletError, match=str(path)):
            await list_allocations(path, seconds=1.0)


class Raw:
    """A codec that sends bytes as they are."""

    __content_subtype__ = "proto"

    def encode(self, message: bytes, message_type: Any) -> bytes:
        return message

    def decode(self, data: bytes, message_type: Any) -> Any:
        return data


@pytest.mark.parametrize(
    "content", [b"\xff", text(1, text(2, b"\xff\xfe")), b"\x0a\x7f"], ids=["no field", "no text", "cut short"]
)
async def test_a_message_that_can_not_be_read_is_an_error_in_words(tmp_path: Path, content: bytes) -> None:
    from grpclib.const import Cardinality, Handler
    from grpclib.server import Server

    class Service:
        async def answer(self, stream: Any) -> None:
            await stream.recv_message()
            await stream.send_message(content)

        def __mapping__(self) -> dict[str, Handler]:
            return {"/v1.PodResourcesLister/List": Handler(self.answer, Cardinality.UNARY_UNARY, bytes, bytes)}

    server = Server([Service()], codec=Raw())
    await server.start(path=str(tmp_path / "k.sock"))
    try:
        with pytest.raises(KubeletError, match="can't be read"):
            await list_allocations(tmp_path / "k.sock")
    finally:
        server.close()
        await server.wait_closed()


async def test_an_event_of_a_kind_that_is_not_known_ends_the_watch(tmp_path: Path) -> None:
    async with kubelet_in(tmp_path) as kubelet:
        watching = asyncio.create_task(events_of(tmp_path, 2))
        await until(lambda: bool(kubelet.watchers))

        class Older:
            value = 0

        for watcher in kubelet.watchers:
            watcher.put_nowait((Older(), pod("a")))
        with pytest.raises(KubeletError, match="0 is not a valid EventKind"):
            await watching


def imported(code: str) -> set[str]:
    told = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in told.stdout.split()}


@pytest.mark.parametrize("module", ["agent.assemble", "agent.run", "agent.pods.known"])
def test_without_a_socket_no_client_is_loaded(module: str) -> None:
    assert not imported(f"import {module}") & {"grpclib", "h2", "google"}
