"""Advice as rows: what each workload has and should have, how urgent that is, what it gives back, and why; pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import numpy as np

from autoscaler.advise.once import Said
from autoscaler.guard.bounds import PAIRS
from autoscaler.model.config import Configuration
from autoscaler.model.decision import AMOUNT_FIELDS, Field
from autoscaler.model.reasons import CAUSES, Cause
from autoscaler.model.resources import SPECS, Resource
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import BrokenWorkload, Workload
from autoscaler.read.inventory import UNSET

CUT_RATIO: Final = 0.02
"""A recommendation that is further than this from the estimate was cut, not rounded."""
SHORTAGE: Final = frozenset({Cause.SATURATED, Cause.OOM_SEEN})
UNSET_CAUSE: Final = "Unset"
"""In place of a cause: nobody set the figure."""
FOLLOWS: Final = "Follows"
"""In place of a cause: the figure gives way to another one, or to a bound."""
NO_TFLOPS: Final = "compute unknown: no TFLOPs are known of its GPU"


class Severity(StrEnum):
    """How much a recommendation matters, the most urgent first."""

    CRITICAL = "critical"
    """Use is clipped at a limit, or a worker ran out of memory: demand is not met now."""
    WARNING = "warning"
    """A figure should be higher: what is needed is not guaranteed, or bursts have no room."""
    SAVING = "saving"
    """Something that is reserved is not needed."""
    OK = "ok"
    """Every figure is where it should be."""
    UNKNOWN = "unknown"
    """Nothing is said, for the reason given."""


@dataclass(frozen=True, slots=True)
class Advice:
    """One workload. Figures by Field, per worker and GPU; None is not known, or (recommended) not said.

    `saved`: of the requests over all its workers and GPUs, by Resource; negative where more is needed.
    """

    key: WorkloadKey
    config: Configuration | None
    workers: int
    samples: int
    span_seconds: float
    ooms: int
    current: tuple[float | None, ...]
    recommended: tuple[float | None, ...]
    causes: tuple[Cause, ...]
    saved: tuple[float | None, float | None]
    severity: Severity
    reason: str


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the workloads that something is said of: requests over all workers and GPUs, by Resource."""

    workloads: int
    judged: int
    current: tuple[float, float]
    recommended: tuple[float, float]
    by_severity: Mapping[Severity, int]


def advice_of(workloads: Sequence[Workload], said: Said, min_samples: int) -> list[Advice]:
    """Return a row per workload, in the order of the fleet's rows; with too few samples nothing is said."""
    return [_advice(workload, said, row, min_samples) for row, workload in enumerate(workloads)]


def broken_advice(broken: BrokenWorkload) -> Advice:
    """Return the row of a workload whose configuration can't be used."""
    nothing = (None,) * len(Field)
    reason = "configuration: " + "; ".join(map(str, broken.problems))
    causes = (Cause.NO_DATA,) * len(Field)
    return Advice(
        broken.key, None, 0, 0, 0.0, 0, nothing, nothing, causes, (None, None), Severity.UNKNOWN, reason
    )  # fmt: skip


def ordered(rows: Sequence[Advice]) -> list[Advice]:
    """Return the rows, the most urgent first."""
    rank = list(Severity).index
    return sorted(rows, key=lambda row: (rank(row.severity), row.key))


def totals_of(rows: Sequence[Advice]) -> Totals:
    """Return the sums; workloads that nothing is said of are only counted."""
    judged = [row for row in rows if row.severity is not Severity.UNKNOWN]
    before, after = [0.0, 0.0], [0.0, 0.0]
    for row in judged:
        for resource in Resource:
            held, given = _requests(row, resource)
            if held is not None and given is not None:
                before[resource] += held
                after[resource] += given
    counts = {severity: sum(row.severity is severity for row in rows) for severity in Severity}
    return Totals(len(rows), len(judged), (before[0], before[1]), (after[0], after[1]), counts)


def _advice(workload: Workload, said: Said, row: int, min_samples: int) -> Advice:
    wanted = said.allowed.wanted
    samples, ooms = int(wanted.samples[row]), int(said.ooms[row])
    span = float(wanted.last_at[row] - wanted.first_at[row])
    current = _known(said.allowed.fleet.current[row])
    why_not = _why_not(workload, said, row, min_samples)
    causes = tuple(CAUSES[int(code)] for code in wanted.cause[row])
    recommended = (None,) * len(Field) if why_not else _recommended(causes, said.target[row].tolist())
    made = Advice(
        key=workload.key,
        config=workload.config,
        workers=len(workload.workers),
        samples=samples,
        span_seconds=span if math.isfinite(span) else 0.0,
        ooms=ooms,
        current=current,
        recommended=recommended,
        causes=causes,
        saved=(None, None),
        severity=Severity.UNKNOWN,
        reason=why_not,
    )
    return made if why_not else _judged(made, said, row)


