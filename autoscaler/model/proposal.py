"""What the estimators want and what the guards leave of it, as columns; and one workload's row of it as a Decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autoscaler.model.decision import Decision, Field, FieldDecision
from autoscaler.model.fleet import Fleet
from autoscaler.model.knobs import MODES
from autoscaler.model.reasons import CAUSES, VERDICTS
from autoscaler.model.usage import Bools, Floats

Codes = NDArray[np.int8]
Inputs = Mapping[Field, Mapping[str, Floats]]


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """What the estimators want, before any guard; arrays (W, 5) by Field.

    `figure`: equal to the one in force where the estimator's own band says stay. `lower`, `upper`: that band. `cause`:
    code of why. `urgent`: shortage now, must not wait. `idle`: the wanted figure is that of an idle workload.
    `inputs`: by field, named arrays (W,) from which the figure can be recomputed. `samples`, `first_at`, `last_at`
    (W,): how much was learnt, from when to when. `trouble_at`, `trouble_samples` (W, 2): end of the newest bin in which
    too little did harm (compute: saturated, VRAM: out of memory), by Resource, and how many such bins in a row.
    """

    figure: Floats
    lower: Floats
    upper: Floats
    cause: Codes
    urgent: Bools
    inputs: Inputs
    samples: Floats
    first_at: Floats
    last_at: Floats
    trouble_at: Floats
    trouble_samples: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Passage:
    """What a guard, by name, left of the figures, and its verdicts so far; arrays (W, 5) by Field."""

    guard: str
    figure: Floats
    verdict: Codes


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """The way of the figures through the guards, so that one workload's can be told later.

    It holds on to what the guards made anyway, so it costs next to nothing to keep. `on`, `due` (W, 5): figures whose
    layer is applied, and that were evaluated in this pass. `applied`: what each guard left. `shown`, `advised`: the
    same of what is recommended, beside the figures in force and beside all that is recommended. `memory`: what the
    guards remembered, by name. `fresh_seconds`, `min_samples`: the fleet's limits.
    """

    on: Bools
    due: Bools
    applied: tuple[Passage, ...]
    shown: tuple[Passage, ...]
    advised: tuple[Passage, ...]
    memory: Mapping[str, Floats]
    fresh_seconds: float
    min_samples: int


@dataclass(frozen=True, slots=True, eq=False)
class Allowed:
    """What may be applied now; arrays (W, 5) by Field.

    `figure`: to be put in force (the one in force already where nothing moves). `target`: what is recommended, inside
    bounds, order and device. `cause`, `verdict`: codes of what led to it and of what a guard did, when it was last
    evaluated. `trace`: how it came to that, guard by guard. `notes`: numbers that the guards used, by field and name.
    """

    fleet: Fleet
    wanted: Wanted
    figure: Floats
    target: Floats
    cause: Codes
    verdict: Codes
    trace: Trace | None = None
    notes: Inputs = field(default_factory=dict)

    @property
    def changed(self) -> Bools:
        """Return which workloads move, (W,)."""
        return np.asarray((self.figure != self.fleet.current).any(axis=1), dtype=np.bool_)

    def decision(self, row: int) -> Decision:
        """Return one workload's decision."""
        wanted = self.wanted
        first, last = float(wanted.first_at[row]), float(wanted.last_at[row])
        compute_request, compute_limit, vram_request, vram_limit, replicas = (self._field(row, f) for f in Field)
        return Decision(
            key=self.fleet.keys[row],
            at=self.fleet.now,
            fields=(compute_request, compute_limit, vram_request, vram_limit, replicas),
            samples=int(wanted.samples[row]),
            span_seconds=last - first if np.isfinite(last - first) else 0.0,
        )

    def _field(self, row: int, field: Field) -> FieldDecision:
        wanted = self.wanted
        named = {**wanted.inputs[field], **self.notes.get(field, {})}
        return FieldDecision(
            field=field,
            mode=MODES[int(self.fleet.knobs.mode[row, field])],
            current=float(self.fleet.current[row, field]),
            wanted=float(self.target[row, field]),
            uncapped=float(wanted.figure[row, field]),
            allowed=float(self.figure[row, field]),
            lower_bound=float(wanted.lower[row, field]),
            upper_bound=float(wanted.upper[row, field]),
            cause=CAUSES[int(self.cause[row, field])],
            verdict=VERDICTS[int(self.verdict[row, field])],
            because=self.fleet.orders.told(row, field),
            inputs={name: float(column[row]) for name, column in named.items()},
        )
