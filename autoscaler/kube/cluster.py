"""The Cluster port on a Kubernetes API server.

Each pass lists what matters, in pages; each write is guarded by the object's UID, so that a namesake is never touched.
Pods are annotated by merge patch (only the keys that change), statuses are applied server-side with force (the whole
status, as this controller owns it), replicas go through the scale subresource.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from autoscaler.contract import keys
from autoscaler.contract.keys import FIELD_MANAGER
from autoscaler.errors import ClusterError, ConflictError
from autoscaler.kube.client import APPLY_PATCH, MERGE_PATCH, KubeClient, StatusError
from autoscaler.kube.kinds import BY_KIND, EVENTS, RESOURCES, SECRET, ApiResource
from autoscaler.kube.listing import list_whole
from autoscaler.model.event import EventKey, event_key, new_event, series_after
from autoscaler.model.secret import secret_texts
from autoscaler.model.steps import Annotate, ClusterWrite, CreateObject, Emit, Scale, WriteStatus
from autoscaler.model.stored import Path as StatusPath
from autoscaler.model.stored import learnt
from autoscaler.model.workload import ClusterView, Manifest, ObjectRef
from autoscaler.ports import Clock

POD_SELECTORS: Final = (f"{keys.ENABLED}=true", keys.WORKLOAD)
"""Selectors know no "or", so pods are listed twice."""

EVENTS_REMEMBERED: Final = 1024
_MANAGER: Final = {"fieldManager": FIELD_MANAGER}


class KubeCluster:
    """One API server; `clock` dates events."""

    def __init__(self, client: KubeClient, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._events: OrderedDict[EventKey, dict[str, Any]] = OrderedDict()
        self._lost: dict[str, frozenset[StatusPath]] = {}

    @classmethod
    async def connect(cls, kubeconfig: Path | None, clock: Clock) -> KubeCluster:
        """Return the cluster of a kubeconfig, of the pod's service account, or of the default kubeconfig.

        Raises:
            ClusterError: none of them can be used.

        """
        return cls(await KubeClient.connect(kubeconfig), clock)

    @property
    def client(self) -> KubeClient:
        """Return the client, for what reads the same server beside this."""
        return self._client

    async def read(self) -> ClusterView:
        """Return all objects that matter.

        Raises:
            ClusterError: one kind could not be read; nothing is returned then, never a part.

        """
        # Pods first: whatever owns a pod exists before it does.
        pods = await self._pods()
        others = [resource for resource in RESOURCES if resource.kind != "Pod"]
        lists = await asyncio.gather(*(self._list(resource, {}) for resource in others))
        fields: dict[str, list[Manifest]] = {}
        for resource, items in zip(others, lists, strict=True):
            fields.setdefault(resource.field, []).extend(items)
        return ClusterView(
            profiles=tuple(fields["profiles"]),
            workloads=tuple(fields["workloads"]),
            pods=tuple(pods),
            owners=tuple(fields["owners"]),
            nodes=tuple(fields["nodes"]),
            quotas=tuple(fields["quotas"]),
            scalers=tuple(fields["scalers"]),
            budgets=tuple(fields["budgets"]),
            gpus=tuple(fields["gpus"]),
            lost=dict(self._lost),
        )

    async def write(self, write: ClusterWrite) -> None:
        """Carry out one write.

        Raises:
            ConflictError: the object is gone, was replaced by another one, exists already, or changed meanwhile.
            ClusterError: it could not be written.

        """
        try:
            match write:
                case CreateObject():
                    await self._create(write.manifest)
                case Annotate():
                    await self._annotate(write)
                case WriteStatus():
                    await self._write_status(write)
                case Scale():
                    await self._scale(write)
                case Emit():
                    await self._emit(write)
        except StatusError as error:
            if _is_conflict(error):
                raise ConflictError(str(error)) from error
            raise

    async def secret(self, namespace: str, name: str) -> Mapping[str, str]:
        """Return a Secret's values by key, as text.

        Raises:
            ClusterError: it is not there, may not be read, or is no text.

        """
        return secret_texts(await self._client.request("GET", SECRET.path(namespace, name)))

    async def close(self) -> None:
        """Release connections."""
        await self._client.close()

    async def _pods(self) -> list[Manifest]:
        found = await asyncio.gather(
            *(self._list(BY_KIND["Pod"], {"labelSelector": selector}) for selector in POD_SELECTORS)
        )
        return list({pod["metadata"]["uid"]: pod for pods in found for pod in pods}.values())

    async def _list(self, resource: ApiResource, query: Mapping[str, str]) -> list[Manifest]:
        try:
            listed = await list_whole(self._client, resource.path(), query, lambda item: _trimmed(item, resource))
        except StatusError as error:
            if resource.optional and error.status == 404:
                return []
            raise
        return list(listed.items)

    async def _create(self, manifest: Manifest) -> None:
        resource = _resource(manifest["kind"])
        path = resource.path(manifest["metadata"].get("namespace", ""))
        await self._client.request("POST", path, _MANAGER, manifest)

    async def _annotate(self, write: Annotate) -> None:
        metadata = {"annotations": dict(write.annotations), **_uid(write.ref)}
        await self._client.request("PATCH", _path(write.ref), _MANAGER, {"metadata": metadata}, MERGE_PATCH)

    async def _write_status(self, write: WriteStatus) -> None:
        """Apply the whole status; the server judges no UID on a status, so the version stands for it.

        A version that is old only because something else of the object changed is looked up and used once more.
        """
        ref = write.ref
        if ref.resource_version:
            try:
                await self._apply_status(write, ref.resource_version)
            except StatusError as error:
                if error.status != 409:
                    raise
            else:
                return
        found = await self._client.request("GET", _path(ref))
        await self._apply_status(write, _same(ref, found))

    async def _apply_status(self, write: WriteStatus, version: str) -> None:
        ref = write.ref
        metadata = {"name": ref.name, "namespace": ref.namespace, "resourceVersion": version}
        body = {"apiVersion": ref.api_version, "kind": ref.kind, "metadata": metadata, "status": write.status}
        query = {**_MANAGER, "force": "true"}
        kept = await self._client.request("PATCH", _path(ref, "status"), query, body, APPLY_PATCH)
        known = self._lost.get(ref.kind, frozenset())
        self._lost[ref.kind] = learnt(known, write.status, kept.get("status") or {})

    async def _scale(self, write: Scale) -> None:
        # The scale subresource does not judge a UID, so it is compared here and the version guards what follows.
        path = _path(write.ref, "scale")
        scale = await self._client.request("GET", path)
        guard = {"metadata": {"resourceVersion": _same(write.ref, scale)}}
        if (scale.get("spec") or {}).get("replicas", 0) == write.replicas:
            return
        await self._client.request(
            "PATCH", path, _MANAGER, {**guard, "spec": {"replicas": write.replicas}}, MERGE_PATCH
        )

    async def _emit(self, emit: Emit) -> None:
        key, now = event_key(emit), self._clock.now()
        known = self._events.get(key)
        event = await self._counted_up(known, now) if known is not None else None
        if event is None:
            event = new_event(emit, now)
            await self._client.request("POST", EVENTS.path(event["metadata"]["namespace"]), _MANAGER, event)
        self._events[key] = event
        self._events.move_to_end(key)
        while len(self._events) > EVENTS_REMEMBERED:
            self._events.popitem(last=False)

    async def _counted_up(self, event: dict[str, Any], now: float) -> dict[str, Any] | None:
        """Count an event up; None when the server has forgotten it."""
        metadata, series = event["metadata"], series_after(event, now)
        path = EVENTS.path(metadata["namespace"], metadata["name"])
        try:
            await self._client.request("PATCH", path, _MANAGER, {"series": series}, MERGE_PATCH)
        except StatusError as error:
            if error.status == 404:
                return None
            raise
        return {**event, "series": series}


def _is_conflict(error: StatusError) -> bool:
    """Tell whether the object is not the one that was read: gone, changed, or another one of its name."""
    return error.status in {404, 409} or (error.status == 422 and "uid" in str(error).lower())


def _resource(kind: str) -> ApiResource:
    resource = BY_KIND.get(kind)
    if resource is None:
        raise ClusterError(f"{kind} is none of the kinds that are written: {', '.join(BY_KIND)}")
    return resource


def _path(ref: ObjectRef, subresource: str = "") -> str:
    return _resource(ref.kind).path(ref.namespace, ref.name, subresource)


def _uid(ref: ObjectRef) -> dict[str, str]:
    return {"uid": ref.uid} if ref.uid else {}


def _same(ref: ObjectRef, found: Manifest) -> str:
    """Return the version of an object that was looked up, or raise ConflictError when it is another one by now."""
    metadata = found["metadata"]
    if ref.uid and metadata.get("uid") != ref.uid:
        raise ConflictError(f"{ref.kind} {ref.name} was replaced: its UID is {metadata.get('uid')}, not {ref.uid}")
    return str(metadata["resourceVersion"])


def _trimmed(item: dict[str, Any], resource: ApiResource) -> Manifest:
    """Return an item with its kind, which lists leave out, and without what is large and never read."""
    item["apiVersion"], item["kind"] = resource.api_version, resource.kind
    item["metadata"].pop("managedFields", None)
    if resource.kind == "Pod":
        spec, status = item.get("spec") or {}, item.get("status") or {}
        item["spec"] = {
            "nodeName": spec.get("nodeName", ""),
            "containers": [{"name": container["name"]} for container in spec.get("containers") or ()],
        }
        item["status"] = {key: status[key] for key in ("phase", "conditions") if key in status}
    elif resource.kind == "Node":
        (item.get("status") or {}).pop("images", None)
    return item
