"""Below how many replicas nothing scales in: what disruption budgets leave, and what a gang needs; pure.

Scaling in evicts nothing, so Kubernetes itself would not ask the budgets. Their owner means them all the same: so many
pods have to be there. Where the budget's controller tells `disruptionsAllowed`, that is what may go now; where it tells
nothing yet, the budget's own figures are counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from autoscaler.model.workload import EMPTY, Floor, Manifest

Labels = Mapping[str, str]

_OPERATORS: Final[Mapping[str, Callable[[str | None, Sequence[str]], bool]]] = {
    "In": lambda value, values: value is not None and value in values,
    "NotIn": lambda value, values: value is None or value not in values,
    "Exists": lambda value, _: value is not None,
    "DoesNotExist": lambda value, _: value is None,
}


def floor_of(replicas: int, budgets: Iterable[Manifest], pods: Sequence[Manifest], gang: int) -> Floor:
    """Return the bounds of a workload with so many replicas; `budgets` are those of its namespace."""
    labels = {frozenset((pod["metadata"].get("labels") or EMPTY).items()) for pod in pods}
    floors = [
        (min(replicas, replicas - allowed), str(budget["metadata"]["name"]))
        for budget in budgets
        if any(selects((budget.get("spec") or EMPTY).get("selector"), dict(one)) for one in labels)
        and (allowed := _allowed(budget, replicas)) is not None
    ]
    most, name = max(floors, default=(0, ""))
    return Floor(max(most, 0), gang, name if most > 0 else "")


def selects(selector: Manifest | None, labels: Labels) -> bool:
    """Tell whether a label selector takes these labels: an empty one takes all, an absent one none."""
    if selector is None:
        return False
    wanted: Labels = selector.get("matchLabels") or EMPTY
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    return all(_holds(one, labels) for one in selector.get("matchExpressions") or ())


def _holds(expression: Manifest, labels: Labels) -> bool:
    judge = _OPERATORS.get(str(expression.get("operator")))
    return judge is not None and judge(labels.get(str(expression.get("key"))), expression.get("values") or ())


def _allowed(budget: Manifest, replicas: int) -> int | None:
    """Return how many pods may go now; None where neither the controller nor the budget says."""
    status, spec = budget.get("status") or EMPTY, budget.get("spec") or EMPTY
    told = status.get("disruptionsAllowed")
    if isinstance(told, int) and status.get("observedGeneration", 0) >= budget["metadata"].get("generation", 0):
        return told
    least, most = (_count(spec.get(field), replicas) for field in ("minAvailable", "maxUnavailable"))
    if least is not None:
        return max(replicas - least, 0)
    return most


def _count(value: Any, replicas: int) -> int | None:
    """Return a count or a percentage of the replicas, rounded up as the budget's controller does."""
    if isinstance(value, int):
        return value
    text = str(value or "")
    if text.endswith("%") and text[:-1].isascii() and text[:-1].isdecimal():
        return math.ceil(int(text[:-1]) * replicas / 100)
    return None
