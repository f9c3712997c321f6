"""A cluster that is a folder of YAML manifests: everything runs without an API server.

Each object is read from wherever the user put it (sub-folders, several documents in a file, a List) and written back
there; what is created gets a file of its own. A broken manifest is a problem, the others work. Replaced files last
across a kill of the process; nothing is synced to disk for a power cut. Nobody makes pods here: `Scale` only sets
replicas. Neighbours: `manifests` parses, `edits` changes objects, `event_log` keeps events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace as changed
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from autoscaler.errors import ClusterError, ConflictError, Problem
from autoscaler.gateways.edits import annotated, created, identity, owned, scaled, served, with_status
from autoscaler.gateways.event_log import EVENTS_NAME, EventLog
from autoscaler.gateways.files import Stamp, locked, replace, scan
from autoscaler.gateways.manifests import Document, find_problems, parse_file, render_document
from autoscaler.model.secret import secret_texts
from autoscaler.model.steps import Annotate, ClusterWrite, CreateObject, Emit, Own, Scale, WriteStatus
from autoscaler.model.workload import ClusterView, Manifest, ObjectRef
from autoscaler.ports import Clock

SUFFIXES: Final = (".yaml", ".yml", ".json")
_FIELDS: Final = {
    "WorkloadProfile": "profiles",
    "TensorFusionWorkload": "workloads",
    "Pod": "pods",
    "Deployment": "owners",
    "StatefulSet": "owners",
    "ReplicaSet": "owners",
    "Job": "owners",
    "CronJob": "owners",
    "Node": "nodes",
    "GPUResourceQuota": "quotas",
    "HorizontalPodAutoscaler": "scalers",
    "ScaledObject": "scalers",
    "PodDisruptionBudget": "budgets",
    "GPU": "gpus",
}
"""Kinds that are read, and where they stand in a ClusterView; others may lie in the folder and are left alone."""

_EDITS: Final[dict[type, Callable[[Manifest, Any], Manifest]]] = {
    Annotate: annotated,
    WriteStatus: with_status,
    Scale: scaled,
    Own: owned,
}


class _File(NamedTuple):
    stamp: Stamp
    documents: tuple[Document, ...]


class _Place(NamedTuple):
    path: str
    document: int
    position: int


class FolderCluster:
    """The Cluster port on a folder; several processes may share it. `clock` dates what is created and emitted."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._files: dict[str, _File] = {}
        self._objects: dict[tuple[str, str, str], Manifest] = {}
        self._places: dict[tuple[str, str, str], _Place] = {}
        self._duplicates: tuple[Problem, ...] = ()
        self._view: ClusterView | None = None
        self._events = EventLog(folder)

    async def read(self) -> ClusterView:
        """Return all objects; files that did not change are not parsed again.

        Raises:
            ClusterError: the folder can't be listed.

        """
        self._refresh()
        if self._view is None:
            self._view = self._assemble()
        return self._view

    async def write(self, write: ClusterWrite) -> None:
        """Carry out one write; one that changes nothing leaves the file as it is.

        Raises:
            ConflictError: the object is gone, was replaced by another one (UID), or exists already.
            ClusterError: the file can't be written.

        """
        async with locked(self._folder):
            try:
                self._carry_out(write)
            except (OSError, yaml.YAMLError) as error:
                raise ClusterError(f"{self._folder} can't be written to: {error}") from error

    async def secret(self, namespace: str, name: str) -> Mapping[str, str]:
        """Return the values of a Secret that lies in the folder as a manifest, by key, as text.

        Raises:
            ClusterError: it is not there, or is no text.

        """
        self._refresh()
        found = self._objects.get(("Secret", namespace or "default", name))
        if found is None:
            raise ClusterError(f"Secret {namespace}/{name} is not in {self._folder}")
        return secret_texts(found)

    async def close(self) -> None:
        """Nothing is held open between calls."""

    def _carry_out(self, write: ClusterWrite) -> None:
        if isinstance(write, Emit):
            self._events.record(write, self._clock.now())
            return
        self._refresh()
        if isinstance(write, CreateObject):
            self._create(write.manifest)
            return
        key, manifest = self._find(write.ref)
        after = _EDITS[type(write)](manifest, write)
        if after is not manifest:
            self._store(key, after)

    def _find(self, ref: ObjectRef) -> tuple[tuple[str, str, str], Manifest]:
        key = identity({"kind": ref.kind, "metadata": {"name": ref.name, "namespace": ref.namespace}})
        manifest = self._objects.get(key)
        if manifest is None:
            raise ConflictError(f"{'/'.join(key)} is not in {self._folder} any more")
        uid = manifest["metadata"]["uid"]
        if ref.uid and ref.uid != uid:
            raise ConflictError(f"{'/'.join(key)} was replaced: its UID is {uid}, not {ref.uid}")
        return key, manifest

    def _create(self, manifest: Manifest) -> None:
        problems = tuple(find_problems(manifest, "new object"))
        if problems:
            raise ClusterError("; ".join(map(str, problems)))
        kind, namespace, name = key = identity(manifest)
        path = self._folder / f"{'-'.join(filter(None, (kind.lower(), namespace, name)))}.yaml"
        if key in self._objects or path.exists():
            raise ConflictError(f"{'/'.join(key)} or {path.name} exists already")
        document = render_document([created(manifest, self._clock.now())])
        stamp = replace(path, document.text)
        self._files[str(path)] = _File(stamp, (document,))
        self._places[key] = _Place(str(path), 0, 0)
        self._objects[key] = document.objects[0]
        self._view = None

    def _store(self, key: tuple[str, str, str], manifest: Manifest) -> None:
        path, number, position = self._places[key]
        documents = list(self._files[path].documents)
        if documents[number].problems:
            raise ClusterError(f"{path}: a document that is partly broken is not written to: {'/'.join(key)}")
        objects = list(documents[number].objects)
        objects[position] = manifest
        documents[number] = render_document(objects)
        stamp = replace(Path(path), "".join(document.text for document in documents))
        self._files[path] = _File(stamp, tuple(documents))
        self._objects[key] = manifest
        self._view = None

    def _refresh(self) -> None:
        events = str(self._folder / EVENTS_NAME)
        try:
            found = {path: stamp for path, stamp in scan(self._folder, SUFFIXES) if path != events}
        except OSError as error:
            raise ClusterError(f"{self._folder} can't be read: {error.strerror}") from error
        if len(found) == len(self._files) and all(
            path in self._files and self._files[path].stamp == stamp for path, stamp in found.items()
        ):
            return
        self._files = {path: self._load(path, stamp) for path, stamp in sorted(found.items())}
        self._index()
        self._view = None

    def _load(self, path: str, stamp: Stamp) -> _File:
        known = self._files.get(path)
        if known is not None and known.stamp == stamp:
            return known
        source = str(Path(path).relative_to(self._folder))
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            problem = Problem("(file)", str(error)[:80], "a readable UTF-8 file", source)
            return _File(stamp, (Document("", problems=(problem,)),))
        born_at = stamp.mtime_ns / 1e9
        return _File(
            stamp,
            tuple(
                changed(
                    document,
                    objects=tuple(
                        served(item, self._objects.get(identity(item)), born_at) for item in document.objects
                    ),
                )
                for document in parse_file(text, source)
            ),
        )

    def _index(self) -> None:
        self._objects, self._places, duplicates = {}, {}, []
        for path, file in self._files.items():
            for number, document in enumerate(file.documents):
                for position, item in enumerate(document.objects):
                    key = identity(item)
                    if key in self._objects:
                        first = Path(self._places[key].path).relative_to(self._folder)
                        source = str(Path(path).relative_to(self._folder))
                        duplicates.append(Problem("metadata.name", "/".join(key), f"one object; see {first}", source))
                        continue
                    self._objects[key] = item
                    self._places[key] = _Place(path, number, position)
        self._duplicates = tuple(duplicates)

    def _assemble(self) -> ClusterView:
        sorted_out: dict[str, list[Manifest]] = {field: [] for field in _FIELDS.values()}
        for (kind, _, _), item in self._objects.items():
            field = _FIELDS.get(kind)
            if field is not None:
                sorted_out[field].append(item)
        found = (
            problem for file in self._files.values() for document in file.documents for problem in document.problems
        )
        kinds: dict[str, Any] = {field: tuple(items) for field, items in sorted_out.items()}
        return ClusterView(**kinds, problems=(*found, *self._duplicates))
