"""The numbers that each guard used on one figure, by name; worked out only when somebody asks.

One entry per guard in `NUMBERS`, under the name of its function. Neighbours: `trace` puts them into a record.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from autoscaler.guard.bounds import PAIRS
from autoscaler.model import defaults
from autoscaler.model.decision import Field
from autoscaler.model.proposal import Allowed, Trace

Numbers = dict[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """What a guard saw of one workload, and what it left: figures (5,) by Field, verdict codes."""

    allowed: Allowed
    trace: Trace
    row: int
    before: list[float]
    after: list[float]
    verdict: list[int]

    def current(self, field: Field) -> float:
        """Return the figure in force."""
        return float(self.allowed.fleet.current[self.row, field])

    def memory(self, name: str, field: Field) -> float:
        """Return what the guards remembered of a figure."""
        remembered = self.trace.memory[name][self.row]
        return float(remembered[field] if remembered.ndim else remembered)

    def noted(self, field: Field, name: str) -> Numbers:
        """Return a number that a guard left a note of, if it did."""
        column = self.allowed.notes.get(field, {}).get(name)
        value = math.nan if column is None else float(column[self.row])
        return {} if math.isnan(value) else {name: value}

    def device(self, field: Field) -> float:
        """Return what the smallest device has; inf where that is not known."""
        return math.inf if field.resource is None else float(self.allowed.fleet.device[self.row, field.resource])


def numbers_of(guard: str, at: Moment, field: Field) -> Numbers:
    """Return the numbers that lead from a figure before a guard to the one after it."""
    return NUMBERS.get(guard, _cut)(at, field)


def _nothing(_: Moment, __: Field) -> Numbers:
    return {}


def _cut(at: Moment, field: Field) -> Numbers:
    """Return what a guard left as a cap or a floor, where it neither let the figure pass nor put the old one back."""
    before, after = at.before[field], at.after[field]
    if after == before or after == at.current(field):
        return {}
    return {"most": after} if after < before else {"least": after}


def _enough(at: Moment, _: Field) -> Numbers:
    wanted, delay = at.allowed.wanted, float(at.allowed.fleet.knobs.initial_delay[at.row])
    first = float(wanted.first_at[at.row])
    return {
        "samples": float(wanted.samples[at.row]),
        "min_samples": float(at.trace.min_samples),
        "initial_delay_seconds": delay,
        "until_at": first + delay,
    }


def _fresh(at: Moment, _: Field) -> Numbers:
    age = at.allowed.fleet.now - float(at.allowed.wanted.last_at[at.row])
    return {"age_seconds": age, "fresh_seconds": at.trace.fresh_seconds}


def _unpaused(at: Moment, _: Field) -> Numbers:
    until = at.allowed.fleet.laid.configs[at.row].pause.until
    return {} if until is None else {"until_at": until}


def _dead_band(at: Moment, field: Field) -> Numbers:
    return {"band_ratio": float(at.allowed.fleet.knobs.dead_band[at.row, field])}


def _stabilization(at: Moment, field: Field) -> Numbers:
    window = float(at.allowed.fleet.knobs.stabilization[at.row, field])
    if field is Field.REPLICAS:  # their window remembers every count, not only the highest since a moment
        return {"window_seconds": window, **_cut(at, field)}
    since = at.memory("shrink_since", field)
    return {
        "since_at": since,
        "window_seconds": window,
        "until_at": since + window,
        "most": at.memory("shrink_most", field),
    }


def _step(at: Moment, field: Field) -> Numbers:
    moved = at.after[field] - at.current(field)
    return {"most_added": moved} if moved > 0 else {"most_removed": -moved}


def _cool_down(at: Moment, field: Field) -> Numbers:
    knobs = at.allowed.fleet.knobs
    raised, lowered, surged = (at.memory(name, field) for name in ("raised_at", "lowered_at", "surged_at"))
    moved = max(raised, lowered, surged) if field is Field.REPLICAS else max(raised, lowered)
    times = knobs.down_cool_down
    if at.before[field] > at.current(field):
        times, moved = knobs.up_cool_down, max(raised, lowered) if field is Field.REPLICAS else lowered
    wait = float(times[at.row, field])
    return {"moved_at": moved, "cool_down_seconds": wait, "until_at": moved + wait}


def _rollback(at: Moment, field: Field) -> Numbers:
    rolled, freeze = at.memory("rolled_at", field), at.memory("freeze_seconds", field)
    return {"last_good": at.memory("good", field), "until_at": rolled + freeze}


def _quota(at: Moment, field: Field) -> Numbers:
    return {**_cut(at, field), **at.noted(field, "quota_left")}


def _live_use(at: Moment, field: Field) -> Numbers:
    if field.resource is None:
        return {}
    live = float(at.allowed.fleet.live[at.row, field.resource])
    return {"live": live, "headroom_ratio": defaults.VRAM_HEADROOM_RATIO}


def _bounds(at: Moment, field: Field) -> Numbers:
    knobs = at.allowed.fleet.knobs
    low, high = float(knobs.minimum[at.row, field]), float(knobs.maximum[at.row, field])
    numbers = {"minimum": low, "maximum": high}
    request = {limit: request for request, limit in PAIRS}.get(field)
    ratio = float(knobs.max_ratio_to_requests[at.row])
    if request is not None and at.before[field] > at.current(field) and not math.isnan(ratio):
        least, most = float(knobs.minimum[at.row, request]), float(knobs.maximum[at.row, request])
        numbers |= {"ratio_to_request": ratio, "request": min(max(at.before[request], least), most)}
    return numbers


def _order(at: Moment, field: Field) -> Numbers:
    device = at.device(field)
    for request, limit in PAIRS:
        if field is request:
            return {"device": device, "limit": min(at.after[limit], device)}
        if field is limit:
            return {"device": device, "request": min(at.before[request], device)}
    return {}


def _capacity(at: Moment, field: Field) -> Numbers:
    """Return what the devices had left for each worker; `free` on the tightest one, before anybody grew."""
    current, before, after = at.current(field), at.before[field], at.after[field]
    if field.resource is None or not current <= after <= before:
        return {**_cut(at, field), **at.noted(field, "given")}
    placement = at.allowed.fleet.placement
    mine, workers = np.unique(placement.device[placement.workload == at.row], return_counts=True)
    free = (placement.capacity[field.resource] - placement.requested[field.resource])[mine]
    numbers = {"room": _room(current, before, after)}
    if mine.size and not np.isnan(free).all():
        tightest = int(np.nanargmin(free / workers))
        numbers |= {"free": float(free[tightest]), "workers_on_device": float(workers[tightest])}
    return numbers


def _room(current: float, before: float, after: float) -> float:
    """Return the growth that leads from `current` to `after` exactly; the plain difference may be a bit off."""
    room = after - current
    near = (room, math.nextafter(room, math.inf), math.nextafter(room, -math.inf))
    return next((one for one in near if current + min(before - current, one) == after), room)


def _adopted(at: Moment, field: Field) -> Numbers:
    return {"until_at": float(at.allowed.fleet.holding.rests_until[at.row, field])}


def _undisrupted(at: Moment, field: Field) -> Numbers:
    return {**_cut(at, field), **at.noted(field, "budget_count"), **at.noted(field, "gang_count")}


def _published(at: Moment, field: Field) -> Numbers:
    return {"most": min(float(at.allowed.fleet.knobs.maximum[at.row, field]), at.device(field))}


NUMBERS: Final[Mapping[str, Callable[[Moment, Field], Numbers]]] = {
    "enough": _enough,
    "fresh": _fresh,
    "valid": _nothing,
    "unpaused": _unpaused,
    "supported": _nothing,
    "not_managed_elsewhere": _nothing,
    "adopted": _adopted,
    "undisrupted": _undisrupted,
    "dead_band": _dead_band,
    "stabilization": _stabilization,
    "step": _step,
    "cool_down": _cool_down,
    "live_use": _live_use,
    "bounds": _bounds,
    "order": _order,
    "rollback": _rollback,
    "quota": _quota,
    "capacity": _capacity,
    "rate": _nothing,
    "published": _published,
}
"""By guard. Any other guard's step tells what it left as a cap or a floor, see `_cut`."""
