"""One decision per workload and pass: the record that status, events, metrics and CLI all render."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from autoscaler.model.config import Mode
from autoscaler.model.reasons import Cause, Verdict
from autoscaler.model.resources import Resource, Side
from autoscaler.model.usage import WorkloadKey


class Field(IntEnum):
    """Index of a figure on the field axis of every fleet array (W, 5)."""

    COMPUTE_REQUEST = 0
    COMPUTE_LIMIT = 1
    VRAM_REQUEST = 2
    VRAM_LIMIT = 3
    REPLICAS = 4

    @property
    def resource(self) -> Resource | None:
        """The resource of this figure, None for replicas."""
        return _RESOURCES[self]

    @property
    def side(self) -> Side | None:
        """Request or limit, None for replicas."""
        return _SIDES[self]


# Asked for every figure that is rendered: looked up, not made anew.
_RESOURCES: Final = (Resource.COMPUTE, Resource.COMPUTE, Resource.VRAM, Resource.VRAM, None)
_SIDES: Final = (Side.REQUEST, Side.LIMIT, Side.REQUEST, Side.LIMIT, None)
AMOUNT_FIELDS: Final = (Field.COMPUTE_REQUEST, Field.COMPUTE_LIMIT, Field.VRAM_REQUEST, Field.VRAM_LIMIT)
LAYER_NAMES: Final = ("requests", "limits", "requests", "limits", "replicas")


def field_of(resource: Resource, side: Side) -> Field:
    """Return the field of a resource's side."""
    return Field(2 * resource + side)


@dataclass(frozen=True, slots=True)
class FieldDecision:
    """One figure: what holds, what was wanted (and its uncapped value), what the guards left of it, and why.

    `inputs` are the named numbers from which `uncapped` can be recomputed; `allowed == current` is a no-op. `because`:
    who ordered it, in words, where an order decided instead of an estimate.
    """

    field: Field
    mode: Mode
    current: float
    wanted: float
    uncapped: float
    allowed: float
    lower_bound: float
    upper_bound: float
    cause: Cause
    verdict: Verdict
    inputs: Mapping[str, float]
    because: str = ""

    @property
    def changed(self) -> bool:
        """Whether the figure moves."""
        return self.allowed != self.current


@dataclass(frozen=True, slots=True)
class Decision:
    """All five figures of one workload at one moment, by Field."""

    key: WorkloadKey
    at: float
    fields: tuple[FieldDecision, FieldDecision, FieldDecision, FieldDecision, FieldDecision]
    samples: int
    span_seconds: float

    def __getitem__(self, field: Field) -> FieldDecision:
        """Return the decision on one figure."""
        return self.fields[field]

    @property
    def changed(self) -> bool:
        """Whether any figure moves."""
        return any(decision.changed for decision in self.fields)
