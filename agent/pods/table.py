"""The pods of a node as a watch tells them, in the form of the API server's JSON: what of them is kept, and read.

Neighbours: `watch` and `local` fill it, `spec` makes workers of pods.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import structlog

from agent.model.exits import Exit
from agent.pods.spec import CONFIG_HASH, ContainerEntry, KnownPod, PodEntry, known_pods
from autoscaler.contract.keys import PREFIX

_log = structlog.get_logger(__name__)
_HASH: Final = "pod-template-hash"


class Listing:
    """A whole list of pods while it is being told; of each only what is read is kept."""

    def __init__(self) -> None:
        self.entries: dict[str, PodEntry] = {}
        self.exits: dict[str, tuple[Exit, ...]] = {}

    def take(self, pod: Mapping[str, Any]) -> bool:
        """Take one pod that is new or has changed; return whether anything of it did, but for how it ended last."""
        entry = _entry(pod)
        if entry is None:
            return False
        self.exits[entry.uid] = _exits(pod)
        changed = self.entries.get(entry.uid) != entry
        if changed:
            self.entries[entry.uid] = entry
        return changed

    def drop(self, pod: Mapping[str, Any]) -> bool:
        """Forget one pod, of which the UID is enough; return whether it was known."""
        uid = str(pod["metadata"]["uid"])
        self.exits.pop(uid, None)
        return self.entries.pop(uid, None) is not None


class PodTable:
    """Filled by a watch's task; `pods` and `exits` are asked from the tick's thread."""

    def __init__(self, node: str) -> None:
        """Take pods of this node only, of any where it is empty."""
        self._node = node
        self._listing = Listing()
        self._pods: Mapping[str, KnownPod] | None = None
        self._told: tuple[str, ...] = ()

    def pods(self) -> Mapping[str, KnownPod] | None:
        """Return the worker pods by UID; None before the first list."""
        return self._pods

    def exits(self) -> tuple[Exit, ...]:
        """Return how containers ended last, as far as their pods tell."""
        return tuple(one for exits in list(self._listing.exits.values()) for one in exits)

    def replace(self, listing: Listing) -> None:
        """Take a whole list; what is not in it is gone."""
        same = self._pods is not None and listing.entries == self._listing.entries
        self._listing = listing
        if not same:
            self._publish()

    def take(self, pod: Mapping[str, Any]) -> None:
        """Take one pod that is new or has changed."""
        if self._listing.take(pod):
            self._publish()

    def drop(self, pod: Mapping[str, Any]) -> None:
        """Forget one pod, of which the UID is enough."""
        if self._listing.drop(pod):
            self._publish()

    def _publish(self) -> None:
        self._pods, problems = known_pods([("pod", one) for one in self._listing.entries.values()], self._node)
        for problem in problems if problems != self._told else ():
            _log.warning("pod_problem", problem=problem)
        self._told = problems


def _entry(pod: Mapping[str, Any]) -> PodEntry | None:
    """Return what counts of a pod, None (with a word in the log) where it is none."""
    metadata, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    ids = {one.get("name"): one.get("containerID") or "" for one in status.get("containerStatuses") or ()}
    labels = metadata.get("labels") or {}
    found = {
        "uid": metadata.get("uid"),
        "namespace": metadata.get("namespace", ""),
        "name": metadata.get("name"),
        "labels": _read(labels),
        "annotations": _read(metadata.get("annotations") or {}),
        "containers": [ContainerEntry(one["name"], ids.get(one["name"], "")) for one in spec.get("containers") or ()],
        "node": spec.get("nodeName", ""),
        "workload": _owner(metadata, labels),
    }
    try:
        return msgspec.convert(found, PodEntry)
    except msgspec.ValidationError as error:
        _log.warning("pod_problem", problem=f"{found['namespace']}/{found['name']}: {error}; it is left out")
        return None


def _read(marks: Mapping[str, str]) -> dict[str, str]:
    """Return what is read of labels or annotations: others' can be large, and change often."""
    return {name: text for name, text in marks.items() if name.startswith(PREFIX) or name == CONFIG_HASH}


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
