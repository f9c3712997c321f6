"""What an external scaler is asked for, what it may answer, and how that is read; pure.

An answer is a JSON object; everything in it is optional, an empty object is no opinion:

    {"desiredReplicas": 3,
     "desiredResources": {"requests": {"tflops": "10", "vram": "4Gi"}, "limits": {"tflops": "20", "vram": "8Gi"}},
     "reason": "queue is growing"}

TensorFusion's own form is taken, too: `needScaleUp`, `needScaleDown`, `recommendedResources`, `reason`; where neither
need is true it is no opinion. Anything else is refused whole, with what is wrong: an answer is never half believed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import msgspec

from autoscaler.errors import ConfigError, Problem
from autoscaler.model.config import ExternalScaler
from autoscaler.model.problems import shown
from autoscaler.model.quantity import format_amount, parse_amount
from autoscaler.model.resources import SPECS, Resource, Side
from autoscaler.model.usage import WorkloadKey

MAX_REPLICAS: Final = 10_000
MAX_AMOUNTS: Final = (1e6, 16.0 * 2**40)
"""Most TFLOPs and bytes that are believed, by Resource: far more than a device has, far less than a slip of units."""
MAX_REASON_CHARACTERS: Final = 1024
STALE_INTERVALS: Final = 3
"""An answer older than so many intervals is no order any more."""
_OWN: Final = ("desiredReplicas", "desiredResources", "reason")
_TENSOR_FUSION: Final = ("needScaleUp", "needScaleDown", "recommendedResources", "reason")
_SIDES: Final = {"requests": Side.REQUEST, "limits": Side.LIMIT}
_RESOURCES: Final = {spec.key: spec.resource for spec in SPECS}


class ScalerReason(StrEnum):
    """Reasons of the condition ExternalScalerAvailable."""

    ANSWERED = "Answered"
    NOT_ASKED = "NotAskedYet"
    TIMED_OUT = "TimedOut"
    UNREACHABLE = "Unreachable"
    HTTP_ERROR = "HttpError"
    INVALID_ANSWER = "InvalidAnswer"
    CIRCUIT_OPEN = "CircuitOpen"
    SECRET_UNAVAILABLE = "SecretUnavailable"  # noqa: S105  no secret
    BUSY = "Busy"


@dataclass(frozen=True, slots=True)
class Question:
    """What one workload's scaler is asked; `body` is JSON."""

    key: WorkloadKey
    scaler: ExternalScaler
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """Figures by Field, NaN where the scaler has no opinion; `at` in seconds since the epoch."""

    at: float
    figures: tuple[float, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no answer."""

    reason: ScalerReason
    message: str


@dataclass(frozen=True, slots=True)
class ScalerState:
    """What is known of a workload's scaler: how the last question went, and the last good answer.

    Times in seconds since the epoch; `asked_at` -inf: never.
    """

    scaler: ExternalScaler
    asked_at: float = -math.inf
    reason: ScalerReason = ScalerReason.NOT_ASKED
    message: str = "it was not asked yet"
    answer: Answer | None = None

    def order(self, now: float) -> Answer | None:
        """Return the answer that holds at `now`, None when there is none or it is too old."""
        limit = STALE_INTERVALS * self.scaler.interval_seconds
        return self.answer if self.answer is not None and now - self.answer.at <= limit else None


def parse_answer(content: bytes, at: float) -> Answer:
    """Return an answer as figures.

    Raises:
        ConfigError: with everything that is wrong with it.

    """
    try:
        body = msgspec.json.decode(content)
    except (ValueError, RecursionError) as error:
        text = content[:80].decode(errors="replace")
        raise ConfigError([Problem("(answer)", text, f"a JSON object ({error})")]) from None
    if not isinstance(body, dict):
        raise ConfigError([Problem("(answer)", shown(body), "a JSON object")])
    reader = _Reader([])
    figures, reason = reader.figures(body), reader.reason(body.get("reason"))
    if reader.problems:
        raise ConfigError(reader.problems)
    return Answer(at, figures, reason)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads parts of an answer and collects what is wrong with them."""

    problems: list[Problem]

    def figures(self, body: Mapping[str, Any]) -> tuple[float, ...]:
        theirs = any(key in body for key in _TENSOR_FUSION[:-1])
        self.refuse_unknown("", body, _TENSOR_FUSION if theirs else _OWN)
        if not theirs:
            amounts = self.amounts("desiredResources", body.get("desiredResources"))
            return *amounts, self.replicas(body.get("desiredReplicas"))
        wanted = [self.need(key, body.get(key, False)) for key in ("needScaleUp", "needScaleDown")]
        amounts = self.amounts("recommendedResources", body.get("recommendedResources"))
        return *(amounts if any(wanted) else [math.nan] * len(amounts)), math.nan

    def refuse_unknown(self, path: str, body: Mapping[str, Any], known: Sequence[str]) -> None:
        for key in body.keys() - set(known):
            self.problems.append(Problem(f"{path}{key}", shown(body[key]), f"no such key; known: {', '.join(known)}"))

    def need(self, path: str, value: object) -> bool:
        if not isinstance(value, bool):
            self.problems.append(Problem(path, shown(value), "true or false"))
        return value is True

    def reason(self, value: object) -> str:
        if value is None:
            return ""
        if not isinstance(value, str) or len(value) > MAX_REASON_CHARACTERS:
            self.problems.append(Problem("reason", shown(value), f"a string of at most {MAX_REASON_CHARACTERS}"))
            return ""
        return " ".join(value.split())

    def replicas(self, value: object) -> float:
        if value is None:
            return math.nan
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_REPLICAS:
            allowed = f"a whole number from 0 to {MAX_REPLICAS}"
            self.problems.append(Problem("desiredReplicas", shown(value), allowed))
            return math.nan
        return float(value)

    def amounts(self, path: str, value: object) -> list[float]:
        """Return request and limit of compute, then of VRAM."""
        figures = [math.nan] * (len(Resource) * len(Side))
        for name, members in self.mapping(path, value, tuple(_SIDES)).items():
            below = f"{path}.{name}"
            for key, amount in self.mapping(below, members, tuple(_RESOURCES)).items():
                resource = _RESOURCES[key]
                figures[2 * resource + _SIDES[name]] = self.amount(f"{below}.{key}", resource, amount)
        for resource in Resource:
            request, limit = figures[2 * resource : 2 * resource + 2]
            if request > limit:
                allowed = f"at most the limit ({format_amount(resource, limit)})"
                where = f"{path}.requests.{SPECS[resource].key}"
                self.problems.append(Problem(where, format_amount(resource, request), allowed))
        return figures

    def mapping(self, path: str, value: object, known: Sequence[str]) -> dict[str, Any]:
        """Return the known members of an object that are set; absent and null are empty."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.problems.append(Problem(path, shown(value), f"an object with {' and '.join(known)}"))
            return {}
        self.refuse_unknown(f"{path}.", value, known)
        return {key: value[key] for key in known if value.get(key) is not None}

    def amount(self, path: str, resource: Resource, value: object) -> float:
        most = MAX_AMOUNTS[resource]
        try:
            amount = float(parse_amount(resource, value))
        except ValueError as error:
            self.problems.append(Problem(path, shown(value), str(error)))
            return math.nan
        if amount > most:
            self.problems.append(Problem(path, shown(value), f"at most {format_amount(resource, most)}"))
            return math.nan
        return amount
