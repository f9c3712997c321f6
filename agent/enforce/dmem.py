"""The driver's memory limits per cgroup: request as soft, limit as hard, kept by the kernel for the container's leaf.

A reservation outlives its cgroup in the books of the ancestors, so the soft limit is taken back before a worker is let
go, and what was reserved where is written down before it is set: what a killed agent or a vanished container leaves
behind is repaired on the next look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec
import structlog

from agent.enforce.actuator import Part, Surroundings
from agent.enforce.backend import Capabilities
from agent.enforce.book import BookError, read_book, write_book
from agent.enforce.dmem_probe import driver_lacks, kernel_lacks
from agent.model.applied import Applied
from agent.model.limits import CgroupLimits, LimitError, NoLimitsError
from agent.model.samples import Worker, WorkerKey
from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import DeviceQuota, Observed

_log = structlog.get_logger(__name__)
BOOK_NAME: Final = "dmem.json"
COPY_NAME: Final = "dmem.copy.json"
"""As the book stood after the last tick: what was reserved is known even where the book itself was damaged."""
REPAIR_SECONDS: Final = 30.0
"""Time between two looks for reservations of cgroups that are gone, and for limits that somebody changed."""
_VRAM_ONLY: Final = Capabilities(Effect.UNSUPPORTED, Effect.NEXT_ALLOC)


class Reservation(msgspec.Struct, frozen=True):
    """What was promised to one worker on one device: at most `soft_bytes` stand in the books of its cgroup."""

    pod_uid: str
    container: str
    uuid: str
    cgroup: str
    soft_bytes: int
    hard_bytes: int | None = None

    @property
    def key(self) -> WorkerKey:
        """Whose it is."""
        return self.pod_uid, self.container, self.uuid


@dataclass(frozen=True, slots=True)
class _Seen:
    """The limits of a worker as they were read last."""

    cgroup: Path
    limits: CgroupLimits
    path: str
    """Its cgroup as the worker's was told."""


