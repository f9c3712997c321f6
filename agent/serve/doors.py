"""Open connections, bounded in number and in age: who opens many and says little takes nothing from the others.

aiohttp waits for a first request for ever. A controller asks for seconds and comes again; a scraper that is asked to
reconnect does. Neighbour: `run` opens the doors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final, Protocol, TypeVar

from aiohttp import web

MOST: Final = 128
"""Connections at a time; over it the oldest go first, as those who work here are done in moments."""
LONGEST_SECONDS: Final = 60.0
"""After it a connection ends with the request it is in, and after twice as long at once."""
LOOK_SECONDS: Final = 2.0
HANDSHAKE_SECONDS: Final = 10.0


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


async def watch(server: web.Server) -> None:
    """Bound a server's connections until cancelled."""
    loop = asyncio.get_running_loop()
    since: dict[web.RequestHandler, float] = {}
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        since = bound(server.connections, since, loop.time())
