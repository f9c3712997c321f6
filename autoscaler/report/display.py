"""The short strings of the columns: `10/20→12/24`, `4Gi→6Gi`, `2→3`, `req,lim,rep`, `Hold`; pure."""

from __future__ import annotations

import math
from typing import Final

from autoscaler.model.config import Configuration, Mode
from autoscaler.model.decision import Decision, Field, field_of
from autoscaler.model.reasons import Verdict
from autoscaler.model.resources import GIB, MIB, Amounts, Resource, Side
from autoscaler.model.schedule import does_something
from autoscaler.report.conditions import Reason
from autoscaler.report.message import amount_text
from autoscaler.report.reported import MetricsReason, SyncReason

STATUS_CHARACTERS: Final = 15
NOTHING: Final = "off"
DECIDERS: Final = ("req", "lim", "rep", "cron", "ext")
SHORT: Final[dict[str, str]] = {
    Reason.INVALID: "ConfigInvalid",
    Reason.APPLIED_PARTIALLY: "Applying",
    Verdict.WITHIN_TOLERANCE: "Hold",
    Verdict.STABILIZING: "Hold",
    Verdict.COOLING_DOWN: "Hold",
    Verdict.STEP_LIMITED: "StepLim",
    Verdict.BOUND_LIMITED: "BoundLim",
    Verdict.CAPACITY_LIMITED: "CapacityLim",
    Verdict.QUOTA_LIMITED: "QuotaLim",
    Verdict.RATE_LIMITED: "RateLim",
    Verdict.REPLICAS_MANAGED_ELSEWHERE: "Elsewhere",
    Verdict.ROLLOUT_IN_PROGRESS: "Rollout",
    Verdict.LOAD_SPREADING: "Spreading",
    Verdict.DISRUPTION_LIMITED: "DisruptionLim",
    Verdict.GANG_LIMITED: "GangLim",
    Verdict.UNSUPPORTED_ISOLATION: "Isolation",
    Verdict.AGENT_UNREACHABLE: "AgentAway",
    MetricsReason.MISSING: "NoMetrics",
    MetricsReason.UNSUPPORTED_DEVICE: "NoSuchDevice",
    SyncReason.NOT_ACKNOWLEDGED: "Applying",
    "WaitingForShrink": "WaitingShrink",
}
"""What is shorter than its reason; every other reason stands for itself, cut to 15 characters."""


def short_status(reason: str) -> str:
    """Return a reason in at most 15 characters."""
    return SHORT.get(reason, reason)[:STATUS_CHARACTERS]


def layers_on(config: Configuration) -> str:
    """Return the layers that are on, and who else decides: `req,lim,rep`, `rep,cron`, `ext`; `off` when nobody does."""
    deciders = (
        config.requests.mode is Mode.ON,
        config.limits.mode is Mode.ON,
        config.replicas_policy.mode is Mode.ON,
        any(does_something(rule) for rule in config.cron_rules),
        config.external is not None and config.external.enable,
    )
    return ",".join(name for name, decides in zip(DECIDERS, deciders, strict=True) if decides) or NOTHING


def recommended_amounts(current: Amounts, decision: Decision | None) -> dict[Field, float]:
    """Return what is recommended for each amount, in every mode; unknown: what holds."""
    figures = {}
    for field in Field:
        if field.resource is None or field.side is None:
            continue
        amount = current[field.resource]
        held = amount.request if field.side is Side.REQUEST else amount.limit
        wanted = decision[field].wanted if decision is not None else math.nan
        figures[field] = held if math.isnan(wanted) else wanted
    return figures


def resource_text(resource: Resource, current: Amounts, recommended: dict[Field, float]) -> str:
    """Return `request/limit`, once where both are equal, and what is recommended behind an arrow if it differs."""
    sides = tuple(recommended[field_of(resource, side)] for side in Side)
    return arrow(
        _pair(resource, current[resource].request, current[resource].limit), _pair(resource, sides[0], sides[1])
    )


def arrow(before: str, after: str) -> str:
    """Return `before→after`, or one of them when they read the same."""
    return before if before == after else f"{before}→{after}"


def short_amount(resource: Resource, value: float) -> str:
    """Return a figure for a narrow column, to three digits: `12.5`, `26.8Gi`, `538Mi`."""
    if resource is not Resource.VRAM or not math.isfinite(value):
        return amount_text(resource, value)
    return f"{value / GIB:.3g}Gi" if value >= GIB else f"{value / MIB:.0f}Mi"


def _pair(resource: Resource, request: float, limit: float) -> str:
    low, high = short_amount(resource, request), short_amount(resource, limit)
    return low if request == limit else f"{low}/{high}"
