"""One fit: history in, a model that passed its trial or the reason why none did out. Pure but for scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from autoscaler.errors import FitError
from autoscaler.fit.regress import fit_heads
from autoscaler.fit.rows import Past, days_known, joined, table_of
from autoscaler.fit.trial import LEAST_TRAINED, LEAST_TRIED, Trial, try_out
from autoscaler.model.forecast import ForecastModel
from autoscaler.recommend.features import BIN_SECONDS

LATER_SHARE: Final = 0.25
"""The newest part of the history, which no weight has seen."""
LEAST_DAYS: Final = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What to fit: the past, the horizons in seconds that are asked for, and the model to beat."""

    past: Past
    horizons: tuple[float, ...]
    in_force: ForecastModel | None
    now: float


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """The model to use from now on, None where nothing was better; what happened per horizon."""

    model: ForecastModel | None
    trials: dict[float, Trial]


def fit(task: Task) -> Outcome:
    """Fit each horizon to the earlier three quarters of the past, and try it on the rest.

    Raises:
        FitError: too little is known, or scikit-learn is missing.

    """
    if days_known(task.past) < LEAST_DAYS:
        raise FitError(f"{days_known(task.past):.1f} days of history are known, {LEAST_DAYS:g} are needed")
    heads, trials = dict(task.in_force.heads) if task.in_force else {}, {}
    for horizon in task.horizons:
        table = table_of(task.past, horizon)
        border = np.quantile(table.bin, 1 - LATER_SHARE) if len(table) else 0.0
        # What comes true after the border was not known at it.
        earlier = table.where(table.bin + round(horizon / BIN_SECONDS) <= border)
        later = table.where(table.bin >= border)
        if len(earlier) < LEAST_TRAINED or len(later) < LEAST_TRIED:
            raise FitError(f"{len(earlier)} rows to fit and {len(later)} to try are too few")
        new = fit_heads(earlier)
        trials[horizon] = try_out(new, heads.get(horizon), earlier, later)
        if not trials[horizon].refused:
            heads[horizon] = new
    if all(trial.refused for trial in trials.values()):
        return Outcome(None, trials)
    return Outcome(ForecastModel("fitted", task.now, heads), trials)


def fit_all(pasts: list[Past], horizons: tuple[float, ...], name: str) -> ForecastModel:
    """Fit each horizon to everything, each series counting the same; nothing is held back to try it on.

    Raises:
        FitError: too little is known, or scikit-learn is missing.

    """
    heads = {horizon: fit_heads(joined([table_of(past, horizon) for past in pasts])) for horizon in horizons}
    return ForecastModel(name, 0.0, heads)
