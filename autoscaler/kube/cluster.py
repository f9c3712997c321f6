"""The Cluster port on a Kubernetes API server.

Reading is the `store`'s part; each write is guarded by the object's UID, so that a namesake is never touched, and what
the server answers is what the next reading knows at least.
Pods are annotated by merge patch (only the keys that change), statuses are applied server-side with force (the whole
status, as this controller owns it), replicas go through the scale subresource.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import structlog

from autoscaler.contract import keys
from autoscaler.contract.keys import FIELD_MANAGER
from autoscaler.errors import ClusterError, ConflictError, InvalidError
from autoscaler.kube.client import APPLY_PATCH, MERGE_PATCH, KubeClient, StatusError
from autoscaler.kube.errors import mistyped
from autoscaler.kube.kinds import BY_KIND, EVENTS, SECRET, ApiResource
from autoscaler.kube.owners import OtherOwners
from autoscaler.kube.pacing import UNPACED, Pace
from autoscaler.kube.patience import Patience
from autoscaler.kube.store import Store
from autoscaler.model.event import EventKey, event_key, new_event, series_after
from autoscaler.model.secret import secret_texts
from autoscaler.model.steps import Annotate, ClusterWrite, CreateObject, Emit, Own, Scale, WriteStatus
from autoscaler.model.stored import Path as StatusPath
from autoscaler.model.stored import learnt, without
from autoscaler.model.workload import ClusterView, Manifest, ObjectRef
from autoscaler.ports import Clock

log = structlog.get_logger(__name__)
EVENTS_REMEMBERED: Final = 1024
_MANAGER: Final = {"fieldManager": FIELD_MANAGER}


class KubeCluster:
    """One API server; `clock` dates events. With `patience` it is followed by watches, else each reading lists."""

    def __init__(self, client: KubeClient, clock: Clock, patience: Patience | None = None) -> None:
        self._client = client
        self._store = Store(client, patience)
        self._owners = OtherOwners(client)
        self._clock = clock
        self._events: OrderedDict[EventKey, dict[str, Any]] = OrderedDict()
        self._lost: dict[str, frozenset[StatusPath]] = {}
        self._unheld: dict[str, frozenset[StatusPath]] = {}

    @classmethod
    async def connect(
        cls, kubeconfig: Path | None, clock: Clock, patience: Patience | None = None, pace: Pace = UNPACED
    ) -> KubeCluster:
        """Return the cluster of a kubeconfig, of the pod's service account, or of the default kubeconfig.

        Raises:
            ClusterError: none of them can be used.

        """
        return cls(await KubeClient.connect(kubeconfig, pace=pace), clock, patience)

    @property
    def client(self) -> KubeClient:
        """Return the client, for what reads the same server beside this."""
        return self._client

    async def read(self) -> ClusterView:
        """Return all objects that matter.

        Raises:
            ClusterError: one kind can't be read, or was not heard of for too long; never a part, never an old view.

        """
        view = await self._owners.beside(await self._store.read())
        return replace(view, lost=dict(self._lost)) if self._lost else view

    async def write(self, write: ClusterWrite) -> None:
        """Carry out one write.

        Raises:
            ConflictError: the object is gone, was replaced by another one, exists already, or changed meanwhile.
            InvalidError: the server will not take it, however often.
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
                case Own():
                    await self._own(write)
                case Emit():
                    await self._emit(write)
        except StatusError as error:
            if _is_conflict(error):
                raise ConflictError(str(error)) from error
            if error.is_refusal:
                raise InvalidError(str(error)) from error
            raise

    async def secret(self, namespace: str, name: str) -> Mapping[str, str]:
        """Return a Secret's values by key, as text.

        Raises:
            ClusterError: it is not there, may not be read, or is no text.

        """
        return secret_texts(await self._client.request("GET", SECRET.path(namespace, name)))

    async def close(self) -> None:
        """End all watches and release connections."""
        await self._store.close()
        await self._client.close()

    async def _create(self, manifest: Manifest) -> None:
        resource = _resource(manifest["kind"])
        path = resource.path(manifest["metadata"].get("namespace", ""))
        self._store.wrote(await self._client.request("POST", path, _MANAGER, manifest), resource.kind)

    async def _annotate(self, write: Annotate) -> None:
        """Merge annotations; where it matters what they were, into the version that was read.

        A version that is old only because something else of the object changed (a kubelet reports) is used once more.
        """
        version = write.ref.resource_version if write.was is not None else ""
        try:
            await self._merge(write, version)
        except StatusError as error:
            if error.status != 409 or not version:
                raise
            found = await self._client.request("GET", _path(write.ref))
            version = _same(write.ref, found)
            if _ours(found) != write.was:
                raise ConflictError(
                    f"the annotations of {write.ref.kind} {write.ref.name} changed meanwhile"
                ) from error
            await self._merge(write, version)

    async def _merge(self, write: Annotate, version: str) -> None:
        guard = {**_uid(write.ref), **({"resourceVersion": version} if version else {})}
        body = {"metadata": {"annotations": dict(write.annotations), **guard}}
        answer = await self._client.request("PATCH", _path(write.ref), _MANAGER, body, MERGE_PATCH)
        self._store.wrote(answer, write.ref.kind)

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
        """Apply what the installed definition can hold of it; what it can't is left out from then on."""
        ref, kept = write.ref, None
        cleared: set[str] = set()
        while kept is None:
            unheld = self._unheld.get(ref.kind, frozenset())
            try:
                kept = await self._apply(ref, without(write.status, unheld), version)
            except StatusError as error:
                wrong = mistyped(error)
                if wrong is None:
                    raise
                if wrong.is_stored:
                    if wrong.path[0] in cleared or wrong.path[0] not in write.status:
                        raise
                    cleared.add(wrong.path[0])
                    version = await self._clear(ref, wrong.path[0], version)
                elif wrong.path in unheld:
                    raise
                else:
                    self._leave_out(ref.kind, wrong.path, str(error))
        self._store.wrote(kept, ref.kind)
        known = self._lost.get(ref.kind, frozenset())
        self._lost[ref.kind] = learnt(known, write.status, kept.get("status") or {})

    async def _apply(self, ref: ObjectRef, status: Mapping[str, Any], version: str) -> dict[str, Any]:
        metadata = {"name": ref.name, "namespace": ref.namespace, "resourceVersion": version}
        body = {"apiVersion": ref.api_version, "kind": ref.kind, "metadata": metadata, "status": status}
        query = {**_MANAGER, "force": "true"}
        return await self._client.request("PATCH", _path(ref, "status"), query, body, APPLY_PATCH)

    async def _clear(self, ref: ObjectRef, field: str, version: str) -> str:
        """Remove a field of ours, of a type that another definition had: nothing can be applied beside it."""
        log.warning("status_field_cleared", kind=ref.kind, name=ref.name, field=field)
        body = {"metadata": {"resourceVersion": version}, "status": {field: None}}
        found = await self._client.request("PATCH", _path(ref, "status"), _MANAGER, body, MERGE_PATCH)
        return str(found["metadata"]["resourceVersion"])

    def _leave_out(self, kind: str, path: StatusPath, error: str) -> None:
        known = self._unheld.get(kind, frozenset())
        if path not in known:
            log.warning("status_field_not_held", kind=kind, field=".".join(path), error=error)
        self._unheld[kind] = known | {path}

    async def _scale(self, write: Scale) -> None:
        # The scale subresource does not judge a UID, so it is compared here and the version guards what follows.
        other = self._owners.path(write.ref, "scale")
        path = other or _path(write.ref, "scale")
        scale = await self._client.request("GET", path)
        guard = {"metadata": {"resourceVersion": _same(write.ref, scale)}}
        if (scale.get("spec") or {}).get("replicas", 0) != write.replicas:
            body = {**guard, "spec": {"replicas": write.replicas}}
            scale = await self._client.request("PATCH", path, _MANAGER, body, MERGE_PATCH)
        if other is None:
            self._store.wrote(scale, write.ref.kind)
        else:
            self._owners.forget(write.ref)

    async def _own(self, write: Own) -> None:
        """Replace the list of owners, which a merge patch can only do as a whole: only of the version that was read."""
        owners = [
            {"apiVersion": one.api_version, "kind": one.kind, "name": one.name, "uid": one.uid} for one in write.owners
        ]
        metadata = {**_uid(write.ref), "resourceVersion": write.ref.resource_version, "ownerReferences": owners}
        body = {"metadata": metadata}
        answer = await self._client.request("PATCH", _path(write.ref), _MANAGER, body, MERGE_PATCH)
        self._store.wrote(answer, write.ref.kind)

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


def _ours(found: Manifest) -> dict[str, str]:
    annotations = found["metadata"].get("annotations") or {}
    return {key: text for key, text in annotations.items() if key.startswith(keys.PREFIX)}


def _same(ref: ObjectRef, found: Manifest) -> str:
    """Return the version of an object that was looked up, or raise ConflictError when it is another one by now."""
    metadata = found["metadata"]
    if ref.uid and metadata.get("uid") != ref.uid:
        raise ConflictError(f"{ref.kind} {ref.name} was replaced: its UID is {metadata.get('uid')}, not {ref.uid}")
    return str(metadata["resourceVersion"])
