"""The objects around a pod, from memory: kept up to date by watches, as hundreds of pods may be born in one second.

Only an owner that is younger than its watch is asked for by name. What was not heard of for too long is not known.
Neighbour: `pods` says what is needed of them.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import structlog

from autoscaler.admission.pods import Place, Surroundings, is_worker, place_of, profile_named
from autoscaler.contract import keys
from autoscaler.errors import ClusterError
from autoscaler.kube.client import KubeClient
from autoscaler.kube.errors import StatusError
from autoscaler.kube.follow import Follower
from autoscaler.kube.kinds import BY_KIND
from autoscaler.kube.patience import Patience
from autoscaler.kube.shelf import Shelf, uid_of
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import EMPTY, Manifest
from autoscaler.read.owners import READ_KINDS, controller_of

log = structlog.get_logger(__name__)
BUDGET_SECONDS: Final = 1.0
"""Half of what the API server waits for us."""
FRESH_SECONDS: Final = 2.0
"""The pods of a new owner are born together: one question is enough for them."""
RESTART_SECONDS: Final = 5.0
_MAX_DEPTH: Final = 8
_WORKLOAD: Final = "TensorFusionWorkload"
_PROFILE: Final = "WorkloadProfile"
_POD: Final = "Pod"
_ENDED: Final = frozenset({"Succeeded", "Failed"})
_KINDS: Final = (_PROFILE, _WORKLOAD, *sorted(READ_KINDS))
_Key = tuple[str, str]


class Lookup(Protocol):
    """What is around a pod."""

    async def around(self, pod: Manifest) -> Surroundings:
        """Return what is around a pod, `complete` False where not all is known; raises nothing."""
        ...


class _Kept:
    """One collection, and its objects by a key; the index is made anew when something changed."""

    def __init__(self, follower: Follower, key: Callable[[Manifest], _Key]) -> None:
        self.follower = follower
        self._key = key
        self._index: dict[_Key, Manifest] = {}
        self._made_at = -1

    def __getitem__(self, key: _Key) -> Manifest | None:
        shelf = self.follower.shelf
        if self._made_at != shelf.changes:
            self._index, self._made_at = {self._key(item): item for item in shelf.items}, shelf.changes
        return self._index.get(key)

    def lack(self, patience: Patience) -> str:
        """Return why it can't be relied on, empty while it can."""
        kind = self.follower.resource.kind
        if not self.follower.version:
            return f"{kind}: not listed yet"
        silent = asyncio.get_running_loop().time() - self.follower.heard_at
        return f"{kind}: not heard of for {silent:.0f} s" if silent > patience.stale_seconds else ""