class DmemActuator:
    """Holds workers' VRAM through the driver; compute is not its part."""

    name = "dmem"

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._book_file, self._copy_file = around.state_dir / BOOK_NAME, around.state_dir / COPY_NAME
        self._is_copied = False
        self._book: dict[WorkerKey, Reservation] = {}
        self._seen: dict[WorkerKey, _Seen] = {}
        self._set: set[WorkerKey] = set()
        self._looked_at: float | None = None
        self._restored = 0

    def probe(self) -> Capabilities:
        """Return whether kernel and driver account for device memory; take up the book of an earlier run."""
        limits, root = self._around.memory_limits, self._around.cgroup_root
        if limits is None:
            return _out("there is no NVIDIA driver here")
        lacking = kernel_lacks(root)
        if lacking:
            return _out(lacking)
        # What an earlier run reserved counts, whatever the driver says now.
        self._load()
        lacking, for_all = driver_lacks(limits, root)
        return _out(lacking) if for_all else replace(_VRAM_ONLY, reason=lacking)

    def reach(self, worker: Worker, uuid: str) -> Capabilities:
        """Return whether the driver takes limits for the worker's container."""
        try:
            self._look(worker, uuid)
        except LimitError as error:
            return _out(str(error))
        return _VRAM_ONLY

    def observe(self, worker: Worker, uuid: str) -> Observed:
        """Return the hard limit as it was read last; nothing of a container that came after it."""
        seen, path = self._seen.get((*worker.id, uuid)), self._around.cgroup_of(worker)
        if seen is None or (path and path != seen.path):
            return Observed()
        return Observed(vram_limit_bytes=seen.limits.hard_bytes)

    def apply(self, worker: Worker, quota: DeviceQuota, parts: frozenset[Part]) -> Applied:
        """Set soft to the request and hard to the limit; the kernel judges the next allocation by them."""
        assert parts == {Part.VRAM}, parts
        key = (*worker.id, quota.uuid)
        try:
            seen = self._look(worker, quota.uuid)
            used_bytes = self._used(seen, quota)
        except LimitError as error:
            return Applied(Effect.UNSUPPORTED, Observed(), f"Unsupported: dmem: {error}")
        try:
            self._around.check_use(quota, used_bytes, seen.limits.hard_bytes)
        except LimitError as error:
            return Applied(Effect.NEXT_ALLOC, self.observe(worker, quota.uuid), str(error))
        soft = min(quota.vram_request_bytes, quota.vram_limit_bytes)
        self._write(key, seen, soft, quota.vram_limit_bytes)
        return Applied(Effect.NEXT_ALLOC, self.observe(worker, quota.uuid))

    def in_force(self) -> Mapping[WorkerKey, int]:
        """Return the hard limits, those that an earlier run left included."""
        found = {key: one.hard_bytes for key, one in self._book.items()}
        found |= {key: seen.limits.hard_bytes for key, seen in self._seen.items()}
        return {key: limit for key, limit in found.items() if limit is not None}

    def release(self, key: WorkerKey) -> None:
        """Take the reservation back, and the limit with it."""
        self._seen.pop(key, None)
        self._set.discard(key)
        reservation = self._book.get(key)
        if reservation is not None:
            self._take_back(reservation)

    def turn(self, now: float) -> None:
        """Look now and then: at what is in force, and for reservations whose cgroup is gone."""
        if self._looked_at is None or not 0.0 <= now - self._looked_at < REPAIR_SECONDS:
            self._looked_at = now
            self._look_through()
        self._copy()

    def _look_through(self) -> None:
        for reservation in list(self._book.values()):
            try:
                if Path(reservation.cgroup).is_dir():
                    self._put_right(reservation)
                else:
                    self._take_back(reservation)
            except LimitError as error:
                _log.warning(
                    "reservation_not_looked_at", cgroup=reservation.cgroup, error=str(error), then="again soon"
                )

    def restored(self) -> int:
        """Return how many limits were set again because they were not as they had been set."""
        return self._restored

    def close(self) -> None:
        """Do nothing: the limits are the kernel's."""

    def _look(self, worker: Worker, uuid: str) -> _Seen:
        """Read what is in force, once; what was set here is known from then on."""
        key = (*worker.id, uuid)
        path = self._around.cgroup_of(worker)
        if self._around.memory_limits is None:
            raise LimitError("there is no NVIDIA driver here")
        if not path:
            raise LimitError("no process of it was seen on a GPU yet, so its cgroup is not known")
        cgroup = self._around.cgroup_root / path.lstrip("/")
        known = self._seen.get(key)
        if known is not None and known.cgroup == cgroup:
            return known
        seen = self._seen[key] = _Seen(cgroup, self._around.memory_limits.read(uuid, cgroup), path)
        return seen

    def _used(self, seen: _Seen, quota: DeviceQuota) -> int | None:
        """Return what is in use, as of now where a limit is to shrink: what is known may be half a minute old."""
        assert self._around.memory_limits is not None
        hard_bytes = seen.limits.hard_bytes
        if hard_bytes is not None and quota.vram_limit_bytes >= hard_bytes:
            return seen.limits.used_bytes
        return self._around.memory_limits.read(quota.uuid, seen.cgroup).used_bytes

    def _write(self, key: WorkerKey, seen: _Seen, soft_bytes: int, hard_bytes: int) -> None:
        """Write down the most that may be in force, set it, write down what is.

        An agent that is killed between leaves the most; the next one reads what it was before it counts on it.
        """
        assert self._around.memory_limits is not None
        pod_uid, container, uuid = key
        self._leave(key, seen.cgroup)
        most = max(soft_bytes, seen.limits.soft_bytes)
        highest = max(hard_bytes, seen.limits.hard_bytes or 0)
        self._set.discard(key)
        self._note(Reservation(pod_uid, container, uuid, str(seen.cgroup), most, highest))
        self._around.memory_limits.write(uuid, seen.cgroup, soft_bytes, hard_bytes)
        self._seen[key] = replace(seen, limits=CgroupLimits(soft_bytes, hard_bytes, seen.limits.used_bytes))
        self._note(Reservation(pod_uid, container, uuid, str(seen.cgroup), soft_bytes, hard_bytes))
        self._set.add(key)

    def _put_right(self, reservation: Reservation) -> None:
        """Set again what somebody changed; what an earlier run may not have finished is the enforcer's matter."""
        assert self._around.memory_limits is not None
        cgroup = Path(reservation.cgroup)
        found = self._around.memory_limits.read(reservation.uuid, cgroup)
        if reservation.key not in self._set:
            path = str(cgroup).removeprefix(str(self._around.cgroup_root))
            self._seen[reservation.key] = _Seen(cgroup, found, path)
            return
        if (found.soft_bytes, found.hard_bytes) != (reservation.soft_bytes, reservation.hard_bytes):
            self._around.memory_limits.write(reservation.uuid, cgroup, reservation.soft_bytes, reservation.hard_bytes)
            self._restored += 1
            _log.warning("limits_restored", cgroup=reservation.cgroup, device=reservation.uuid, found=str(found))
        seen = self._seen.get(reservation.key)
        if seen is not None and seen.cgroup == cgroup:
            limits = CgroupLimits(reservation.soft_bytes, reservation.hard_bytes, found.used_bytes)
            self._seen[reservation.key] = replace(seen, limits=limits)

    def _take_back(self, reservation: Reservation) -> None:
        """Zero the soft limit where the cgroup lives; where it is gone, take it out of the nearest ancestor's books."""
        assert self._around.memory_limits is not None
        cgroup = Path(reservation.cgroup)
        if cgroup.is_dir():
            self._around.memory_limits.write(reservation.uuid, cgroup, 0, None)
        else:
            ancestor = next(parent for parent in cgroup.parents if parent.is_dir())
            if ancestor != self._around.cgroup_root and self._around.cgroup_root in ancestor.parents:
                self._repair(reservation, ancestor)
        del self._book[reservation.key]
        self._save()

    def _repair(self, reservation: Reservation, ancestor: Path) -> None:
        assert self._around.memory_limits is not None
        books = self._around.memory_limits.read(reservation.uuid, ancestor)
        # A repair that was done already, and not noted because the agent was killed, takes nothing from the others.
        others = self._reserved_below(reservation.uuid, ancestor)
        left = max(others, books.soft_bytes - reservation.soft_bytes)
        self._around.memory_limits.write(reservation.uuid, ancestor, left, books.hard_bytes)
        _log.info("leaked_reservation_repaired", cgroup=str(ancestor), device=reservation.uuid, soft_bytes=left)

    def _reserved_below(self, uuid: str, ancestor: Path) -> int:
        assert self._around.memory_limits is not None
        total = 0
        for child in ancestor.iterdir():
            try:
                total += self._around.memory_limits.read(uuid, child).soft_bytes if child.is_dir() else 0
            except NoLimitsError:
                continue  # What has no limits reserves nothing.
        return total

    def _leave(self, key: WorkerKey, cgroup: Path) -> None:
        """Take back what the worker's container before this one reserved, as after a restart within its pod."""
        before = self._book.get(key)
        if before is not None and before.cgroup != str(cgroup):
            self._take_back(before)

    def _note(self, reservation: Reservation) -> None:
        self._book[reservation.key] = reservation
        self._save()

    def _load(self) -> None:
        entries: list[Reservation] | None = None
        for path, then in ((self._book_file, "its copy is read"), (self._copy_file, "leaks are not repaired")):
            try:
                entries = read_book(path, list[Reservation])
            except BookError as error:
                _log.error("book_damaged", error=str(error), then=then)
            if entries is not None:
                break
        self._book = {one.key: one for one in entries or ()}

    def _save(self) -> None:
        self._is_copied = False
        write_book(self._book_file, list(self._book.values()))

    def _copy(self) -> None:
        if not self._is_copied and self._book_file.exists():
            write_book(self._copy_file, list(self._book.values()))
            self._is_copied = True


def _out(reason: str) -> Capabilities:
    return Capabilities(Effect.UNSUPPORTED, Effect.UNSUPPORTED, reason)
