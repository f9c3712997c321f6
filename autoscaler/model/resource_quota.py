"""A namespace's GPUResourceQuota (TensorFusion's object, where installed): what all its workloads may have together.

`spec.total` bounds sums over workers and devices, `spec.single` one worker's own figures, `total.maxWorkers` the count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from autoscaler.errors import Problem
from autoscaler.model.decision import AMOUNT_FIELDS, Field
from autoscaler.model.quantity import parse_amount
from autoscaler.model.resources import SPECS, Side
from autoscaler.model.usage import Floats, Ints, WorkloadKey
from autoscaler.model.workload import Manifest

KIND: Final = "GPUResourceQuota"
UNLIMITED: Final = float("inf")
Five = tuple[float, float, float, float, float]
_TOTAL: Final = ("requests", "limits")
_SINGLE: Final = ("maxRequests", "maxLimits")


@dataclass(frozen=True, slots=True)
class ResourceQuota:
    """One namespace's quota, by Field: `total` over all workers and devices (replicas: the workers), `single` a worker.

    What is not set is infinite. `used`: what the object's own status counts, zero where it tells nothing.
    """

    total: Five
    single: Five
    used: Five


@dataclass(frozen=True, slots=True, eq=False)
class Quotas:
    """The quotas of a fleet: `row` (W,) is each workload's namespace among N, -1 without a quota; the rest (N, 5)."""

    row: Ints
    total: Floats
    single: Floats
    used: Floats


def read_quota(manifest: Manifest) -> tuple[ResourceQuota, tuple[Problem, ...]]:
    """Return a quota and what is wrong with it; a figure that can't be read leaves nothing to grow into."""
    spec, status = manifest.get("spec") or {}, manifest.get("status") or {}
    metadata = manifest["metadata"]
    source = f"{KIND} {metadata.get('namespace', '')}/{metadata['name']}"
    problems: list[Problem] = []
    total, single, used = map(_mapping, (spec.get("total"), spec.get("single"), status.get("used")))
    return ResourceQuota(
        total=(*_amounts(total, _TOTAL, "spec.total", problems), _count(total, "maxWorkers", UNLIMITED)),
        single=(*_amounts(single, _SINGLE, "spec.single", problems), UNLIMITED),
        used=(*_amounts(used, _TOTAL, "status.used", [], missing=0.0), _count(used, "workers", 0.0)),
    ), tuple(Problem(one.path, one.value, one.allowed, source) for one in problems)


def tighter(one: ResourceQuota, other: ResourceQuota) -> ResourceQuota:
    """Return what holds where a namespace has two quotas."""
    return ResourceQuota(
        total=_each(min, one.total, other.total),
        single=_each(min, one.single, other.single),
        used=_each(max, one.used, other.used),
    )


def to_quotas(keys: Sequence[WorkloadKey], quotas: Mapping[str, ResourceQuota]) -> Quotas | None:
    """Lay quotas out as columns for workloads in this order; None where there is no quota at all."""
    if not quotas:
        return None
    row_of = {namespace: row for row, namespace in enumerate(quotas)}
    figures = np.array([(one.total, one.single, one.used) for one in quotas.values()], dtype=float)
    rows = np.array([row_of.get(key.namespace, -1) for key in keys], dtype=np.int64)
    return Quotas(rows, figures[:, 0], figures[:, 1], figures[:, 2])


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _amounts(
    part: Mapping[str, object], names: tuple[str, str], path: str, problems: list[Problem], missing: float = UNLIMITED
) -> tuple[float, float, float, float]:
    figures = []
    for field in AMOUNT_FIELDS:
        assert field.resource is not None
        assert field.side is not None
        side, key = names[Side(field.side)], SPECS[field.resource].key
        value = _mapping(part.get(side)).get(key)
        figures.append(missing if value is None else _amount(field, value, f"{path}.{side}.{key}", problems))
    return figures[0], figures[1], figures[2], figures[3]


def _amount(field: Field, value: object, path: str, problems: list[Problem]) -> float:
    assert field.resource is not None
    if str(value) in {"0", "0.0"}:
        return 0.0
    try:
        return parse_amount(field.resource, value)
    except ValueError as error:
        problems.append(Problem(path, str(value), str(error)))
        return 0.0


def _count(part: Mapping[str, object], name: str, missing: float) -> float:
    value = part.get(name)
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else missing


def _each(choose: Callable[[float, float], float], one: Five, other: Five) -> Five:
    first, second, third, fourth, fifth = map(choose, one, other)
    return first, second, third, fourth, fifth
