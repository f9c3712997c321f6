"""Several actuators as one backend: for every worker and device the first that reaches it, for each part on its own.

Once chosen, an actuator stays a worker's: two that hold the same limit would fight. One that lost its worker (a file
that was spoilt, a daemon that ended) is looked for again, and only that one. Where none reaches a part, the worker is
measured only, and the reason lists what each one said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from agent.enforce.actuator import BOTH, SLOWEST_LAST, Actuator, HeedsToldUse, Part, TellsThrottling
from agent.enforce.backend import Capabilities, LiveUse
from agent.model.applied import Applied
from agent.model.samples import Worker, WorkerKey
from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import DeviceQuota, Observed

_log = structlog.get_logger(__name__)
NOBODY: Final = "observe"
"""Who serves what nobody serves."""
SPREAD: Final = 16
"""Parts of that time over which the looks for many workers are spread."""
LOOK_SECONDS: Final = 5.0
"""Time between two looks for who serves a worker that nobody serves: files and processes appear late."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Who serves one part of a worker on a device, None with the reasons where nobody does.

    An actuator whose effect is unsupported served it before, and has lost it.
    """

    actuator: Actuator | None
    effect: Effect
    reason: str = ""

    @property
    def is_served(self) -> bool:
        """Whether anybody serves the part now."""
        return self.effect is not Effect.UNSUPPORTED


class _Row:
    """Who serves the parts of one worker on a device, and when that was looked for; what a tick asks is made once."""

    def __init__(self, choices: Mapping[Part, Choice], looked_at: float) -> None:
        served = [choice.actuator.name for choice in choices.values() if choice.actuator and choice.is_served]
        self.choices, self.looked_at = choices, looked_at
        self.compute, self.vram = choices[Part.COMPUTE].actuator, choices[Part.VRAM].actuator
        self.is_served = len(served) == len(choices)
        self.names = "+".join(dict.fromkeys(served)) or NOBODY


class ChosenBackend:
    """A `Backend` made of actuators; `order` lists the candidates by part, the best first."""

    name = "auto"

    def __init__(self, order: Mapping[Part, Sequence[Actuator]], live_use: LiveUse) -> None:
        self._order = order
        self._live_use = live_use
        self._rows: dict[WorkerKey, _Row] = {}
        # Asked once: whether something speaks a Protocol costs more than all else that is asked of a worker in a tick.
        self._heeders = {one.name: one for one in self.actuators if isinstance(one, HeedsToldUse)}
        self._now = 0.0

    @property
    def actuators(self) -> tuple[Actuator, ...]:
        """Every actuator, once."""
        return tuple({one.name: one for part in Part for one in self._order.get(part, ())}.values())

    def probe(self) -> Capabilities:
        """Return the best that any actuator can do here, by part."""
        found = {one.name: one.probe() for one in self.actuators}
        best = {
            part: min((_effect(found[one.name], part) for one in self._order.get(part, ())), key=_rank, default=_NONE)
            for part in Part
        }
        reasons = [f"{name}: {one.reason}" for name, one in found.items() if one.reason]
        return Capabilities(best[Part.COMPUTE], best[Part.VRAM], "; ".join(reasons))

    def observe(self, worker: Worker, uuid: str) -> Observed:
        """Return the limits read back from whoever holds them, beside the live use."""
        use = self._live_use(worker, uuid)
        row = self._row(worker, uuid)
        of_compute = row.compute.observe(worker, uuid) if row.compute is not None else _NOTHING
        of_vram = of_compute
        if row.vram is not row.compute:
            of_vram = row.vram.observe(worker, uuid) if row.vram is not None else _NOTHING
        return Observed(of_compute.tflops_limit, of_vram.vram_limit_bytes, use.tflops_used, use.vram_used_bytes)

    def apply(self, worker: Worker, quota: DeviceQuota) -> Applied:
        """Put each part into force through whoever serves it; the effect is the slower of the two."""
        row = self._row(worker, quota.uuid, is_asked=True)
        chosen = row.choices
        effects, reasons, lost = list[Effect](), list[str](), dict[str, str]()
        for actuator, parts in _served(chosen):
            try:
                applied = actuator.apply(worker, quota, parts)
            except OSError as error:
                # What one can't do is no reason for the other not to.
                applied = Applied(_slowest(chosen, actuator), Observed(), f"BackendFailed: {actuator.name}: {error}")
            effects.append(applied.effect)
            reasons += [applied.reason] if applied.reason else []
            if applied.effect is Effect.UNSUPPORTED:
                lost[actuator.name] = applied.reason
        if lost:
            self._rows[(*worker.id, quota.uuid)] = _Row(_without(chosen, lost), row.looked_at)
        for part, choice in chosen.items():
            if choice.actuator is None:
                effects.append(Effect.UNSUPPORTED)
                reasons.append(f"Unsupported: {part.value}: {choice.reason}")
        return Applied(max(effects, key=_rank), self.observe(worker, quota.uuid), "; ".join(reasons))

    def in_force(self) -> Mapping[WorkerKey, int]:
        """Return the VRAM limits that any actuator holds."""
        found: dict[WorkerKey, int] = {}
        for one in self.actuators:
            found.update(one.in_force())
        return found

    def release(self, key: WorkerKey) -> None:
        """Let go of a worker everywhere; it is looked at afresh when it comes back."""
        for one in self.actuators:
            one.release(key)
        self._rows.pop(key, None)

    def turn(self, now: float) -> None:
        """Let every actuator do what a tick asks for."""
        self._now = now
        for one in self.actuators:
            try:
                one.turn(now)
            except OSError as error:
                _log.warning("backend_failed", backend=one.name, error=str(error), then="it is tried at the next tick")

    def heeds(self, key: WorkerKey) -> bool:
        """Return whether the worker's VRAM is held by one that goes by the use it is told."""
        return self._heeder(key) is not None

    def tell_use(self, key: WorkerKey, vram_bytes: int) -> None:
        """Tell what a worker holds to who judges its allocations by that; an OSError is the caller's to report."""
        heeder = self._heeder(key)
        if heeder is not None:
            heeder.tell_use(key, vram_bytes)

    def throttled(self) -> Mapping[WorkerKey, bool | None]:
        """Return whom a limit held back in the last tick, as far as any actuator can tell."""
        return {
            key: held
            for one in self.actuators
            if isinstance(one, TellsThrottling)
            for key, held in one.throttled().items()
        }

    def restored(self) -> int:
        """Return how often something that somebody else had changed was put right."""
        return sum(one.restored() for one in self.actuators)

    def serves(self, key: WorkerKey) -> str:
        """Return who serves a worker, compute before VRAM, once where it is the same; "observe" where nobody does."""
        row = self._rows.get(key)
        return row.names if row is not None else NOBODY

    def close(self) -> None:
        """Stop working; what is in force stays."""
        for one in self.actuators:
            one.close()

    def _heeder(self, key: WorkerKey) -> HeedsToldUse | None:
        row = self._rows.get(key)
        return self._heeders.get(row.vram.name) if row is not None and row.vram is not None else None

    def _row(self, worker: Worker, uuid: str, *, is_asked: bool = False) -> _Row:
        """Return who serves each part; for one that nobody serves is looked again now and then, as files appear late.

        `is_asked`: a limit is to be set, which is worth a look at once.
        """
        key = (worker.pod_uid, worker.container, uuid)
        row = self._rows.get(key)
        is_due = row is None or not 0.0 <= self._now - row.looked_at < LOOK_SECONDS
        if row is not None and (row.is_served or not (is_asked or is_due)):
            return row
        reach = _Reach(worker, uuid)
        kept = row.choices if row is not None else {}
        chosen = {part: self._choose(part, reach, kept.get(part)) for part in Part}
        if row is None:
            # Hundreds of workers may come at once: they are spread, so that later looks do not come at once too.
            looked_at = self._now - len(self._rows) * LOOK_SECONDS / SPREAD % LOOK_SECONDS
        else:
            looked_at = self._now if is_due else row.looked_at
        row = self._rows[key] = _Row(chosen, looked_at)
        return row

    def _choose(self, part: Part, reach: _Reach, before: Choice | None) -> Choice:
        if before is not None and before.is_served:
            return before
        holder = before.actuator if before is not None else None
        reasons = []
        for actuator in (holder,) if holder is not None else self._order.get(part, ()):
            found = reach(actuator)
            effect = _effect(found, part)
            if effect is not Effect.UNSUPPORTED:
                return Choice(actuator, effect)
            reasons.append(f"{actuator.name}: {found.reason or 'not for this part'}")
        return Choice(holder, Effect.UNSUPPORTED, ", ".join(reasons) or "no backend is configured for it")


