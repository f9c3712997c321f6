"""Guards on size: live use, the user's bounds, and min <= request <= limit <= device, whatever came before."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from autoscaler.guard.case import Case
from autoscaler.model import defaults
from autoscaler.model.decision import AMOUNT_FIELDS, Field
from autoscaler.model.reasons import Verdict
from autoscaler.model.resources import MIB, Resource
from autoscaler.model.usage import Floats

PAIRS = ((Field.COMPUTE_REQUEST, Field.COMPUTE_LIMIT), (Field.VRAM_REQUEST, Field.VRAM_LIMIT))
VRAM_FIELDS = [Field.VRAM_REQUEST, Field.VRAM_LIMIT]
SIGNIFICANT_DIGITS = 3
DECIMALS = 10
ROUNDED = 1e-9
"""A figure this close to a multiple is one."""


def live_use(case: Case) -> Case:
    """VRAM is incompressible: it never shrinks below live use plus head-room, nor where nobody can tell that use."""
    live = case.fleet.live[:, Resource.VRAM][:, None]
    figure = case.figure.copy()
    vram, current = figure[:, VRAM_FIELDS], case.fleet.current[:, VRAM_FIELDS]
    floor = np.where(np.isnan(live), current, np.minimum((1 + defaults.VRAM_HEADROOM_RATIO) * live, current))
    figure[:, VRAM_FIELDS] = np.where(vram < current, np.maximum(vram, floor), vram)
    return case.move(figure, Verdict.LIVE_USE)


def bounds(case: Case) -> Case:
    """The user's minAllowed, maxAllowed and ratios hold, and a growing limit's maxRatioToRequests."""
    knobs, figure = case.fleet.knobs, case.figure
    capped = np.minimum(np.maximum(figure, knobs.minimum), knobs.maximum)
    for request, limit in PAIRS:
        most = knobs.max_ratio_to_requests * capped[:, request]
        capped[:, limit] = np.fmin(capped[:, limit], np.where(case.up[:, limit], most, np.nan))
    return case.move(capped, Verdict.BOUND_LIMITED)


def order(case: Case) -> Case:
    """Request <= limit <= physical device: a limit that may move follows its request up, else the request yields."""
    figure = case.figure.copy()
    for resource, (request, limit) in enumerate(PAIRS):
        device = case.fleet.device[:, resource]
        figure[:, limit] = np.fmin(figure[:, limit], device)
        figure[:, request] = np.fmin(figure[:, request], device)
        follows = ~case.frozen[:, limit]
        figure[:, limit] = np.where(follows, np.fmax(figure[:, limit], figure[:, request]), figure[:, limit])
        figure[:, request] = np.fmin(figure[:, request], figure[:, limit])
    return case.move(figure, Verdict.BOUND_LIMITED)


def published(case: Case) -> Case:
    """What is published is rounded up, to 3 significant digits of TFLOPs and to whole MiB, but not past a bound.

    A shrink is not turned into growth by that.
    """
    figure, current = case.figure.copy(), case.fleet.current
    moved = figure != current
    for field in AMOUNT_FIELDS:
        assert field.resource is not None
        rows = np.flatnonzero(moved[:, field])
        if rows.size:
            most = np.fmin(case.fleet.knobs.maximum[rows, field], case.fleet.device[rows, field.resource])
            rounded = np.fmin(rounded_up(figure[rows, field], field.resource), most)
            held = current[rows, field]
            figure[rows, field] = np.where(figure[rows, field] < held, np.fmin(rounded, held), rounded)
    return replace(case, figure=figure)


def rounded_up(values: Floats, resource: Resource) -> Floats:
    """Return figures as they are published: the next multiple that is not smaller; any shape."""
    unit = _unit(values, resource)
    return np.round(np.ceil(values / unit - ROUNDED) * unit, DECIMALS)


def at_most(value: float, resource: Resource) -> float:
    """Return the next figure that can be published and is not larger; for one it is quicker than arrays are."""
    digits = math.floor(math.log10(value)) - (SIGNIFICANT_DIGITS - 1) if value > 0 else 0
    unit = float(MIB) if resource is Resource.VRAM else 10.0**digits
    return round(math.floor(value / unit + ROUNDED) * unit, DECIMALS)


def _unit(values: Floats, resource: Resource) -> Floats:
    """Return what a figure is a multiple of."""
    if resource is Resource.VRAM:
        return np.full(np.shape(values), float(MIB))
    with np.errstate(divide="ignore"):
        exponent = np.floor(np.log10(np.where(values > 0, values, 1.0)))
    return np.asarray(10.0 ** (exponent - (SIGNIFICANT_DIGITS - 1)), dtype=np.float64)
