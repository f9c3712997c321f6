"""Who knows the pods of this node, in order of trust, and what has to run for them to know.

A file that was named goes before all: whoever names one wants it. Else the kubelet tells, else the API server; what the
quota document names is known in any case. The devices that the kubelet gave go before what pods note of themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import structlog

from agent.kubeapi import KubeApi
from agent.kubelet import sockets
from agent.model.exits import Exit
from agent.pods.allocated import AllocatedDevices
from agent.pods.claims import Claims
from agent.pods.directory import PodSource
from agent.pods.file import PodFile
from agent.pods.followed import FollowedPods
from agent.pods.local import LocalPods
from agent.pods.placed import PlacedPods
from agent.pods.watch import PodWatch

_log = structlog.get_logger(__name__)
ANEW_SECONDS: Final = 30.0


class Follower(Protocol):
    """Something that follows what happens, in a task."""

    async def run(self) -> None:
        """Follow until cancelled."""
        ...


class Kept:
    """Begins a follower anew when something ends it that nobody thought of: stale pods are worse than a trace."""

    def __init__(self, follower: Follower) -> None:
        self.follower = follower

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                await self.follower.run()
            except Exception:  # noqa: BLE001  nobody thought of it, so nobody can name it
                _log.exception("follower_ended", then="it is begun anew")
            await asyncio.sleep(ANEW_SECONDS)


@dataclass(frozen=True, slots=True)
class Places:
    """Where pods can be known from; None or "" where they are not to be asked there."""

    node: str
    file: Path | None = None
    kubelet: Path | None = None
    """The kubelet's folder, in which its sockets are."""
    api: KubeApi | None = None


@dataclass(frozen=True, slots=True)
class NodePods:
    """Sources of pods in order of trust; `exits` is None where nobody tells how containers ended."""

    sources: tuple[PodSource, ...]
    followers: tuple[Follower, ...] = ()
    exits: Callable[[], tuple[Exit, ...]] | None = None


def node_pods(places: Places, document: PodSource, clock: Callable[[], float]) -> NodePods:
    """Return who knows pods; `document` is known in any case, `clock` counts seconds from any start."""
    followed = None if places.file is not None else _followed(places)
    own = PodFile(places.file, places.node) if places.file is not None else followed
    sources = tuple(source for source in (own, document) if source is not None)
    followers: list[Follower] = [followed] if followed is not None else []
    if places.kubelet is not None:
        claims = Claims(places.api, places.node, clock) if places.api is not None else None
        allocated = AllocatedDevices(places.kubelet / sockets.POD_RESOURCES, claims)
        followers.append(allocated)
        sources = tuple(PlacedPods(source, allocated) for source in sources)
    return NodePods(sources, tuple(map(Kept, followers)), followed.exits if followed is not None else None)


def _followed(places: Places) -> FollowedPods | None:
    api, node = places.api, places.node
    if api is None and places.kubelet is None:
        return None
    local = LocalPods(places.kubelet / sockets.PODS, node) if places.kubelet is not None else None
    return FollowedPods(local, None if api is None else lambda: PodWatch(api, node))
