"""The forecast: features worked by hand, a season that is believed as far as it came true, one result for any fleet."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from autoscaler.contract.keys import QoS
from autoscaler.model.config import Prediction
from autoscaler.model.decision import Field
from autoscaler.model.fleet import Fleet, to_fleet
from autoscaler.model.forecast import ForecastModel, Heads, from_json, to_json
from autoscaler.model.layers import PredictionSpec
from autoscaler.model.snapshot import Snapshot
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import Discovered
from autoscaler.recommend import new_memory, recommend, watch
from autoscaler.recommend.features import BIN_SECONDS, NEEDED_BINS, PER_DAY, Bins, features
from autoscaler.recommend.forecast import Forecast, foreseen_load, newest, observe
from autoscaler.recommend.memory import Learnt
from autoscaler.recommend.replicas import balance
from autoscaler.recommend.series import COLUMNS, Samples
from autoscaler.state.memories import restore, store
from autoscaler.state.models import built_in_model
from tests.autoscaler.stage import ON, START, Stage, one_bin

HOURS_AHEAD = 24
PRIOR = built_in_model()
ASKED = Prediction(enable=True)


def fleet_of(count: int, prediction: Prediction = ASKED, **changes: object) -> Fleet:
    config = replace(ON, requests=replace(ON.requests, prediction=prediction, **changes))
    one = Stage(config=config).workload
    loads = tuple(
        replace(one, key=WorkloadKey("default", f"w{row}"), ref=replace(one.ref, name=f"w{row}", uid=f"u{row}"))
        for row in range(count)
    )
    return to_fleet(Snapshot(START, Discovered(loads), {}))


def at(fleet: Fleet, now: float) -> Fleet:
    return replace(fleet, now=now)


def fed(use: np.ndarray, fleet: Fleet, model: ForecastModel | None = PRIOR, parts: int = 1) -> Learnt:
    """Return a memory that saw this use (W, T), one sample a 5-minute bin, in so many windows."""
    memory = new_memory(model)
    memory.align(fleet.keys, fleet.uids)
    cuts = np.linspace(0, use.shape[1], parts + 1).astype(int)
    for start, stop in pairwise(cuts):
        ends = START + BIN_SECONDS * np.arange(start + 1, stop + 1, dtype=float)
        observe(memory, Samples(ends, BIN_SECONDS, use[:, start:stop]), at(fleet, ends[-1]))
    return memory


def padded(values: list[float]) -> np.ndarray:
    return np.array([[np.nan] * NEEDED_BINS + values], dtype=np.float32)


def test_features_are_what_a_pencil_says():
    """Twelve bins 1..12 TFLOPs: mean of the peaks 6.5, so every feature is log(x / 6.5 + .02)."""
    peaks = padded([float(value) for value in range(1, 13)])
    means = peaks / 2
    seen = features(Bins(peaks, means, peaks.shape[1]), np.array([10.0]), HOURS_AHEAD, np.array([7]))
    assert seen.scale[0] == pytest.approx(6.5)
    assert seen.known[0] == 12
    expected = [12, 12, 12, 12, 12, 3.25, 3.25, 3.25, 11, 11]  # q90 of twelve by nearest rank is the eleventh
    assert seen.plain[0, :10] == pytest.approx(np.log(np.array(expected) / 6.5 + 0.02))
    assert seen.plain[0, 10] == 0  # the peak is now
    assert np.isnan(seen.season).all()


def test_the_hours_since_the_peak_are_counted_from_the_last_bin_near_it():
    peaks = padded([9.0] + [10.0] + [1.0] * 30)
    seen = features(Bins(peaks, peaks, peaks.shape[1]), np.array([1.0]), HOURS_AHEAD, np.array([7]))
    assert seen.plain[0, 10] == pytest.approx(30 / 12)


def test_the_season_is_the_coming_hours_of_the_days_before():
    """Two days of 1 TFLOP with 8 in the two hours that come next: yesterday 8, the day before 4, now twice as busy."""
    day = np.ones(PER_DAY)
    first, second, today = day.copy(), day.copy(), day.copy()
    first[100:124], second[100:124] = 4.0, 8.0
    today[88:100] = 2.0
    values = np.concatenate([first, second, today[:100]]).tolist()
    peaks = padded(values)
    seen = features(Bins(peaks, peaks, peaks.shape[1]), np.array([1.0]), HOURS_AHEAD, np.array([7]))
    scale = seen.scale[0]
    change = (2 + 0.02 * scale) / (1 + 0.02 * scale)
    expected = np.array([8, 6, 8, 6 * change])
    assert seen.season[0] == pytest.approx(np.log(expected / scale + 0.02))
    only_yesterday = features(Bins(peaks, peaks, peaks.shape[1]), np.array([1.0]), HOURS_AHEAD, np.array([1]))
    assert only_yesterday.season[0, :3] == pytest.approx(np.log(np.array([8, 8, 8]) / scale + 0.02))


def test_unknown_bins_count_nowhere():
    known = [3.0, 5.0, 4.0] * 10
    gap = known[:15] + [float("nan")] * 5 + known[15:]
    full, holed = (
        features(Bins(p, p, p.shape[1]), np.array([1.0]), HOURS_AHEAD, np.array([7]))
        for p in (padded(known), padded(gap))
    )
    assert holed.scale[0] == full.scale[0]
    assert holed.known[0] == full.known[0] == 30
    assert holed.plain[0, [4, 7, 9]] == pytest.approx(full.plain[0, [4, 7, 9]])


@given(st.lists(st.floats(0, 1e4, width=32), min_size=20, max_size=400), st.floats(0.05, 0.95))
@settings(max_examples=40, deadline=None)
def test_quantiles_never_cross(values: list[float], level: float):
    fleet = fleet_of(1)
    day = (values * PER_DAY)[: PER_DAY + 40]
    forecast = newest(fed(np.array([day]), fleet), fleet)
    assert forecast is not None
    assert (np.diff(forecast.quantiles[0]) >= 0).all()
    low, high = forecast.at(np.array([level * 0.9]))[0], forecast.at(np.array([level]))[0]
    assert low <= high + 1e-9


def test_between_the_fitted_quantiles_the_forecast_is_linear_in_the_normal_score():
    forecast = Forecast(np.array([10.0]), np.log(np.array([[1.02, 2.02, 3.02]])), np.zeros(1), np.zeros((1, 2)))
    assert forecast.at(np.array([0.5]))[0] == pytest.approx(10)
    assert forecast.at(np.array([0.8]))[0] == pytest.approx(20)
    assert forecast.at(np.array([0.95]))[0] == pytest.approx(30)
    z = 0.5244005127080407 / 0.8416212335729143  # the normal scores of .7 and .8
    assert forecast.at(np.array([0.7]))[0] == pytest.approx(
        10 * (np.exp(np.log(1.02) + z * np.log(2.02 / 1.02)) - 0.02)
    )


def simple_model() -> ForecastModel:
    """Plain: the last hour's peak; season: yesterday's. No spread to speak of."""
    plain, season = np.zeros((3, 12)), np.zeros((3, 16))
    plain[:, 3], season[:, 12] = 1.0, 1.0
    plain[:, 0] = season[:, 0] = [-0.01, 0.0, 0.01]
    return ForecastModel("simple", 0.0, {7200.0: Heads(plain, season)})


def test_a_season_that_lies_is_dropped_and_one_that_comes_true_again_is_believed_again():
    """Five days with a burst of two hours every day; then three days at a level of its own; then bursts again."""
    bins = np.arange(PER_DAY)
    burst = np.where((bins >= 100) & (bins < 124), 50.0, 2.0)
    flat = np.full(PER_DAY, 2.0)
    noisy = 2.0 + 48.0 * (((bins // 24) * 7 + 3) % 5 == 0)
    days = (
        [burst] * 5
        + [np.roll(noisy, 48 * day) if day % 2 else flat + 30 * (day == 2) for day in range(4)]
        + [burst] * 6
    )
    fleet, weights = fleet_of(1), []
    memory = new_memory(simple_model())
    memory.align(fleet.keys, fleet.uids)
    for day, use in enumerate(days):
        ends = START + BIN_SECONDS * (np.arange(1, PER_DAY + 1) + day * PER_DAY)
        observe(memory, Samples(ends, BIN_SECONDS, use[None, :]), at(fleet, ends[-1]))
        forecast = newest(memory, fleet)
        assert forecast is not None
        weights.append(float(forecast.season_weight[0]))
    assert weights[0] == 0  # no day to look back to
    assert weights[4] > 0.9  # it came true day after day
    assert min(weights[5:9]) == 0.0  # it lied
    assert weights[-1] > 0.9


def rows_of_use(count: int, bins: int, seed: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    phase = 2 * np.pi * np.arange(bins) / PER_DAY
    use = (1.2 + np.sin(phase))[None, :] * rng.gamma(4, 2, (count, bins)) * 10 ** rng.uniform(-2, 2, (count, 1))
    use[rng.random((count, bins)) < 0.02] = np.nan
    return use


@given(st.integers(2, 7), st.integers(0, 1000))
@settings(max_examples=5, deadline=None)
def test_a_workload_gets_the_same_alone_and_among_others(count: int, seed: int):
    use = rows_of_use(count, 400, seed)
    among = fed(use, fleet_of(count))
    for row in range(count):
        alone = fed(use[row : row + 1], fleet_of(1))
        for name in COLUMNS:
            np.testing.assert_array_equal(alone.series.arrays[name][0], among.series.arrays[name][row], name)


@pytest.mark.parametrize("parts", [2, 9, 900])
def test_what_is_forecast_does_not_depend_on_how_history_is_cut(parts: int):
    use = rows_of_use(3, 900)
    whole, cut = fed(use, fleet_of(3)), fed(use, fleet_of(3), parts=parts)
    assert whole.series.marks == cut.series.marks
    for name in COLUMNS:
        np.testing.assert_array_equal(whole.series.arrays[name], cut.series.arrays[name], name)


def test_nine_days_and_a_gap_leave_a_week_behind_the_newest_bin():
    use = rows_of_use(1, 9 * PER_DAY)
    fleet = fleet_of(1)
    memory = fed(use, fleet)
    end = int(memory.series.marks["newest"] - memory.series.marks["first"]) + 1
    np.testing.assert_array_equal(
        memory.series.weights("peaks")[0, end - NEEDED_BINS : end], use[0, -NEEDED_BINS:].astype(np.float32)
    )
    later = START + BIN_SECONDS * (9 * PER_DAY + 500 + np.arange(1, 13))
    observe(memory, Samples(later, BIN_SECONDS, np.full((1, 12), 3.0)), at(fleet, later[-1]))
    end = int(memory.series.marks["newest"] - memory.series.marks["first"]) + 1
    kept = memory.series.weights("peaks")[0, :end]
    assert (kept[-12:] == 3).all()
    assert np.isnan(kept[-512:-12]).all()
    np.testing.assert_array_equal(kept[-600:-512], use[0, -88:].astype(np.float32))


def test_minutes_make_bins_of_five():
    fleet = fleet_of(1)
    memory = new_memory(PRIOR)
    memory.align(fleet.keys, fleet.uids)
    use = np.arange(1.0, 13.0)
    ends = START + 60 * np.arange(1, 13)
    for start, stop in ((0, 3), (3, 4), (4, 12)):
        observe(memory, Samples(ends[start:stop], 60.0, use[None, start:stop]), at(fleet, ends[stop - 1]))
    end = int(memory.series.marks["newest"] - memory.series.marks["first"]) + 1
    assert memory.series.weights("peaks")[0, end - 2 : end].tolist() == [5, 10]
    assert memory.series.weights("means")[0, end - 2 : end].tolist() == [3, 8]
    assert memory.series["open"][0].tolist() == [12, 23, 2]


def test_only_workloads_that_ask_have_a_past():
    asking, silent = fleet_of(2), fleet_of(2, Prediction(enable=False))
    use = rows_of_use(2, 50)
    assert len(fed(use, asking).series.keys) == 2
    memory = fed(use, silent)
    assert memory.series.keys == ()
    assert sum(array.nbytes for array in memory.series.arrays.values()) == 0
    assert newest(memory, silent) is None


def test_a_checkpoint_brings_the_past_back_exactly(tmp_path: Path):
    fleet, use = fleet_of(2), rows_of_use(2, 700)
    before, after = fed(use[:, :650], fleet), new_memory(PRIOR)
    store(tmp_path / "memory.npz", {"series": before.series})
    restore(tmp_path / "memory.npz", {"series": after.series})
    after.align(fleet.keys, fleet.uids)
    ends = START + BIN_SECONDS * np.arange(651, 701)
    for memory in (before, after):
        observe(memory, Samples(ends, BIN_SECONDS, use[:, 650:]), at(fleet, ends[-1]))
    for name in COLUMNS:
        np.testing.assert_array_equal(before.series.arrays[name], after.series.arrays[name], name)


def test_the_request_follows_the_forecast_and_its_inputs_say_how():
    fleet = at(fleet_of(1), START + 3 * PER_DAY * BIN_SECONDS)
    memory = fed(rows_of_use(1, 3 * PER_DAY), fleet)
    wanted = recommend(fleet, memory)
    inputs = {name: float(column[0]) for name, column in wanted.inputs[Field.COMPUTE_REQUEST].items()}
    scale, low, high = inputs["forecast_scale"], inputs["forecast_q50"], inputs["forecast_q80"]
    assert inputs["forecast_quantile"] == pytest.approx(0.68)
    score = 0.4676987991145084 / 0.8416212335729143  # the normal scores of .68 and .8
    target = scale * (np.exp(low + score * (high - low)) - 0.02)
    assert inputs["forecast_target"] == pytest.approx(target)
    assert np.isnan(inputs["percentile"])


def test_an_explicit_percentile_keeps_the_histogram_which_the_forecast_may_only_raise():
    explicit = at(fleet_of(1, percentile=0.5), START + 2 * PER_DAY * BIN_SECONDS)
    memory = fed(rows_of_use(1, 2 * PER_DAY), explicit)
    inputs = recommend(explicit, memory).inputs[Field.COMPUTE_REQUEST]
    assert inputs["percentile"][0] == 0.5
    assert inputs["forecast_target"][0] > 0


def test_yesterday_alone_is_what_seasonal_naive_says():
    naive = fleet_of(1, Prediction(enable=True, model="seasonal-naive"))
    use = np.tile(np.where(np.arange(PER_DAY) < 24, 40.0, 4.0), 3)[None, : 2 * PER_DAY]
    forecast = newest(fed(use, naive), naive)
    assert forecast is not None
    assert forecast.at(np.array([0.3])) == pytest.approx(forecast.at(np.array([0.9])))
    assert forecast.at(np.array([0.5]))[0] == pytest.approx(40)


def test_before_a_day_was_seen_the_histogram_speaks_and_from_then_on_also_after_gaps():
    fleet, hour = fleet_of(1), 12
    day = np.array([[5.0 + number % 7 for number in range(PER_DAY + 3 * hour)]])

    def speaks(use: np.ndarray) -> bool:
        forecast = newest(fed(use, fleet), fleet)
        assert forecast is not None
        return not np.isnan(forecast.quantiles).any()

    assert not speaks(day[:, : PER_DAY - hour])
    assert speaks(day)
    assert speaks(np.concatenate([day, np.full((1, PER_DAY - hour), np.nan), day[:, :hour]], axis=1))


def test_a_fresh_workload_is_not_forecast():
    fleet = fleet_of(1)
    forecast = newest(fed(rows_of_use(1, 5), fleet), fleet)
    assert forecast is not None
    assert np.isnan(forecast.at(np.array([0.5]))).all()


def test_a_model_is_read_back_as_it_was_written_and_another_version_is_refused():
    again = from_json(to_json(PRIOR))
    assert again.heads.keys() == PRIOR.heads.keys() == {1800.0, 3600.0, 7200.0, 14400.0}
    for horizon, heads in PRIOR.heads.items():
        np.testing.assert_array_equal(heads.season, again.heads[horizon].season)
    assert PRIOR.nearest(5400) == 7200.0
    with pytest.raises(ValueError, match="another version"):
        from_json(to_json(PRIOR).replace('"peak_5m"', '"peak_6m"'))
    with pytest.raises(ValueError, match="not a forecast model"):
        from_json("{}")


def test_a_bin_of_two_minutes_above_the_request_counts_as_two_samples():
    for step, times in ((60.0, 1), (120.0, 2)):
        fleet = fleet_of(1)
        memory = new_memory()
        memory.align(fleet.keys, fleet.uids)
        usage = one_bin(START + step, 15.0, 0.0, (20.0, 8e9))
        wide = replace(usage, keys=fleet.keys, window=replace(usage.window, start=START, end=START + step, step=step))
        watch(memory, wide, at(fleet, START + step))
        assert np.isfinite(memory["exceeded_at"][0]).sum() == times


def test_a_forecast_model_that_is_not_known_is_named_with_those_that_are():
    with pytest.raises(ValidationError, match=r"'auto', 'linear', 'seasonal-naive' or 'none'"):
        PredictionSpec.model_validate({"enable": True, "model": "prophet"})


def test_replicas_expect_the_forecast_of_one_worker_on_as_many_as_share_the_load():
    config = replace(ON, replicas_policy=replace(ON.replicas_policy, prediction=ASKED), qos=QoS.HIGH)
    fleet = to_fleet(Snapshot(START, Discovered((Stage(config=config).workload,)), {}))
    memory = new_memory(PRIOR)
    memory.align(fleet.keys, fleet.uids)
    memory["use"][:, 0], memory["load"][:, 0] = 10.0, 25.0
    expected = np.log(np.array([[1.02, 2.02, 3.02]]))
    forecast = Forecast(np.array([10.0]), expected, np.zeros(1), np.zeros((1, 2)))
    foreseen = foreseen_load(fleet, memory, forecast)
    assert foreseen[0, 0] == pytest.approx(2.5 * forecast.at(fleet.knobs.level_forecast)[0])
    assert np.isnan(foreseen[0, 1])
    weighed = balance(fleet, memory, foreseen)
    assert weighed.load[0, 0] == foreseen[0, 0] > 25.0
    memory["use"][:, 0] = 0.0
    assert np.isnan(foreseen_load(fleet, memory, forecast)).all()
    assert np.isnan(foreseen_load(fleet_of(1), memory, forecast)).all()
