"""The last word: figures that a rule by the clock or an external scaler orders take the place of the estimators'."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from autoscaler.model.decision import Field
from autoscaler.model.fleet import Fleet
from autoscaler.model.proposal import Wanted


def lay_over(fleet: Fleet, wanted: Wanted) -> Wanted:
    """Return what is wanted with ordered figures in place; they are urgent, and their only input is the order itself.

    What is not ordered stays with its layer.
    """
    if not fleet.orders.is_any:
        return wanted
    ordered, figure = fleet.ordered, fleet.orders.figure
    inputs = dict(wanted.inputs)
    for field in Field:
        here = ordered[:, field]
        if here.any():
            estimated = {name: np.where(here, np.nan, column) for name, column in wanted.inputs[field].items()}
            inputs[field] = {**estimated, "ordered": figure[:, field]}
    return replace(
        wanted,
        figure=np.where(ordered, figure, wanted.figure),
        cause=np.where(ordered, fleet.orders.cause, wanted.cause).astype(np.int8),
        urgent=wanted.urgent | ordered,
        inputs=inputs,
    )
