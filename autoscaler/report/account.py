"""What there is to tell about one workload: its record, its last changes, and its use beside its figures; pure."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from autoscaler.model.decision import Field
from autoscaler.model.reasons import Cause
from autoscaler.model.record import FIELD_NAMES, Record, as_data, from_data
from autoscaler.model.resources import SPECS, Resource
from autoscaler.model.usage import WorkloadKey

Points = tuple[tuple[float, float], ...]
LINES: Final = ("use", "request", "limit")


@dataclass(frozen=True, slots=True)
class Change:
    """A figure that moved, and what led to it."""

    at: float
    field: Field
    before: float
    after: float
    cause: Cause


@dataclass(frozen=True, slots=True)
class Lines:
    """One resource over time as (seconds since the epoch, TFLOPs or bytes); NaN is not known.

    `use`: the most of the largest worker and device since the point before. `request`, `limit`: in force then.
    """

    use: Points = ()
    request: Points = ()
    limit: Points = ()


@dataclass(frozen=True, slots=True)
class Account:
    """Record, changes in order of time, and lines by Resource."""

    record: Record
    changes: tuple[Change, ...] = ()
    lines: tuple[Lines, Lines] = (Lines(), Lines())


def account_data(account: Account) -> dict[str, Any]:
    """Return an account as JSON knows it."""
    return {
        "record": as_data(account.record),
        "changes": [
            {
                "at": change.at,
                "figure": FIELD_NAMES[change.field],
                "before": change.before,
                "after": change.after,
                "cause": change.cause.value,
            }
            for change in account.changes
        ],
        "samples": {
            SPECS[resource].key: {name: _points_data(getattr(account.lines[resource], name)) for name in LINES}
            for resource in Resource
        },
    }


def account_from(data: Mapping[str, Any]) -> Account:
    """Return the account that `account_data` wrote.

    Raises:
        ValueError: it is none.

    """
    record = from_data(data.get("record") or {})
    try:
        changes = tuple(
            Change(
                at=float(one["at"]),
                field=Field(FIELD_NAMES.index(one["figure"])),
                before=float(one["before"]),
                after=float(one["after"]),
                cause=Cause(one["cause"]),
            )
            for one in data["changes"]
        )
        compute, vram = (_lines(data["samples"][SPECS[resource].key]) for resource in Resource)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no account of a workload: {error!r}") from error
    return Account(record, changes, (compute, vram))


def near_matches(wanted: WorkloadKey, known: Iterable[WorkloadKey], most: int = 3) -> list[str]:
    """Return the known workloads that a misspelt one may have meant: same name elsewhere first, then similar ones."""
    names = sorted(str(key) for key in known)
    same = [name for name in names if name.partition("/")[2] == wanted.name]
    similar = difflib.get_close_matches(str(wanted), names, n=most, cutoff=0.6)
    return list(dict.fromkeys((*same, *similar)))[:most]


def unknown_workload(wanted: WorkloadKey, known: Iterable[WorkloadKey]) -> str:
    """Return one line that says that there is no such workload, and which ones are near."""
    everyone = list(known)
    near = near_matches(wanted, everyone)
    if near:
        return f"there is no workload {wanted}; near: {', '.join(near)}"
    return f"there is no workload {wanted} among {len(everyone)}"


def _points_data(points: Points) -> list[list[float | None]]:
    return [[at, None if math.isnan(value) else value] for at, value in points]


def _lines(data: Mapping[str, Any]) -> Lines:
    return Lines(*(tuple((float(at), math.nan if y is None else float(y)) for at, y in data[name]) for name in LINES))
