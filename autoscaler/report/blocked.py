"""What keeps a layer from growing until somebody acts, and whether that was told already; pure.

An episode begins when a layer is blocked for a reason and ends when nothing holds it any more. What was told is kept in
the status, so that neither another reason in between nor a restart tells it twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from autoscaler.model.config import Mode
from autoscaler.model.decision import Decision, FieldDecision
from autoscaler.model.reasons import Verdict
from autoscaler.model.workload import Manifest
from autoscaler.report.conditions import LAYERS, gravest
from autoscaler.report.message import is_blocked

BLOCKING: Final = frozenset(
    {
        Verdict.CAPACITY_LIMITED,
        Verdict.QUOTA_LIMITED,
        Verdict.BOUND_LIMITED,
        Verdict.UNSUPPORTED_ISOLATION,
        Verdict.DEDICATED_GPU,
        Verdict.REPLICAS_MANAGED_ELSEWHERE,
        Verdict.AGENT_UNREACHABLE,
    }
)
"""Verdicts that someone has to resolve before growth can go on; the others pass by themselves."""
_SEPARATOR: Final = ","


def told_before(status: Manifest) -> dict[str, str]:
    """Return by layer (condition type) what was told of it; a status without that tells it by its conditions."""
    text = (status.get("autoscaling") or {}).get("lastBlocked")
    if text:
        return dict(part.partition("=")[::2] for part in str(text).split(_SEPARATOR))
    conditions = status.get("conditions") or ()
    known = {str(one.get("type")): str(one.get("reason")) for one in conditions}
    return {type_: known[type_] for type_ in LAYERS if known.get(type_) in BLOCKING}


def blocked_now(decision: Decision, before: Mapping[str, str]) -> dict[str, str]:
    """Return by layer what keeps it from growing, or what did when it was last blocked in this episode."""
    now: dict[str, str] = {}
    for type_, fields in LAYERS.items():
        figures = [decision[field] for field in fields if decision[field].mode is Mode.ON]
        stuck = gravest(one for one in figures if wants_more(one))
        if stuck is not None:
            now[type_] = str(stuck.verdict)
        elif type_ in before and any(is_blocked(one) for one in figures):
            now[type_] = before[type_]
    return now


def blocked_text(blocked: Mapping[str, str]) -> str | None:
    """Return what `told_before` reads, None where nothing is blocked."""
    return _SEPARATOR.join(f"{type_}={verdict}" for type_, verdict in blocked.items()) or None


def wants_more(decision: FieldDecision) -> bool:
    """Tell whether a figure would grow, were it not for something that somebody has to resolve."""
    grows = decision.uncapped > decision.allowed or decision.wanted > decision.allowed
    return decision.mode is Mode.ON and is_blocked(decision) and decision.verdict in BLOCKING and grows
