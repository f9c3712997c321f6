"""What a story expects, in lines that a reader understands, held against what happened.

    - {at: 35m, compute_limit: ">= 60"}                    in force after the last pass by then
    - {between: [1h, 2h], unchanged: [replicas]}           no move in that time; also vram_limit: ">= 4Gi" throughout
    - {changes: {compute_request: "<= 4"}}                 moves in the whole story, or within `between`
    - {reason: Saturated, by: 3m, figure: compute_limit}   a cause or verdict in the timeline; without `figure` of any
    - {ooms: "== 1", short_of_compute: "<= 5m"}            over the whole story

Each may name a `workload`, and must where there are several. `~` is within a tenth.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from autoscaler.model.decision import Field
from autoscaler.model.quantity import parse_amount
from autoscaler.report.message import amount_text
from tests.scenarios.demand import minutes_of
from tests.scenarios.timeline import FIELDS, Told, clock

OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq,
    "~": lambda value, near: abs(value - near) <= 0.1 * near,
}  # fmt: skip
_WHEN = {"at", "between", "workload"}


def unmet(told: Told, expected: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is not as one line expects it."""
    name = expected.get("workload", told.story.roles[0].name)
    if "workload" not in expected and len(told.story.roles) > 1:
        raise ValueError(f"{dict(expected)}: of which workload?")
    rest = {key: value for key, value in expected.items() if key not in _WHEN}
    if "reason" in rest:
        yield from _reason(told, name, rest)
    elif "at" in expected:
        at = minutes_of(expected["at"])
        yield from _figures(told, name, rest, (at, at))
    elif "between" in expected:
        first, last = map(minutes_of, expected["between"])
        for key in ("unchanged", "changes"):
            yield from _moves(told, name, rest.pop(key, ()), (first, last))
        yield from _figures(told, name, rest, (first, last))
    else:
        yield from _moves(told, name, rest.pop("changes", ()), (0, told.story.minutes))
        yield from _totals(told, name, rest)


def _figures(told: Told, name: str, rest: Mapping[str, str], when: tuple[int, int]) -> Iterator[str]:
    """Yield figures that are not as expected at any pass of a time."""
    row = told.story.row_of[name]
    known = [made for made in told.passes if made.minute <= when[0]][-1:]
    known += [made for made in told.passes if when[0] < made.minute <= when[1]]
    for key, condition in rest.items():
        if key == "ready":
            values = [float(made.ready[row]) for made in known]
        else:
            values = [float(made.in_force[row, FIELDS[key]]) for made in known]
        figure = FIELDS.get(key, Field.REPLICAS)
        for made, value in zip(known, values, strict=True):
            if not holds(value, condition, figure):
                yield f"{name} {key} is {amount_text(figure.resource, value)} at {clock(made.minute)}, not {condition}"
                break


def _moves(told: Told, name: str, rest: Any, when: tuple[int, int]) -> Iterator[str]:
    """Yield figures that moved too often or too seldom; a list: that moved at all."""
    conditions = rest if isinstance(rest, Mapping) else dict.fromkeys(rest, "== 0")
    for key, condition in conditions.items():
        moves = told.changes(name, FIELDS[key], *when)
        if not holds(len(moves), condition, Field.REPLICAS):
            at = ", ".join(clock(line.minute) for line in moves)
            yield f"{name} {key} moves {len(moves)} times ({at}), not {condition}"


def _reason(told: Told, name: str, rest: Mapping[str, str]) -> Iterator[str]:
    last = minutes_of(rest["by"]) if "by" in rest else told.story.minutes
    _refuse(rest, {"reason", "by", "figure"})
    for line in told.lines:
        right = line.workload == name and line.minute <= last and rest["reason"] in {line.cause, line.verdict}
        if right and ("figure" not in rest or line.field is FIELDS[rest["figure"]]):
            return
    yield f"{name}: no {rest['reason']} in the timeline by {clock(last)}"


def _totals(told: Told, name: str, rest: Mapping[str, str]) -> Iterator[str]:
    _refuse(rest, {"ooms", "short_of_compute"})
    actor = told.scene.actors[told.story.row_of[name]]
    seen = {"ooms": actor.ooms, "short_of_compute": actor.clipped_minutes}
    for key, condition in rest.items():
        if not holds(seen[key], condition.removesuffix("m"), Field.REPLICAS):
            yield f"{name}: {key} is {seen[key]}, not {condition}"


def holds(value: float, condition: str, figure: Field) -> bool:
    """Tell whether a figure meets `>= 60`, `~ 250Mi` or the like."""
    sign, text = condition.split()
    bound = float(text) if figure.resource is None or text == "0" else float(parse_amount(figure.resource, text))
    return OPERATORS[sign](value, bound)


def _refuse(rest: Mapping[str, Any], known: set[str]) -> None:
    if rest.keys() - known:
        raise ValueError(f"{sorted(rest.keys() - known)}: not known, only {sorted(known)}")
