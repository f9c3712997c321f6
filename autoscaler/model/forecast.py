"""The forecast of compute: a linear quantile model as a value that can be shipped, fitted anew and compared.

It says how large the largest use of the coming `horizon` will be, at three quantiles; two heads, one that looks at the
last day, one that also looks at the same hours of the days before. Weights apply to scale-free features, so that one
model serves every workload.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from autoscaler.model.usage import Floats

QUANTILES: Final = (0.5, 0.8, 0.95)
PLAIN_FEATURES: Final = (
    *("peak_5m", "peak_30m", "peak_1h", "peak_4h", "peak_24h", "mean_1h", "mean_3h", "mean_24h"),
    *("q90_3h", "q90_24h", "hours_since_peak"),
)
SEASON_FEATURES: Final = ("yesterday", "days_mean", "days_peak", "days_mean_at_todays_level")
FORMAT: Final = 1


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """Weights per quantile, intercept first: `plain` (3, 1 + 11), `season` (3, 1 + 11 + 4)."""

    plain: Floats
    season: Floats


@dataclass(frozen=True, slots=True, eq=False)
class ForecastModel:
    """Heads by horizon in seconds; `name` says where it comes from, `fitted_at` when (0: shipped)."""

    name: str
    fitted_at: float
    heads: Mapping[float, Heads]

    def nearest(self, horizon_seconds: float) -> float:
        """Return the horizon among those fitted that is nearest in ratio."""
        return min(self.heads, key=lambda known: abs(math.log(known / horizon_seconds)))


def to_json(model: ForecastModel) -> str:
    """Render a model as the document that `from_json` reads."""
    heads = {
        f"{horizon:g}": {"plain": one.plain.tolist(), "season": one.season.tolist()}
        for horizon, one in sorted(model.heads.items())
    }
    document = {
        "format": FORMAT,
        "name": model.name,
        "fitted_at": model.fitted_at,
        "quantiles": QUANTILES,
        "plain_features": PLAIN_FEATURES,
        "season_features": SEASON_FEATURES,
        "horizons": heads,
    }
    return json.dumps(document, indent=1) + "\n"


def from_json(text: str) -> ForecastModel:
    """Read a model.

    Raises:
        ValueError: it is not a model of this version.

    """
    document: dict[str, Any] = json.loads(text)
    try:
        expected = (FORMAT, list(QUANTILES), list(PLAIN_FEATURES), list(SEASON_FEATURES))
        found = tuple(document[key] for key in ("format", "quantiles", "plain_features", "season_features"))
        if found != expected:
            raise ValueError("its features or quantiles are another version's")
        heads = {float(horizon): _heads(one) for horizon, one in document["horizons"].items()}
        return ForecastModel(str(document["name"]), float(document["fitted_at"]), heads)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a forecast model: {error!r}") from error


def _heads(document: Mapping[str, Any]) -> Heads:
    heads = Heads(np.array(document["plain"], dtype=float), np.array(document["season"], dtype=float))
    width = 1 + len(PLAIN_FEATURES)
    shapes = (len(QUANTILES), width), (len(QUANTILES), width + len(SEASON_FEATURES))
    if (heads.plain.shape, heads.season.shape) != shapes or not np.isfinite(
        [*heads.plain.flat, *heads.season.flat]
    ).all():
        raise ValueError(f"weights must be finite, of shapes {shapes}")
    return heads
