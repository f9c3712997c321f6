"""What stands in a figure's way, with its numbers, and what would have to happen; pure.

Moments are absolute: a status is written when something changes, and read at any time after. Neighbour: `message` says
what happens to the figure and which guard it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from autoscaler.contract import keys
from autoscaler.model.decision import LAYER_NAMES, Field, FieldDecision
from autoscaler.model.reasons import Verdict
from autoscaler.model.resources import Side
from autoscaler.model.workload import Workload
from autoscaler.report.wording import amount, clock, span

SWITCHES: Final = {"requests": keys.AUTO_REQUESTS, "limits": keys.AUTO_LIMITS, "replicas": keys.AUTO_REPLICAS}
BLOCKS: Final = {"requests": "autoSetRequests", "limits": "autoSetLimits", "replicas": "autoSetReplicas"}
Numbers = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Held:
    """One figure that a guard held or cut: its decision, the guard's numbers, its workload."""

    decision: FieldDecision
    numbers: Numbers
    workload: Workload

    @property
    def field(self) -> Field:
        """Which figure it is."""
        return self.decision.field

    def amount(self, name: str) -> str:
        """Return one of the numbers as an amount of the figure."""
        return amount(self.field, self.numbers[name])

    @property
    def until(self) -> str:
        """When the guard lets go, as far as that is known."""
        return clock(self.numbers.get("until_at", math.inf))


def way_out(held: Held) -> str:
    """Return what stands in the way and what would have to happen; empty where the verdict says it all."""
    word = _WORDS.get(held.decision.verdict)
    if word is None:
        return ""
    try:
        return word(held)
    except KeyError:  # the guard left no numbers of this figure
        return ""


def switched_off(field: Field, *, is_recommending: bool) -> str:
    """Return how a layer that only recommends is turned on."""
    layer = LAYER_NAMES[field]
    state = "set to recommend only" if is_recommending else "off"
    return (
        f"the layer is {state}: it is applied with the annotation {SWITCHES[layer]}: 'true', "
        f"or with {BLOCKS[layer]}.enable: true in the profile"
    )


def _few(held: Held) -> str:
    have, need = held.numbers["samples"], held.numbers["min_samples"]
    return (
        f"{have:.0f} of {need:.0f} samples as of lastEvaluationTime, one comes a minute while a worker runs; until "
        "then only use at the limit and out-of-memory move anything, and only up"
    )


def _early(held: Held) -> str:
    return (
        f"nothing is lowered before {held.until}, {span(held.numbers['initial_delay_seconds'])} after the first sample "
        "(initialDelayPeriod); a shortage raises it before"
    )


def _stale(held: Held) -> str:
    if not math.isfinite(held.numbers["fresh_seconds"]):
        return "Prometheus could not be read, see MetricsAvailable; it goes on when it can be"
    return (
        f"older than {span(held.numbers['fresh_seconds'])}; it goes on with the next sample: is a worker running, "
        "is its node's agent scraped?"
    )


def _paused(held: Held) -> str:
    pause = held.workload.config.pause
    until = f"until {clock(pause.until)}" if pause.until is not None else "until that is taken away"
    return f"by the annotation {keys.AUTOSCALING_PAUSED}, {until}"


def _elsewhere(held: Held) -> str:
    who = held.workload.managed_elsewhere or "an autoscaler on the same owner"
    return f"{who} moves them; to have them moved here, delete it, else leave {keys.AUTO_REPLICAS} off"


def _tolerance(held: Held) -> str:
    band, current = held.numbers["band_ratio"], held.decision.current
    return f"it moves when it is more than {band:.1%} off {amount(held.field, current)}"


def _stabilizing(held: Held) -> str:
    window = span(held.numbers["window_seconds"])
    if "until_at" not in held.numbers or not math.isfinite(held.numbers["until_at"]):
        return f"fewer were never enough in the whole of the last {window} yet"
    return f"of {window}, which is over at {held.until} if nothing asks for more before"


def _step(held: Held) -> str:
    if "most_added" in held.numbers:
        return f"{held.numbers['most_added']:g} more at once, the rest after the cool-down"
    return f"{held.numbers['most_removed']:g} fewer at once, the rest after the cool-down"


def _cooling(held: Held) -> str:
    return (
        f"it changed at {clock(held.numbers['moved_at'])} and rests {span(held.numbers['cool_down_seconds'])}, "
        f"until {held.until}"
    )


def _rolled_back(held: Held) -> str:
    return f"back to {held.amount('last_good')}, it may shrink again at {held.until}"


def _live(held: Held) -> str:
    if math.isnan(held.numbers.get("live", math.nan)):
        return "how much that is can't be seen, so it does not shrink: is the node's agent away?"
    return (
        f"{held.amount('live')} and {held.numbers['headroom_ratio']:.0%} more; it shrinks when less is in use, which "
        "for most frameworks takes a restart of the process"
    )


def _bounds(held: Held) -> str:
    return next(text for rule in _BOUNDS if (text := rule(held)))


def _by_partner(held: Held) -> str:
    """Return what the other side of the pair has to do with it."""
    partner, allowed = held.numbers.get("partner", math.nan), held.decision.allowed
    if allowed != partner:
        return ""
    if held.field.side is Side.LIMIT and held.decision.uncapped < allowed:
        return f"a limit is never under its request of {amount(held.field, partner)}; it shrinks after the request does"
    if held.field.side is Side.REQUEST and held.decision.uncapped > allowed:
        return f"a request is never over its limit of {amount(held.field, partner)}; it grows after the limit does"
    return ""


