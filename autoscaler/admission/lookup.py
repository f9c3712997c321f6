"""The objects around a pod, read when one is born: nothing is watched, so nothing can be stale.

Two or three reads of single objects for a pod, shared for a few seconds by pods that are born together. All in all
bounded in time: what is not known by then is not known. Neighbour: `pods` says what is needed.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from autoscaler.admission.pods import Place, Surroundings, is_worker, place_of, profile_named
from autoscaler.contract import keys
from autoscaler.errors import ClusterError
from autoscaler.kube.client import KubeClient, StatusError
from autoscaler.kube.kinds import BY_KIND
from autoscaler.model.workload import Manifest
from autoscaler.read.owners import READ_KINDS, controller_of

log = structlog.get_logger(__name__)
BUDGET_SECONDS: Final = 1.0
"""Half of what the API server waits for us."""
FRESH_SECONDS: Final = 2.0
"""Pods of one owner are born together; a decision is minutes old anyway."""
REMEMBERED: Final = 2048
_MAX_DEPTH: Final = 8
_MAX_LABEL_CHARACTERS: Final = 63
_WORKLOAD: Final = "TensorFusionWorkload"
_PROFILE: Final = "WorkloadProfile"


class Lookup(Protocol):
    """What is around a pod."""

    async def around(self, pod: Manifest) -> Surroundings:
        """Return what is around a pod, `complete` False where not all could be read; raises nothing."""
        ...


class KubeLookup:
    """The same, from an API server; `monotonic` gives seconds that never go back."""

    def __init__(self, client: KubeClient, monotonic: Callable[[], float]) -> None:
        self._client = client
        self._monotonic = monotonic
        self._known: OrderedDict[str, tuple[float, Manifest | None]] = OrderedDict()
        self._asked: dict[str, asyncio.Future[Manifest | None]] = {}

    async def around(self, pod: Manifest) -> Surroundings:
        """Return what is around a pod."""
        place = None
        try:
            async with asyncio.timeout(BUDGET_SECONDS):
                place = await self._place(pod)
                if place is not None:
                    return await self._around(pod, place)
        except (ClusterError, TimeoutError) as error:
            log.warning("surroundings_not_read", pod=pod["metadata"]["name"], error=str(error) or type(error).__name__)
        # What is wrong with the pod itself can be told without its owner, and without its workload.
        return Surroundings(place or place_of(_alone(pod), ()), complete=False)

    async def _place(self, pod: Manifest) -> Place | None:
        """Climb from the pod to its top owner."""
        owners: list[Manifest] = []
        below = pod
        for _ in range(_MAX_DEPTH):
            reference = controller_of(below)
            if reference is None or reference.get("kind") not in READ_KINDS:
                break
            resource = BY_KIND.get(reference["kind"])
            if resource is None:
                break
            found = await self._get(resource.path(pod["metadata"]["namespace"], str(reference.get("name"))))
            if found is None or found["metadata"].get("uid") != reference.get("uid"):
                break
            below = {**found, "apiVersion": resource.api_version, "kind": resource.kind}
            owners.append(below)
        return place_of(pod, owners)

    async def _around(self, pod: Manifest, place: Place) -> Surroundings:
        namespace, profile = place.key.namespace, profile_named(pod)
        workload, found, has_workers = await asyncio.gather(
            self._get(BY_KIND[_WORKLOAD].path(namespace, place.key.name)),
            self._get(BY_KIND[_PROFILE].path(namespace, profile)) if profile else _nothing(),
            self._has_workers(pod, place),
        )
        return Surroundings(place, _of_kind(workload, _WORKLOAD), _of_kind(found, _PROFILE), has_workers)

    async def _has_workers(self, pod: Manifest, place: Place) -> bool:
        if is_worker(pod) or len(place.key.name) > _MAX_LABEL_CHARACTERS:
            return False
        selector = f"labelSelector={keys.WORKLOAD.replace('/', '%2F')}%3D{place.key.name}&limit=1"
        found = await self._get(f"{BY_KIND['Pod'].path(place.key.namespace)}?{selector}")
        return bool((found or {}).get("items"))

    async def _get(self, path: str) -> Manifest | None:
        """Return an object, None when there is none; the same for all who ask within FRESH_SECONDS."""
        known = self._known.get(path)
        if known is not None and self._monotonic() - known[0] < FRESH_SECONDS:
            return known[1]
        asked = self._asked.get(path)
        if asked is None:
            asked = self._asked[path] = asyncio.ensure_future(self._read(path))
            asked.add_done_callback(lambda done: self._settled(path, done))
        # One who gives up must not take the answer from the others.
        return await asyncio.shield(asked)

    async def _read(self, path: str) -> Manifest | None:
        found: Manifest | None
        try:
            found = await self._client.request_once("GET", path)
        except StatusError as error:
            if error.status != 404:
                raise
            found = None
        self._remember(path, found)
        return found

    def _remember(self, path: str, found: Manifest | None) -> None:
        self._known[path] = self._monotonic(), found
        self._known.move_to_end(path)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    def _settled(self, path: str, done: asyncio.Future[Manifest | None]) -> None:
        self._asked.pop(path, None)
        if not done.cancelled():
            done.exception()  # whoever waited was told; where nobody did any more, nobody needs to know


async def _nothing() -> None:
    return None


def _of_kind(found: Manifest | None, kind: str) -> Manifest | None:
    if found is None or found["metadata"].get("deletionTimestamp"):
        return None
    return {**found, "apiVersion": BY_KIND[kind].api_version, "kind": kind}


def _alone(pod: Manifest) -> Manifest:
    metadata = {key: value for key, value in pod["metadata"].items() if key != "ownerReferences"}
    return {**pod, "metadata": metadata}
