"""One decision with the whole way that led to it: enough to recompute every figure bit for bit, no-ops included.

A decision (see `decision`) is the short form that status, events and metrics show. A record is the long one, made for
one workload when somebody asks. As JSON a figure that is not known is null, an infinite one the text "Infinity", and
every other float its shortest exact decimal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from autoscaler.contract.keys import QoS
from autoscaler.model.config import Mode
from autoscaler.model.decision import Field
from autoscaler.model.reasons import Cause, Verdict
from autoscaler.model.usage import WorkloadKey

VERSION: Final = 1
FIELD_NAMES: Final = ("tflops_request", "tflops_limit", "vram_request", "vram_limit", "replicas")
"""By Field: what a figure is called in JSON."""
LAYER: Final = "layer"
"""Steps that are no guard's. This one: the layer is not on, so that nothing of it is applied."""
EVALUATION: Final = "evaluation"
"""The figure is not due: its layer's evaluation period is not over."""
REMEMBERED: Final = "remembered"
"""What is recommended moved too little, or is not due, to be shown anew."""
PARTNER: Final = "partner"
"""A recommended request yields to the limit that is recommended beside it."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one guard made of a figure: `after` follows from `before` and the `numbers` it used, by name."""

    guard: str
    verdict: Verdict
    before: float
    after: float
    numbers: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Estimated:
    """What the estimator said in this pass: the figure, its band, why, and the named numbers it follows from."""

    figure: float
    lower_bound: float
    upper_bound: float
    cause: Cause
    urgent: bool
    inputs: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class FigureRecord:
    """One figure's way from the estimate to what is recommended and to what is applied.

    `cause` and `verdict` are those of the last evaluation, as everything else shows them; `evaluated_at` is its time
    (-inf: never yet). `terms`: what holds for the figure whatever is measured (bounds, bands, times), by name.
    """

    field: Field
    mode: Mode
    current: float
    estimated: Estimated
    recommended: float
    recommended_steps: tuple[Step, ...]
    allowed: float
    allowed_steps: tuple[Step, ...]
    cause: Cause
    verdict: Verdict
    evaluated_at: float
    terms: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Record:
    """All five figures of one workload at one moment, by Field; `at` in seconds since the epoch."""

    key: WorkloadKey
    qos: QoS
    at: float
    samples: float
    first_at: float
    last_at: float
    figures: tuple[FigureRecord, ...]

    def __getitem__(self, field: Field) -> FigureRecord:
        """Return one figure's record."""
        return self.figures[field]


def as_data(record: Record) -> dict[str, Any]:
    """Return a record as JSON knows it."""
    return {
        "version": VERSION,
        "namespace": record.key.namespace,
        "name": record.key.name,
        "qos": record.qos.value,
        "at": _plain(record.at),
        "samples": _plain(record.samples),
        "firstAt": _plain(record.first_at),
        "lastAt": _plain(record.last_at),
        "figures": {FIELD_NAMES[one.field]: _figure_data(one) for one in record.figures},
    }


def from_data(data: Mapping[str, Any]) -> Record:
    """Return the record that `as_data` wrote.

    Raises:
        ValueError: it is not one, or one of another version.

    """
    try:
        if data["version"] != VERSION:
            raise ValueError(f"a decision's record of version {data['version']!r}; this program reads {VERSION}")
        return Record(
            key=WorkloadKey(data["namespace"], data["name"]),
            qos=QoS(data["qos"]),
            at=_number(data["at"]),
            samples=_number(data["samples"]),
            first_at=_number(data["firstAt"]),
            last_at=_number(data["lastAt"]),
            figures=tuple(_figure(field, data["figures"][FIELD_NAMES[field]]) for field in Field),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no decision's record: {error!r}") from error


def _figure_data(one: FigureRecord) -> dict[str, Any]:
    estimated = one.estimated
    return {
        "mode": one.mode.value,
        "current": _plain(one.current),
        "estimated": {
            "figure": _plain(estimated.figure),
            "lowerBound": _plain(estimated.lower_bound),
            "upperBound": _plain(estimated.upper_bound),
            "cause": estimated.cause.value,
            "urgent": estimated.urgent,
            "inputs": _numbers_data(estimated.inputs),
        },
        "recommended": _plain(one.recommended),
        "recommendedSteps": [_step_data(step) for step in one.recommended_steps],
        "allowed": _plain(one.allowed),
        "allowedSteps": [_step_data(step) for step in one.allowed_steps],
        "cause": one.cause.value,
        "verdict": one.verdict.value,
        "evaluatedAt": _plain(one.evaluated_at),
        "terms": _numbers_data(one.terms),
    }


def _figure(field: Field, data: Mapping[str, Any]) -> FigureRecord:
    estimated = data["estimated"]
    return FigureRecord(
        field=field,
        mode=Mode(data["mode"]),
        current=_number(data["current"]),
        estimated=Estimated(
            figure=_number(estimated["figure"]),
            lower_bound=_number(estimated["lowerBound"]),
            upper_bound=_number(estimated["upperBound"]),
            cause=Cause(estimated["cause"]),
            urgent=bool(estimated["urgent"]),
            inputs=_numbers(estimated["inputs"]),
        ),
        recommended=_number(data["recommended"]),
        recommended_steps=_steps(data["recommendedSteps"]),
        allowed=_number(data["allowed"]),
        allowed_steps=_steps(data["allowedSteps"]),
        cause=Cause(data["cause"]),
        verdict=Verdict(data["verdict"]),
        evaluated_at=_number(data["evaluatedAt"]),
        terms=_numbers(data["terms"]),
    )


def _step_data(step: Step) -> dict[str, Any]:
    return {
        "guard": step.guard,
        "verdict": step.verdict.value,
        "before": _plain(step.before),
        "after": _plain(step.after),
        "numbers": _numbers_data(step.numbers),
    }


def _steps(data: Sequence[Mapping[str, Any]]) -> tuple[Step, ...]:
    return tuple(
        Step(
            guard=str(one["guard"]),
            verdict=Verdict(one["verdict"]),
            before=_number(one["before"]),
            after=_number(one["after"]),
            numbers=_numbers(one["numbers"]),
        )
        for one in data
    )


def _numbers_data(numbers: Mapping[str, float]) -> dict[str, float | str | None]:
    return {name: _plain(value) for name, value in numbers.items()}


def _numbers(data: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): _number(value) for name, value in data.items()}


def _plain(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return float(value)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
