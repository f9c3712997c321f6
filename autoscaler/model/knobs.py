"""Configurations as columns: what each field means for each workload, defaults filled in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np

from autoscaler.model import defaults
from autoscaler.model.config import Configuration, LimitsPolicy, Mode, ReplicasPolicy, RequestsPolicy
from autoscaler.model.decision import AMOUNT_FIELDS, Field
from autoscaler.model.forecast_knobs import forecast_knobs
from autoscaler.model.resources import SPECS, Resource, Side
from autoscaler.model.usage import Floats, Ints

UNSET: Final = float("nan")
MODES: Final = tuple(Mode)
MODE_CODE: Final = {mode: code for code, mode in enumerate(MODES)}
ON: Final = MODE_CODE[Mode.ON]
STEP_ROUNDING: Final = 1e-9
Figures = tuple[float, float, float, float, float]
"""Five figures by Field."""


@dataclass(frozen=True, slots=True, eq=False)
class Knobs:
    """What each workload's configuration sets; (W, 5) by Field, (W, 2) by Resource, else (W,).

    NaN in a percentile or ratio means that the estimator's own rule decides. `minimum` and `maximum`: bounds as
    absolute figures. `target_utilization`: of the limit, NaN where replicas don't follow that resource.
    `replica_steps`, `replica_step_ratios` (W, 2): most replicas added, and removed, at once, as a count or as a ratio
    of the current count; the other one is NaN. `level_*`: of the service level. `rank`: position of the service level,
    0 gives first. `prior` (W, 2): what the size of the model says that a worker needs at
    least on each device, NaN where nobody told it. `forecast*`: see `forecast_knobs`.
    """

    mode: Ints
    evaluation: Floats
    dead_band: Floats
    stabilization: Floats
    up_cool_down: Floats
    down_cool_down: Floats
    minimum: Floats
    maximum: Floats
    request_percentile: Floats
    request_buffer: Floats
    request_half_life: Floats
    limit_percentile: Floats
    limit_buffer: Floats
    limit_half_life: Floats
    scale_up_step: Floats
    max_ratio_to_requests: Floats
    initial_delay: Floats
    target_utilization: Floats
    tolerance: Floats
    replica_steps: Floats
    replica_step_ratios: Floats
    level_percentile: Floats
    level_exceedances: Floats
    level_burst_cap: Floats
    level_vram_margin: Floats
    level_cool: Floats
    level_forecast: Floats
    level_forecast_surplus: Floats
    rank: Ints
    prior: Floats
    forecast: Ints
    forecast_layers: Floats
    forecast_horizon: Floats
    forecast_history: Floats

    def largest_step(self, replicas: Floats) -> Floats:
        """Return the most replicas that may be added, and removed, at once (W, 2) at these counts (W,).

        As in the Kubernetes HPA a percentage is of the current count and rounds up: 10 % of 72 is 8.
        """
        ratios = np.ceil(self.replica_step_ratios * replicas[:, None] - STEP_ROUNDING)
        return np.maximum(1.0, np.where(np.isnan(self.replica_step_ratios), self.replica_steps, ratios))


BY_FIELD: Final = ("mode", "evaluation", "dead_band", "stabilization", "up_cool_down", "down_cool_down", "minimum")
WIDTHS: Final = {
    **dict.fromkeys((*BY_FIELD, "maximum"), len(Field)),
    **dict.fromkeys(("request_percentile", "request_buffer", "limit_percentile", "limit_buffer"), len(Resource)),
    **dict.fromkeys(("target_utilization", "replica_steps", "replica_step_ratios"), 2),
    "prior": len(Resource),
    "forecast_layers": 3,
}


@dataclass(frozen=True, slots=True, eq=False)
class Laid:
    """Configurations and the user's own figures, which ratios refer to, with the knobs that they make."""

    configs: tuple[Configuration, ...]
    originals: tuple[Figures, ...]
    knobs: Knobs


