"""Open connections, bounded in number and in age: who opens many and says little takes nothing from the others.

aiohttp waits for a first request for ever. A controller asks for seconds and comes again; a scraper that is asked to
reconnect does. Neighbour: `run` opens the doors.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol, TypeVar

from aiohttp import web

MOST: Final = 128
"""Connections at a time; over it the oldest go first, as those who work here are done in moments."""
LONGEST_SECONDS: Final = 60.0
"""After it a connection ends with the request it is in, and after twice as long at once."""
LOOK_SECONDS: Final = 2.0
HANDSHAKE_SECONDS: Final = 10.0
MOST_HANDSHAKES: Final = 32
"""At a time; each holds a third of a megabyte, and over it the oldest goes, as an honest one takes milliseconds."""
GOODBYE_SECONDS: Final = 2.0


class Connection(Protocol):
    """What can be ended."""

    def close(self) -> None:
        """End it when the request in it is done."""
        ...

    def force_close(self) -> None:
        """End it."""
        ...


_C = TypeVar("_C", bound=Connection)


def bound(open_now: Sequence[_C], since: Mapping[_C, float], now: float) -> dict[_C, float]:
    """End what is too much or too old, oldest first in `open_now`; return since when the others were seen (seconds)."""
    kept = {one: since.get(one, now) for one in open_now}
    for place, (one, seen_at) in enumerate(kept.items()):
        if len(kept) - place > MOST or now - seen_at > 2 * LONGEST_SECONDS:
            one.force_close()
        elif now - seen_at > LONGEST_SECONDS:
            one.close()
    return kept


async def watch(
    server: web.Server, look_seconds: float = LOOK_SECONDS, clock: Callable[[], float] | None = None
) -> None:
    """Bound a server's connections until cancelled; `clock` in seconds, the loop's where none is given."""
    clock = clock or asyncio.get_running_loop().time
    since: dict[web.RequestHandler, float] = {}
    while True:
        await asyncio.sleep(look_seconds)
        since = bound(server.connections, since, clock())


class Arrivals:
    """Makes the protocol of each new connection, so that there are never too many, with TLS or before it."""

    def __init__(
        self, server: web.Server, tls: ssl.SSLContext | None, handshake_seconds: float = HANDSHAKE_SECONDS
    ) -> None:
        self._server, self._tls, self._handshake_seconds = server, tls, handshake_seconds
        self._shaking: dict[asyncio.Task[None], asyncio.Transport] = {}

    @property
    def shaking(self) -> int:
        """How many have come and not yet shown that they can speak TLS."""
        return len(self._shaking)

    def __call__(self) -> asyncio.Protocol:
        """Return who speaks with a connection that was just accepted."""
        open_now = self._server.connections
        if len(open_now) >= MOST:
            open_now[0].force_close()
        return _Arrival(self) if self._tls is not None else self._server()

    def close(self) -> None:
        """End those whose hands are not shaken."""
        for task, transport in list(self._shaking.items()):
            transport.abort()
            task.cancel()

    def take(self, arrival: _Arrival, transport: asyncio.Transport) -> None:
        """Shake hands; the oldest of too many is turned away."""
        if len(self._shaking) >= MOST_HANDSHAKES:
            task, oldest = next(iter(self._shaking.items()))
            del self._shaking[task]
            oldest.abort()
            task.cancel()
        task = asyncio.create_task(self._shake(arrival, transport))
        self._shaking[task] = transport
        task.add_done_callback(lambda done: self._shaking.pop(done, None))

    async def _shake(self, arrival: _Arrival, transport: asyncio.Transport) -> None:
        assert self._tls is not None
        try:
            secured = await asyncio.get_running_loop().start_tls(
                transport,
                arrival,
                self._tls,
                server_side=True,
                ssl_handshake_timeout=self._handshake_seconds,
                ssl_shutdown_timeout=GOODBYE_SECONDS,
            )
        except OSError:
            return  # A stranger, who must not be able to fill a log either.
        if secured is None or secured.is_closing():
            return
        handler = self._server()
        secured.set_protocol(handler)
        handler.connection_made(secured)
        if arrival.early:
            handler.data_received(bytes(arrival.early))


class _Arrival(asyncio.Protocol):
    """A connection whose hands are not shaken; what comes along with the last of that is kept for the server."""

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self.early = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to shake hands."""
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()
        self._arrivals.take(self, transport)

    def data_received(self, data: bytes) -> None:
        """Keep the first of what it says; nobody listens yet."""
        self.early += data
