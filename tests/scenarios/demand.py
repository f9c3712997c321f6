"""What a workload would use if nothing limited it, minute by minute: a story's segments as numbers.

Segments follow each other; one without `for` goes on to the end. Each has one shape:

    at: 5                                       constant
    from: 5, to: 40                             a ramp over the segment
    steps: [5, 15], every: 7m                   one after the other, over and over
    daily: {"00:00": 2, "08:00": 2, "10:00": 40}    by the clock of the story's zone, straight lines between the points

and any may have `noise: 0.2, seed: 7`: each minute is multiplied by 1 ± at most so much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any

import numpy as np

from autoscaler.model.quantity import parse_amount, parse_duration
from autoscaler.model.resources import Resource
from autoscaler.model.usage import Floats

MINUTE = 60.0
DAY_MINUTES = 24 * 60


@dataclass(frozen=True)
class Span:
    """The minutes that are to be filled: how many, from when (seconds since the epoch), and whose clock counts."""

    minutes: int
    start: float
    zone: tzinfo


def minutes_of(text: object) -> int:
    """Return whole minutes of a duration such as `1h30m`; 0 and `0m` are the start."""
    if text == 0:
        return 0
    minutes = parse_duration(text) / MINUTE
    if minutes != int(minutes):
        raise ValueError(f"{text}: a story goes by whole minutes")
    return int(minutes)


def demand(segments: Sequence[Mapping[str, Any]], resource: Resource, span: Span) -> Floats:
    """Return the demand of each minute (T,), in TFLOPs or bytes."""
    values: list[Floats] = []
    left, at = span.minutes, span.start
    for segment in segments:
        length = min(minutes_of(segment["for"]), left) if "for" in segment else left
        whole = minutes_of(segment["for"]) if "for" in segment else left
        values.append(_noisy(segment, _shape(segment, resource, Span(whole, at, span.zone)))[:length])
        left, at = left - length, at + MINUTE * length
    if left:
        raise ValueError(f"the segments end {left} minutes before the story does")
    return np.concatenate(values) if values else np.zeros(span.minutes)


def _shape(segment: Mapping[str, Any], resource: Resource, span: Span) -> Floats:
    shape = {key for key in segment if key not in {"for", "noise", "seed"}}
    if shape == {"at"}:
        return np.full(span.minutes, _amount(resource, segment["at"]))
    if shape == {"from", "to"}:
        return np.linspace(_amount(resource, segment["from"]), _amount(resource, segment["to"]), span.minutes)
    if shape == {"steps", "every"}:
        levels = np.array([_amount(resource, one) for one in segment["steps"]])
        return np.asarray(levels[np.arange(span.minutes) // minutes_of(segment["every"]) % len(levels)])
    if shape == {"daily"}:
        points = sorted((_clock_minutes(at), _amount(resource, level)) for at, level in segment["daily"].items())
        clock = [
            moment.hour * 60 + moment.minute
            for moment in (datetime.fromtimestamp(span.start + MINUTE * n, span.zone) for n in range(span.minutes))
        ]
        return np.interp(clock, [at for at, _ in points], [level for _, level in points], period=DAY_MINUTES)
    raise ValueError(f"{sorted(shape)}: no shape of a segment")


def _noisy(segment: Mapping[str, Any], values: Floats) -> Floats:
    if "noise" not in segment:
        return values
    swing = np.random.default_rng(segment["seed"]).uniform(-segment["noise"], segment["noise"], len(values))
    return values * (1 + swing)


def _amount(resource: Resource, value: object) -> float:
    return 0.0 if value == 0 else float(parse_amount(resource, value))


def _clock_minutes(text: str) -> int:
    hours, minutes = text.split(":")
    return int(hours) * 60 + int(minutes)
