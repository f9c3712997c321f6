"""The forecast: quantiles of the largest compute use of the coming hours, and how far the season is believed.

Two linear quantile heads (Koenker & Bassett 1978) over scale-free features. Each is scored on this workload once the
truth is known: pinball loss of its three quantiles, exponentially weighted with a half-life of a day. `auto` averages
the heads with weights that fall with the sixth power of the loss, and drops the season's where it is half again as
bad. Averages of forecasts beat the choice of one (Bates & Granger 1969).
"""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist
from typing import Final, NamedTuple, cast

import numpy as np

from autoscaler.model.columns import beside, isnan, power, ratio, where, without
from autoscaler.model.decision import Field
from autoscaler.model.defaults import DAY
from autoscaler.model.fleet import Fleet
from autoscaler.model.forecast import QUANTILES, ForecastModel, Heads
from autoscaler.model.forecast_knobs import FORECAST_CODE
from autoscaler.model.knobs import Knobs
from autoscaler.model.resources import Resource
from autoscaler.model.rows import Rows
from autoscaler.model.usage import Bools, Floats, Ints
from autoscaler.recommend import series as past
from autoscaler.recommend.features import BIN_SECONDS, OFFSET, PER_DAY, PER_HOUR, SEASON_DAYS, Bins, features, relative
from autoscaler.recommend.memory import Learnt
from autoscaler.recommend.series import MAX_HORIZON, NEWEST, OPEN, Samples

LOSS_ALPHA: Final = 1 - 2 ** (-1 / PER_DAY)
LOSS_POWER: Final = 6
WORST_RATIO: Final = 1.5
UNSCORED_WEIGHT: Final = 0.5
LEAST_BINS: Final = PER_HOUR // 2
ROWS_AT_ONCE: Final = 256
"""Rows whose bins stay in a processor's cache."""
LEVELS: Final = np.array(QUANTILES)
BELOW: Final = LEVELS - 1
PLAIN: Final = slice(1, 1 + len(QUANTILES))
SEASON: Final = slice(1 + len(QUANTILES), None)
"""Places of both heads' quantiles behind the scale in what is pending."""
SCORES: Final = tuple(NormalDist().inv_cdf(level) for level in QUANTILES)
QUANTILE_NAMES: Final = tuple(f"forecast_q{level * 100:.0f}" for level in QUANTILES)


class Forecast(NamedTuple):
    """The newest forecast of each workload, NaN where there is none.

    `scale` (W,) in TFLOPs, `quantiles` (W, 3) of f(largest use), `season_weight`: (W,): the season's share in them,
    `losses` (W, 2): of the plain and the season's head.
    """

    scale: Floats
    quantiles: Floats
    season_weight: Floats
    losses: Floats

    def at(self, level: Floats | float) -> Floats:
        """Return a quantile (W,) in TFLOPs: linear in the normal score between those known, and beyond them."""
        score, known = _normal_score(level), self.quantiles
        upper = score > SCORES[1]
        low, high = where(upper, known[:, 1], known[:, 0]), where(upper, known[:, 2], known[:, 1])
        start, width = where(upper, SCORES[1], SCORES[0]), where(upper, SCORES[2] - SCORES[1], SCORES[1] - SCORES[0])
        slope = (high - low) / width
        value: Floats = self.scale * (np.exp(low + slope * (score - start)) - OFFSET)
        return value

    def inputs(self, used: Floats) -> dict[str, Floats]:
        """Return by name what `at` computes from, NaN where `used` (W,) is."""
        shown = where(isnan(used), np.nan, 1.0)
        named = {name: self.quantiles[:, place] for place, name in enumerate(QUANTILE_NAMES)}
        named |= {"forecast_scale": self.scale, "season_weight": self.season_weight}
        named |= {"plain_loss": self.losses[:, 0], "season_loss": self.losses[:, 1]}
        return {name: shown * values for name, values in named.items()}


def foreseen_peak(fleet: Fleet, forecast: Forecast) -> Floats:
    """Return what the coming hours' largest use should stay below (W,), NaN where limits use no forecast.

    An explicit buffer of the limit is put on top.
    """
    knobs = fleet.knobs
    buffer = where(isnan(knobs.limit_percentile[:, Resource.COMPUTE]), 0.0, knobs.limit_buffer[:, Resource.COMPUTE])
    used = where(knobs.forecast_layers[:, 1] > 0, 1 + buffer, np.nan)
    return used * forecast.at(QUANTILES[-1])


