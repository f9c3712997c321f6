"""Whether a status differs enough from the one stored to be written; pure.

Only what this controller writes is compared: TensorFusion's operator keeps fields and conditions of its own beside
ours, and where its definitions are installed the server drops those of ours that they don't list (`lost`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from autoscaler.contract.quantity import parse_quantity
from autoscaler.model.stored import Path, without
from autoscaler.model.workload import Manifest
from autoscaler.report.conditions import ConditionType

COUNTS: Final = frozenset({"workerCount", "readyWorkers"})
"""Kept by the operator that starts the workers, where there is one."""
OURS: Final = COUNTS | {
    *("observedGeneration", "conditions", "selector", "recommendation", "recommendedReplicas", "autoscaling"),
    *("appliedRecommendedReplicas", "activeCronScalingRule", "workloads", "summary"),
}
"""The fields of a status that this controller states."""
_OPERATORS: Final = frozenset({"phase", "podTemplateHash"})
_OUR_CONDITIONS: Final = frozenset(ConditionType)
_EVALUATION: Final = frozenset({"lastEvaluationTime", "samples", "span", "message", "usage"})
"""What every evaluation makes anew: shown when something else is written, never the cause of a write."""
_DRIFTING: Final = frozenset({"lowerBound", "upperBound", "uncappedTarget", "uncappedLimitTarget", "bounds"})
DRIFT_RATIO: Final = 0.05
"""The band and the uncapped figure follow every sample; smaller moves than this are not worth a write."""


def changed(old: Manifest, new: Manifest, lost: frozenset[Path] = frozenset()) -> bool:
    """Tell whether a status differs enough to be written: in more than the evaluation's own traces and small drift.

    `lost`: fields that the cluster's definitions don't hold.
    """
    new = without(new, lost)
    said = {key: value for key, value in old.items() if key in new or (key in OURS - COUNTS and (key,) not in lost)}
    return _differs("", _by_condition(said), _by_condition(new))


def has_operator(stored: Manifest) -> bool:
    """Tell whether somebody starts the workers here, and counts them in their status."""
    return not _OPERATORS.isdisjoint(stored)


def others_conditions(stored: Manifest) -> list[Any]:
    """Return the conditions in a stored status that are not ours."""
    return [one for one in stored.get("conditions") or () if one.get("type") not in _OUR_CONDITIONS]


def beside_others(conditions: Iterable[Any], stored: Manifest) -> list[Any]:
    """Return our conditions, with those of others where leaving them out could remove them.

    TensorFusion's own definitions list conditions without a key, so that whoever writes them writes all; and they don't
    hold `autoscaling`. Ours merge them by type.
    """
    return [*conditions, *(() if "autoscaling" in stored else others_conditions(stored))]


def _by_condition(status: Manifest) -> Manifest:
    """Return a status with its conditions by type, ours only."""
    conditions = status.get("conditions")
    if conditions is None:
        return status
    named = {one.get("type"): one for one in conditions if one.get("type") in _OUR_CONDITIONS}
    return {**status, "conditions": named}


def _differs(name: str, old: Any, new: Any) -> bool:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = (old.keys() | new.keys()) - _EVALUATION
        if new.get("type") == ConditionType.CONFIG_VALID:
            keys |= {"message"}  # says what to correct
        return any(_differs(key, old.get(key), new.get(key)) for key in keys)
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        return len(old) != len(new) or any(_differs(name, *pair) for pair in zip(old, new, strict=True))
    if name in _DRIFTING and isinstance(old, str) and isinstance(new, str):
        return _moved(old, new)
    return bool(old != new)


def _moved(old: str, new: str) -> bool:
    try:
        before, after = float(parse_quantity(old)), float(parse_quantity(new))
    except ValueError:
        return False  # a text of several figures: those stand apart, too
    return abs(after - before) > DRIFT_RATIO * abs(before)
