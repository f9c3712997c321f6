"""The driver's memory limits per cgroup: request as soft, limit as hard, kept by the kernel for the container's leaf.

A reservation outlives its cgroup in the books of the ancestors, so the soft limit is taken back before a worker is let
go, and what was reserved where is written down before it is set: what a killed agent or a vanished container leaves
behind is repaired on the next look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import structlog

from agent.enforce.actuator import Part, Surroundings
from agent.enforce.backend import Capabilities
from agent.model.applied import Applied
from agent.model.limits import CgroupLimits, LimitError
from agent.model.samples import Worker, WorkerKey
from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import DeviceQuota, Observed

_log = structlog.get_logger(__name__)
BOOK_NAME: Final = "dmem.json"
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


class DmemActuator:
    """Holds workers' VRAM through the driver; compute is not its part."""

    name = "dmem"

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._book_file = around.state_dir / BOOK_NAME
        self._book: dict[WorkerKey, Reservation] = {}
        self._seen: dict[WorkerKey, _Seen] = {}
        self._set: set[WorkerKey] = set()
        self._looked_at: float | None = None
        self._restored = 0

    def probe(self) -> Capabilities:
        """Return whether the kernel can account for device memory; take up the book of an earlier run."""
        if self._around.memory_limits is None:
            return _out("there is no NVIDIA driver here")
        controllers = self._around.cgroup_root / "cgroup.controllers"
        if not controllers.is_file():
            return _out(f"{controllers} is not there: cgroup v2 is needed")
        if "dmem" not in controllers.read_text().split() and "misc" not in controllers.read_text().split():
            return _out(f"neither dmem nor misc is among the controllers of {self._around.cgroup_root}")
        self._load()
        return _VRAM_ONLY

    def reach(self, worker: Worker, uuid: str) -> Capabilities:
        """Return whether the driver takes limits for the worker's container."""
        try:
            self._look(worker, uuid)
        except LimitError as error:
            return _out(str(error))
        return _VRAM_ONLY

    def observe(self, worker: Worker, uuid: str) -> Observed:
        """Return the hard limit as it was read last."""
        seen = self._seen.get((*worker.id, uuid))
        return Observed() if seen is None else Observed(vram_limit_bytes=seen.limits.hard_bytes)

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
        if self._looked_at is not None and 0.0 <= now - self._looked_at < REPAIR_SECONDS:
            return
        self._looked_at = now
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
        seen = self._seen[key] = _Seen(cgroup, self._around.memory_limits.read(uuid, cgroup))
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
        most = max(soft_bytes, seen.limits.soft_bytes)
        highest = max(hard_bytes, seen.limits.hard_bytes or 0)
        self._set.discard(key)
        self._note(Reservation(pod_uid, container, uuid, str(seen.cgroup), most, highest))
        self._around.memory_limits.write(uuid, seen.cgroup, soft_bytes, hard_bytes)
        self._seen[key] = _Seen(seen.cgroup, CgroupLimits(soft_bytes, hard_bytes, seen.limits.used_bytes))
        self._note(Reservation(pod_uid, container, uuid, str(seen.cgroup), soft_bytes, hard_bytes))
        self._set.add(key)

    def _put_right(self, reservation: Reservation) -> None:
        """Set again what somebody changed; what an earlier run may not have finished is the enforcer's matter."""
        assert self._around.memory_limits is not None
        cgroup = Path(reservation.cgroup)
        found = self._around.memory_limits.read(reservation.uuid, cgroup)
        if reservation.key not in self._set:
            self._seen[reservation.key] = _Seen(cgroup, found)
            return
        if (found.soft_bytes, found.hard_bytes) != (reservation.soft_bytes, reservation.hard_bytes):
            self._around.memory_limits.write(reservation.uuid, cgroup, reservation.soft_bytes, reservation.hard_bytes)
            self._restored += 1
            _log.warning("limits_restored", cgroup=reservation.cgroup, device=reservation.uuid, found=str(found))
        if reservation.key in self._seen:
            limits = CgroupLimits(reservation.soft_bytes, reservation.hard_bytes, found.used_bytes)
            self._seen[reservation.key] = _Seen(cgroup, limits)

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
        left = max(0, books.soft_bytes - reservation.soft_bytes)
        self._around.memory_limits.write(reservation.uuid, ancestor, left, books.hard_bytes)
        _log.info("leaked_reservation_repaired", cgroup=str(ancestor), device=reservation.uuid, soft_bytes=left)

    def _note(self, reservation: Reservation) -> None:
        self._book[reservation.key] = reservation
        self._save()

    def _load(self) -> None:
        try:
            entries = msgspec.json.decode(self._book_file.read_bytes(), type=list[Reservation])
        except FileNotFoundError:
            entries = []
        except (OSError, ValueError) as error:
            _log.error("book_unreadable", path=str(self._book_file), error=str(error), then="leaks are not repaired")
            entries = []
        self._book = {one.key: one for one in entries}

    def _save(self) -> None:
        self._around.state_dir.mkdir(parents=True, exist_ok=True)
        temporary = self._book_file.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.encode(list(self._book.values())))
        temporary.replace(self._book_file)


def _out(reason: str) -> Capabilities:
    return Capabilities(Effect.UNSUPPORTED, Effect.UNSUPPORTED, reason)