def to_knobs(configs: Sequence[Configuration], originals: Sequence[Figures], previous: Laid | None = None) -> Laid:
    """Lay configurations out as columns; a configuration that is the same object as in `previous` keeps its row.

    Working a row out costs fifty times what keeping it does, and in a quiet fleet all are kept.
    """
    source = _rows_before(configs, originals, previous)
    fresh = [place for place, row in enumerate(source) if row < 0]
    rows = [_row(configs[place], originals[place]) for place in fresh]
    arrays: dict[str, Any] = {}
    for knob in fields(Knobs):
        shape = (len(rows), WIDTHS[knob.name]) if knob.name in WIDTHS else (len(rows),)
        dtype = np.int64 if knob.name in {"mode", "rank", "forecast"} else np.float64
        column = np.array([row[knob.name] for row in rows], dtype=dtype).reshape(shape)
        if previous is not None and len(rows) < len(configs):
            kept = getattr(previous.knobs, knob.name)[source]
            kept[fresh] = column
            column = kept
        arrays[knob.name] = column
    return Laid(tuple(configs), tuple(originals), Knobs(**arrays))


def _rows_before(configs: Sequence[Configuration], originals: Sequence[Figures], previous: Laid | None) -> list[int]:
    """Return each configuration's row in `previous`, -1 where it was not there or had other figures beside it."""
    if previous is None:
        return [-1] * len(configs)
    row_of = {id(config): row for row, config in enumerate(previous.configs)}
    rows = [row_of.get(id(config), -1) for config in configs]
    return [
        row if row >= 0 and previous.originals[row] == original else -1
        for row, original in zip(rows, originals, strict=True)
    ]


def _row(config: Configuration, original: Figures) -> dict[str, Any]:
    """Return one workload's knobs by name."""
    level = defaults.LEVELS[config.qos]
    minimum, maximum = _bounds(config, original)
    return {
        "mode": _modes(config),
        **_timing(config),
        "minimum": minimum,
        "maximum": maximum,
        **_requests(config.requests),
        **_limits(config.limits),
        **_replicas(config.replicas_policy),
        "initial_delay": _or(config.initial_delay_seconds, defaults.INITIAL_DELAY_SECONDS),
        "level_percentile": level.percentile,
        "level_exceedances": level.exceedances,
        "level_burst_cap": level.burst_cap,
        "level_vram_margin": level.vram_margin,
        "level_cool": level.cool_seconds,
        "level_forecast": level.forecast_quantile,
        "level_forecast_surplus": level.forecast_surplus_minutes,
        **forecast_knobs(config),
        "rank": defaults.RANK[config.qos],
        "prior": _prior(config),
    }


def _prior(config: Configuration) -> tuple[float, float]:
    size = config.model_size
    return UNSET, UNSET if size is None else size.weights_bytes / config.gpu_count


def _modes(config: Configuration) -> tuple[int, ...]:
    """Return the mode of each field: its layer's, where the layer targets its resource."""
    layers: dict[Side, RequestsPolicy | LimitsPolicy] = {Side.REQUEST: config.requests, Side.LIMIT: config.limits}
    modes = []
    for field in AMOUNT_FIELDS:
        assert field.side is not None
        layer = layers[field.side]
        modes.append(layer.mode if field.resource in layer.targets else Mode.OFF)
    return tuple(MODE_CODE[mode] for mode in (*modes, config.replicas_policy.mode))


def _timing(config: Configuration) -> dict[str, tuple[float, ...]]:
    """Return the knobs in time and tolerance, each by Field."""
    requests, limits, replicas = config.requests, config.limits, config.replicas_policy
    delta = requests.update_threshold_ratio, limits.ignored_delta_ratio, None
    evaluation = requests.evaluation_seconds, limits.evaluation_seconds, replicas.evaluation_seconds
    stabilization = requests.stabilization_seconds, limits.stabilization_seconds, replicas.stabilization_seconds
    up = None, limits.cool_down_seconds, replicas.scale_up_cool_down_seconds
    down = None, limits.cool_down_seconds, replicas.scale_down_cool_down_seconds
    return {
        "evaluation": _by_field(evaluation, defaults.EVALUATION_SECONDS),
        "dead_band": _by_field(delta, defaults.DEAD_BAND_RATIO),
        "stabilization": _by_field(stabilization, defaults.STABILIZATION_SECONDS),
        "up_cool_down": _by_field(up, defaults.UP_COOL_DOWN_SECONDS),
        "down_cool_down": _by_field(down, defaults.DOWN_COOL_DOWN_SECONDS),
    }


