"""The regression itself: linear quantiles with a small L1 penalty, by scikit-learn's linear programme.

scikit-learn is imported here only, inside the function: it costs 235 MB and seconds, and the shipped model needs none.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

import numpy as np

from autoscaler.errors import FitError
from autoscaler.fit.rows import Table
from autoscaler.model.forecast import QUANTILES, Heads
from autoscaler.model.usage import Floats

PENALTY: Final = 1e-4
DECIMALS: Final = 5
EXTRA: Final = "pip install 'tensor-fusion-autoscaler[prediction]'"


def fit_heads(table: Table) -> Heads:
    """Return both heads' weights for a table.

    Raises:
        FitError: scikit-learn is not installed, or no solution was found.

    """
    both = table.where(table.has_season)
    if not len(both):
        raise FitError("no row of the history has an earlier day to look back to")
    wide = np.concatenate([both.plain, both.season], axis=1)
    return Heads(_weights(table.plain, table), _weights(wide, both))


def _weights(columns: Floats, table: Table) -> Floats:
    try:
        linear: Any = importlib.import_module("sklearn.linear_model")
    except ImportError as error:
        raise FitError(f"scikit-learn is needed to fit a model: {EXTRA} ({error})") from error
    rows = []
    for level in QUANTILES:
        regression = linear.QuantileRegressor(quantile=level, alpha=PENALTY, solver="highs")
        try:
            regression.fit(columns, table.truth, sample_weight=table.weights())
        except ValueError as error:
            raise FitError(f"the {level:g} quantile can't be fitted: {error}") from error
        rows.append([regression.intercept_, *regression.coef_])
    weights = np.round(np.array(rows, dtype=float), DECIMALS)
    if not np.isfinite(weights).all():
        raise FitError("the regression did not converge")
    return weights
