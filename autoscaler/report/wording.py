"""Amounts, moments and spans as explanations word them; pure."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Final

from autoscaler.model.decision import Field
from autoscaler.model.quantity import format_duration
from autoscaler.model.resources import GIB, MIB, SPECS, Resource

_PLAIN: Final = frozenset({"percentile", "step", "burst_cap", "ratio_to_request"})
_PLAIN_ENDS: Final = ("_ratio", "_samples", "_workers", "_minutes", "_count", "_tflops", "_gib")
_LONG_SECONDS: Final = 86400.0


def name_of(field: Field) -> str:
    """Return what a figure is called: `compute request`, `VRAM limit`, `replicas`."""
    if field.resource is None or field.side is None:
        return "replicas"
    return f"{SPECS[field.resource].noun} {field.side.name.lower()}"


def amount(field: Field, value: float) -> str:
    """Return a figure with its unit, to four digits: `12.5 TFLOPs`, `4.25Gi`, `3`."""
    if math.isnan(value):
        return "unknown"
    if math.isinf(value):
        return "unbounded"
    if field.resource is Resource.COMPUTE:
        return f"{value:.4g} TFLOPs"
    if field.resource is Resource.VRAM:
        return f"{value / GIB:.4g}Gi" if value >= GIB else f"{value / MIB:.0f}Mi"
    return f"{value:.4g}"


def number(field: Field, name: str, value: float) -> str:
    """Return a named input: ratios and counts plain, `_seconds` as a span, the rest as amounts of the figure."""
    if name.endswith("_seconds"):
        return span(value)
    if name in _PLAIN or name.endswith(_PLAIN_ENDS):
        return f"{value:.4g}"
    return amount(field, value)


def span(seconds: float) -> str:
    """Return a length of time, to the second, or to the minute where it is longer than a day."""
    if not math.isfinite(seconds):
        return "for ever"
    return format_duration(round(seconds / 60) * 60 if abs(seconds) > _LONG_SECONDS else round(max(seconds, 0.0)))


def clock(at: float, now: float | None = None) -> str:
    """Return a moment in UTC; with `now` without the day if that is the same."""
    if not math.isfinite(at):
        return "never"
    moment = datetime.fromtimestamp(at, UTC)
    if now is not None and datetime.fromtimestamp(now, UTC).date() == moment.date():
        return f"{moment:%H:%M:%S}"
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def until(at: float, now: float) -> str:
    """Return a moment to come and how far off it is: `until 01:25:00 (14m)`."""
    return f"until {clock(at, now)} ({span(at - now)})" if math.isfinite(at) else "for ever"
