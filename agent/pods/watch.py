"""The pods of this node as the API server has them: one list, then a watch, over and over.

A lost watch never looks like deleted pods: what was known stays until a new list is whole. Neighbours: `table` keeps
them, `kubeapi` asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import structlog

from agent.kubeapi import ApiError, KubeApi
from agent.model.exits import Exit
from agent.pods.spec import KnownPod
from agent.pods.table import Listing, PodTable

_log = structlog.get_logger(__name__)
PODS: Final = "/api/v1/pods"
WATCH_SECONDS: Final = 300
"""A watch is begun anew after so long."""
IDLE_SECONDS: Final = 90.0
"""Silence after which a watch is taken for dead; bookmarks come about once a minute."""
FIRST_PAUSE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 30.0


class PodWatch:
    """A source of pods; `run` is its task, `pods` and `exits` are asked from the tick's thread."""

    def __init__(self, api: KubeApi, node: str) -> None:
        self._api, self._node, self._table = api, node, PodTable(node)

    def pods(self) -> Mapping[str, KnownPod] | None:
        """Return the worker pods by UID; None before the first list."""
        return self._table.pods()

    def exits(self) -> tuple[Exit, ...]:
        """Return how containers ended last, as far as the API server tells."""
        return self._table.exits()

    async def run(self) -> None:
        """Follow the pods until cancelled; what goes wrong is told once and tried again, ever more slowly."""
        pause, complaint = FIRST_PAUSE_SECONDS, ""
        while True:
            try:
                version = await self._list()
                while version:
                    pause, complaint = FIRST_PAUSE_SECONDS, ""
                    version = await self._watch(version)
                    # A server that ends every watch at once is not asked in a tight loop.
                    await asyncio.sleep(FIRST_PAUSE_SECONDS)
            except ApiError as error:
                if str(error) != complaint:
                    complaint = str(error)
                    _log.warning("pods_not_followed", error=complaint, then="what was known stays; it is tried again")
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _list(self) -> str:
        """Take all pods of the node, and return from which version on to watch."""
        found = await self._api.get(PODS, {"fieldSelector": f"spec.nodeName={self._node}", "resourceVersion": "0"})
        listing = Listing()
        for pod in found.get("items") or ():
            listing.take(pod)
        self._table.replace(listing)
        return str((found.get("metadata") or {}).get("resourceVersion") or "")

    async def _watch(self, version: str) -> str:
        """Follow what changes, and return the last version seen; "" when only a new list helps."""
        query = {
            "fieldSelector": f"spec.nodeName={self._node}",
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        try:
            async for event in self._api.lines(PODS, query, IDLE_SECONDS):
                kind, pod = event.get("type"), event.get("object") or {}
                if kind == "ERROR":
                    return ""
                version = str((pod.get("metadata") or {}).get("resourceVersion") or version)
                if kind == "DELETED":
                    self._table.drop(pod)
                elif kind != "BOOKMARK":
                    self._table.take(pod)
        except ApiError as error:
            if error.status != 410:
                raise
            return ""
        return version
