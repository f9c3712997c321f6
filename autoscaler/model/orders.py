"""Figures that are ordered now, by a rule of the clock or an external scaler, whatever the layers say; pure.

Per figure: the active rule, else a fresh answer of the external scaler. When a rule ends, a figure whose layer is on
goes back to that layer; one whose layer is off goes back to the owner's own, which is an order, too, until it is there.
So does one whose owner turned the layer off and asked for the figures of before (`autoscaling-revert`).
What has to go back is read from what was written (figures kept before the first change, the active rule in the status),
so that a restart forgets nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

import numpy as np

from autoscaler.contract.keys import AUTOSCALING_ORIGINAL, AUTOSCALING_REVERT
from autoscaler.model.config import CronRule
from autoscaler.model.decision import AMOUNT_FIELDS, Field
from autoscaler.model.external import ScalerState
from autoscaler.model.knobs import ON, UNSET, Knobs, Laid
from autoscaler.model.reasons import CAUSE_CODE, CAUSES, Cause
from autoscaler.model.resources import Amounts, Side
from autoscaler.model.schedule import NEVER, Turn, Turns, does_something, to_turns
from autoscaler.model.snapshot import Snapshot
from autoscaler.model.usage import Bools, Floats, Ints, WorkloadKey
from autoscaler.model.workload import Workload

NO_CAUSE: Final = -1
_BY_CLOCK: Final = (CAUSE_CODE[Cause.CRON], CAUSE_CODE[Cause.CRON_ENDED])


@dataclass(frozen=True, slots=True, eq=False)
class Orders:
    """What is ordered of each workload.

    `figure` (W, 5) by Field, NaN: nothing; `cause` (W, 5): code of who ordered it, -1 nobody. `scalers`: what is known
    of the external scalers, None where there is none.
    """

    keys: tuple[WorkloadKey, ...]
    figure: Floats
    cause: Ints
    turns: Turns
    scalers: tuple[ScalerState | None, ...]

    @property
    def is_any(self) -> bool:
        """Tell whether anything is ordered of anybody."""
        return _is_any(self)

    @property
    def given(self) -> Bools:
        """Return which figures are ordered, (W, 5)."""
        return np.asarray(self.cause != NO_CAUSE, dtype=np.bool_)

    @property
    def ruled(self) -> Bools:
        """Return whose replicas a rule by the clock orders, (W,)."""
        return np.asarray(self.cause[:, Field.REPLICAS] == CAUSE_CODE[Cause.CRON], dtype=np.bool_)

    def told(self, row: int, field: Field) -> str:
        """Return who ordered a figure, in words; empty where nobody did."""
        code, turn, scaler = int(self.cause[row, field]), self.turns.turns[row], self.scalers[row]
        if code == NO_CAUSE:
            return ""
        if CAUSES[code] is Cause.CRON and turn is not None and turn.rule is not None:
            return window_text(turn)
        if CAUSES[code] is Cause.EXTERNAL and scaler is not None and scaler.answer is not None:
            reason = f", {scaler.answer.reason}" if scaler.answer.reason else ""
            return f"{scaler.scaler.url} said so at {_clock(scaler.answer.at)}{reason}"
        if CAUSES[code] is Cause.REVERTED:
            return f"the layer is off and {AUTOSCALING_REVERT} is 'true', back to the owner's figure"
        following = f"; a rule is next due at {_clock(turn.next_at)}" if turn is not None else ""
        return f"no rule by the clock is in force any more, back to the owner's figure{following}"


@lru_cache(maxsize=4)
def _is_any(orders: Orders) -> bool:
    """Look once at orders that a pass asks about a dozen times."""
    return bool(orders.given.any())


def to_orders(snapshot: Snapshot, laid: Laid, previous: Orders | None = None) -> Orders:
    """Return what is ordered at the snapshot's moment; `previous` is of the pass before, None on the first."""
    workloads = snapshot.discovered.workloads
    turns = to_turns(laid.configs, snapshot.now, previous.turns if previous is not None else None)
    scalers = tuple(snapshot.external.get(workload.key) for workload in workloads)
    figure = np.full((len(workloads), len(Field)), UNSET)
    cause = np.full((len(workloads), len(Field)), NO_CAUSE, dtype=np.int64)
    before = _clocked(previous)
    for row, (workload, turn, scaler) in enumerate(zip(workloads, turns.turns, scalers, strict=True)):
        standing = before.get(workload.key) or _told_active(workload)
        if turn is None and scaler is None and not standing and not workload.config.revert:
            continue
        given = _given(turn, scaler, snapshot.now)
        for field, value in _moved(workload):
            off = laid.knobs.mode[row, field] != ON
            if off and field not in given and (field in standing or (scaler is None and _is_named(workload, field))):
                given[field] = value, Cause.CRON_ENDED
            elif off and field not in given and workload.config.revert:
                given[field] = value, Cause.REVERTED
        for field, (value, why) in given.items():
            figure[row, field], cause[row, field] = value, CAUSE_CODE[why]
    return Orders(tuple(workload.key for workload in workloads), figure, cause, turns, scalers)


