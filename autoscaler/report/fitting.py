"""Figures of a workload's row, as long as the row stays within its width; pure.

Columns can't compute, and the widest cell sets a column's width: a row that is too wide in itself is told shorter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from autoscaler.model.decision import Field, field_of
from autoscaler.model.resources import GIB, MIB, Amounts, Resource, Side
from autoscaler.report.display import arrow, resource_text, short_amount

WIDTH: Final = 120
"""What a row of ordinary names and figures fits in."""
AGE_CHARACTERS: Final = 5
GAP: Final = 3
HEADERS: Final = {"qos": "QoS", "auto": "Auto", "replicas": "Replicas", "applied": "Applied", "status": "Status"}


def fitted(
    name: str, cells: Mapping[str, str], current: Amounts, recommended: Mapping[Field, float]
) -> tuple[str, str]:
    """Return the texts of compute and VRAM in the longest form in which the row fits; in a short one if none does.

    `cells`: the texts of the columns beside them, by HEADERS' keys.
    """
    others = _width(name, "Name") + sum(_width(cells[key], header) for key, header in HEADERS.items())
    room = WIDTH - AGE_CHARACTERS - others
    for pair in _FORMS:
        compute, vram = (form(one, current, recommended) for form, one in zip(pair, Resource, strict=True))
        if _width(compute, "TFlops") + _width(vram, "VRAM") <= room:
            return compute, vram
    return _whole(Resource.COMPUTE, current, recommended), _once(Resource.VRAM, current, recommended)


def _width(text: str, header: str) -> int:
    """Return how much of a line a cell takes: kubectl counts an arrow as the three bytes that it is."""
    return max(len(header), len(text.encode())) + GAP


def _whole(resource: Resource, current: Amounts, recommended: Mapping[Field, float]) -> str:
    return resource_text(resource, current, dict(recommended))


def _once(resource: Resource, current: Amounts, recommended: Mapping[Field, float]) -> str:
    """Return both pairs, the unit once in each: `4/8Gi→2.1/3.18Gi`."""
    pairs = _pairs(resource, current, recommended)
    return arrow(*(_merged(*(short_amount(resource, value) for value in pair)) for pair in pairs))


def _short(resource: Resource, current: Amounts, recommended: Mapping[Field, float]) -> str:
    """Return both pairs to two digits, the unit once: `4/8→2.1/3.2Gi`."""
    texts = [
        _merged(*(_two_digits(resource, value) for value in pair)) for pair in _pairs(resource, current, recommended)
    ]
    return _unit_once(arrow(*texts))


def _requests(resource: Resource, current: Amounts, recommended: Mapping[Field, float]) -> str:
    """Return the requests only: `4→2.1Gi`."""
    held, wanted = _pairs(resource, current, recommended)
    return _unit_once(arrow(_two_digits(resource, held[0]), _two_digits(resource, wanted[0])))


def _pairs(
    resource: Resource, current: Amounts, recommended: Mapping[Field, float]
) -> tuple[tuple[float, float], tuple[float, float]]:
    wanted = recommended[field_of(resource, Side.REQUEST)], recommended[field_of(resource, Side.LIMIT)]
    return (current[resource].request, current[resource].limit), wanted


def _merged(low: str, high: str) -> str:
    return low if low == high else _unit_once(f"{low}/{high}", "/")


def _unit_once(text: str, between: str = "→") -> str:
    """Return a text of two parts with their common unit behind the second only."""
    first, mark, second = text.partition(between)
    unit = first[-2:]
    same = mark and unit in {"Gi", "Mi"} and second.endswith(unit)
    return f"{first[:-2]}{mark}{second}" if same else text


def _two_digits(resource: Resource, value: float) -> str:
    if not math.isfinite(value):
        return short_amount(resource, value)
    if resource is Resource.VRAM:
        return f"{_digits(value / GIB)}Gi" if value >= GIB else f"{value / MIB:.0f}Mi"
    return _digits(value)


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


_FORMS: Final = ((_whole, _whole), (_whole, _once), (_short, _short), (_short, _requests), (_requests, _requests))
"""Of compute and of VRAM, the longest first."""