class WatchedLookup:
    """The surroundings by watches of one API server; `hasty` is a client whose requests soon time out."""

    def __init__(self, client: KubeClient, hasty: KubeClient, patience: Patience | None = None) -> None:
        self._hasty = hasty
        self._patience = patience or Patience(seed=f"{socket.gethostname()}/{os.getpid()}")
        self._kept = {kind: _Kept(Follower(client, Shelf(BY_KIND[kind]), {}), _key_of(kind)) for kind in _KINDS}
        workers = Follower(client, Shelf(BY_KIND[_POD]), {"labelSelector": keys.WORKLOAD})
        self._kept[_POD] = _Kept(workers, _worker_key)
        self._asked: dict[str, asyncio.Future[Manifest | None]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def follow(self) -> None:
        """Begin to list and to watch; `lack` is empty once all is there."""
        self._tasks = [asyncio.create_task(self._forever(kept.follower)) for kept in self._kept.values()]

    def lack(self) -> str:
        """Return what is not known, and why; empty while all is."""
        return "; ".join(lack for kept in self._kept.values() if (lack := kept.lack(self._patience)))

    async def close(self) -> None:
        """End all watches."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def around(self, pod: Manifest) -> Surroundings:
        """Return what is around a pod."""
        lack, place = self.lack(), None
        try:
            async with asyncio.timeout(BUDGET_SECONDS):
                place = place_of(pod, await self._owners(pod))
        except (ClusterError, TimeoutError) as error:
            lack = str(error) or type(error).__name__
        if place is None or lack:
            log.debug("surroundings_not_known", pod=pod["metadata"]["name"], lack=lack or "its owner is gone")
            # What is wrong with the pod itself can be told without its owner, and without its workload.
            return Surroundings(place or place_of(_alone(pod), ()), complete=False)
        return self._around(pod, place)

    def _around(self, pod: Manifest, place: Place) -> Surroundings:
        key = place.key
        workers = None if is_worker(pod) else self._kept[_POD][_named(key)]
        profile = profile_named(pod)
        return Surroundings(
            place,
            workload=_alive(self._kept[_WORKLOAD][_named(key)]),
            profile=_alive(self._kept[_PROFILE][key.namespace, profile]) if profile else None,
            has_workers=workers is not None,
        )

    async def _owners(self, pod: Manifest) -> list[Manifest]:
        """Climb from the pod to its top owner."""
        owners: list[Manifest] = []
        below = pod
        for _ in range(_MAX_DEPTH):
            reference = controller_of(below)
            if reference is None or not _is_read(reference):
                break
            found = await self._owner(pod["metadata"]["namespace"], reference)
            if found is None:
                break
            owners.append(found)
            below = found
        return owners

    async def _owner(self, namespace: str, reference: Mapping[str, object]) -> Manifest | None:
        kind, name, uid = (str(reference.get(field, "")) for field in ("kind", "name", "uid"))
        known = self._kept[kind][uid, ""]
        if known is not None:
            return known
        asked = self._asked.get(uid)
        if asked is None:
            asked = self._asked[uid] = asyncio.ensure_future(self._ask(kind, namespace, name))
            asked.add_done_callback(_noticed)
            asyncio.get_running_loop().call_later(FRESH_SECONDS, self._asked.pop, uid, None)
        # One who gives up must not take the answer from the others.
        found = await asyncio.shield(asked)
        return found if found is not None and uid_of(found) == uid else None

    async def _ask(self, kind: str, namespace: str, name: str) -> Manifest | None:
        resource = BY_KIND[kind]
        try:
            found = await self._hasty.request_once("GET", resource.path(namespace, name))
        except StatusError as error:
            if error.status == 404:
                return None
            raise
        return {**found, "apiVersion": resource.api_version, "kind": kind}

    async def _forever(self, follower: Follower) -> None:
        while True:
            try:
                await follower.run(self._patience, _nothing)
            except Exception:
                # A defect of ours must not leave this kind unwatched for good.
                log.exception("watch_broke", kind=follower.resource.kind, then="it is listed again")
                follower.version = ""
                await asyncio.sleep(RESTART_SECONDS)


def _is_read(reference: Mapping[str, object]) -> bool:
    """Tell whether an owner is of a kind that is watched; a namesake of another group is not."""
    kind = str(reference.get("kind"))
    return kind in READ_KINDS and reference.get("apiVersion") == BY_KIND[kind].api_version


def _key_of(kind: str) -> Callable[[Manifest], _Key]:
    return _owner_key if kind in READ_KINDS else _name_key


def _name_key(manifest: Manifest) -> _Key:
    return manifest["metadata"].get("namespace", ""), manifest["metadata"]["name"]


def _owner_key(manifest: Manifest) -> _Key:
    return uid_of(manifest), ""


def _worker_key(pod: Manifest) -> _Key:
    """Return the workload that a worker pod works for; one that has ended works for none."""
    metadata = pod["metadata"]
    if (pod.get("status") or EMPTY).get("phase") in _ENDED:
        return "", ""
    return metadata.get("namespace", ""), str((metadata.get("labels") or EMPTY).get(keys.WORKLOAD, ""))


def _named(key: WorkloadKey) -> _Key:
    return key.namespace, key.name


def _alive(found: Manifest | None) -> Manifest | None:
    return None if found is None or found["metadata"].get("deletionTimestamp") else found


def _alone(pod: Manifest) -> Manifest:
    metadata = {key: value for key, value in pod["metadata"].items() if key != "ownerReferences"}
    return {**pod, "metadata": metadata}


def _nothing() -> None:
    return None


def _noticed(done: asyncio.Future[Manifest | None]) -> None:
    """Take note of a failure, so that nobody misses it where all who waited have given up."""
    if not done.cancelled():
        done.exception()
