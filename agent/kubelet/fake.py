"""A kubelet to try the agent against: both services on real unix sockets, by grpclib's server. For demos and tests."""

from __future__ import annotations

import asyncio
import calendar
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.protocol import H2Protocol
from grpclib.server import Server, Stream

from agent.kubelet import messages
from agent.kubelet.pods import SERVICE as PODS_SERVICE
from agent.kubelet.pods import EventKind
from agent.kubelet.resources import SERVICE as RESOURCES_SERVICE
from agent.kubelet.resources import Allocation
from agent.kubelet.sockets import POD_RESOURCES, PODS

_Told: TypeAlias = "tuple[EventKind, Mapping[str, Any]] | Status"


class FakeKubelet:
    """Answers from what it is given: `allocations`, and `pods` in the form of the API server's JSON.

    `refuses` is what every call is answered with, None for an answer; while `hangs` none is answered at all.
    """

    def __init__(self, directory: Path) -> None:
        """Serve below the kubelet's folder `directory`."""
        self.allocations: tuple[Allocation, ...] = ()
        self.pods: dict[str, Mapping[str, Any]] = {}
        self.refuses: Status | None = None
        self.hangs = False
        self.calls: list[str] = []
        self._directory = directory
        self._servers: list[_Server] = []
        self.watchers: list[asyncio.Queue[_Told]] = []

    async def start(self, *, resources: bool = True, pods: bool = True) -> None:
        """Listen on the sockets of the services that are wanted."""
        for wanted, socket, service in ((resources, POD_RESOURCES, _Resources(self)), (pods, PODS, _Pods(self))):
            if wanted:
                path = self._directory / socket
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)
                server = _Server([service])
                await server.start(path=str(path))
                self._servers.append(server)

    async def stop(self) -> None:
        """Break off what is open, and take the sockets away, as a kubelet that ends."""
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
            server.hang_up()
            with suppress(TimeoutError):
                await asyncio.wait_for(server.wait_closed(), 5.0)
        for socket in (POD_RESOURCES, PODS):
            (self._directory / socket).unlink(missing_ok=True)

    def tell(self, kind: EventKind, pod: Mapping[str, Any]) -> None:
        """Let a pod come, change or go, and everybody who watches know."""
        uid = pod["metadata"]["uid"]
        if kind is EventKind.DELETED:
            self.pods.pop(uid, None)
            names = {name: pod["metadata"].get(name, "") for name in ("uid", "namespace", "name")}
            pod = {"metadata": names}
        else:
            self.pods[uid] = pod
        for watcher in self.watchers:
            watcher.put_nowait((kind, pod))

    def drop(self, status: Status) -> None:
        """End every watch with a status, as for a client that reads too slowly."""
        for watcher in self.watchers:
            watcher.put_nowait(status)

    async def admit(self, call: str) -> None:
        """Note a call, and answer it as this kubelet is told to."""
        self.calls.append(call)
        if self.hangs:
            await asyncio.Event().wait()
        if self.refuses is not None:
            raise GRPCError(self.refuses, "not now")


class _Server(Server):
    """A server that can break its connections off, which grpclib's own leaves open when it is closed."""

    def __init__(self, services: list[Any]) -> None:
        super().__init__(services)
        self._made: list[H2Protocol] = []

    def _protocol_factory(self) -> H2Protocol:
        made = super()._protocol_factory()
        self._made.append(made)
        return made

    def hang_up(self) -> None:
        for one in self._made:
            if hasattr(one, "processor"):
                one.processor.close()


class _Resources:
    def __init__(self, kubelet: FakeKubelet) -> None:
        self._kubelet = kubelet

    async def _list(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        await self._kubelet.admit("List")
        await stream.send_message(resources_message(self._kubelet.allocations))

    def __mapping__(self) -> dict[str, Handler]:
        kinds = (messages.ListPodResourcesRequest, messages.ListPodResourcesResponse)
        return {f"/{RESOURCES_SERVICE}/List": Handler(self._list, Cardinality.UNARY_UNARY, *kinds)}


class _Pods:
    def __init__(self, kubelet: FakeKubelet) -> None:
        self._kubelet = kubelet

    async def _watch(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        await self._kubelet.admit("WatchPods")
        queue: asyncio.Queue[_Told] = asyncio.Queue()
        watchers = self._kubelet.watchers
        watchers.append(queue)
        try:
            for pod in list(self._kubelet.pods.values()):
                await stream.send_message(event_message(EventKind.ADDED, pod))
            await stream.send_message(event_message(EventKind.SYNCED, {}))
            while True:
                told = await queue.get()
                if isinstance(told, Status):
                    raise GRPCError(told, "dropped")
                await stream.send_message(event_message(*told))
        finally:
            watchers.remove(queue)

    def __mapping__(self) -> dict[str, Handler]:
        kinds = (messages.WatchPodsRequest, messages.WatchPodsEvent)
        return {f"/{PODS_SERVICE}/WatchPods": Handler(self._watch, Cardinality.UNARY_STREAM, *kinds)}


def resources_message(allocations: Iterable[Allocation]) -> Any:
    """Return the answer that tells these allocations, those of a pod in a row."""
    answer = messages.ListPodResourcesResponse()
    for (namespace, name), containers in groupby(allocations, lambda one: (one.namespace, one.pod)):
        pod = answer.pod_resources.add(namespace=namespace, name=name)
        for one in containers:
            container = pod.containers.add(name=one.container)
            for device_id in one.device_ids:
                # The kubelet names one device an entry where it knows their NUMA nodes.
                container.devices.add(resource_name="nvidia.com/gpu", device_ids=[device_id])
            for claimed in one.claimed:
                container.dynamic_resources.add().claim_resources.add(
                    driver_name=claimed.driver, pool_name=claimed.pool, device_name=claimed.device
                )
    return answer


def event_message(kind: EventKind, pod: Mapping[str, Any]) -> Any:
    """Return an event about a pod in the form of the API server's JSON."""
    content = b"" if kind is EventKind.SYNCED else pod_message(pod).SerializeToString()
    return messages.WatchPodsEvent(type=kind.value, pod=content)


def pod_message(pod: Mapping[str, Any]) -> Any:
    """Return a pod as the kubelet marshals it, as much of it as is read."""
    metadata, spec = pod["metadata"], pod.get("spec") or {}
    found = messages.Pod()
    for name in ("uid", "namespace", "name"):
        setattr(found.metadata, name, metadata.get(name, ""))
    found.metadata.labels.update(metadata.get("labels") or {})
    found.metadata.annotations.update(metadata.get("annotations") or {})
    for owner in metadata.get("ownerReferences") or ():
        found.metadata.ownerReferences.add(**owner)
    found.spec.nodeName = spec.get("nodeName", "")
    for container in spec.get("containers") or ():
        found.spec.containers.add(name=container["name"])
    for status in (pod.get("status") or {}).get("containerStatuses") or ():
        _fill(found.status.containerStatuses.add(name=status["name"]), status)
    return found


def _fill(message: Any, status: Mapping[str, Any]) -> None:
    message.containerID = status.get("containerID", "")
    for place in ("state", "lastState"):
        ended = (status.get(place) or {}).get("terminated")
        if ended is not None:
            terminated = getattr(message, place).terminated
            terminated.exitCode = ended["exitCode"]
            terminated.finishedAt.seconds = calendar.timegm(time.strptime(ended["finishedAt"], "%Y-%m-%dT%H:%M:%SZ"))