class _Reach:
    """What each actuator says of one worker on a device, asked once."""

    def __init__(self, worker: Worker, uuid: str) -> None:
        self._worker, self._uuid = worker, uuid
        self._said: dict[str, Capabilities] = {}

    def __call__(self, actuator: Actuator) -> Capabilities:
        said = self._said.get(actuator.name)
        if said is None:
            try:
                said = actuator.reach(self._worker, self._uuid)
            except OSError as error:
                said = Capabilities(Effect.UNSUPPORTED, Effect.UNSUPPORTED, str(error))
            self._said[actuator.name] = said
        return said


def _without(chosen: Mapping[Part, Choice], lost: Mapping[str, str]) -> dict[Part, Choice]:
    """Return the choices where some actuators have lost their worker, by name and with the reason."""
    names = {part: choice.actuator.name if choice.actuator is not None else "" for part, choice in chosen.items()}
    return {
        part: Choice(choice.actuator, Effect.UNSUPPORTED, lost[names[part]]) if names[part] in lost else choice
        for part, choice in chosen.items()
    }


_NONE: Final = Effect.UNSUPPORTED
_NOTHING: Final = Observed()


def _slowest(chosen: Mapping[Part, Choice], actuator: Actuator) -> Effect:
    return max((choice.effect for choice in chosen.values() if choice.actuator is actuator), key=_rank)


def _rank(effect: Effect) -> int:
    return SLOWEST_LAST.index(effect)


def _effect(capabilities: Capabilities, part: Part) -> Effect:
    return capabilities.compute if part is Part.COMPUTE else capabilities.vram


def _served(chosen: Mapping[Part, Choice]) -> list[tuple[Actuator, frozenset[Part]]]:
    """Return each actuator once, with the parts it serves; VRAM first, as a refusal there says most."""
    actuators = {choice.actuator.name: choice.actuator for choice in chosen.values() if choice.actuator is not None}
    return [(one, frozenset(part for part in BOTH if chosen[part].actuator is one)) for one in actuators.values()]
