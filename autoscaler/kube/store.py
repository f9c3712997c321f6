"""The cluster's objects as of now: listed for each reading, or listed once and followed by watches in the background.

Followed, a reading costs nothing while nothing happens, and its objects are the very same ones. It is refused instead
of being stale: when a kind was never listed, was not heard of for too long, or lacks what this controller wrote itself.
Neighbours: `follow` keeps one collection up to date, `shelf` holds a kind's objects, `trim` says what of them is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from autoscaler.contract import keys
from autoscaler.errors import ClusterError
from autoscaler.kube.client import KubeClient
from autoscaler.kube.follow import Follower
from autoscaler.kube.kinds import RESOURCES
from autoscaler.kube.patience import Patience
from autoscaler.kube.shelf import Shelf, number_of, version_of
from autoscaler.model.workload import EMPTY, ClusterView, Manifest, group_of

POD_SELECTORS: Final[Mapping[str, Callable[[Mapping[str, str]], bool]]] = {
    f"{keys.ENABLED}=true": lambda labels: labels.get(keys.ENABLED) == "true",
    keys.WORKLOAD: lambda labels: keys.WORKLOAD in labels,
}
"""Selectors know no "or", so pods are listed and watched twice; each with what it matches."""


class Store:
    """All kinds of `kinds.RESOURCES`; without `patience` nothing is followed: each reading lists anew."""

    def __init__(self, client: KubeClient, patience: Patience | None = None) -> None:
        self._patience = patience
        self._shelves = {resource.kind: Shelf(resource) for resource in RESOURCES if resource.kind != "Pod"}
        pods = Shelf(next(one for one in RESOURCES if one.kind == "Pod"), len(POD_SELECTORS))
        self._pods = {
            selector: Follower(client, pods, {"labelSelector": selector}, number)
            for number, selector in enumerate(POD_SELECTORS)
        }
        self._others = {kind: Follower(client, shelf, {}) for kind, shelf in self._shelves.items()}
        self._shelves["Pod"] = pods
        self._tasks: dict[Follower, asyncio.Task[None]] = {}
        self._news = asyncio.Event()
        self._view: tuple[tuple[int, ...], ClusterView] | None = None

    async def read(self) -> ClusterView:
        """Return all objects that matter, each kind as of its last word; the same view while nothing changes.

        Raises:
            ClusterError: a kind can't be read, or was not heard of for too long; never a part, never an old view.

        """
        if not self._tasks:
            await self._list_all()
            for follower in self._followers if self._patience is not None else ():
                self._follow(follower)
        if self._patience is not None:
            await self._wait(self._patience)
        return self._current()

    def wrote(self, answer: Manifest, kind: str) -> None:
        """Remember the server's answer to a write of ours: the next reading knows of it."""
        if kind != "Pod":
            concerned: Iterable[Follower] = [self._others[kind]] if kind in self._others else []
        else:
            labels = (answer.get("metadata") or EMPTY).get("labels") or EMPTY
            concerned = [self._pods[selector] for selector, matches in POD_SELECTORS.items() if matches(labels)]
        for follower in concerned:
            follower.expected = max(follower.expected, number_of(version_of(answer)))

    async def close(self) -> None:
        """End all watches."""
        tasks = list(self._tasks.values())
        self._tasks = {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def _followers(self) -> tuple[Follower, ...]:
        return (*self._pods.values(), *self._others.values())

    async def _list_all(self) -> None:
        # Pods first: whatever owns a pod exists before it does.
        patience = self._patience or Patience()
        for group in (self._pods.values(), self._others.values()):
            done = await asyncio.gather(*(one.list(patience) for one in group), return_exceptions=True)
            for came in done:
                if isinstance(came, BaseException):
                    raise came
        for shelf in self._shelves.values():
            shelf.fresh.clear()

    def _follow(self, follower: Follower) -> None:
        assert self._patience is not None
        self._tasks[follower] = asyncio.create_task(follower.run(self._patience, self._news.set))

    async def _wait(self, patience: Patience) -> None:
        """Wait for what is known to exist, and for watches that are just lost; then judge what there is."""
        await self._until(lambda: all(one.caught_up and one.trouble is None for one in self._followers), patience)
        for follower in self._followers:
            self._judge(follower, patience)
        if any(shelf.fresh for shelf in self._shelves.values()):
            await self._until(self._owners_are_known, patience, patience.owner_seconds)
            for shelf in self._shelves.values():
                shelf.fresh.clear()

    async def _until(self, met: Callable[[], bool], patience: Patience, seconds: float | None = None) -> None:
        deadline = _now() + (patience.catch_up_seconds if seconds is None else seconds)
        while not met() and _now() < deadline:
            self._news.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._news.wait()
            except TimeoutError:
                return

    def _judge(self, follower: Follower, patience: Patience) -> None:
        kind, task = follower.resource.kind, self._tasks[follower]
        if task.done():
            follower.version = ""
            self._follow(follower)
            raise ClusterError(f"{kind}: following it broke: {task.exception()!r}; it is listed again")
        silent = _now() - follower.heard_at
        if silent > patience.stale_seconds and not follower.absent:
            why = f": {follower.trouble}" if follower.trouble is not None else ""
            raise ClusterError(f"{kind} was last heard of {silent:.0f} s ago{why}")
        if not follower.caught_up:
            follower.version = ""
            task.cancel()
            self._follow(follower)
            raise ClusterError(f"{kind}: the watch does not show what was written; it is listed again")

    def _owners_are_known(self) -> bool:
        """Tell whether each new object's controller is there, if it is of a kind that is read."""
        return all(
            self._is_known(reference)
            for shelf in self._shelves.values()
            for item in shelf.fresh.values()
            for reference in item["metadata"].get("ownerReferences") or ()
            if reference.get("controller")
        )

    def _is_known(self, reference: Manifest) -> bool:
        shelf = self._shelves.get(str(reference.get("kind")))
        if shelf is None or str(reference.get("uid")) in shelf:
            return True
        return group_of(shelf.resource.api_version) != group_of(str(reference.get("apiVersion", "")))

    def _current(self) -> ClusterView:
        state = tuple(shelf.changes for shelf in self._shelves.values())
        if self._view is None or self._view[0] != state:
            fields: dict[str, tuple[Manifest, ...]] = {}
            for resource in RESOURCES:
                fields[resource.field] = (*fields.get(resource.field, ()), *self._shelves[resource.kind].items)
            self._view = state, _view_of(fields)
        return self._view[1]


def _view_of(fields: Mapping[str, tuple[Manifest, ...]]) -> ClusterView:
    return ClusterView(
        profiles=fields["profiles"],
        workloads=fields["workloads"],
        pods=fields["pods"],
        owners=fields["owners"],
        nodes=fields["nodes"],
        quotas=fields["quotas"],
        scalers=fields["scalers"],
        budgets=fields["budgets"],
        gpus=fields["gpus"],
    )


def _now() -> float:
    return asyncio.get_running_loop().time()
