"""Who a process belongs to: its cgroup names the pod, and sources of pods name the worker.

The process's environment is never asked, for a tenant writes it. What was read of a process is kept as long as it
lives: a pid with another start time is another process. Neighbours: `cgroups` reads the paths, `file` the pods.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import is_not
from pathlib import Path
from typing import Final, Protocol

import structlog

from agent.model.samples import ProcessDirectory, Worker
from agent.pods.cgroups import ContainerRef, container_cgroup, containers_of
from agent.pods.spec import KnownPod
from autoscaler.contract.quota import QuotaDocument, WorkerQuota

_log = structlog.get_logger(__name__)
LOOK_TURNS: Final = 6
"""Who is known is looked at again once in so many ticks: no pid is given out twice in the seconds that they take."""


class PodSource(Protocol):
    """Where pods are known from."""

    def pods(self) -> Mapping[str, KnownPod] | None:
        """Return the worker pods of this node by UID; None when the source can't tell."""
        ...


@dataclass(frozen=True, slots=True)
class _Process:
    """What was read of a process: its directory's inode and time, its start in clock ticks since boot, its pods."""

    inode: tuple[int, int]
    started: str
    refs: tuple[ContainerRef, ...]
    cgroup: str = ""


class QuotaPods:
    """The workers that a quota document names; what its pods' containers are called it can't tell."""

    def __init__(self, document: Callable[[], QuotaDocument | None]) -> None:
        """Ask `document` each time for the one in force."""
        self._document = document
        self._read: QuotaDocument | None = None
        self._pods: Mapping[str, KnownPod] | None = None

    def pods(self) -> Mapping[str, KnownPod] | None:
        """Return the pods of the document in force, None before the first."""
        document = self._document()
        if document is not self._read:
            self._read, self._pods = document, None if document is None else _pods_of(document)
        return self._pods


class PodDirectory(ProcessDirectory):
    """Finds the worker of a host process under `proc_root`; the first source that knows a pod names its workers."""

    def __init__(self, proc_root: Path, sources: Sequence[PodSource]) -> None:
        """Take /proc of the host (its own pid and cgroup namespaces), and the sources in order of trust."""
        self._proc_root = str(proc_root)
        self._sources = tuple(sources)
        self._answers: list[Mapping[str, KnownPod] | None] = []
        self._listed: Mapping[str, KnownPod] | None = None
        self._workers: tuple[Worker, ...] = ()
        self._processes: dict[int, _Process] = {}
        self._owners: dict[int, Worker | None] = {}
        self._turn = 0
        self._asked: set[int] = set()
        self._cgroups: dict[tuple[str, str], str] = {}
        self._told_denied = False

    def workers(self) -> tuple[Worker, ...]:
        """Return the workers of the first source that can tell; reads the sources anew, so call it once a tick."""
        self._refresh()
        pods = next((answer for answer in self._answers if answer is not None), None)
        if pods is not self._listed:
            # A static pod stands under two UIDs, and counts once.
            each = {id(pod): pod for pod in (pods or {}).values()}
            self._listed, self._workers = pods, tuple(worker for pod in each.values() for worker in pod.workers)
        return self._workers

    def worker_of(self, pid: int) -> Worker | None:
        """Return the worker of a host process, None when it has ended or belongs to none."""
        if not self._answers:
            self._refresh()
        self._asked.add(pid)
        known = self._owners.get(pid)
        if known is not None and pid % LOOK_TURNS != self._turn:
            return known
        self._owners[pid] = owner = self._owner(pid)
        return owner

    def cgroup_of(self, worker: Worker) -> str:
        """Return the path of a worker's container in the unified cgroup tree, "" before a process of it was seen."""
        return self.cgroup_of_name((worker.pod_uid, worker.container))

    def cgroup_of_name(self, name: tuple[str, str]) -> str:
        """Return the same by the worker's pod UID and container."""
        return self._cgroups.get(name, "")

    def _owner(self, pid: int) -> Worker | None:
        for ref in self._containers(pid):
            for pods in self._answers:
                if pods is not None and ref.pod_uid in pods:
                    return self._found(pods[ref.pod_uid].worker_in(ref.container_id), pid)
        return None

    def _found(self, worker: Worker | None, pid: int) -> Worker | None:
        if worker is not None and self._processes[pid].cgroup:
            self._cgroups[worker.pod_uid, worker.container] = self._processes[pid].cgroup
        return worker

    def _refresh(self) -> None:
        answers = [source.pods() for source in self._sources]
        if len(answers) != len(self._answers) or any(map(is_not, answers, self._answers)):
            self._answers, self._owners = answers, {}
            known_pods = {uid for answer in answers if answer is not None for uid in answer}
            self._cgroups = {name: path for name, path in self._cgroups.items() if name[0] in known_pods}
        for pid in self._owners.keys() - self._asked:
            del self._owners[pid]
        for pid in self._processes.keys() - self._asked:
            del self._processes[pid]
        self._asked, self._turn = set(), (self._turn + 1) % LOOK_TURNS

    def _containers(self, pid: int) -> tuple[ContainerRef, ...]:
        try:
            # The kernel gives each process's directory an inode of its own: the same one is the same process, and
            # looking at it costs a tenth of reading. A new one may still be the same process, so its start decides.
            status = os.stat(f"{self._proc_root}/{pid}")  # noqa: PTH116  hundreds of times a tick
            inode = (status.st_ino, status.st_mtime_ns)
            known = self._processes.get(pid)
            if known is None or known.inode != inode:
                started = _start_time(self._text(pid, "stat"))
                same = known is not None and known.started == started
                if known is not None and same:
                    known = _Process(inode, started, known.refs, known.cgroup)
                else:
                    text = self._text(pid, "cgroup")
                    known = _Process(inode, started, containers_of(text), container_cgroup(text))
                self._processes[pid] = known
        except (FileNotFoundError, ProcessLookupError):
            return ()  # It has ended between being sampled and being looked up.
        except PermissionError as error:
            if not self._told_denied:
                self._told_denied = True
                _log.warning("proc_denied", error=str(error), effect="its use is unattributed")
            return ()
        return known.refs

    def _text(self, pid: int, name: str) -> str:
        # Hundreds of times a tick: a Path each would double the cost.
        with open(f"{self._proc_root}/{pid}/{name}", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            return file.read()


def _start_time(stat: str) -> str:
    """Return field 22 of /proc/<pid>/stat, in clock ticks since boot; the command before it may hold anything."""
    return stat[stat.rindex(")") + 2 :].split(" ", 20)[19]


def _pods_of(document: QuotaDocument) -> Mapping[str, KnownPod]:
    by_uid: dict[str, list[WorkerQuota]] = {}
    for quota in document.quotas:
        by_uid.setdefault(quota.pod_uid, []).append(quota)
    return {
        uid: KnownPod(tuple(Worker(uid, q.namespace, q.pod, q.container, q.workload, q.qos) for q in quotas), {})
        for uid, quotas in by_uid.items()
    }
