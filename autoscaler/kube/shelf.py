"""The objects of one kind in memory, as its lists and watches tell of them; no I/O.

One kind may be read by several collections: Kubernetes' selectors know no "or", so a kind that is wanted by either of
two labels is listed and watched twice. An object stands here once, by UID, in its newest version, for as long as one
of the collections has it. What did not change stays the very same object, so that a reader recognises it.
"""

from __future__ import annotations

from typing import Final

from autoscaler.kube.kinds import ApiResource
from autoscaler.kube.listing import Listed
from autoscaler.model.workload import EMPTY, Manifest

VERSIONED: Final = frozenset({"pods", "workloads", "profiles"})
"""Kinds whose resource version is used. Of the others a new version that says nothing new is dropped: nodes and HPAs
change each few seconds in fields that are not kept."""


class Shelf:
    """Objects of one kind; `changes` counts up with each change, `fresh` has those that came since it was cleared."""

    def __init__(self, resource: ApiResource, collections: int = 1) -> None:
        self.resource = resource
        self.changes = 0
        self.fresh: dict[str, Manifest] = {}
        self._objects: dict[str, Manifest] = {}
        self._members: tuple[set[str], ...] = tuple(set() for _ in range(collections))
        self._positions = [0] * collections
        self._items: tuple[Manifest, ...] = ()
        self._shown_at = 0

    def __contains__(self, uid: str) -> bool:
        return uid in self._objects

    def __len__(self) -> int:
        return len(self._objects)

    @property
    def items(self) -> tuple[Manifest, ...]:
        """All objects; the same tuple until one changes."""
        if self._shown_at != self.changes:
            self._items, self._shown_at = tuple(self._objects.values()), self.changes
        return self._items

    def replace(self, collection: int, listed: Listed) -> None:
        """Take a list for all that the collection has."""
        others = [at for number, at in enumerate(self._positions) if number != collection]
        as_of = number_of(listed.version)
        found = {uid_of(item): item for item in listed.items}
        for uid, item in found.items():
            held = self._objects.get(uid)
            # A version from after the list is believed where another collection told of it, and not after the server
            # was restored from a backup: then all versions begin anew.
            if held is None or not as_of < number_of(version_of(held)) <= max(others, default=0):
                self._take(uid, item)
        gone = self._members[collection] - found.keys()
        self._members[collection].clear()
        self._members[collection].update(found)
        self._positions[collection] = as_of
        for uid in gone:
            self._forget(uid)

    def put(self, collection: int, item: Manifest) -> None:
        """Take an object that was added or modified."""
        uid = uid_of(item)
        self.passed(collection, version_of(item))
        self._members[collection].add(uid)
        held = self._objects.get(uid)
        if held is None or number_of(version_of(item)) >= number_of(version_of(held)):
            self._take(uid, item)

    def drop(self, collection: int, item: Manifest) -> None:
        """Forget an object that was deleted, or that the collection's selector matches no more."""
        uid = uid_of(item)
        self.passed(collection, version_of(item))
        self._members[collection].discard(uid)
        self._forget(uid)

    def passed(self, collection: int, version: str) -> None:
        """Note that nothing is missing up to this version."""
        self._positions[collection] = number_of(version)

    def _take(self, uid: str, item: Manifest) -> None:
        held = self._objects.get(uid)
        if held is None:
            self.fresh[uid] = item
        elif self._says_nothing_new(held, item):
            return
        self._objects[uid] = item
        self.changes += 1

    def _says_nothing_new(self, held: Manifest, item: Manifest) -> bool:
        if version_of(held) == version_of(item) != "":
            return True
        return self.resource.field not in VERSIONED and _content(held) == _content(item)

    def _forget(self, uid: str) -> None:
        if uid in self._objects and not any(uid in members for members in self._members):
            del self._objects[uid]
            self.fresh.pop(uid, None)
            self.changes += 1


def uid_of(item: Manifest) -> str:
    """Return an object's UID; without one, what else is its own."""
    metadata = item["metadata"]
    return str(metadata.get("uid") or f"{metadata.get('namespace', '')}/{metadata.get('name', '')}")


def version_of(item: Manifest) -> str:
    """Return an object's resource version, empty when it has none."""
    return str((item.get("metadata") or EMPTY).get("resourceVersion", ""))


def number_of(version: str) -> int:
    """Return a resource version as the number that grows with each change of a kind; 0 when it is none."""
    return int(version) if version.isascii() and version.isdecimal() else 0


def _content(item: Manifest) -> Manifest:
    return {**item, "metadata": {**item["metadata"], "resourceVersion": ""}}
