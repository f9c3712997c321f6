"""One sentence per figure, with all its numbers: the same in status, events, log and command line; pure.

`compute limit 20 → 40 TFLOPs: Saturated, use is clipped at the limit (use 19.8, step 2)`
`compute limit held at 20 TFLOPs, wanted 12.4: Surplus, … (…); Stabilizing, it must stay low for the whole window`
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final

from autoscaler.model.config import Mode
from autoscaler.model.decision import Decision, Field, FieldDecision
from autoscaler.model.quantity import format_amount, format_duration, round_amount
from autoscaler.model.reasons import Cause, Verdict
from autoscaler.model.resources import SPECS, Resource

CAUSE_TEXT: Final = {
    Cause.UNCHANGED: "the figure in force is inside the band",
    Cause.RAISED: "the estimate is above the figure in force",
    Cause.EXCEEDED: "use passed the request again and again",
    Cause.SURPLUS: "the estimate stays below the figure in force",
    Cause.SATURATED: "use is clipped at the limit, so demand is unknown and the limit probes upward",
    Cause.OOM_SEEN: "a worker ran out of memory",
    Cause.IDLE: "the workload idles and its memory cools down",
    Cause.LOAD: "utilization of the limits is off its target",
    Cause.NO_DATA: "nothing is known yet",
    Cause.CRON: "a rule by the clock names it",
    Cause.EXTERNAL: "the owner's own scaler names it",
    Cause.CRON_ENDED: "no rule by the clock is in force any more, back to the owner's figure",
    Cause.REVERTED: "the layer is off and autoscaling-revert is set, back to the owner's figure",
    Cause.VERTICAL_FIRST: "utilization is above its target, but limits can still grow, which comes first",
    Cause.COVER_FIRST: "fewer workers would do, once requests and limits cover the load that they take over",
}
VERDICT_TEXT: Final = {
    Verdict.PASSED: "",
    Verdict.LOW_CONFIDENCE: "too few samples to act on",
    Verdict.INITIAL_DELAY: "the initial delay is not over",
    Verdict.STALE: "the newest sample is too old",
    Verdict.RECOMMEND_ONLY: "the layer is not on",
    Verdict.PAUSED: "the owner paused it",
    Verdict.REPLICAS_MANAGED_ELSEWHERE: "another autoscaler sets the replicas",
    Verdict.WITHIN_TOLERANCE: "the difference is inside the tolerance",
    Verdict.STABILIZING: "it must stay low for the whole window",
    Verdict.COOLING_DOWN: "the last change is too recent",
    Verdict.STEP_LIMITED: "cut to the largest step",
    Verdict.LIVE_USE: "kept above what is in use now",
    Verdict.BOUND_LIMITED: "cut to the bounds",
    Verdict.CAPACITY_LIMITED: "cut to what the devices have left",
    Verdict.QUOTA_LIMITED: "cut to what the resource quota has left",
    Verdict.RATE_LIMITED: "other workloads move first in this pass",
    Verdict.ROLLOUT_IN_PROGRESS: "a rollout is in progress",
    Verdict.PODS_PENDING: "pods are pending",
    Verdict.UNSUPPORTED_ISOLATION: "this isolation can't be scaled",
    Verdict.DEDICATED_GPU: "the GPU is dedicated",
    Verdict.AGENT_UNREACHABLE: "a node agent is away",
    Verdict.ROLLED_BACK: "the last shrink did harm: it was taken back, and shrinking rests",
    Verdict.CONFIG_INVALID: "the configuration is not valid",
    Verdict.VERTICAL_FIRST: "the limit grows in this pass, which answers the same shortage",
    Verdict.REPLICAS_FIRST: "the replicas move first, they answer the same shortage or surplus",
    Verdict.LOAD_SPREADING: "the load is still spreading over new workers",
    Verdict.GAVE_TO_HIGHER_QOS: "given to higher service levels on its devices",
    Verdict.ADOPTED: "somebody else has just set it, it rests as it was set",
    Verdict.NOT_SCALABLE: "nobody can set the owner's replicas",
    Verdict.DISRUPTION_LIMITED: "a disruption budget keeps so many",
    Verdict.GANG_LIMITED: "the gang needs so many at once",
}
_PLAIN: Final = frozenset({"percentile", "step", "burst_cap", "ratio_to_request"})
_PLAIN_ENDS: Final = ("_ratio", "_samples", "_workers", "_minutes", "_count")
UNKNOWN: Final = "unknown"


def sentence(decision: FieldDecision) -> str:
    """Return what happens to a figure and why, so that a reader can recompute it."""
    cause = f"{decision.cause}, {decision.because or CAUSE_TEXT[decision.cause]}"
    inputs = ", ".join(_inputs(decision))
    text = f"{_subject(decision)} {_move(decision)}: {cause}" + (f" ({inputs})" if inputs else "")
    if is_blocked(decision) and decision.verdict is not Verdict.RECOMMEND_ONLY:
        text += f"; {decision.verdict}, {VERDICT_TEXT[decision.verdict]}"
    return text


def brief(decision: FieldDecision) -> str:
    """Return what happens to a figure and what led to it, without the numbers behind it."""
    text = f"{_subject(decision)} {_move(decision)}"
    return f"{text} ({decision.because or decision.cause})" if moves(decision) or is_blocked(decision) else text


def sentences_of(decision: Decision) -> dict[Field, str]:
    """Return one sentence per figure."""
    return {one.field: sentence(one) for one in decision.fields}


def explanation(decision: Decision, sentences: Mapping[Field, str]) -> str:
    """Return the sentences of the figures that move or are held back, else that nothing has to."""
    told = [sentences[one.field] for one in decision.fields if moves(one) or is_blocked(one)]
    return "; ".join(told) if told else "every figure is where it should be"


def moves(decision: FieldDecision) -> bool:
    """Tell whether a figure moves; one that is not known does not."""
    return decision.changed and not math.isnan(decision.allowed)


def is_blocked(decision: FieldDecision) -> bool:
    """Tell whether a guard left something else than what the estimate asked for."""
    reached = decision.uncapped == decision.wanted == decision.allowed
    return decision.verdict is not Verdict.PASSED and not reached


def amount_text(resource: Resource | None, value: float) -> str:
    """Return a figure for people: `12.5`, `4Gi`, `3` (resource None: a count), `unknown` for NaN."""
    if math.isnan(value):
        return UNKNOWN
    if resource is None or math.isinf(value):
        return f"{value:g}"
    return format_amount(resource, round_amount(resource, value))


def _subject(decision: FieldDecision) -> str:
    resource, side = decision.field.resource, decision.field.side
    if resource is None or side is None:
        return "replicas"
    return f"{SPECS[resource].noun} {side.name.lower()}"


def _move(decision: FieldDecision) -> str:
    resource = decision.field.resource
    unit = f" {SPECS[resource].unit}" if resource is Resource.COMPUTE else ""
    current, wanted, allowed, uncapped = (
        amount_text(resource, value)
        for value in (decision.current, decision.wanted, decision.allowed, decision.uncapped)
    )
    beyond = "" if uncapped in {wanted, UNKNOWN} else f" (uncapped {uncapped})"
    if moves(decision):
        return f"{current} → {allowed}{unit}" + (f", wanted {wanted}" if wanted != allowed else "") + beyond
    if wanted in {current, UNKNOWN}:
        return f"stays {current}{unit}{beyond}"
    if decision.mode is not Mode.ON:
        return f"{current}{unit}, recommended {wanted}{beyond}"
    return f"held at {current}{unit}, wanted {wanted}{beyond}"


def _inputs(decision: FieldDecision) -> Iterator[str]:
    for name, value in decision.inputs.items():
        if not math.isnan(value):
            yield f"{name.removesuffix('_seconds').replace('_', ' ')} {_input(decision, name, value)}"


def _input(decision: FieldDecision, name: str, value: float) -> str:
    if name.endswith("_seconds") and math.isfinite(value):
        return format_duration(round(value))
    plain = name in _PLAIN or name.endswith(_PLAIN_ENDS)
    return f"{value:.4g}" if plain else amount_text(decision.field.resource, value)
