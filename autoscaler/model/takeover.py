"""Figures that somebody else set, and that count as the user's own from then on; pure.

A figure is taken over once, and rests as it was set before this controller moves it again. Whoever insists on the same
figure within a day (a tool that puts a manifest back, say) lets it rest twice as long each time, so that two
controllers never pull at it in turn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from dataclasses import field as extra
from typing import Final

from autoscaler.model.decision import Field
from autoscaler.model.defaults import DAY, MINUTE

REST_SECONDS: Final = 5 * MINUTE
"""How long a figure rests that somebody set: long enough to see what becomes of it."""
LONGEST_REST_SECONDS: Final = DAY
INSISTED_SECONDS: Final = DAY
"""The same figure again within this time after its rest is insistence."""


@dataclass(frozen=True, slots=True)
class TakenOver:
    """A figure on record: what the user's own was (NaN: not told), what it is since, when, how often in a row."""

    field: Field
    base: float
    value: float
    at: float
    times: int = 1

    @property
    def rests_until(self) -> float:
        """Return until when nobody moves it here (seconds since the epoch)."""
        return self.at + min(REST_SECONDS * 2.0 ** (self.times - 1), LONGEST_REST_SECONDS)


@dataclass(frozen=True, slots=True)
class Found:
    """A figure that somebody else has just set: on `where` (names for people), from `before` to `value`.

    `seen`: what identifies the observation, so that a view that lags behind our own write is not told apart twice.
    """

    field: Field
    before: float
    value: float
    where: str
    seen: frozenset[tuple[str, str]] = extra(default=frozenset(), compare=False)


def taken_over(found: Found, base: float, known: TakenOver | None, now: float) -> TakenOver:
    """Return the record of a figure that was found; `known` is what is on record for it.

    The same figure while it still rests is the same takeover, which was not carried out to its end.
    """
    if known is not None and known.value == found.value and now < known.rests_until:
        return known
    insists = known is not None and known.value == found.value and now - known.rests_until <= INSISTED_SECONDS
    return TakenOver(found.field, base, found.value, now, known.times + 1 if known is not None and insists else 1)


def holds(known: TakenOver, base: float) -> bool:
    """Tell whether a record still stands for the user's figure: not once the template (`base`) says something else."""
    return known.base == base or (math.isnan(known.base) and math.isnan(base))
