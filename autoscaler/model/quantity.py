"""Figures as people write them: amounts of a resource, ratios and durations, parsed exactly and written back.

Amounts are TFLOPs (float) or bytes (whole number; a fraction of a byte rounds up, as Kubernetes does). Every parser
takes what YAML or JSON can hold there and raises ValueError, whose text says what is allowed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Final

from autoscaler.contract.quantity import parse_quantity
from autoscaler.model.resources import GIB, MIB, Resource

TFLOPS_ALLOWED: Final = "a positive quantity of FP16 TFLOPs such as 10, 12.5 or 500m"
BYTES_ALLOWED: Final = "a positive quantity of bytes such as 4Gi, 6.5Gi or 1536Mi"
RATIO_ALLOWED: Final = 'a ratio such as 0.1, "0.1" or "10%"'
DURATION_ALLOWED: Final = "a duration such as 30s, 5m, 1h30m or 7d (units ms, s, m, h, d, w)"

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_TERM: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|[smhdw])")
_DURATION: Final = re.compile(rf"(?:{_TERM.pattern})+")
_RATIO: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(%?)")


def _text(value: object) -> str:
    """Return a string or number as its decimal text, anything else as an empty one, which no grammar takes."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{Decimal(repr(value)):f}"
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _exact(value: object, allowed: str) -> Decimal:
    """Return the amount as written; a float counts as the decimal that was written, not its binary neighbour."""
    try:
        amount = parse_quantity(_text(value))
    except ValueError:
        raise ValueError(allowed) from None
    if amount <= 0:
        raise ValueError(allowed)
    return amount


def _tflops(value: object) -> float:
    return float(_exact(value, TFLOPS_ALLOWED))


def _bytes(value: object) -> int:
    return int(_exact(value, BYTES_ALLOWED).to_integral_value(ROUND_CEILING))


def _tflops_text(value: float) -> str:
    return f"{Decimal(repr(float(value))).normalize():f}"


def _bytes_text(value: float) -> str:
    size = math.ceil(value)
    if size >= 2 * GIB and size % (GIB // 2) == 0 and size % GIB:
        return f"{size / GIB:.1f}Gi"
    for power, unit in ((40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")):
        if size and size % 2**power == 0:
            return f"{size >> power}{unit}"
    return str(size)


def _tflops_rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _bytes_rounded(value: float) -> float:
    # Upwards: a published figure must never be less than what the estimate asked for.
    return float(math.ceil(value / MIB) * MIB)


@dataclass(frozen=True, slots=True)
class _Notation:
    """How amounts of one resource are read, written and rounded for publication."""

    parse: Callable[[object], float]
    text: Callable[[float], str]
    rounded: Callable[[float], float]


_NOTATIONS: Final = (
    _Notation(_tflops, _tflops_text, _tflops_rounded),
    _Notation(_bytes, _bytes_text, _bytes_rounded),
)


def parse_amount(resource: Resource, value: object) -> float:
    """Return TFLOPs, or whole bytes as an int, of a Kubernetes quantity; ValueError unless it is above zero."""
    return _NOTATIONS[resource].parse(value)


def format_amount(resource: Resource, value: float) -> str:
    """Return the short exact form for annotations and columns: `12.5`, `4Gi`, `6.5Gi`, `1536Mi`.

    ValueError for NaN and infinities: a missing figure has no text here.
    """
    if not math.isfinite(value):
        raise ValueError(f"{value} is no amount")
    return _NOTATIONS[resource].text(value)


def round_amount(resource: Resource, value: float) -> float:
    """Return the figure to publish: TFLOPs to 3 significant digits, bytes up to a whole MiB; NaN stays NaN."""
    return _NOTATIONS[resource].rounded(value) if math.isfinite(value) else value


def parse_ratio(value: object) -> float:
    """Return a ratio as a plain number: `0.1`, `"0.1"` and `"10%"` are all 0.1; ValueError otherwise."""
    match = _RATIO.fullmatch(_text(value))
    if match is None:
        raise ValueError(RATIO_ALLOWED)
    number = Decimal(match[1])
    return float(number / 100 if match[2] else number)


def format_ratio(value: float) -> str:
    """Return a ratio as a decimal string, `0.1`."""
    return f"{Decimal(repr(float(value))).normalize():f}"


def parse_duration(value: object) -> float:
    """Return the seconds of a Go or Prometheus duration (`1h30m`, `1.5h`, `7d`); ValueError otherwise."""
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        raise ValueError(DURATION_ALLOWED)
    return math.fsum(float(number) * _UNITS[unit] for number, unit in _TERM.findall(value))


def format_duration(seconds: float) -> str:
    """Return a duration in the fewest units, exact to the millisecond: `1h30m`, `7d`, `500ms`, `0s`."""
    rest = round(seconds * 1000)
    text = ""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, rest = divmod(rest, size)
        text += f"{count}{unit}" if count else ""
    return text or "0s"