def _by_field(layers: tuple[float | None, float | None, float | None], default: Figures) -> tuple[float, ...]:
    """Spread what layers set (requests, limits, replicas) over the fields."""
    of_field = (layers[0], layers[1], layers[0], layers[1], layers[2])
    return tuple(_or(value, fallback) for value, fallback in zip(of_field, default, strict=True))


def _requests(policy: RequestsPolicy) -> dict[str, Any]:
    return {
        "request_percentile": (_or(policy.percentile), _or(policy.vram_percentile, _or(policy.percentile))),
        "request_buffer": (_or(policy.buffer_ratio, defaults.REQUEST_BUFFER_RATIO), _or(policy.buffer_ratio)),
        "request_half_life": _half_life(policy.aggregation_seconds, defaults.REQUEST_HALF_LIFE_SECONDS),
    }


def _limits(policy: LimitsPolicy) -> dict[str, Any]:
    """Return the layer's knobs; a percentile is set where the published formula was asked for, else NaN."""
    buffers = policy.tflops_buffer_ratio, policy.vram_buffer_ratio
    percentiles = policy.percentile, policy.vram_percentile if policy.vram_percentile is not None else policy.percentile
    asked = [p is not None or b is not None for p, b in zip(percentiles, buffers, strict=True)]
    default = defaults.LIMIT_AGGREGATION_SECONDS / defaults.HALF_LIVES_PER_AGGREGATION
    return {
        "limit_percentile": tuple(
            _or(p, defaults.LIMIT_PERCENTILE) if formula else UNSET
            for p, formula in zip(percentiles, asked, strict=True)
        ),
        "limit_buffer": tuple(_or(buffer, defaults.LIMIT_BUFFER_RATIO) for buffer in buffers),
        "limit_half_life": _half_life(policy.aggregation_seconds, default),
        "scale_up_step": _or(policy.scale_up_step, defaults.SCALE_UP_STEP),
        "max_ratio_to_requests": _or(policy.max_ratio_to_requests),
    }


def _replicas(policy: ReplicasPolicy) -> dict[str, Any]:
    steps = policy.scale_up_step or defaults.SCALE_OUT_STEP, policy.scale_down_step or defaults.SCALE_IN_STEP
    compute_default = defaults.TARGET_UTILIZATION_RATIO if policy.target_vram_ratio is None else UNSET
    return {
        "target_utilization": (_or(policy.target_tflops_ratio, compute_default), _or(policy.target_vram_ratio)),
        "tolerance": _or(policy.tolerance_ratio, defaults.TOLERANCE_RATIO),
        "replica_steps": tuple(UNSET if step.is_ratio else step.value for step in steps),
        "replica_step_ratios": tuple(step.value if step.is_ratio else UNSET for step in steps),
    }


def _bounds(config: Configuration, original: Figures) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return absolute bounds by Field, the tightest of minAllowed and minRatio, maxAllowed and maxRatio."""
    bounds, policy = config.bounds, config.replicas_policy
    low: list[float] = []
    high: list[float] = []
    for field in AMOUNT_FIELDS:
        assert field.resource is not None
        resource, figure = field.resource, original[field]
        low.append(
            max(
                SPECS[resource].floor, bounds.min_allowed[resource] or 0.0, (bounds.min_ratio[resource] or 0.0) * figure
            )
        )
        high.append(
            min(_or(bounds.max_allowed[resource], np.inf), _or(bounds.max_ratio[resource], np.inf) * (figure or np.inf))
        )
    most = max(float(_or(policy.max_replicas, defaults.MAX_REPLICAS)), 1.0)
    if policy.max_replicas is None:
        most = max(most, original[Field.REPLICAS])
    low.append(float(_or(policy.min_replicas, defaults.MIN_REPLICAS)))
    return tuple(low), (*high, most)


def _half_life(aggregation_seconds: float | None, default: float) -> float:
    if aggregation_seconds is None:
        return default
    return aggregation_seconds / defaults.HALF_LIVES_PER_AGGREGATION


def _or(value: float | None, default: float = UNSET) -> float:
    return default if value is None else value
