"""Top owners of kinds that nobody told us of: an Argo Rollout, a LeaderWorkerSet, a resource of the user's own.

Only those that a participating pod names are asked for, one by one: which resource the kind is (API discovery), the
object, and its scale subresource where it has one. What may not be read is said on the owner itself, under
`unscalable`, so that its workload can tell. Neighbours: `store` has the kinds that are always followed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from autoscaler.contract.keys import DOMAIN
from autoscaler.errors import ClusterError
from autoscaler.kube.client import KubeClient
from autoscaler.kube.errors import StatusError
from autoscaler.kube.kinds import BY_KIND, ApiResource
from autoscaler.kube.trim import trimmed
from autoscaler.model.workload import EMPTY, ClusterView, Manifest, ObjectRef

REFRESH_SECONDS: Final = 10.0
"""An owner that was read so lately is not read again: a pass may look twice."""
KIND_SECONDS: Final = 600.0
"""For so long it is believed what a kind's resource is called, or that there is none."""
CONCURRENT: Final = 8
MAX_DEPTH: Final = 4
_NEVER_SCALED: Final = frozenset({"Node"})
_TEMPLATED: Final = ApiResource("apps/v1", "Deployment", "deployments")
"""Of another kind's object as much is kept as of a Deployment."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a kind is called in paths, or why it can't be had."""

    resource: ApiResource | None
    has_scale: bool = False
    lack: str = ""


@dataclass(frozen=True, slots=True)
class _Known:
    """An owner as it was read at a moment of the monotonic clock."""

    at: float
    manifest: Manifest


