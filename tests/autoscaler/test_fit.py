"""Fitting: rows, the regression, the trial on later data, and the process that does it beside the passes."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from autoscaler.cli import app
from autoscaler.errors import FitError
from autoscaler.fit.daily import DailyFit, Verdict, fit_apart
from autoscaler.fit.process import read_task, write_task
from autoscaler.fit.regress import fit_heads
from autoscaler.fit.rows import Past, Table, joined, table_of, to_bins
from autoscaler.fit.task import Task, fit
from autoscaler.fit.trial import IN_FORCE, LAST_VALUE, NEW, YESTERDAY, try_out
from autoscaler.model.defaults import DAY
from autoscaler.model.forecast import ForecastModel, Heads
from autoscaler.recommend.features import BIN_SECONDS, PER_DAY
from autoscaler.state.models import load_model
from tests.autoscaler.stage import START
from tests.autoscaler.test_forecast import PRIOR, at, fed, fleet_of

TWO_HOURS = 7200.0


def daily_rhythm(count: int, days: float, seed: int = 3) -> np.ndarray:
    """Use (W, T) with a day's rhythm and a fifth of noise, each series at a level of its own."""
    rng = np.random.default_rng(seed)
    time_of_day = 2 * np.pi * np.arange(int(days * PER_DAY)) / PER_DAY
    level = 10 ** rng.uniform(0, 2, (count, 1))
    return (
        level
        * (1.3 + np.sin(time_of_day + rng.uniform(0, 6, (count, 1))))
        * rng.gamma(25, 1 / 25, (count, len(time_of_day)))
    )


def past_of(use: np.ndarray) -> Past:
    return Past(use.astype(np.float32), use.astype(np.float32), np.full(len(use), 1.5 * np.nanmax(use)))


def made_of(plain: np.ndarray, season: np.ndarray, truth: np.ndarray, series: np.ndarray) -> Table:
    return Table(plain, season, truth, series, np.arange(len(truth)))


def test_each_series_counts_the_same_however_many_rows_it_has():
    rows = np.zeros((10, 11)), np.zeros((10, 4)), np.zeros(10)
    weights = made_of(*rows, np.array([0] * 8 + [1] * 2)).weights()
    assert weights.mean() == pytest.approx(1)
    assert weights[:8].sum() == pytest.approx(weights[8:].sum())


def test_rows_hold_the_largest_use_that_came():
    use = np.ones((1, 60))
    use[0, 40] = 5.0
    table = table_of(past_of(use), TWO_HOURS)
    sees = (table.bin <= 40) & (table.bin + 24 > 40)
    assert sees.any()
    assert (table.truth[sees] > table.truth[~sees & (table.bin < 40)].max()).all()
    assert table.bin.max() == 60 - 24


def test_too_short_a_past_gives_no_rows_and_tables_join():
    nothing = table_of(past_of(np.ones((2, 20))), TWO_HOURS)
    some = table_of(past_of(np.ones((2, 60))), TWO_HOURS)
    assert len(nothing) == 0
    assert len(joined([nothing, some, some])) == 2 * len(some)
    assert set(joined([some, some]).series.tolist()) == {0, 1, 2, 3}


def test_samples_become_bins_of_their_largest_and_mean():
    peaks, means = to_bins(np.array([1.0, 2, 3, np.nan, 4, *[np.nan] * 5, 9]), 60.0)
    assert peaks.tolist() == pytest.approx([4, np.nan], nan_ok=True)
    assert means.tolist() == pytest.approx([2.5, np.nan], nan_ok=True)


def test_the_regression_finds_the_quantiles_of_a_known_law():
    """Truth = 2 x the hour's peak + noise in 0..1: the weight is 2, the intercepts are the noise's quantiles."""
    rng = np.random.default_rng(1)
    plain = np.zeros((1500, 11))
    plain[:, 2] = rng.normal(0, 1, 1500)
    season = np.zeros((1500, 4))
    truth = 2 * plain[:, 2] + rng.uniform(0, 1, 1500)
    heads = fit_heads(made_of(plain, season, truth, np.zeros(1500, dtype=int)))
    for weights in (heads.plain, heads.season):
        assert weights[:, 3] == pytest.approx(2, abs=0.05)
        assert weights[:, 0] == pytest.approx([0.5, 0.8, 0.95], abs=0.05)


def test_a_history_without_an_earlier_day_has_no_season_to_fit():
    with pytest.raises(FitError, match="earlier day"):
        fit_heads(made_of(np.zeros((5, 11)), np.full((5, 4), np.nan), np.zeros(5), np.zeros(5, dtype=int)))


def worse(model: ForecastModel) -> ForecastModel:
    """A model that expects e times what the other does."""
    heads = {
        horizon: Heads(one.plain + np.eye(1, 12) * 1.0, one.season + np.eye(1, 16) * 1.0)
        for horizon, one in model.heads.items()
    }
    return replace(model, heads=heads)


def test_a_model_that_is_not_better_than_its_rivals_is_refused_with_both_losses():
    table = table_of(past_of(daily_rhythm(4, 5)), TWO_HOURS)
    earlier, later = table.where(table.bin < 800), table.where(table.bin >= 900)
    good = PRIOR.heads[TWO_HOURS]
    taken = try_out(good, worse(PRIOR).heads[TWO_HOURS], earlier, later)
    assert taken.refused == ""
    assert set(taken.losses) == {NEW, IN_FORCE, LAST_VALUE, YESTERDAY}
    refused = try_out(worse(PRIOR).heads[TWO_HOURS], good, earlier, later)
    assert refused.refused.startswith(f"loss {refused.losses[NEW]:.4f} is not below")
    assert "in_force" in refused.refused
    assert try_out(good, good, earlier, later).refused  # as good is not better


