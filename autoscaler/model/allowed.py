"""From a decision to the amounts one worker is to hold: only what is ON is applied, the rest stays as it is.

Written once, because annotations, quotas and status must carry the same figures.
"""

from __future__ import annotations

import math
from typing import Final

from autoscaler.model.config import Mode
from autoscaler.model.decision import Decision, FieldDecision, field_of
from autoscaler.model.reasons import Verdict
from autoscaler.model.resources import Amount, Amounts, Resource, Side

HANDS_OFF: Final = frozenset(
    {Verdict.PAUSED, Verdict.CONFIG_INVALID, Verdict.UNSUPPORTED_ISOLATION, Verdict.DEDICATED_GPU}
)
"""Verdicts under which not even a newborn worker is brought to the workload's figure."""


def is_applied(decision: FieldDecision) -> bool:
    """Tell whether the allowed figure is written to workers: layer on, figure known, nobody said hands off."""
    return decision.mode is Mode.ON and decision.verdict not in HANDS_OFF and math.isfinite(decision.allowed)


def allowed_amounts(current: Amounts, decision: Decision | None) -> Amounts:
    """Return what a worker that holds `current` is to hold (TFLOPs and bytes, per device).

    Where only one side of a resource is ours it yields to the other, so that request <= limit holds for every worker.
    """
    if decision is None:
        return current
    return Amounts(_allowed(current, decision, Resource.COMPUTE), _allowed(current, decision, Resource.VRAM))


def _allowed(current: Amounts, decision: Decision, resource: Resource) -> Amount:
    held = current[resource]
    wanted_request = decision[field_of(resource, Side.REQUEST)]
    wanted_limit = decision[field_of(resource, Side.LIMIT)]
    request = wanted_request.allowed if is_applied(wanted_request) else held.request
    limit = wanted_limit.allowed if is_applied(wanted_limit) else held.limit
    if request <= limit:
        return Amount(request, limit)
    return Amount(request, request) if is_applied(wanted_limit) else Amount(limit, limit)