def _recommended(causes: Sequence[Cause], target: Sequence[float]) -> tuple[float | None, ...]:
    """Return the figures, None for both of a resource whose use is not known: its limit would follow the guess."""
    said: list[float | None] = list(target)
    for request, limit in PAIRS:
        if Cause.NO_DATA in (causes[request], causes[limit]):
            said[request] = said[limit] = None
    return tuple(said)


def _known(figures: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> tuple[float | None, ...]:
    """Return figures, None for those that nobody set."""
    amounts = [None if math.isnan(one) or one <= UNSET else float(one) for one in figures]
    amounts[Field.REPLICAS] = float(figures[Field.REPLICAS])
    return tuple(amounts)


def _why_not(workload: Workload, said: Said, row: int, min_samples: int) -> str:
    """Return why nothing is said of a workload; empty where something is."""
    samples = int(said.allowed.wanted.samples[row])
    flags = said.allowed.fleet.flags
    if flags.dedicated[row]:
        return "it has whole GPUs of its own"
    if flags.unsupported[row]:
        return f"isolation {workload.config.isolation} can't be scaled"
    if samples < min_samples:
        return f"{samples} samples, {min_samples} needed"
    return ""


def _judged(row: Advice, said: Said, place: int) -> Advice:
    saved = tuple(
        None if held is None or given is None else held - given
        for held, given in (_requests(row, resource) for resource in Resource)
    )
    return replace(
        row, saved=(saved[0], saved[1]), severity=_severity(row), reason="; ".join(_reasons(row, said, place))
    )


def _requests(row: Advice, resource: Resource) -> tuple[float | None, float | None]:
    """Return what the workload reserves and should reserve, over all workers and GPUs."""
    field = 2 * resource
    gpus = 1 if row.config is None else row.config.gpu_count
    sums = []
    for figures in (row.current, row.recommended):
        amount, count = figures[field], figures[Field.REPLICAS]
        sums.append(None if amount is None or count is None else amount * count * gpus)
    return sums[0], sums[1]


def _severity(row: Advice) -> Severity:
    moves = {_direction(row, field) for field in Field}
    if any(
        cause in SHORTAGE and row.current[field] is not None for field, cause in zip(Field, row.causes, strict=True)
    ):
        return Severity.CRITICAL
    if 1 in moves:
        return Severity.WARNING
    return Severity.SAVING if -1 in moves else Severity.OK


def _direction(row: Advice, field: Field) -> int:
    """Return 1 for a figure that should grow, or that nobody set, -1 for one that should shrink, else 0."""
    held, given = row.current[field], row.recommended[field]
    if given is None:
        return 0
    return 1 if held is None else (given > held) - (given < held)


def _reasons(row: Advice, said: Said, place: int) -> Iterator[str]:
    """Yield why: each cause with the figures that it moves, what was cut, what is not known."""
    by_cause: dict[str, list[str]] = {}
    for field, cause in zip(Field, row.causes, strict=True):
        if _direction(row, field):
            name = UNSET_CAUSE if row.current[field] is None else str(cause)
            # A figure inside its own band moves only because request <= limit holds, or a bound.
            by_cause.setdefault(FOLLOWS if cause is Cause.UNCHANGED else name, []).append(_noun(field))
    yield from (f"{cause}: {', '.join(nouns)}" for cause, nouns in by_cause.items())
    for field in AMOUNT_FIELDS:
        asked, given = float(said.allowed.wanted.figure[place, field]), row.recommended[field]
        if given is not None and given < (1 - CUT_RATIO) * asked:
            yield f"{_noun(field)} cut to its bounds or the GPU"
    if row.ooms:
        yield f"out-of-memory events: {row.ooms}"
    if row.recommended[Field.COMPUTE_REQUEST] is None and row.recommended[Field.VRAM_REQUEST] is not None:
        yield NO_TFLOPS


def _noun(field: Field) -> str:
    if field.resource is None or field.side is None:
        return "replicas"
    return f"{SPECS[field.resource].noun} {field.side.name.lower()}"