def test_a_fit_beats_a_bad_model_and_only_the_horizons_that_are_asked_for_change():
    task = Task(past_of(daily_rhythm(3, 5)), (TWO_HOURS,), worse(PRIOR), now=5.0)
    outcome = fit(task)
    assert outcome.model is not None
    assert outcome.model.fitted_at == 5.0
    assert outcome.trials[TWO_HOURS].losses[NEW] < outcome.trials[TWO_HOURS].losses[IN_FORCE]
    assert outcome.model.heads[3600.0] is task.in_force.heads[3600.0]
    assert (outcome.model.heads[TWO_HOURS].plain != task.in_force.heads[TWO_HOURS].plain).any()


def test_a_day_of_history_is_too_little_to_fit():
    with pytest.raises(FitError, match=r"1\.0 days of history are known, 2 are needed"):
        fit(Task(past_of(daily_rhythm(3, 1)), (TWO_HOURS,), PRIOR, 0.0))


def test_a_task_is_read_back_as_it_was_written(tmp_path: Path):
    task = Task(past_of(daily_rhythm(2, 0.2)), (1800.0, TWO_HOURS), PRIOR, 7.0)
    write_task(tmp_path, task)
    again = read_task(tmp_path)
    np.testing.assert_array_equal(again.past.peaks, task.past.peaks)
    assert (again.horizons, again.now, again.in_force.name) == (task.horizons, 7.0, "built-in")


async def test_what_goes_wrong_in_the_process_becomes_a_reason():
    verdict = await fit_apart(Task(past_of(daily_rhythm(2, 0.5)), (TWO_HOURS,), PRIOR, 0.0), 120)
    assert verdict.model is None
    assert "0.5 days of history are known" in verdict.reason


async def test_a_fit_that_takes_too_long_is_ended():
    began = time.monotonic()
    verdict = await fit_apart(Task(past_of(daily_rhythm(20, 8)), (TWO_HOURS,), PRIOR, 0.0), 0.3)
    assert verdict == Verdict(None, "the fit took longer than 0.3 s")
    assert time.monotonic() - began < 60


async def turned(fits: DailyFit, fleet, memory) -> Verdict:
    """Pass after pass until the fit has ended."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        verdict = fits.turn(fleet, memory)
        if verdict is not None:
            return verdict
        await asyncio.sleep(0.1)
    raise TimeoutError("the fit did not end")


async def test_a_better_model_is_taken_into_force_and_kept_over_a_restart(tmp_path: Path):
    fleet = at(fleet_of(3), START + 4 * DAY)
    memory = fed(daily_rhythm(3, 4), fleet, worse(PRIOR))
    fits = DailyFit(DAY, tmp_path)
    assert fits.turn(fleet, memory) is None  # the first fit waits a day
    verdict = await turned(fits, at(fleet, fleet.now + DAY), memory)
    assert verdict.model is memory.model
    assert memory.model.name == "fitted"
    assert load_model(tmp_path / "forecast.json").fitted_at == fleet.now + DAY
    other = fed(daily_rhythm(1, 0.1), fleet_of(1))
    DailyFit(DAY, tmp_path).restore(other)
    assert other.model.name == "fitted"


async def test_a_refused_model_is_reported_and_the_one_in_force_stays():
    async def refusing(task: Task, _most_seconds: float) -> Verdict:
        await asyncio.sleep(0)
        trial = {
            "losses": {NEW: 0.2, IN_FORCE: 0.1},
            "rows": 300,
            "refused": "loss 0.2000 is not below 0.1000 of in_force",
        }
        return Verdict(None, f"7200 s ahead: {trial['refused']}", {"7200": trial})

    fleet = at(fleet_of(1), START + DAY)
    memory = fed(daily_rhythm(1, 1), fleet)
    fits = DailyFit(DAY, fitting=refusing)
    fits.turn(fleet, memory)
    with capture_logs() as logs:
        verdict = await turned(fits, at(fleet, fleet.now + DAY), memory)
    assert memory.model is PRIOR
    assert verdict.model is None
    assert [(one["event"], one["reason"]) for one in logs] == [("forecast_model_refused", verdict.reason)]


async def test_closing_ends_a_fit_under_way():
    fleet = at(fleet_of(20), START + 8 * DAY)
    memory = fed(daily_rhythm(20, 3), fleet)
    fits = DailyFit(DAY)
    fits.turn(fleet, memory)
    fits.turn(at(fleet, fleet.now + DAY), memory)
    await asyncio.sleep(0)
    await fits.close()
    assert fits.turn(at(fleet, fleet.now + DAY), memory) is None


def test_a_damaged_model_file_leaves_the_shipped_one_in_force(tmp_path: Path):
    (tmp_path / "forecast.json").write_text("{}")
    memory = fed(daily_rhythm(1, 0.1), fleet_of(1))
    with capture_logs() as logs:
        DailyFit(DAY, tmp_path).restore(memory)
    assert memory.model is PRIOR
    assert logs[0]["event"] == "forecast_model_not_used"


def test_the_command_fits_a_model_to_a_trace(tmp_path: Path):
    use = daily_rhythm(1, 3)[0]
    lines = [f"llm,{place * BIN_SECONDS:g},{value:.4f}" for place, value in enumerate(use)]
    trace, out = tmp_path / "use.csv", tmp_path / "model.json"
    trace.write_text("\n".join(["workload_id,timestamp_s,tflops_used", *lines]))
    result = CliRunner().invoke(app, ["fit", "--trace", str(trace), "--out", str(out), "--horizon", "1h"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert set(load_model(out).heads) == {3600.0}
    assert (
        CliRunner().invoke(app, ["fit", "--trace", str(trace), "--out", str(out), "--horizon", "soon"]).exit_code == 2
    )
