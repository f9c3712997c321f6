"""A model on trial: its loss on data later than any it was fitted to, beside that of its rivals.

The loss is the pinball loss of the three quantiles in f, the mean over series of the mean over rows, as the gate of the
forecast counts it. Rivals: the model in force, the last value times the growth seen before (its quantiles), and the
same hours of yesterday.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from autoscaler.fit.rows import Table
from autoscaler.model.forecast import QUANTILES, Heads
from autoscaler.model.usage import Floats
from autoscaler.recommend.forecast import UNSCORED_WEIGHT, head_quantiles

NEW, IN_FORCE, LAST_VALUE, YESTERDAY = "new", "in_force", "last_value_growth", "yesterday"
LEAST_TRAINED: Final = 500
LEAST_TRIED: Final = 200


@dataclass(frozen=True, slots=True)
class Trial:
    """Losses by rival, smaller is better; `rows` tried; why the model was refused, or nothing."""

    losses: Mapping[str, float]
    rows: int
    refused: str = ""


def try_out(new: Heads, in_force: Heads | None, earlier: Table, later: Table) -> Trial:
    """Hold a model fitted to `earlier` rows against `later` ones."""
    forecasts = {NEW: _mixed(new, later), LAST_VALUE: _last_value(earlier, later), YESTERDAY: _yesterday(later)}
    if in_force is not None:
        forecasts[IN_FORCE] = _mixed(in_force, later)
    losses = {name: _loss(quantiles, later) for name, quantiles in forecasts.items()}
    return Trial(losses, len(later), _refusal(losses))


def _refusal(losses: Mapping[str, float]) -> str:
    """Return why the model is not taken: a rival was as good."""
    better = [name for name, loss in losses.items() if name != NEW and not losses[NEW] < loss]
    if not better:
        return ""
    best = min(better, key=lambda name: losses[name])
    return f"loss {losses[NEW]:.4f} is not below {losses[best]:.4f} of {best}"


def _mixed(heads: Heads, table: Table) -> Floats:
    """Return the quantiles (N, 3) of a workload whose heads were not scored yet."""
    plain = head_quantiles(table.plain, heads.plain)
    season = head_quantiles(np.concatenate([table.plain, table.season], axis=1), heads.season)
    share = np.where(table.has_season, UNSCORED_WEIGHT, 0.0)[:, None]
    return (1 - share) * plain + np.where(share > 0, share * season, 0.0)


def _last_value(earlier: Table, later: Table) -> Floats:
    """Return the newest bin's use times the growth that the earlier rows had, per quantile."""
    growth = np.quantile(earlier.truth - earlier.plain[:, 0], QUANTILES)
    return later.plain[:, :1] + growth


def _yesterday(table: Table) -> Floats:
    """Return the same hours of yesterday, or the last day's largest where that is not known, at every quantile."""
    known = np.where(table.has_season, table.season[:, 0], table.plain[:, 4])
    return np.repeat(known[:, None], len(QUANTILES), axis=1)


def _loss(quantiles: Floats, table: Table) -> float:
    error = table.truth[:, None] - quantiles
    levels = np.array(QUANTILES)
    loss = np.maximum(levels * error, (levels - 1) * error).mean(axis=1)
    return float(np.average(loss, weights=table.weights()))
