"""One collection followed: listed, watched from there on, again where a watch ended, listed again where it must be.

A watch that is lost changes nothing of what is known: only a list or the word DELETED takes an object away. How old
what is known may be is in `heard_at`; whoever reads judges it. Neighbours: `shelf` keeps the objects, `store` reads.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import structlog

from autoscaler.errors import ClusterError
from autoscaler.kube.client import KubeClient
from autoscaler.kube.errors import StatusError, UnreachableError
from autoscaler.kube.kinds import ApiResource
from autoscaler.kube.listing import EXPIRED, Listed, list_whole
from autoscaler.kube.patience import Patience
from autoscaler.kube.shelf import Shelf, number_of, version_of
from autoscaler.kube.trim import trimmed
from autoscaler.model.workload import Manifest, group_of

log = structlog.get_logger(__name__)

SHORTEST_WATCH_SECONDS: Final = 1.0
"""One that ends sooner, and told nothing, counts as a failure: else it would be asked for again at once, for ever."""
FAILURES_BEFORE_LIST: Final = 2
"""A watch that the server refuses so often is not resumed: its place may be one that the server never had."""
WARNED_FAILURES: Final = 2
"""One failure in a row is daily life: a server or a proxy that was restarted, a watch that was silent for too long."""
_REFUSED: Final = frozenset({401, 403, 429})
"""Says nothing about the place."""
_NO_SUCH_KIND: Final = 404
_FORBIDDEN: Final = 403


class _Event(msgspec.Struct):
    type: str
    object: dict[str, Any]


_EVENT: Final = msgspec.json.Decoder(_Event)


class Follower:
    """One collection of a kind: all of it, or what a selector (`query`) matches; `tell` is called on any news."""

    def __init__(self, client: KubeClient, shelf: Shelf, query: Mapping[str, str], number: int = 0) -> None:
        self.shelf = shelf
        self.version = ""
        """Where to watch from; empty: it must be listed first."""
        self.heard_at = 0.0
        """When the server last said anything of the collection, on the loop's clock."""
        self.trouble: ClusterError | None = None
        """Why it is not heard of at present."""
        self.absent = False
        """The kind is not installed, or not for us."""
        self.expected = 0
        """A version that is known to exist, as we wrote it."""
        self._client, self._query, self._number = client, query, number
        self._known = False
        self._missing_since: float | None = None
        self._listed_at = 0.0
        self._failures = 0

    @property
    def resource(self) -> ApiResource:
        """The kind."""
        return self.shelf.resource

    @property
    def caught_up(self) -> bool:
        """Whether it knows of our own writes."""
        return self.absent or number_of(self.version) >= self.expected

    async def list(self, patience: Patience) -> None:
        """List the collection whole; an optional kind that is not there is an empty one.

        Raises:
            ClusterError: it could not be listed; what was known stays.

        """
        expected = self.expected
        try:
            listed = await list_whole(self._client, self.resource.path(), self._query, self._trimmed)
        except StatusError as error:
            if not self._is_none(error, patience):
                raise _worded(error, self.resource, "list") from error
            self._note_absence(error)
        else:
            self._known, self.absent, self._missing_since = True, False, None
            self.shelf.replace(self._number, listed)
            self.version = listed.version
        if self.expected == expected:
            self.expected = 0  # the list began after that write ended
        self._listed_at = _now()
        self._heard()

    async def run(self, patience: Patience, tell: Callable[[], None]) -> None:
        """Follow for ever; what is listed already is watched from there on."""
        while True:
            try:
                if self._must_list(patience):
                    await self.list(patience)
                    tell()
                if self.absent:
                    await asyncio.sleep(patience.absent_seconds)
                    self.version = ""
                else:
                    await self._watch(patience, tell)
            except ClusterError as error:
                await asyncio.sleep(self._fail(error, patience))

    def _must_list(self, patience: Patience) -> bool:
        due = patience.resync_seconds * patience.share(f"{self.resource.plural}/resync")
        return not self.version or _now() - self._listed_at >= due

    async def _watch(self, patience: Patience, tell: Callable[[], None]) -> None:
        """Watch until the server ends it.

        Raises:
            ClusterError: it was lost; `version` says where to go on.

        """
        seconds = patience.watch_seconds * patience.share(f"{self.resource.plural}/watch")
        query = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(max(round(seconds), 1))}
        query |= {**self._query, "resourceVersion": self.version}
        opened, told = math.inf, False
        try:
            async with self._client.stream(self.resource.path(), query, patience.silence_seconds) as lines:
                opened = _now()
                self._heard()
                tell()
                async for line in lines:
                    if line.strip():
                        self._take(line)
                        told = True
                    self._heard()
                    tell()
        except StatusError as error:
            raise _worded(error, self.resource, "watch") from error
        finally:
            if told or _now() - opened >= patience.longest_retry_seconds:
                self._recover()
        if not told and _now() - opened < SHORTEST_WATCH_SECONDS:
            raise UnreachableError(f"watch of {self.resource.path()}: it ends as soon as it begins")

    def _take(self, line: bytes) -> None:
        try:
            event = _EVENT.decode(line)
        except msgspec.DecodeError as error:
            self.version = ""  # whatever it said was missed
            raise UnreachableError(f"watch of {self.resource.path()}: a line can't be read: {error}") from error
        if event.type == "ERROR":
            code = event.object.get("code")
            raise StatusError(code if isinstance(code, int) else 500, str(event.object.get("message", "")))
        if event.type == "BOOKMARK":
            self.shelf.passed(self._number, version_of(event.object))
        elif event.type == "DELETED":
            self.shelf.drop(self._number, self._trimmed(event.object))
        else:
            self.shelf.put(self._number, self._trimmed(event.object))
        self.version = version_of(event.object) or self.version

    def _trimmed(self, item: dict[str, Any]) -> Manifest:
        return trimmed(item, self.resource)

    def _heard(self) -> None:
        self.heard_at, self.trouble = _now(), None

    def _recover(self) -> None:
        if self._failures >= WARNED_FAILURES:
            log.info("cluster_heard_again", kind=self.resource.kind, failures=self._failures)
        self._failures = 0

    def _fail(self, error: ClusterError, patience: Patience) -> float:
        """Note a failure and return how long to wait for the next attempt."""
        if isinstance(error, StatusError) and error.status not in _REFUSED:
            expired = error.status == EXPIRED
            if expired or self._failures + 1 >= FAILURES_BEFORE_LIST:
                self.version = ""
            if expired and self._failures == 0:
                self._failures = 1
                log.info("cluster_listed_again", kind=self.resource.kind, why=str(error))
                return 0.0
        self._failures += 1
        if self._failures == WARNED_FAILURES:
            log.warning("cluster_not_heard", kind=self.resource.kind, error=str(error), then="it is tried again")
        self.trouble = error
        asked = error.retry_after_seconds if isinstance(error, StatusError) else None
        return max(asked or 0.0, patience.retry_seconds(self.resource.plural, self._failures))

    def _is_none(self, error: StatusError, patience: Patience) -> bool:
        """Tell whether a refusal means that there is none of the kind.

        One that was there is believed to be gone only after a while, and never for want of rights: a server that just
        starts does not know all of its kinds yet.
        """
        if not self.resource.optional or error.status not in {_NO_SUCH_KIND, _FORBIDDEN}:
            return False
        if not self._known:
            return True
        if error.status == _FORBIDDEN:
            return False
        self._missing_since = self._missing_since or _now()
        return _now() - self._missing_since >= patience.vanished_seconds

    def _note_absence(self, error: StatusError) -> None:
        if not self.absent and error.status == _FORBIDDEN:
            why = str(_worded(error, self.resource, "list"))
            log.warning("kind_forbidden", kind=self.resource.kind, error=why, then="it is taken for not installed")
        self._known, self.absent, self._missing_since, self.version = False, True, None, "0"
        self.shelf.replace(self._number, Listed((), ""))


def _worded(error: StatusError, resource: ApiResource, verb: str) -> StatusError:
    """Return the error with what it was about and, where a right is missing, which."""
    _, _, said = str(error).partition(": ")
    where = f'{resource.plural} of the API group "{group_of(resource.api_version)}"'
    what = f"allow this account to {verb} {where}" if error.status == _FORBIDDEN else f"{verb} {where}"
    return StatusError(error.status, f"{said} ({what})", error.retry_after_seconds)


def _now() -> float:
    return asyncio.get_running_loop().time()
