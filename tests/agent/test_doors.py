"""Connections that hold on to the agent: whoever opens many and says little takes nothing from the others."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from agent.serve.doors import LONGEST_SECONDS, MOST, MOST_HANDSHAKES, Arrivals, watch
from tests.agent.certificates import needs_openssl, self_signed

PATIENCE_SECONDS = 30.0
HANDSHAKE_SECONDS = 0.3


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificate")
    self_signed(folder, "agent")
    return folder


@dataclass
class House:
    """A server behind its doors; `later` seconds have passed for the doors beside those that really did."""

    server: web.Server
    arrivals: Arrivals
    port: int
    trust: ssl.SSLContext | None = None
    later: float = 0.0

    async def answers(self) -> bool:
        """Tell whether somebody who comes now is served at once."""
        scheme = "http" if self.trust is None else "https"
        connector = aiohttp.TCPConnector(ssl=self.trust) if self.trust is not None else None
        async with (
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(PATIENCE_SECONDS)) as http,
            http.get(f"{scheme}://127.0.0.1:{self.port}/healthz") as answer,
        ):
            return await answer.text() == "ok"

    async def visit(self, said: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(said)
        return reader, writer


@asynccontextmanager
async def house(certificate: Path | None = None) -> AsyncIterator[House]:
    async def swallow(request: web.Request) -> web.Response:
        return web.Response(text=str(len(await request.read())))

    async def healthy(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    app = web.Application()
    app.router.add_get("/healthz", healthy)
    app.router.add_put("/", swallow)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    assert runner.server is not None
    tls = trust = None
    if certificate is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate / "agent.pem", certificate / "agent.key")
        trust = ssl.create_default_context(cafile=certificate / "agent.pem")
    arrivals = Arrivals(runner.server, tls, HANDSHAKE_SECONDS)
    listener = await asyncio.get_running_loop().create_server(arrivals, "127.0.0.1", 0)
    made = House(runner.server, arrivals, listener.sockets[0].getsockname()[1], trust)
    watcher = asyncio.create_task(watch(runner.server, 0.02, lambda: time.monotonic() + made.later))
    try:
        yield made
    finally:
        watcher.cancel()
        arrivals.close()
        listener.close()
        await runner.cleanup()


async def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


async def test_of_clients_that_say_nothing_only_so_many_stay_and_others_are_served() -> None:
    async with house() as doors:
        visitors = [await doors.visit(b"GET /healthz HT") for _ in range(2 * MOST)]
        assert await doors.answers()
        await until(lambda: len(doors.server.connections) <= MOST)
        ended = [reader for reader, _ in visitors if reader.at_eof() or reader.exception()]
        await until(lambda: sum(reader.at_eof() for reader, _ in visitors) >= MOST)
        assert len(ended) < len(visitors)
        # Those that came first went first.
        assert all(reader.at_eof() for reader, _ in visitors[:MOST])
        assert not visitors[-1][0].at_eof()
        for _, writer in visitors:
            writer.close()


async def test_a_head_or_a_body_that_trickles_is_ended_by_its_age_and_nobody_waits_for_it() -> None:
    async with house() as doors:
        head = await doors.visit(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
        body = await doors.visit(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
        await until(lambda: len(doors.server.connections) == 2)
        served = 0
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(doors.server.connections) >= 2 and not head[0].at_eof():
                doors.later += LONGEST_SECONDS / 4
                for _, writer in (head, body):
                    writer.write(b"x")
                assert await doors.answers()
                served += 1
        assert served > 2
        for reader, writer in (head, body):
            with suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), PATIENCE_SECONDS) == b""
            writer.close()
        await until(lambda: not doors.server.connections)
        assert await doors.answers()


@needs_openssl
async def test_handshakes_that_never_end_are_few_and_short_and_others_are_served(certificate: Path) -> None:
    async with house(certificate) as doors:
        visitors = [await doors.visit(b"\x16\x03\x01" if number % 2 else b"") for number in range(3 * MOST_HANDSHAKES)]
        await until(lambda: doors.arrivals.shaking > 0)
        assert doors.arrivals.shaking <= MOST_HANDSHAKES
        assert await doors.answers()
        await until(lambda: doors.arrivals.shaking == 0)
        for reader, writer in visitors:
            with suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), PATIENCE_SECONDS) in {b"", b"\x15\x03\x01\x00\x02\x02\x16"}
            writer.close()
        assert doors.server.connections == []
        assert await doors.answers()


@needs_openssl
async def test_what_a_client_says_along_with_the_last_of_its_handshake_is_heard(certificate: Path) -> None:
    async with house(certificate) as doors:
        for size in (0, 10, 300_000):
            reader, writer = await asyncio.open_connection("127.0.0.1", doors.port, ssl=doors.trust)
            head = f"PUT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"
            writer.write(head.encode() + bytes(size))
            answer = await asyncio.wait_for(reader.read(), PATIENCE_SECONDS)
            writer.close()
            assert answer.startswith(b"HTTP/1.1 200")
            assert answer.endswith(str(size).encode())


@needs_openssl
async def test_with_tls_too_only_so_many_connections_stay(certificate: Path) -> None:
    async with house(certificate) as doors:
        writers = []
        for _ in range(MOST + 20):
            _, writer = await asyncio.open_connection("127.0.0.1", doors.port, ssl=doors.trust)
            writers.append(writer)
        await until(lambda: len(doors.server.connections) <= MOST)
        assert await doors.answers()
        for writer in writers:
            writer.transport.abort()