def _by_device(held: Held) -> str:
    device = held.numbers.get("device", math.inf)
    if not held.decision.allowed >= device * (1 - 1e-6):
        return ""
    return f"the device has {amount(held.field, device)}; more takes another GPU model, or more workers (auto-replicas)"


def _by_ratio(held: Held) -> str:
    ratio = held.numbers.get("ratio_to_request", math.nan)
    if math.isnan(ratio) or held.decision.uncapped <= held.decision.allowed:
        return ""
    return (
        f"{ratio:g} x the request of {held.amount('request')} at most; raise maxRatioToRequests, or the request "
        "(auto-requests does)"
    )


def _by_bounds(held: Held) -> str:
    most, least = held.amount("maximum"), held.amount("minimum")
    if held.field is Field.REPLICAS:
        return f"{least} to {most} workers are allowed, see minReplicas and maxReplicas of autoSetReplicas"
    return f"{least} to {most} are allowed, see bounds of the profile"


_BOUNDS: Final = (_by_partner, _by_device, _by_ratio, _by_bounds)
"""The first that has to do with where the figure stands."""


def _quota(held: Held) -> str:
    if "quota_left" not in held.numbers:
        return "raise the GPUResourceQuota of the namespace, or free some of it"
    left = amount(held.field, held.numbers["quota_left"])
    return (
        f"the GPUResourceQuota of {held.workload.key.namespace} has {left} left for all workers and GPUs; raise it, or "
        "free some of it"
    )


def _capacity(held: Held) -> str:
    numbers, gpus = held.numbers, held.workload.config.gpu_count
    if held.field is Field.REPLICAS:
        if "room_workers" not in numbers:
            return ""
        return (
            f"there is room for {numbers['room_workers']:g} more of its workers ({gpus:g} GPU{'s' if gpus > 1 else ''} "
            f"each{_eligible(held)}); add nodes, or free requests on them"
        )
    if "room" not in numbers:
        return "free requests on its devices, or let it run on emptier ones"
    text = f"room for {amount(held.field, max(numbers['room'], 0.0))} more per worker"
    if "free" in numbers:
        free, workers = amount(held.field, max(numbers["free"], 0.0)), numbers["workers_on_device"]
        text += f", the fullest of its devices has {free} unreserved for {workers:g} of its workers and all others"
    return f"{text}; it grows when others there shrink or go, or outward where auto-replicas is on"


def _eligible(held: Held) -> str:
    config = held.workload.config
    asked = [f"model {config.gpu_model}" * bool(config.gpu_model), f"pool {config.pool}" * bool(config.pool)]
    return "".join(f", {one}" for one in asked if one)


def _gave(held: Held) -> str:
    if "given" not in held.numbers:
        return "it comes back when there is room again"
    return f"{held.amount('given')} of it; it comes back when there is room again"


def _just(text: str) -> Callable[[Held], str]:
    return lambda _: text


_WORDS: Final[Mapping[Verdict, Callable[[Held], str]]] = {
    Verdict.LOW_CONFIDENCE: _few,
    Verdict.INITIAL_DELAY: _early,
    Verdict.STALE: _stale,
    Verdict.PAUSED: _paused,
    Verdict.REPLICAS_MANAGED_ELSEWHERE: _elsewhere,
    Verdict.WITHIN_TOLERANCE: _tolerance,
    Verdict.STABILIZING: _stabilizing,
    Verdict.STEP_LIMITED: _step,
    Verdict.COOLING_DOWN: _cooling,
    Verdict.ROLLED_BACK: _rolled_back,
    Verdict.LIVE_USE: _live,
    Verdict.BOUND_LIMITED: _bounds,
    Verdict.QUOTA_LIMITED: _quota,
    Verdict.CAPACITY_LIMITED: _capacity,
    Verdict.GAVE_TO_HIGHER_QOS: _gave,
    Verdict.RATE_LIMITED: _just("its turn comes in one of the next passes"),
    Verdict.ROLLOUT_IN_PROGRESS: _just("replicas move when all pods are of the newest template"),
    Verdict.PODS_PENDING: _just("replicas move when every worker runs: see why the pods are not scheduled"),
    Verdict.UNSUPPORTED_ISOLATION: lambda held: (
        f"{held.workload.config.isolation} is fixed when a worker starts; {keys.ISOLATION}: soft can be scaled"
    ),
    Verdict.DEDICATED_GPU: _just(f"it has the whole device by the annotation {keys.DEDICATED_GPU}"),
    Verdict.ADOPTED: lambda held: f"it may move again from {held.until} on",
    Verdict.NOT_SCALABLE: lambda held: held.workload.unscalable,
    Verdict.DISRUPTION_LIMITED: lambda held: (
        f"PodDisruptionBudget {held.workload.floor.budget} keeps {held.workload.floor.by_budget} now"
    ),
    Verdict.GANG_LIMITED: _just("fewer than gangScheduling.minMembers don't start"),
    Verdict.DISRUPTION_LIMITED: lambda held: (
        f"{held.workload.floor.budget} asks for {held.workload.floor.by_budget}; lower it to scale in further"
    ),
    Verdict.GANG_LIMITED: lambda held: f"minMembers of gangScheduling is {held.workload.floor.by_gang}",
    Verdict.NOT_SCALABLE: lambda held: held.workload.unscalable,
    Verdict.CONFIG_INVALID: _just("nothing is lowered until it is corrected, see ConfigValid"),
}
"""What is not here passes by itself, or its verdict names all there is to know."""
