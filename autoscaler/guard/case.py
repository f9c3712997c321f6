"""What a guard sees and returns.

A guard is a function `(Case) -> Case`. It may hold a figure (put back the one in force), cap or floor it, and names its
verdict where it did. Arrays are (W, 5) by Field.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from autoscaler.guard.memory import Memory
from autoscaler.model import defaults
from autoscaler.model.decision import Field
from autoscaler.model.fleet import Fleet
from autoscaler.model.proposal import Codes, Inputs, Wanted
from autoscaler.model.reasons import CAUSE_CODE, VERDICT_CODE, Cause, Verdict
from autoscaler.model.usage import Bools, Floats


@dataclass(frozen=True, slots=True, eq=False)
class Limits:
    """What holds for the fleet as a whole.

    `fresh_seconds`: age at which history is stale. `changes_per_pass`: workloads that may move in one pass.
    `min_samples`: bins of history before anything is lowered. `vram_reserve`: what stays free on a device when VRAM
    requests grow, in standard deviations of its members' bursts. `needs_room`: whether replicas grow only by as many
    workers as find a place.
    """

    fresh_seconds: float
    changes_per_pass: int
    min_samples: int
    vram_reserve: float = defaults.VRAM_RESERVE
    needs_room: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """The fleet, what is wanted, what is left of it, and what earlier passes left behind.

    `due`: figures that are evaluated in this pass and may be applied. `frozen`: figures that no later guard may move,
    from the start those that are not due. `notes`: numbers that a guard used, by field and name (W,), for the reader.
    """

    fleet: Fleet
    wanted: Wanted
    memory: Memory
    limits: Limits
    due: Bools
    figure: Floats
    verdict: Codes
    frozen: Bools
    notes: Inputs = field(default_factory=dict)

    @property
    def up(self) -> Bools:
        """Return which figures would grow."""
        return np.asarray(self.figure > self.fleet.current, dtype=np.bool_)

    @property
    def down(self) -> Bools:
        """Return which figures would shrink."""
        return np.asarray(self.figure < self.fleet.current, dtype=np.bool_)

    def caused_by(self, *causes: Cause) -> Bools:
        """Return which figures have one of these causes."""
        found = np.zeros(self.wanted.cause.shape, dtype=np.bool_)
        for cause in causes:
            found |= self.wanted.cause == CAUSE_CODE[cause]
        return found

    def hold(self, where: Bools, verdict: Verdict, *, freeze: bool = False) -> Case:
        """Return the case with these figures back in force; broadcast from (W, 1) or (W, 5).

        The first guard that holds a figure names the verdict; one that freezes it overrules.
        """
        held = where & ~self.frozen
        if not held.any():
            return self
        passed = self.verdict == VERDICT_CODE[Verdict.PASSED]
        named = held & (freeze | passed | (self.figure != self.fleet.current))
        return replace(
            self,
            figure=np.where(held, self.fleet.current, self.figure),
            verdict=np.where(named, np.int8(VERDICT_CODE[verdict]), self.verdict).astype(np.int8),
            frozen=self.frozen | held if freeze else self.frozen,
        )

    def move(self, figure: Floats, verdict: Verdict) -> Case:
        """Return the case with these figures; the verdict stands where that changed anything."""
        allowed = np.where(self.frozen, self.figure, figure)
        moved = allowed != self.figure
        if not moved.any():
            return self
        return replace(
            self,
            figure=allowed,
            verdict=np.where(moved, np.int8(VERDICT_CODE[verdict]), self.verdict).astype(np.int8),
        )

    def pin(self, figure: Floats, where: Bools, verdict: Verdict | None = None) -> Case:
        """Return the case with these figures (W, 5) in those places, also where they were not due; no guard moves them.

        Without a verdict the one they have stays.
        """
        code = self.verdict if verdict is None else np.int8(VERDICT_CODE[verdict])
        return replace(
            self,
            figure=np.where(where, figure, self.figure),
            verdict=np.where(where, code, self.verdict).astype(np.int8),
            frozen=self.frozen | where,
        )

    def noting(self, of: Field, **numbers: Floats) -> Case:
        """Return the case with named numbers (W,) beside a field's inputs; NaN where they say nothing."""
        return replace(self, notes={**self.notes, of: {**self.notes.get(of, {}), **numbers}})


Guard = Callable[[Case], Case]
