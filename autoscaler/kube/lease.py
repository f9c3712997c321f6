"""Leadership by a Lease of coordination.k8s.io: one of several controllers acts, the others stand by.

Times in the Lease are for people. Whether its holder is alive is judged by our own monotonic clock alone: by how long
ago we saw the record change. Every term raises `leaseTransitions`, from which the leader's epoch is made, and every
write is guarded by the version that was read, so of two who try only one succeeds.

A leader renews every `retry_seconds`, and stops when it could not for `renew_deadline_seconds`, which is before others
may take the Lease at `duration_seconds`. Neighbours: `Leadership` in ports; `fence` asks before each write.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from autoscaler.errors import ClusterError, LeadershipLostError
from autoscaler.kube.access import Access
from autoscaler.kube.client import JSON, MERGE_PATCH, KubeClient, StatusError
from autoscaler.ports import Clock
from autoscaler.settings import Settings

log = structlog.get_logger(__name__)
GROUP: Final = "/apis/coordination.k8s.io/v1"
_GONE_ELSEWHERE: Final = frozenset({404, 409})


@dataclass(frozen=True, slots=True)
class Terms:
    """Which Lease, who we are, and for how long it counts."""

    namespace: str
    name: str
    identity: str
    duration_seconds: int = 15
    renew_deadline_seconds: float = 10.0
    retry_seconds: float = 2.0

    @property
    def collection(self) -> str:
        """Return the path under which Leases are created."""
        return f"{GROUP}/namespaces/{self.namespace}/leases"

    @property
    def path(self) -> str:
        """Return the path of the Lease."""
        return f"{self.collection}/{self.name}"


@dataclass(frozen=True, slots=True)
class Record:
    """What a Lease says; `holder` is empty when it was given back, `version` guards the next write."""

    holder: str
    renewed: str
    duration_seconds: float
    transitions: int
    version: str

    @classmethod
    def of(cls, lease: Mapping[str, Any]) -> Record:
        """Return the record of a Lease as the API server has it; what is not set is empty or 0."""
        spec = lease.get("spec") or {}
        return cls(
            holder=spec.get("holderIdentity") or "",
            renewed=spec.get("renewTime") or "",
            duration_seconds=float(spec.get("leaseDurationSeconds") or 0),
            transitions=int(spec.get("leaseTransitions") or 0),
            version=str(lease["metadata"]["resourceVersion"]),
        )

    def is_sign_of_life(self, before: Record | None) -> bool:
        """Tell whether a holder has written since; others may touch the object, too."""
        return before is None or (self.holder, self.renewed, self.transitions) != (
            before.holder,
            before.renewed,
            before.transitions,
        )


class LeaseElector:
    """The Leadership port on one Lease. `clock` dates what people read, `monotonic` judges."""

    def __init__(
        self, client: KubeClient, terms: Terms, clock: Clock, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._client, self._terms, self._clock, self._monotonic = client, terms, clock, monotonic
        self._record: Record | None = None
        self._alive_at = self._renewed_at = -float("inf")
        self._transitions = 0
        self._leads, self._renewed = False, asyncio.Event()

    @classmethod
    async def connect(cls, settings: Settings, clock: Clock) -> LeaseElector | None:
        """Return an elector with a connection of its own (renewing waits behind no other request); None: all act.

        Raises:
            ClusterError: there is no way to an API server.

        """
        access = Access(settings.kubeconfig)
        if not (access.in_cluster if settings.leader_elect is None else settings.leader_elect):
            return None
        terms = Terms(
            namespace=settings.lease_namespace or access.namespace(),
            name=settings.lease_name,
            identity=f"{socket.gethostname()}_{secrets.token_hex(4)}",
            duration_seconds=settings.lease_duration_seconds,
            renew_deadline_seconds=settings.lease_renew_deadline_seconds,
            retry_seconds=settings.lease_retry_seconds,
        )
        return cls(await KubeClient.connect(access, terms.renew_deadline_seconds / 2), terms, clock)

    async def lead(
        self, work: Callable[[int], Awaitable[None]], stop: asyncio.Event, saw: Callable[[str, str], None]
    ) -> None:
        """Stand by until this process holds the Lease, then run `work` with its transitions; give it back after.

        Raises:
            LeadershipLostError: it could not be renewed in time, or another has it; work was cancelled and has ended.

        """
        if not await self._acquire(stop, saw):
            return
        log.info("leading", identity=self._terms.identity, lease=self._terms.name, transitions=self._transitions)
        task = asyncio.ensure_future(work(self._transitions))
        lost = False
        try:
            await self._hold(task)
        except LeadershipLostError:
            lost = True
            raise
        finally:
            task.cancel()
            await asyncio.wait({task})
            self._leads = False
            self._renewed.set()
            if not lost:
                await self._give_back()
        task.result()

    async def confirm(self) -> None:
        """Return while the last renewal is recent; wait for the next one otherwise.

        Raises:
            LeadershipLostError: this process does not lead, or no longer.

        """
        while True:
            if not self._leads:
                raise LeadershipLostError(f"{self._terms.identity} does not lead")
            if self._monotonic() - self._renewed_at < self._terms.renew_deadline_seconds:
                return
            self._renewed.clear()
            await self._renewed.wait()

    async def close(self) -> None:
        """Release connections."""
        await self._client.close()

    async def _acquire(self, stop: asyncio.Event, saw: Callable[[str, str], None]) -> bool:
        """Return True once the Lease is ours, False when told to stop before."""
        while not stop.is_set():
            error = ""
            try:
                await self._try()
            except ClusterError as failure:
                error = str(failure)
            saw(self._record.holder if self._record is not None else "", error)
            if self._leads:
                return True
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), self._delay())
        return False

    def _delay(self) -> float:
        """Return the seconds until the next try: at the latest when the holder's time is over."""
        left = self._seconds_left()
        return left if 0 < left < self._terms.retry_seconds else self._terms.retry_seconds

    def _seconds_left(self) -> float:
        """Return how long the holder still counts as alive."""
        record = self._record
        if record is None or not record.holder or record.holder == self._terms.identity:
            return 0.0
        return self._alive_at + (record.duration_seconds or self._terms.duration_seconds) - self._monotonic()

    async def _try(self) -> None:
        """Take the Lease if nobody has it who is alive."""
        await self._look()
        if self._seconds_left() > 0:
            return
        try:
            await self._write(self._record, self._transitions + 1, {"acquireTime": self._now()})
        except StatusError as error:
            if error.status not in _GONE_ELSEWHERE:
                raise
            log.info("lease_taken_by_another", lease=self._terms.name)
        else:
            self._leads = True

    async def _hold(self, task: asyncio.Future[None]) -> None:
        """Renew until the work is done."""
        terms = self._terms
        while True:
            await asyncio.wait({task}, timeout=terms.retry_seconds)
            if task.done():
                return
            left = self._renewed_at + terms.renew_deadline_seconds - self._monotonic()
            try:
                # Also after the deadline (this process may have been stopped): who has not lost it may renew it.
                async with asyncio.timeout(max(left, terms.retry_seconds)):
                    await self._renew()
            except (ClusterError, TimeoutError) as error:
                seconds = self._monotonic() - self._renewed_at
                log.warning("lease_not_renewed", error=str(error) or "no answer in time", for_seconds=round(seconds, 1))
                if seconds >= terms.renew_deadline_seconds:
                    text = f"lease {terms.namespace}/{terms.name} was not renewed for {seconds:.1f} s"
                    raise LeadershipLostError(text) from error

    async def _renew(self) -> None:
        """Renew, on the record as we left it, else (it was touched, or removed) on the one that is found now."""
        try:
            await self._write(self._record, self._transitions)
        except StatusError as error:
            if error.status not in _GONE_ELSEWHERE:
                raise
            transitions = self._transitions
            await self._look()
            found = self._record
            if found is not None and (found.holder, found.transitions) != (self._terms.identity, transitions):
                holder = found.holder or "nobody"
                raise LeadershipLostError(f"lease {self._terms.name} is held by {holder} now") from error
            await self._write(found, transitions)

    async def _look(self) -> None:
        """Read the Lease, and note when it was last seen to live; one that is gone is None."""
        try:
            found = Record.of(await self._client.request_once("GET", self._terms.path))
        except StatusError as error:
            if error.status != 404:
                raise
            self._record = None
            return
        if found.is_sign_of_life(self._record):
            self._alive_at = self._monotonic()
        self._record, self._transitions = found, max(self._transitions, found.transitions)

    async def _write(self, record: Record | None, transitions: int, acquired: Mapping[str, str] | None = None) -> None:
        """Put ourselves down as the holder, on a record that nobody touched since, or on a new Lease."""
        began_at = self._monotonic()
        spec = {
            "holderIdentity": self._terms.identity,
            "leaseDurationSeconds": self._terms.duration_seconds,
            "leaseTransitions": transitions,
            "renewTime": self._now(),
            **(acquired or {}),
        }
        if record is None:
            metadata = {"name": self._terms.name, "namespace": self._terms.namespace}
            lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
            answer = await self._client.request_once("POST", self._terms.collection, lease, JSON)
        else:
            patch = {"metadata": {"resourceVersion": record.version}, "spec": spec}
            answer = await self._client.request_once("PATCH", self._terms.path, patch, MERGE_PATCH)
        self._record, self._transitions = Record.of(answer), transitions
        self._alive_at = self._renewed_at = began_at
        self._renewed.set()

    async def _give_back(self) -> None:
        """Let the next one lead at once; if it can't be told, it waits for the end of our time."""
        if self._record is None:
            return
        patch = {"metadata": {"resourceVersion": self._record.version}, "spec": {"holderIdentity": None}}
        try:
            self._record = Record.of(await self._client.request_once("PATCH", self._terms.path, patch, MERGE_PATCH))
        except ClusterError as error:
            log.warning("lease_not_given_back", error=str(error))

    def _now(self) -> str:
        # A string with all six digits: the API server refuses a MicroTime without them.
        return datetime.fromtimestamp(self._clock.now(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