class OtherOwners:
    """Reads top owners that a view lacks, and knows their paths. `clock` counts seconds from anywhere."""

    def __init__(self, client: KubeClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._client, self._clock = client, clock
        self._kinds: dict[tuple[str, str], tuple[float, _Kind]] = {}
        self._known: dict[str, _Known] = {}
        self._slots = asyncio.Semaphore(CONCURRENT)

    async def beside(self, view: ClusterView) -> ClusterView:
        """Return the view with the owners that its pods name and that it lacks; itself where it lacks none.

        Raises nothing: what can't be read stands there with the reason.
        """
        found: dict[str, Manifest] = {}
        for _ in range(MAX_DEPTH):
            lacking = _lacking(view, found)
            if not lacking:
                break
            read = await asyncio.gather(*(self._read(namespace, one) for namespace, one in lacking.values()))
            found |= dict(zip(lacking, read, strict=True))
        self._known = {uid: known for uid, known in self._known.items() if uid in found}
        return replace(view, owners=(*view.owners, *found.values())) if found else view

    def path(self, ref: ObjectRef, subresource: str = "") -> str | None:
        """Return the path of an owner that was read here, None of any other object."""
        _, kind = self._kinds.get((ref.api_version, ref.kind), (0.0, None))
        if kind is None or kind.resource is None:
            return None
        return kind.resource.path(ref.namespace, ref.name, subresource)

    def forget(self, ref: ObjectRef) -> None:
        """Read an owner anew: something was written to it."""
        self._known.pop(ref.uid, None)

    async def _read(self, namespace: str, reference: Manifest) -> Manifest:
        uid, known = str(reference["uid"]), self._known.get(str(reference["uid"]))
        if known is not None and self._clock() - known.at < REFRESH_SECONDS:
            return known.manifest
        async with self._slots:
            try:
                manifest = await self._ask(namespace, reference, known)
            except StatusError as error:
                manifest = _unread(namespace, reference, f"can't be read: {error}")
            except ClusterError as error:
                # Not answered is not gone: what was last known of it still holds.
                manifest = known.manifest if known is not None else _unread(namespace, reference, f"is away: {error}")
        self._known[uid] = _Known(self._clock(), manifest)
        return manifest

    async def _ask(self, namespace: str, reference: Manifest, known: _Known | None) -> Manifest:
        kind = await self._kind(str(reference["apiVersion"]), str(reference["kind"]))
        if kind.resource is None:
            return _unread(namespace, reference, kind.lack)
        name = str(reference["name"])
        item = await self._client.request("GET", kind.resource.path(namespace, name))
        manifest = {
            **trimmed(item, _TEMPLATED),
            "apiVersion": kind.resource.api_version,
            "kind": kind.resource.kind,
        }
        if manifest["metadata"].get("uid") != reference["uid"]:
            return _unread(namespace, reference, "was replaced by another one of its name")
        if known is not None and _is_same(known.manifest, manifest):
            return known.manifest
        return {**manifest, **await self._scale(kind, namespace, name)}

    async def _scale(self, kind: _Kind, namespace: str, name: str) -> Mapping[str, Any]:
        """Return the scale subresource, or why there is none to be used."""
        assert kind.resource is not None
        if not kind.has_scale:
            return {"unscalable": "has no scale subresource"}
        try:
            # Once: a definition whose replicas are absent answers 500, however often it is asked.
            scale = await self._client.request_once("GET", kind.resource.path(namespace, name, "scale"))
        except StatusError as error:
            return {"unscalable": f"has a scale subresource that can't be read: {error}"}
        return {"scale": {key: scale.get(key) or {} for key in ("spec", "status")}}

    async def _kind(self, api_version: str, kind: str) -> _Kind:
        at, known = self._kinds.get((api_version, kind), (0.0, None))
        if known is not None and self._clock() - at < KIND_SECONDS:
            return known
        root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
        try:
            listed = await self._client.request("GET", root)
        except StatusError as error:
            if error.status != 404:
                raise
            found = _Kind(None, lack=f"is of an API that is not served here ({api_version})")
        else:
            found = _found(listed.get("resources") or (), api_version, kind)
        self._kinds[api_version, kind] = (self._clock(), found)
        return found


def _found(resources: Iterable[Manifest], api_version: str, kind: str) -> _Kind:
    names = {str(one.get("name")): one for one in resources}
    for name, one in names.items():
        if one.get("kind") == kind and "/" not in name:
            resource = ApiResource(api_version, kind, name, namespaced=bool(one.get("namespaced")))
            return _Kind(resource, f"{name}/scale" in names)
    return _Kind(None, lack=f"is of a kind that {api_version} does not serve")


def _lacking(view: ClusterView, found: Mapping[str, Manifest]) -> dict[str, tuple[str, Manifest]]:
    """Return the references, by UID, at which the way up from a pod ends without an object."""
    by_uid = {owner["metadata"].get("uid", ""): owner for owner in view.owners} | dict(found)
    lacking: dict[str, tuple[str, Manifest]] = {}
    climbed: set[str] = set()
    for pod in view.pods:
        for reference in _upward(pod, by_uid, climbed):
            if reference["uid"] not in by_uid and _is_other(reference):
                lacking[reference["uid"]] = pod["metadata"].get("namespace", ""), reference
    return lacking


def _upward(pod: Manifest, by_uid: Mapping[str, Manifest], climbed: set[str]) -> Iterator[Manifest]:
    """Yield the controllers of a pod that nobody has passed yet, one above the other."""
    item: Manifest | None = pod
    while item is not None:
        reference = next((one for one in item["metadata"].get("ownerReferences") or () if one.get("controller")), None)
        if reference is None or not reference.get("uid") or reference["uid"] in climbed:
            return
        climbed.add(reference["uid"])
        yield reference
        item = by_uid.get(reference["uid"])


def _is_other(reference: Manifest) -> bool:
    """Tell whether a reference is to a kind that the store does not follow: of those nothing is missing."""
    api_version, kind = str(reference.get("apiVersion", "")), str(reference.get("kind"))
    group = api_version.rpartition("/")[0]
    followed = BY_KIND.get(kind)
    is_followed = followed is not None and followed.api_version.rpartition("/")[0] == group
    return bool(api_version) and kind not in _NEVER_SCALED and not is_followed and group != DOMAIN


def _unread(namespace: str, reference: Manifest, why: str) -> Manifest:
    metadata = {key: reference[key] for key in ("name", "uid")} | {"namespace": namespace}
    return {
        "apiVersion": reference["apiVersion"],
        "kind": reference["kind"],
        "metadata": metadata,
        "unscalable": why,
    }


def _is_same(known: Manifest, manifest: Manifest) -> bool:
    version = (known.get("metadata") or EMPTY).get("resourceVersion")
    return version is not None and version == manifest["metadata"].get("resourceVersion")
