"""The node's pods as its kubelet has them: Pods v1alpha1, a watch that begins with all of them.

Pods come out in the form of the API server's JSON, as much of it as is read, so that whoever takes pods need not know
from where they are.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from agent.kubelet.sockets import KubeletError

SERVICE: Final = "v1alpha1.Pods"


class EventKind(IntEnum):
    """What an event tells, by its number on the wire (since Kubernetes 1.36)."""

    ADDED = 1
    MODIFIED = 2
    DELETED = 3
    SYNCED = 4
    """All that were there when the watch began have been told."""


@dataclass(frozen=True, slots=True)
class PodEvent:
    """One event; the pod is empty for SYNCED, and of a deleted one only UID, namespace and name are there."""

    kind: EventKind
    pod: dict[str, Any] = field(default_factory=dict)


async def watch_pods(socket: Path) -> AsyncGenerator[PodEvent, None]:
    """Yield first all pods of the node, then SYNCED, then what changes; close it with `aclosing`.

    Raises:
        KubeletError: it can't be begun, breaks off, or can't be read.
    """
    from agent.kubelet import calls, messages

    method = calls.Method(f"/{SERVICE}/WatchPods", messages.WatchPodsRequest, messages.WatchPodsEvent)
    async with aclosing(calls.follow(socket, method)) as events:
        async for event in events:
            try:
                kind = EventKind(event.type)
                yield PodEvent(kind, {} if kind is EventKind.SYNCED else read_pod(event.pod))
            except (KubeletError, ValueError) as error:
                raise KubeletError(f"{socket}: an event can't be read: {error}") from error


def read_pod(content: bytes) -> dict[str, Any]:
    """Return what is read of a marshalled pod.

    Raises:
        KubeletError: it is none.
    """
    from google.protobuf.message import DecodeError

    from agent.kubelet import messages

    try:
        return _as_json(messages.Pod.FromString(content))
    except (DecodeError, ValueError, OverflowError, OSError) as error:
        raise KubeletError(f"no pod: {error}") from error


def _as_json(pod: Any) -> dict[str, Any]:
    metadata = pod.metadata
    return {
        "metadata": {
            "uid": metadata.uid,
            "namespace": metadata.namespace,
            "name": metadata.name,
            "labels": dict(metadata.labels),
            "annotations": dict(metadata.annotations),
            "ownerReferences": [
                {"kind": one.kind, "name": one.name, "controller": one.controller} for one in metadata.ownerReferences
            ],
        },
        "spec": {"nodeName": pod.spec.nodeName, "containers": [{"name": one.name} for one in pod.spec.containers]},
        "status": {"containerStatuses": [_status(one) for one in pod.status.containerStatuses]},
    }


def _status(one: Any) -> dict[str, Any]:
    states = {"state": _state(one.state), "lastState": _state(one.lastState)}
    return {"name": one.name, "containerID": one.containerID, **states}


def _state(state: Any) -> dict[str, Any]:
    if not state.HasField("terminated"):
        return {}
    ended = state.terminated
    # A time that is not set is an empty message.
    seconds = ended.finishedAt.seconds
    finished_at = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if seconds else ""
    return {"terminated": {"exitCode": ended.exitCode, "finishedAt": finished_at}}
