"""What one estimator says of one field, and how it chooses between its rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from autoscaler.model.columns import isnan
from autoscaler.model.proposal import Codes
from autoscaler.model.reasons import CAUSE_CODE, Cause
from autoscaler.model.usage import Bools, Floats


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """One field's estimate, arrays (W,): the figure, its band, why, whether it is urgent, and its inputs by name.

    Or the numbers of a workload alone, see `model.columns`.
    """

    figure: Floats
    lower: Floats
    upper: Floats
    cause: Codes
    urgent: Bools
    inputs: dict[str, Floats]


def choose(current: Floats | Any, rules: tuple[tuple[Bools, Floats, Cause], ...]) -> tuple[Floats, Codes]:
    """Return per workload the figure and cause of the first rule whose condition holds, else the one in force."""
    if not isinstance(current, np.ndarray):
        holding = ((value, why) for condition, value, why in rules if condition)
        value, why = next(holding, (current, Cause.UNCHANGED))
        return value, cast("Codes", CAUSE_CODE[why])
    figure, cause = current, np.full(current.shape, np.int8(CAUSE_CODE[Cause.UNCHANGED]))
    for condition, value, why in reversed(rules):
        figure = np.where(condition, value, figure)
        cause = np.where(condition, np.int8(CAUSE_CODE[why]), cause)
    return figure, cause


def kept(current: Floats) -> Estimate:
    """Return the estimate (W,) of a field that nobody asks to move."""
    figure, cause = choose(current, ())
    return Estimate(figure, figure, figure, cause, isnan(current), {})