def foreseen_load(fleet: Fleet, memory: Learnt, forecast: Forecast) -> Floats:
    """Return the load expected over all workers (W, 2) in TFLOPs and bytes, NaN where replicas use no forecast.

    The forecast is of the largest worker's device; the others stand to it as they do now. VRAM is not forecast.
    """
    used, largest = fleet.knobs.forecast_layers[:, 2] > 0, memory["use"][:, Resource.COMPUTE]
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.where(largest > 0, memory["load"][:, Resource.COMPUTE] / largest, np.nan)
    foreseen = np.full((len(fleet), len(Resource)), np.nan)
    foreseen[:, Resource.COMPUTE] = np.where(used, forecast.at(fleet.knobs.level_forecast) * spread, np.nan)
    return foreseen


def observe(memory: Learnt, samples: Samples, fleet: Fleet) -> None:
    """Add a window's use, in the fleet's rows, to the series of those that asked; forecast at the end of each bin."""
    series, model, rows = memory.series, memory.model, past.forecast_rows(fleet)
    past.align(series, fleet, rows)
    if not rows.size:
        return
    everyone = len(rows) == len(fleet)
    for number, columns, complete in past.parts(samples):
        being_filled = series.marks.setdefault(OPEN, float(number))
        if number > being_filled:
            _close(series, int(being_filled), fleet, model)
            series.marks[OPEN] = float(number)
        if number <= series.marks.get(NEWEST, -np.inf):
            continue
        past.add(series, samples.values[:, columns] if everyone else samples.values[rows, columns])
        if complete:
            _close(series, number, fleet, model)


def newest(memory: Learnt, fleet: Fleet) -> Forecast | None:
    """Return what is expected now; None where nobody asked or no model is there."""
    rows, series = past.forecast_rows(fleet), memory.series
    if not rows.size or memory.model is None or series.keys != tuple(fleet.keys[row] for row in rows):
        return None
    found = _newest(series, fleet.knobs.forecast[rows])
    return Forecast(*(_spread(values, rows, len(fleet)) for values in found))


def newest_alone(memory: Learnt, fleet: Fleet) -> Forecast | None:
    """Do what `newest` does for a fleet of one; both as numbers."""
    asked = fleet.knobs.forecast > 0 and memory.model is not None and memory.series.keys == memory.keys
    return _newest(memory.series.alone(), fleet.knobs.forecast) if asked else None


def _newest(series: Rows, model: Ints) -> Forecast:
    """Return the forecast of each row of the series."""
    plain, season, losses = series["plain"], series["season"], series["losses"]
    there = without(isnan(season[:, 0]))
    weight = _season_weight(losses, model, there)
    believed, dropped = weight > 0, weight >= 1
    # Before a day was seen the histogram is as good with half the changes.
    speaks = there | without(isnan(losses[:, 1]))
    quantiles: list[Floats] = []
    for place in range(len(QUANTILES)):
        averaged = where(dropped, 0.0, (1 - weight) * plain[:, place])
        averaged = averaged + where(believed, weight * season[:, place], 0.0)
        quantiles.append(where(speaks, averaged, np.nan))
    return Forecast(series["scale"], beside(quantiles), weight, losses)


def _close(series: Rows, number: int, fleet: Fleet, model: ForecastModel | None) -> None:
    if number <= series.marks.get(NEWEST, -np.inf):
        return
    past.close(series, number)
    if model is None:
        return
    rows = past.forecast_rows(fleet)
    everyone = len(rows) == len(fleet)
    for asked, chosen in _by_horizon(fleet.knobs.forecast_horizon[rows]):
        horizon = _nearest(model, asked)
        for start in range(0, len(chosen), ROWS_AT_ONCE):
            block = chosen[start : start + ROWS_AT_ONCE]
            places: slice | Ints = block
            if block[-1] - block[0] + 1 == len(block):
                places = slice(int(block[0]), int(block[-1]) + 1)  # a view instead of a copy
            bins = round(horizon / BIN_SECONDS)
            _score(series, places, number, bins)
            _forecast(series, (places, places if everyone else rows[places]), fleet, (bins, model.heads[horizon]))


@lru_cache(maxsize=16)
def _nearest(model: ForecastModel, asked: float) -> float:
    return model.nearest(asked)


def _by_horizon(horizons: Floats) -> list[tuple[float, Ints]]:
    """Return the horizons (W,) that are asked for, and the rows that do."""
    distinct = set(horizons.tolist())
    if len(distinct) == 1:
        return [(distinct.pop(), np.arange(len(horizons)))]
    return [(asked, np.flatnonzero(horizons == asked)) for asked in distinct]


