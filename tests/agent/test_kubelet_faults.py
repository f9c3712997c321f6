"""A kubelet that refuses, hangs, ends or talks nonsense, asked for real over its sockets: an error in words each time."""

from __future__ import annotations

import asyncio
import socket as sockets
import struct
from pathlib import Path
from typing import Any

import pytest
from grpclib.const import Status

from agent.kubelet.resources import list_allocations
from agent.kubelet.sockets import POD_RESOURCES, KubeletError, why_absent
from tests.agent.kubelets import kubelet_in, listening, pod, until
from tests.agent.test_kubelet import events_of, text


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


async def test_a_watch_that_the_kubelet_drops_is_told_in_its_words(tmp_path: Path) -> None:
    """As a kubelet does with a client that reads too slowly."""
    async with kubelet_in(tmp_path) as kubelet:
        watching = asyncio.create_task(events_of(tmp_path, 2))
        await until(lambda: bool(kubelet.watchers))
        kubelet.drop(Status.RESOURCE_EXHAUSTED)
        with pytest.raises(KubeletError, match="RESOURCE_EXHAUSTED"):
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
