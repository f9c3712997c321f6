"""One workload's way through the guards, as a record: which guard changed or held each figure, with its numbers.

Made only when somebody asks: a pass keeps references to what the guards left (`Trace`), and nothing is worked out
before. Neighbours: `numbers` names what each guard used; `report.recompute` follows each step's `after` from its
`before` and these numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from autoscaler.guard.bounds import PAIRS
from autoscaler.guard.numbers import Moment, Numbers, numbers_of
from autoscaler.model.decision import Field
from autoscaler.model.knobs import MODES
from autoscaler.model.proposal import Allowed, Passage, Trace
from autoscaler.model.reasons import CAUSES, VERDICT_CODE, VERDICTS, Verdict
from autoscaler.model.record import EVALUATION, LAYER, PARTNER, REMEMBERED, Estimated, FigureRecord, Record, Step


def record_of(allowed: Allowed, row: int) -> Record:
    """Return one workload's record.

    Raises:
        ValueError: the guards left no trace.

    """
    trace, fleet, wanted = allowed.trace, allowed.fleet, allowed.wanted
    if trace is None:
        raise ValueError("no trace was kept of this decision")
    return Record(
        key=fleet.keys[row],
        qos=fleet.laid.configs[row].qos,
        at=fleet.now,
        samples=float(wanted.samples[row]),
        first_at=float(wanted.first_at[row]),
        last_at=float(wanted.last_at[row]),
        figures=tuple(_figure(allowed, trace, row, field) for field in Field),
    )


def _figure(allowed: Allowed, trace: Trace, row: int, field: Field) -> FigureRecord:
    wanted, fleet = allowed.wanted, allowed.fleet
    return FigureRecord(
        field=field,
        mode=MODES[int(fleet.knobs.mode[row, field])],
        current=float(fleet.current[row, field]),
        estimated=Estimated(
            figure=float(wanted.figure[row, field]),
            lower_bound=float(wanted.lower[row, field]),
            upper_bound=float(wanted.upper[row, field]),
            cause=CAUSES[int(wanted.cause[row, field])],
            urgent=bool(wanted.urgent[row, field]),
            inputs={name: float(column[row]) for name, column in wanted.inputs[field].items()},
        ),
        recommended=float(allowed.target[row, field]),
        recommended_steps=tuple(_recommended_steps(allowed, trace, row, field)),
        allowed=float(allowed.figure[row, field]),
        allowed_steps=tuple(_allowed_steps(allowed, trace, row, field)),
        cause=CAUSES[int(allowed.cause[row, field])],
        verdict=VERDICTS[int(allowed.verdict[row, field])],
        evaluated_at=fleet.now if trace.due[row, field] else float(trace.memory["evaluated_at"][row, field]),
        terms=_terms(allowed, row, field),
    )


def _terms(allowed: Allowed, row: int, field: Field) -> Numbers:
    """Return what holds for a figure whatever is measured."""
    fleet, knobs = allowed.fleet, allowed.fleet.knobs
    terms = {
        "original": float(fleet.original[row, field]),
        "minimum": float(knobs.minimum[row, field]),
        "maximum": float(knobs.maximum[row, field]),
        "dead_band_ratio": float(knobs.dead_band[row, field]),
        "evaluation_seconds": float(knobs.evaluation[row, field]),
        "stabilization_seconds": float(knobs.stabilization[row, field]),
        "up_cool_down_seconds": float(knobs.up_cool_down[row, field]),
        "down_cool_down_seconds": float(knobs.down_cool_down[row, field]),
    }
    if field.resource is not None:
        terms["device"] = float(fleet.device[row, field.resource])
    if field is Field.COMPUTE_REQUEST:
        terms["exceedances"] = float(knobs.level_exceedances[row])
    return terms


def _start(allowed: Allowed, row: int) -> list[float]:
    """Return the wanted figures; where nothing is known, those in force."""
    wanted, current = allowed.wanted.figure[row], allowed.fleet.current[row]
    return [float(value) for value in np.where(np.isnan(wanted), current, wanted)]


def _allowed_steps(allowed: Allowed, trace: Trace, row: int, field: Field) -> Iterator[Step]:
    """Yield how the wanted figure became the one to be put in force."""
    start, current = _start(allowed, row), [float(value) for value in allowed.fleet.current[row]]
    on, due = trace.on[row], trace.due[row]
    if not on[field] and start[field] != current[field]:
        yield Step(LAYER, Verdict.RECOMMEND_ONLY, start[field], current[field], {})
    elif on[field] and not due[field] and start[field] != current[field]:
        verdict = VERDICTS[int(allowed.verdict[row, field])]
        yield Step(EVALUATION, verdict, start[field], current[field], _evaluation(allowed, trace, row, field))
    figures = [start[one] if on[one] and due[one] else current[one] for one in Field]
    idle = [not on[one] and start[one] != current[one] for one in Field]
    codes = [VERDICT_CODE[Verdict.RECOMMEND_ONLY if idle[one] else Verdict.PASSED] for one in Field]
    yield from _guarded(allowed, trace, row, field, (trace.applied, figures, codes))


def _recommended_steps(allowed: Allowed, trace: Trace, row: int, field: Field) -> Iterator[Step]:
    """Yield how the wanted figure became the one that is recommended."""
    start, current = _start(allowed, row), [float(value) for value in allowed.fleet.current[row]]
    on = trace.on[row]
    last = [int(code) for code in trace.applied[-1].verdict[row]]
    beside = [start[one] if on[one] else current[one] for one in Field]
    ways = ((trace.shown, beside, last), (trace.advised, start, last))
    yield from _guarded(allowed, trace, row, field, ways[0 if on[field] else 1])
    shaped = [float(ways[0 if on[one] else 1][0][-1].figure[row, one]) for one in Field]
    before = shaped[field]
    partner = dict(PAIRS).get(field)
    if partner is not None and shaped[partner] < before:
        yield Step(PARTNER, Verdict.BOUND_LIMITED, before, shaped[partner], {"limit": shaped[partner]})
        before = shaped[partner]
    target = float(allowed.target[row, field])
    if target != before:
        numbers = {"shown": target, **_evaluation(allowed, trace, row, field)}
        yield Step(REMEMBERED, Verdict.WITHIN_TOLERANCE, before, target, numbers)


def _evaluation(allowed: Allowed, trace: Trace, row: int, field: Field) -> Numbers:
    at, period = float(trace.memory["evaluated_at"][row, field]), float(allowed.fleet.knobs.evaluation[row, field])
    return {"evaluated_at": at, "evaluation_seconds": period, "until_at": at + period}


def _guarded(
    allowed: Allowed, trace: Trace, row: int, field: Field, way: tuple[tuple[Passage, ...], list[float], list[int]]
) -> Iterator[Step]:
    """Yield the guards that changed a figure or named a verdict.

    `way`: the passages, and figures and verdict codes at its start.
    """
    passages, figures, codes = way
    for passage in passages:
        after = [float(value) for value in passage.figure[row]]
        left = [int(code) for code in passage.verdict[row]]
        if after[field] != figures[field] or left[field] != codes[field]:
            moment = Moment(allowed, trace, row, figures, after, codes)
            numbers = numbers_of(passage.guard, moment, field)
            yield Step(passage.guard, VERDICTS[left[field]], figures[field], after[field], numbers)
        figures, codes = after, left
