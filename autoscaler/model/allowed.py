"""From a decision to the amounts one worker is to hold: only what is ON is applied, the rest stays as it is.

Written once, because annotations, quotas and status must carry the same figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from autoscaler.model.config import Mode
from autoscaler.model.decision import AMOUNT_FIELDS, Decision, Field, FieldDecision
from autoscaler.model.reasons import Verdict
from autoscaler.model.resources import Amount, Amounts

HANDS_OFF: Final = frozenset(
    {Verdict.PAUSED, Verdict.CONFIG_INVALID, Verdict.UNSUPPORTED_ISOLATION, Verdict.DEDICATED_GPU}
)
"""Verdicts under which not even a newborn worker is brought to the workload's figure."""


def is_applied(decision: FieldDecision) -> bool:
    """Tell whether the allowed figure is written to workers: layer on, figure known, nobody said hands off."""
    return decision.mode is Mode.ON and decision.verdict not in HANDS_OFF and math.isfinite(decision.allowed)


@dataclass(frozen=True, slots=True)
class Overlay:
    """What a decision puts over a worker's amounts, by AMOUNT_FIELDS; None: that figure is not ours to set.

    Made once per workload: a fleet has ten times as many workers.
    """

    compute: tuple[float | None, float | None]
    vram: tuple[float | None, float | None]

    def fields(self) -> frozenset[Field]:
        """Return the figures that are ours to set."""
        figures = (*self.compute, *self.vram)
        return frozenset(field for field, figure in zip(AMOUNT_FIELDS, figures, strict=True) if figure is not None)

    def over(self, current: Amounts) -> Amounts:
        """Return what a worker that holds `current` is to hold (TFLOPs and bytes, per device).

        Where only one side of a resource is ours it yields to the other: request <= limit holds for every worker.
        """
        compute, vram = _over(self.compute, current.compute), _over(self.vram, current.vram)
        same = compute is current.compute and vram is current.vram
        return current if same else Amounts(compute, vram)


def overlay_of(decision: Decision | None) -> Overlay:
    """Return what a decision sets on every worker; without one nothing is set."""
    if decision is None:
        return Overlay((None, None), (None, None))
    request, limit, vram_request, vram_limit = (
        decision.fields[field].allowed if is_applied(decision.fields[field]) else None for field in AMOUNT_FIELDS
    )
    return Overlay((request, limit), (vram_request, vram_limit))


def allowed_amounts(current: Amounts, decision: Decision | None) -> Amounts:
    """Return what a worker that holds `current` is to hold by a decision; see `Overlay.over`."""
    return overlay_of(decision).over(current)


def _over(figures: tuple[float | None, float | None], held: Amount) -> Amount:
    request = held.request if figures[0] is None else figures[0]
    limit = held.limit if figures[1] is None else figures[1]
    if request > limit:
        request, limit = (limit, limit) if figures[1] is None else (request, request)
    return held if request == held.request and limit == held.limit else Amount(request, limit)