def _score(series: Rows, places: slice | Ints, number: int, horizon: int) -> None:
    """Hold the forecast of `horizon` bins ago against what came."""
    made = series.weights("pending")[places, (number - horizon) % MAX_HORIZON].astype(np.float64)
    scored = ~np.isnan(made[:, 6])
    if not np.logical_or.reduce(scored):
        return
    end = number - int(series.marks[past.FIRST]) + 1
    came = series.weights("peaks")[places, end - horizon : end]
    scored &= 2 * np.add.reduce(came == came, axis=1) >= horizon  # noqa: PLR0124  quicker than isnan, and the same
    truth = relative(np.fmax.reduce(came, axis=1).astype(np.float64), made[:, 0])
    error = truth[:, None, None] - made[:, 1:].reshape(-1, 2, len(QUANTILES))
    loss = np.add.reduce(np.maximum(LEVELS * error, BELOW * error), axis=2) / len(QUANTILES)
    losses = series["losses"]
    before = losses[places]
    after = np.where(np.isnan(before), loss, before + LOSS_ALPHA * (loss - before))
    losses[places] = np.where(scored[:, None], after, before)


def _forecast(series: Rows, rows: tuple[slice | Ints, slice | Ints], fleet: Fleet, model: tuple[int, Heads]) -> None:
    """Forecast from the newest bin; `rows`: in the series and in the fleet, `model`: horizon in bins and heads."""
    (places, of_fleet), (horizon, heads) = rows, model
    newest_bin = int(series.marks[NEWEST])
    end = newest_bin - int(series.marks[past.FIRST]) + 1
    bins = Bins(series.weights("peaks")[places], series.weights("means")[places], end)
    days, naive = _asked(fleet.knobs)
    seen = features(bins, fleet.original[of_fleet, Field.COMPUTE_REQUEST], horizon, days[of_fleet])
    made = np.full((len(seen.scale), 1 + 2 * len(QUANTILES)), np.nan)
    scale, plain, season = made[:, 0], made[:, PLAIN], made[:, SEASON]
    scale[:], plain[:] = seen.scale, head_quantiles(seen.plain, heads.plain)
    if not np.logical_and.reduce(np.isnan(seen.season[:, 0])):
        season[:] = head_quantiles(np.concatenate([seen.plain, seen.season], axis=1), heads.season)
    ready = seen.known >= LEAST_BINS
    if not np.logical_and.reduce(ready):
        made[~ready, 1:] = np.nan
    if naive is not None:
        np.copyto(season, seen.season[:, :1], where=naive[of_fleet, None])
    series["scale"][places] = scale
    series["plain"][places] = plain
    series["season"][places] = season
    series.weights("pending")[places, newest_bin % MAX_HORIZON] = made


@lru_cache(maxsize=4)
def _asked(knobs: Knobs) -> tuple[Ints, Bools | None]:
    """Return how many earlier days may be looked at (W,), and whose season is yesterday alone; None: nobody's."""
    days = np.minimum(knobs.forecast_history // DAY, SEASON_DAYS).astype(np.int64)
    naive = knobs.forecast == FORECAST_CODE["seasonal-naive"]
    return days, naive if naive.any() else None


def head_quantiles(table: Floats, weights: Floats) -> Floats:
    """Return the three quantiles (W, 3), none below the one before it."""
    # Not a matrix product: its rounding depends on the number of rows, and a fleet must get what one workload gets.
    products = np.add.reduce(table[:, None, :] * weights[None, :, 1:], axis=2) + weights[:, 0]
    return np.maximum.accumulate(products, axis=1)


def _season_weight(losses: Floats, model: Ints, there: Bools) -> Floats:
    """Return the share of the season's head (W,)."""
    plain, season = losses[:, 0], losses[:, 1]
    worse = ratio(season, plain)
    weight = where(worse <= WORST_RATIO, 1 / (1 + power(worse, LOSS_POWER)), 0.0)
    weight = where(isnan(worse), UNSCORED_WEIGHT, weight)
    weight = where(model == FORECAST_CODE["linear"], UNSCORED_WEIGHT, weight)
    weight = where(there, weight, 0.0)
    return where(model == FORECAST_CODE["seasonal-naive"], 1.0, weight)


def _normal_score(level: Floats | float) -> Floats:
    """Return the standard normal's quantiles; few levels are distinct."""
    if not isinstance(level, np.ndarray):
        return cast("Floats", _score_of(level))
    distinct, place = np.unique(level, return_inverse=True)
    return np.array([_score_of(one) for one in distinct.tolist()])[place]


@lru_cache(maxsize=1024)
def _score_of(level: float) -> float:
    return NormalDist().inv_cdf(level) if 0 < level < 1 else np.nan


def _spread(values: Floats, rows: Ints, count: int) -> Floats:
    """Return the values in the fleet's rows, NaN elsewhere."""
    out = np.full((count, *values.shape[1:]), np.nan)
    out[rows] = values
    return out
