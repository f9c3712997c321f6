"""A source of pods whose workers have the devices that the kubelet gave them. Neighbours: `allocated`, `directory`.

What the kubelet says of a container goes before the note on its pod, which whoever writes the pod can write. Where it
names no GPU the note stands: schedulers that place workers themselves hand out none through the kubelet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

from agent.model.samples import Worker
from agent.pods.allocated import AllocatedDevices, Answer, ContainerName
from agent.pods.directory import PodSource
from agent.pods.spec import KnownPod

_Pods: TypeAlias = Mapping[str, KnownPod]


class PlacedPods(PodSource):
    """Asked from the tick's thread, like the source that it stands before."""

    def __init__(self, source: PodSource, allocated: AllocatedDevices) -> None:
        self._source, self._allocated = source, allocated
        self._read: tuple[_Pods | None, Answer | None] = (None, None)
        self._pods: _Pods | None = None
        self._seen: dict[str, int] = {}
        self._waits = False

    def pods(self) -> Mapping[str, KnownPod] | None:
        """Return the source's pods with the kubelet's devices; the same object as long as nothing changed."""
        pods, answer = self._source.pods(), self._allocated.answer()
        before_pods, before = self._read
        if pods is not before_pods:
            self._meet(pods or {})
            self._allocated.want()
        if pods is not before_pods or answer is not before:
            self._read = (pods, answer)
            # The same devices again are the same object, and mean something new only to pods that waited for an answer.
            same = before is not None and answer is not None and answer.devices is before.devices
            if pods is not before_pods or not same or self._waits:
                self._place(pods, answer)
        return self._pods

    def _meet(self, pods: _Pods) -> None:
        """Note for new pods how many questions were asked before: their answers may mean an older pod of that name."""
        asked = self._allocated.asked
        self._seen = {uid: self._seen.get(uid, asked) for uid in pods}

    def _place(self, pods: _Pods | None, answer: Answer | None) -> None:
        number = answer.number if answer is not None else 0
        self._waits = any(asked >= number for asked in self._seen.values())
        if pods is None or answer is None or not answer.devices:
            self._pods = pods
            return
        # A static pod stands under two UIDs, and stays one pod.
        placed = {id(pod): pod for pod in pods.values()}
        for uid, pod in pods.items():
            if self._seen[uid] < answer.number and placed[id(pod)] is pod:
                placed[id(pod)] = _given(pod, answer.devices)
        after = {uid: placed[id(pod)] for uid, pod in pods.items()}
        # A new answer with the same devices leaves the same object, so that nobody compares hundreds of workers.
        if after != self._pods:
            self._pods = after


def _given(pod: KnownPod, devices: Mapping[ContainerName, tuple[str, ...]]) -> KnownPod:
    workers = tuple(_worker(worker, devices) for worker in pod.workers)
    return KnownPod(workers, pod.names) if workers != pod.workers else pod


def _worker(worker: Worker, devices: Mapping[ContainerName, tuple[str, ...]]) -> Worker:
    given = devices.get((worker.namespace, worker.pod, worker.container))
    return worker if given is None else replace(worker, devices=given)
