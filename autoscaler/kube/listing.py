"""Whole lists of a collection, in pages, item by item: what is not kept of an item never piles up in memory.

Neighbours: `client` carries the requests, `trim` says what is kept, `follow` goes on from a list's version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from autoscaler.kube.client import KubeClient, StatusError
from autoscaler.model.workload import Manifest

Trim = Callable[[dict[str, Any]], Manifest]

ATTEMPTS: Final = 3
"""A list whose continuation expired is started over; the last time without pages, as what is slow expires again."""
EXPIRED: Final = 410


@dataclass(frozen=True, slots=True)
class Listed:
    """All objects of a collection as of `version`, the resource version from which it can be watched."""

    items: tuple[Manifest, ...]
    version: str


class _Metadata(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str | None = msgspec.field(name="continue", default=None)


class _Page(msgspec.Struct):
    items: list[msgspec.Raw]
    """Required: an answer without items is no list."""
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)


_PAGE: Final = msgspec.json.Decoder(_Page)
_ITEM: Final = msgspec.json.Decoder(dict[str, Any])


async def list_whole(client: KubeClient, path: str, query: Mapping[str, str], trim: Trim) -> Listed:
    """Return all items of a collection, trimmed; pages never mix two states of it.

    Raises:
        StatusError: the server refused, or every attempt expired half way.
        UnreachableError: it did not answer.

    """
    for attempt in range(1, ATTEMPTS + 1):
        limit = {"limit": str(client.page)} if attempt < ATTEMPTS else {}
        try:
            return await _pages(client, path, {**query, **limit}, trim)
        except StatusError as error:
            if error.status != EXPIRED:
                raise
            expired = error
    raise expired


async def _pages(client: KubeClient, path: str, query: Mapping[str, str], trim: Trim) -> Listed:
    def decode(text: bytes) -> tuple[list[Manifest], _Metadata]:
        page = _PAGE.decode(text)
        return [trim(_ITEM.decode(item)) for item in page.items], page.metadata

    items: list[Manifest] = []
    following: dict[str, str] = {}
    while True:
        found, metadata = await client.get(path, {**query, **following}, decode)
        items += found
        if not metadata.continue_:
            return Listed(tuple(items), metadata.resource_version)
        following = {"continue": metadata.continue_}
