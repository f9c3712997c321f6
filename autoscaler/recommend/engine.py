"""The three layers, one after the other, over the whole fleet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoscaler.model.columns import InColumns, alone, where
from autoscaler.model.decision import Field
from autoscaler.model.fleet import Fleet
from autoscaler.model.knobs import ON
from autoscaler.model.proposal import Wanted
from autoscaler.model.resources import Side
from autoscaler.model.usage import Floats
from autoscaler.recommend.estimate import Estimate, kept
from autoscaler.recommend.forecast import Forecast, foreseen_load, newest, newest_alone
from autoscaler.recommend.limits import compute_limits, vram_limits
from autoscaler.recommend.memory import Learnt
from autoscaler.recommend.orders import lay_over
from autoscaler.recommend.replicas import Balance, balance, replicas
from autoscaler.recommend.requests import compute_requests, vram_requests
from autoscaler.recommend.spread import cover, respread
from autoscaler.recommend.vram import vram_levels


def recommend(fleet: Fleet, memory: Learnt, *, horizontal: bool = True) -> Wanted:
    """Return what each workload should have; the memory must be aligned with the fleet.

    Without `horizontal` replicas stay as they are: for replays of single workers, which share no load.
    """
    if not horizontal:
        return _recommend_amounts(fleet, memory)
    respread(fleet, memory)
    forecast = newest(memory, fleet)
    load = None if forecast is None else foreseen_load(fleet, memory, forecast)
    weighed = balance(fleet, memory, load)
    amounts = _amounts(fleet, memory, forecast, weighed)
    count = replicas(fleet, memory, weighed, (amounts[Field.COMPUTE_LIMIT].figure, amounts[Field.VRAM_LIMIT].figure))
    return _wanted(fleet, memory, (*amounts, count))


def _recommend_amounts(fleet: Fleet, memory: Learnt) -> Wanted:
    """Return what each workload should have of each resource; a workload alone is worked on as numbers."""
    if len(fleet) == 1:
        one, learnt = alone(fleet), memory.alone()
        amounts = _amounts(one, learnt, newest_alone(learnt, one), None)
        return _wanted(fleet, memory, (*amounts, kept(one.current[:, Field.REPLICAS])))
    amounts = _amounts(fleet, memory, newest(memory, fleet), None)
    return _wanted(fleet, memory, (*amounts, kept(fleet.current[:, Field.REPLICAS])))


def _amounts(
    fleet: Fleet, memory: Learnt, forecast: Forecast | None, weighed: Balance | None
) -> tuple[Estimate, Estimate, Estimate, Estimate]:
    """Return the estimates of both resources by Field: the request first, the limit over it."""
    low, high, levels = vram_levels(fleet, memory)
    compute_request = _covering(fleet, Field.COMPUTE_REQUEST, weighed, compute_requests(fleet, memory, forecast))
    vram_request = _covering(fleet, Field.VRAM_REQUEST, weighed, vram_requests(fleet, memory, low, levels))
    baseline = _in_effect(fleet, Field.COMPUTE_REQUEST, compute_request.figure)
    compute_limit = _covering(fleet, Field.COMPUTE_LIMIT, weighed, compute_limits(fleet, memory, baseline, forecast))
    vram_limit = _covering(fleet, Field.VRAM_LIMIT, weighed, vram_limits(fleet, memory, high, levels))
    return compute_request, compute_limit, vram_request, vram_limit


def _wanted(fleet: Fleet, memory: Learnt, estimates: Sequence[Estimate]) -> Wanted:
    shape = len(estimates), len(fleet)
    band = np.array([(one.figure, one.lower, one.upper) for one in estimates]).reshape(len(estimates), 3, len(fleet)).T
    codes = np.array([one.cause for one in estimates], dtype=np.int8).reshape(shape)
    urgent = np.array([one.urgent for one in estimates], dtype=np.bool_).reshape(shape)
    wanted = Wanted(
        figure=band[:, 0].copy(),
        lower=band[:, 1].copy(),
        upper=band[:, 2].copy(),
        cause=codes.T.copy(),
        urgent=urgent.T.copy(),
        inputs={field: InColumns(one.inputs) for field, one in zip(Field, estimates, strict=True)},
        samples=memory["samples"].copy(),
        first_at=memory["first_at"].copy(),
        last_at=memory["last_at"].copy(),
        trouble_at=np.array([memory["saturated_at"], memory["oom_at"]]).T.copy(),
        trouble_samples=np.array([memory["saturated"], np.ones(len(fleet))]).T.copy(),
    )
    return lay_over(fleet, wanted)


def _covering(fleet: Fleet, field: Field, weighed: Balance | None, estimate: Estimate) -> Estimate:
    """Return the estimate of an amount, at least what each worker needs once there are fewer."""
    if weighed is None:
        return estimate
    least = weighed.request if field.side is Side.REQUEST else weighed.limit
    assert field.resource is not None
    next_step = least[:, field.resource]
    return cover(estimate, fleet.current[:, field], (next_step, next_step * weighed.least / weighed.last))


def _in_effect(fleet: Fleet, field: Field, wanted: Floats) -> Floats:
    """Return the ordered figure, else the wanted one where its layer is applied, else the one in force."""
    layer = where(fleet.knobs.mode[:, field] == ON, wanted, fleet.current[:, field])
    return where(fleet.ordered[:, field], fleet.orders.figure[:, field], layer) if fleet.orders.is_any else layer
