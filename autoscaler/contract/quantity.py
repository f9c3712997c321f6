"""Kubernetes quantities as exact numbers: the one parser that both programs use for annotation values.

Grammar (k8s.io/apimachinery, `resource.Quantity`): a signed decimal number, then at most one of a binary suffix
(Ki Mi Gi Ti Pi Ei), a decimal suffix (n u m k M G T P E) or a decimal exponent (e or E and a signed integer).
`1E` is 10**18, `1E2` is 100. Pure; no float is involved.
"""

from __future__ import annotations

import re
from decimal import Context, Decimal
from typing import Final

ALLOWED: Final = (
    "a decimal number with at most one suffix of n u m k M G T P E, Ki Mi Gi Ti Pi Ei, or an exponent (1e3)"
)
MAX_MAGNITUDE: Final = 2**63 - 1
"""Largest magnitude a Kubernetes quantity holds."""

MAX_CHARACTERS: Final = 64
"""No amount anyone means is longer; bounds the work done for a hostile annotation."""

_MAX_EXPONENT: Final = 64
# Digits enough that no product below rounds: 64 characters times 1024**6 or 10**64.
_EXACT: Final = Context(prec=256)
_SCALES: Final = {
    "": Decimal(1),
    **{suffix: Decimal(1).scaleb(-3 * power) for power, suffix in enumerate("mun", start=1)},
    **{suffix: Decimal(1000**power) for power, suffix in enumerate("kMGTPE", start=1)},
    **{f"{letter}i": Decimal(1024**power) for power, letter in enumerate("KMGTPE", start=1)},
}
_QUANTITY: Final = re.compile(
    r"(?P<number>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))"
    r"(?:[eE](?P<exponent>[+-]?[0-9]+)|(?P<suffix>[KMGTPE]i|[numkMGTPE])?)"
)


def parse_quantity(text: str) -> Decimal:
    """Return the exact value of a Kubernetes quantity, in its base unit (`4Gi` is 4294967296, `100m` is 0.1).

    Raises:
        ValueError: not a quantity, or beyond what one holds; the message names what is allowed.
    """
    found = _QUANTITY.fullmatch(text) if len(text) <= MAX_CHARACTERS else None
    if found is None:
        raise ValueError(f"{text[:MAX_CHARACTERS]!r} is not a quantity; allowed: {ALLOWED}")
    exponent = int(found["exponent"] or 0)
    if abs(exponent) > _MAX_EXPONENT:
        raise ValueError(f"{text!r} has an exponent beyond ±{_MAX_EXPONENT}; allowed: {ALLOWED}")
    number = Decimal(found["number"]).scaleb(exponent, _EXACT)
    value = _EXACT.multiply(number, _SCALES[found["suffix"] or ""])
    if abs(value) > MAX_MAGNITUDE:
        raise ValueError(f"{text!r} is beyond ±(2^63-1), the largest quantity; allowed: {ALLOWED}")
    return value
