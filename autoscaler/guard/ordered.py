"""What is ordered passes some guards: those that judge an estimate, or wait for a better moment.

An order (by a rule of the clock, or an external scaler) names a figure and a moment; there is no evidence to wait for,
and no swing to damp. Guards of safety (live use, bounds, order, capacity, the owner's pause) hold for it, too.
"""

from __future__ import annotations

from dataclasses import replace
from functools import wraps

import numpy as np

from autoscaler.guard.case import Case, Guard


def of_layers(guard_it: Guard) -> Guard:
    """Return a guard that leaves ordered figures as they came to it."""

    @wraps(guard_it)
    def guard_layers(case: Case) -> Case:
        after = guard_it(case)
        if not case.fleet.orders.is_any:
            return after
        ordered = case.fleet.ordered
        return replace(
            after,
            figure=np.where(ordered, case.figure, after.figure),
            verdict=np.where(ordered, case.verdict, after.verdict).astype(np.int8),
            frozen=np.where(ordered, case.frozen, after.frozen),
        )

    return guard_layers
