"""From the limits in force to the shares that were governed, without ever promising the same memory twice.

Shrinks go first and are confirmed by what the backend reads back; then grows, critical first, as far as what is free by
then. So at no instant, and wherever it stops, do the VRAM limits in force pass the device. Neighbours: `govern` says
what is wanted, a `backend` does it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from agent.enforce.backend import Backend
from agent.govern.divide import FIRST_IN_LINE
from agent.govern.pool import Share
from agent.model.applied import Applied
from agent.model.samples import Attribution, WorkerId, WorkerKey
from autoscaler.contract.keys import EFFECTIVE_NOW
from autoscaler.contract.quota import DeviceQuota, Observed

_RANK: Final = {qos: rank for rank, qos in enumerate(FIRST_IN_LINE)}


@dataclass(frozen=True, slots=True)
class _Held:
    asked: DeviceQuota
    applied: Applied
    by: str
    """Who served the worker then."""


class _Books:
    """The VRAM limits in force during one transition; asking the backend for all of them at each step costs seconds."""

    def __init__(self, in_force: Mapping[WorkerKey, int]) -> None:
        self.held = dict(in_force)
        self.by_device: dict[str, int] = {}
        for key, limit_bytes in in_force.items():
            self.by_device[key[2]] = self.by_device.get(key[2], 0) + limit_bytes

    def note(self, key: WorkerKey, applied: Applied) -> None:
        """Take what was read back; where not all went well, the most that may be in force."""
        before, found = self.held.get(key, 0), applied.observed.vram_limit_bytes or 0
        after = max(before, found) if applied.reason else found
        self.held[key] = after
        self.by_device[key[2]] = self.by_device.get(key[2], 0) + after - before


class Enforcer:
    """Puts shares into force through one backend; keeps the attempts that told something new, until they are taken."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.capabilities = backend.probe()
        self._held: dict[WorkerKey, _Held] = {}
        self._attempts: list[Applied] = []
        self._cleared: tuple[frozenset[WorkerKey], frozenset[WorkerId]] | None = None
        """Whose shares and who was present when all others had been released; None while one is left to release."""

    def take_attempts(self) -> tuple[Applied, ...]:
        """Return what was put into force, or was refused, since the last call; a repeated refusal counts once."""
        taken, self._attempts = tuple(self._attempts), []
        return taken

    def enforce(
        self, shares: Sequence[Share], vram_total_bytes: Mapping[str, int], present: Collection[WorkerId]
    ) -> dict[WorkerKey, Applied]:
        """Return what became of every share.

        A device without a total gives no data: it is left as it is, with that reason. What is in force as asked is not
        applied again. A backend's failure is the reason of its own place only. Limits of a worker that is no longer
        present are released; one that runs on without a share keeps what is in force, and it counts.
        """
        keyed = {(share.worker.pod_uid, share.worker.container, share.effective.uuid): share for share in shares}
        self._release_others(keyed, present)
        results = {key: self._standing(key, share, vram_total_bytes) for key, share in keyed.items()}
        moving = [key for key, applied in results.items() if applied is None]
        if moving:
            books = _Books(self.backend.in_force())
            for key in sorted(moving, key=lambda one: _turn(keyed[one], books.held.get(one, 0), one)):
                applied = results[key] = self._apply(key, keyed[key], vram_total_bytes[key[2]], books)
                books.note(key, applied)
        return {key: applied for key, applied in results.items() if applied is not None}

    def observed(self, attribution: Attribution, applied: Collection[WorkerKey]) -> dict[WorkerKey, Applied]:
        """Return what holds of those who use a device without a share of it; who asks for it later disturbs nobody."""
        return {
            key: Applied(self.capabilities.vram, self.backend.observe(use.worker, use.uuid))
            for key, use in attribution.by_key.items()
            if key not in applied
        }

    def _standing(self, key: WorkerKey, share: Share, vram_total_bytes: Mapping[str, int]) -> Applied | None:
        """Return what holds already, None when the share has to be applied."""
        observed = self.backend.observe(share.worker, key[2])
        if key[2] not in vram_total_bytes:
            return Applied(self.capabilities.vram, observed, f"DeviceUnavailable: {key[2]} gives no data")
        held, wanted = self._held.get(key), share.effective
        if held is None or held.asked != wanted:
            return None
        if held.applied.effect in EFFECTIVE_NOW:
            if held.applied.reason or not _meets(observed, wanted):
                return None
        elif held.by != self.backend.serves(key):
            # What could not be reached, or not so well, may be by now: a limiter comes later than its quota.
            return None
        return Applied(held.applied.effect, observed, held.applied.reason)

    def _apply(self, key: WorkerKey, share: Share, total_bytes: int, books: _Books) -> Applied:
        own = books.held.get(key, 0)
        others = books.by_device.get(key[2], 0) - own
        wanted, held_back = share.effective, ""
        # What is in force already promises nothing new, so it is never cut for lack of room.
        given = min(wanted.vram_limit_bytes, max(total_bytes - others, own, 0))
        if given < wanted.vram_limit_bytes:
            held_back = f"VRAMHeld: {given} of {wanted.vram_limit_bytes} bytes; other workers still hold {others}"
            wanted = msgspec.structs.replace(wanted, vram_limit_bytes=given)
        try:
            applied = self.backend.apply(share.worker, wanted)
        except OSError as error:
            observed = self.backend.observe(share.worker, key[2])
            applied = Applied(self.capabilities.vram, observed, f"BackendFailed: {self.backend.name}: {error}")
        if held_back and not applied.reason:
            applied = msgspec.structs.replace(applied, reason=held_back)
        held, self._held[key] = self._held.get(key), _Held(share.effective, applied, self.backend.serves(key))
        if held is None or (held.asked, held.applied.reason) != (share.effective, applied.reason):
            self._attempts.append(applied)
        return applied

    def _release_others(self, keyed: Mapping[WorkerKey, Share], present: Collection[WorkerId]) -> None:
        """Release who left; limits come into force of workers with shares or present only, so not without a change."""
        found = frozenset(keyed), frozenset(present)
        if found == self._cleared:
            return
        self._cleared = found
        others = (self.backend.in_force().keys() | self._held.keys()) - keyed.keys()
        for key in sorted(key for key in others if key[:2] not in present):
            try:
                self.backend.release(key)
            except OSError as error:
                observed = Observed(vram_limit_bytes=self.backend.in_force().get(key))
                self._attempts.append(Applied(self.capabilities.vram, observed, f"ReleaseFailed: {key}: {error}"))
                self._cleared = None
                continue
            self._held.pop(key, None)


def _turn(share: Share, in_force_bytes: int, key: WorkerKey) -> tuple[bool, int, WorkerKey]:
    return share.effective.vram_limit_bytes > in_force_bytes, _RANK[share.worker.qos], key


def _meets(observed: Observed, wanted: DeviceQuota) -> bool:
    return observed.vram_limit_bytes == wanted.vram_limit_bytes and observed.tflops_limit == wanted.tflops_limit
