"""The pods of this node as the API server has them: one list, then a watch, over and over.

A lost watch never looks like deleted pods: what was known stays until a new list is whole. Neighbours: `spec` makes
workers of pods, `kubeapi` asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import structlog

from agent.kubeapi import ApiError, KubeApi
from agent.model.exits import Exit
from agent.pods.spec import ContainerEntry, KnownPod, PodEntry, known_pods

_log = structlog.get_logger(__name__)
PODS: Final = "/api/v1/pods"
WATCH_SECONDS: Final = 300
"""A watch is begun anew after so long."""
IDLE_SECONDS: Final = 90.0
"""Silence after which a watch is taken for dead; bookmarks come about once a minute."""
FIRST_PAUSE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 30.0
_HASH: Final = "pod-template-hash"


class PodWatch:
    """A source of pods; `run` is its task, `pods` and `exits` are asked from the tick's thread."""

    def __init__(self, api: KubeApi, node: str) -> None:
        self._api, self._node = api, node
        self._entries: dict[str, PodEntry] = {}
        self._exits: dict[str, tuple[Exit, ...]] = {}
        self._pods: Mapping[str, KnownPod] | None = None
        self._told: tuple[str, ...] = ()

    def pods(self) -> Mapping[str, KnownPod] | None:
        """Return the worker pods by UID; None before the first list."""
        return self._pods

    def exits(self) -> tuple[Exit, ...]:
        """Return how containers ended last, as far as the API server tells."""
        return tuple(one for exits in list(self._exits.values()) for one in exits)

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
        entries, exits = {}, {}
        for pod in found.get("items") or ():
            uid = str(pod["metadata"]["uid"])
            entries[uid], exits[uid] = _entry(pod), _exits(pod)
        self._entries, self._exits = entries, exits
        self._publish()
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
                if kind != "BOOKMARK":
                    self._take(pod, is_gone=kind == "DELETED")
        except ApiError as error:
            if error.status != 410:
                raise
            return ""
        return version

    def _take(self, pod: Mapping[str, Any], *, is_gone: bool) -> None:
        uid = str(pod["metadata"]["uid"])
        if is_gone:
            self._entries.pop(uid, None)
            self._exits.pop(uid, None)
        else:
            entry, self._exits[uid] = _entry(pod), _exits(pod)
            if self._entries.get(uid) == entry:
                return
            self._entries[uid] = entry
        self._publish()

    def _publish(self) -> None:
        self._pods, problems = known_pods([("pod", one) for one in self._entries.values()], self._node)
        for problem in problems if problems != self._told else ():
            _log.warning("pod_problem", problem=problem)
        self._told = problems


def _entry(pod: Mapping[str, Any]) -> PodEntry:
    metadata, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    ids = {one.get("name"): one.get("containerID") or "" for one in status.get("containerStatuses") or ()}
    labels = metadata.get("labels") or {}
    return msgspec.convert(
        {
            "uid": metadata["uid"],
            "namespace": metadata.get("namespace", ""),
            "name": metadata["name"],
            "labels": labels,
            "annotations": metadata.get("annotations") or {},
            "containers": [
                ContainerEntry(one["name"], ids.get(one["name"], "")) for one in spec.get("containers") or ()
            ],
            "node": spec.get("nodeName", ""),
            "workload": _owner(metadata, labels),
        },
        PodEntry,
    )


def _owner(metadata: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """Return the top owner's name as far as the pod tells it: a ReplicaSet's is its Deployment's and a hash."""
    for reference in metadata.get("ownerReferences") or ():
        if reference.get("controller"):
            name = str(reference.get("name", ""))
            return name.removesuffix(f"-{labels[_HASH]}") if labels.get(_HASH) else name
    return ""


def _exits(pod: Mapping[str, Any]) -> tuple[Exit, ...]:
    found = []
    for one in (pod.get("status") or {}).get("containerStatuses") or ():
        for state in (one.get("state") or {}, one.get("lastState") or {}):
            ended = state.get("terminated") or {}
            if ended.get("finishedAt"):
                container = (str(pod["metadata"]["uid"]), str(one.get("name", "")))
                found.append(Exit(*container, int(ended.get("exitCode") or 0), str(ended["finishedAt"])))
    return tuple(found)
