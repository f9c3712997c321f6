"""What the layers' `prediction` blocks ask for: one forecast a workload, used by the layers that switched it on."""

from __future__ import annotations

from typing import Any, Final

from autoscaler.model.config import Configuration, Prediction
from autoscaler.model.defaults import DAY, HOUR

FORECASTS: Final = ("none", "auto", "linear", "seasonal-naive")
FORECAST_CODE: Final = {name: code for code, name in enumerate(FORECASTS)}
HORIZON_SECONDS: Final = 2 * HOUR
HISTORY_SECONDS: Final = 7 * DAY


def forecast_knobs(config: Configuration) -> dict[str, Any]:
    """Return the forecast's knobs by name.

    `forecast`: code of the model, 0 for none. `forecast_layers`: 1 where requests, limits, replicas use it. Where
    layers differ, the first of them names the model, and the longest horizon and history hold.
    """
    layers = (config.requests.prediction, config.limits.prediction, config.replicas_policy.prediction)
    using = [one for one in layers if _code(one)]
    horizons = [HORIZON_SECONDS if one.horizon_seconds is None else one.horizon_seconds for one in using]
    histories = [HISTORY_SECONDS if one.history_seconds is None else one.history_seconds for one in using]
    return {
        "forecast": _code(using[0]) if using else 0,
        "forecast_layers": tuple(float(_code(one) > 0) for one in layers),
        "forecast_horizon": max(horizons, default=HORIZON_SECONDS),
        "forecast_history": max(histories, default=HISTORY_SECONDS),
    }


def _code(prediction: Prediction) -> int:
    """Return the model's code, 0 where the forecast is off."""
    return FORECAST_CODE[prediction.model] if prediction.enable else 0