def over_knobs(orders: Orders, laid: Laid) -> Knobs:
    """Return the knobs with what orders change: an ordered figure counts as on, and default bounds don't bind it."""
    given = orders.given
    if not given.any():
        return laid.knobs
    minimum, maximum = laid.knobs.minimum.copy(), laid.knobs.maximum.copy()
    for row in np.flatnonzero(given[:, Field.REPLICAS]):
        policy = laid.configs[row].replicas_policy
        if policy.min_replicas is None:
            minimum[row, Field.REPLICAS] = 0.0
        if policy.max_replicas is None:
            maximum[row, Field.REPLICAS] = np.inf
    mode = np.where(given, np.int64(ON), laid.knobs.mode)
    return replace(laid.knobs, mode=mode, minimum=minimum, maximum=maximum)


def window_text(turn: Turn) -> str:
    """Return an active rule with its window, in words."""
    rule = turn.rule
    assert rule is not None
    until = "for ever" if turn.until == NEVER else f"until {_clock(turn.until)}"
    return (
        f"rule {rule.name} ({rule.start} to {rule.end} {rule.time_zone}) is in force since {_clock(turn.since)} {until}"
    )


def figures_of(rule: CronRule) -> Iterator[tuple[Field, float]]:
    """Yield the figures that a rule names."""
    sides = {Side.REQUEST: rule.requests, Side.LIMIT: rule.limits}
    for field in AMOUNT_FIELDS:
        assert field.side is not None
        assert field.resource is not None
        value = sides[field.side][field.resource]
        if value is not None:
            yield field, float(value)
    if rule.replicas is not None:
        yield Field.REPLICAS, float(rule.replicas)


def _given(turn: Turn | None, scaler: ScalerState | None, now: float) -> dict[Field, tuple[float, Cause]]:
    """Return what the rule in force and the external scaler order; the rule's word goes first."""
    given: dict[Field, tuple[float, Cause]] = {}
    answer = scaler.order(now) if scaler is not None else None
    if answer is not None:
        pairs = zip(Field, answer.figures, strict=True)
        given |= {field: (value, Cause.EXTERNAL) for field, value in pairs if not math.isnan(value)}
    if turn is not None and turn.rule is not None:
        given |= {field: (value, Cause.CRON) for field, value in figures_of(turn.rule)}
    return given


def _moved(workload: Workload) -> Iterator[tuple[Field, float]]:
    """Yield the figures that were moved away from the owner's own, with the owner's."""
    ours = [_figures(one.current) for one in workload.workers if AUTOSCALING_ORIGINAL in one.annotations]
    for field, own in zip(AMOUNT_FIELDS, _figures(workload.original), strict=True) if ours else ():
        if any(abs(held[field] - own) > 0 for held in ours):  # one that is not known has not moved
            yield field, own
    if workload.original_replicas is not None:
        yield Field.REPLICAS, float(workload.original_replicas)


def _figures(amounts: Amounts) -> tuple[float, float, float, float]:
    return amounts.compute.request, amounts.compute.limit, amounts.vram.request, amounts.vram.limit


def _is_named(workload: Workload, field: Field) -> bool:
    """Tell whether any rule names this figure."""
    return any(field in dict(figures_of(rule)) for rule in workload.config.cron_rules if does_something(rule))


def _told_active(workload: Workload) -> frozenset[Field]:
    """Return the figures of the rule that the stored status says is in force; all, if that rule is no more."""
    name = (workload.status.get("autoscaling") or {}).get("activeCronRule")
    if not name:
        return frozenset()
    rule = next((rule for rule in workload.config.cron_rules if rule.name == name), None)
    return frozenset(Field) if rule is None else frozenset(field for field, _ in figures_of(rule))


def _clocked(previous: Orders | None) -> Mapping[WorkloadKey, frozenset[Field]]:
    """Return the figures that were ordered by the clock in the pass before, by workload."""
    if previous is None:
        return {}
    by_clock = np.isin(previous.cause, _BY_CLOCK)
    return {
        previous.keys[row]: frozenset(field for field in Field if by_clock[row, field])
        for row in np.flatnonzero(by_clock.any(axis=1))
    }


def _clock(seconds: float) -> str:
    """Return seconds since the epoch as RFC 3339 to the minute, UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%MZ") if math.isfinite(seconds) else "never"
