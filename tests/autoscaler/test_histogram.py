"""Decaying log histograms: worked quantiles, decay, and what holds for any samples."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.recommend.histogram import COMPUTE_BUCKETS, ROWS_AT_ONCE, VRAM_BUCKETS, add, decay, quantiles

COUNT = COMPUTE_BUCKETS.count


def filled(values: list[float], weights: list[float] | None = None) -> np.ndarray:
    row = np.zeros((1, COUNT), dtype=np.float32)
    add(row, COMPUTE_BUCKETS, np.array([values]), np.array([weights or [1.0] * len(values)]))
    return row


def quantile(row: np.ndarray, level: float) -> float:
    return float(quantiles(row, COMPUTE_BUCKETS, np.array([level]))[0][0])


def test_a_quantile_is_the_upper_edge_of_its_bucket_never_low_and_at_most_one_growth_factor_high():
    row = filled([float(i) for i in range(1, 101)])
    assert 95 <= quantile(row, 0.95) <= 95 * COMPUTE_BUCKETS.growth
    assert 50 <= quantile(row, 0.5) <= 50 * COMPUTE_BUCKETS.growth


def test_no_samples_give_no_quantile_and_idle_samples_give_zero():
    assert np.isnan(quantile(filled([]), 0.9))
    assert quantile(filled([0.0, 0.0]), 0.9) == 0.0


def test_unknown_samples_are_not_counted():
    assert quantile(filled([np.nan, 10.0, np.nan]), 0.5) == quantile(filled([10.0]), 0.5)


def test_after_one_half_life_old_samples_weigh_half():
    row = filled([10.0] * 4)
    decay(row, 3600.0, np.array([3600.0]))
    add(row, COMPUTE_BUCKETS, np.array([[100.0] * 3]), np.ones((1, 3)))
    assert row.sum() == np.float32(5.0)
    assert quantile(row, 0.41) >= 100  # 2 of 5 parts are old
    assert quantile(row, 0.39) < 11


def test_rows_do_not_touch_each_other_whether_few_or_many_samples_arrive():
    for many in (1, 5000):
        rows = np.zeros((3, COUNT), dtype=np.float32)
        values = np.full((3, many), np.nan)
        values[1] = 7.0
        add(rows, COMPUTE_BUCKETS, values, np.ones((3, many)))
        assert rows.sum(axis=1).tolist() == [0.0, float(many), 0.0]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(min_value=0, max_value=2000), min_size=1, max_size=40),
    st.floats(min_value=0.01, max_value=0.99),
    st.floats(min_value=0, max_value=3000),
)
def test_more_use_never_lowers_a_quantile(values: list[float], level: float, extra: float):
    assert quantile(filled([*values, max(*values, extra)]), level) >= quantile(filled(values), level)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(min_value=0, max_value=4e11), min_size=1, max_size=30))
def test_the_highest_quantile_covers_the_maximum_within_a_bucket(values: list[float]):
    row = np.zeros((1, VRAM_BUCKETS.count), dtype=np.float32)
    add(row, VRAM_BUCKETS, np.array([values]), np.ones((1, len(values))))
    top = float(quantiles(row, VRAM_BUCKETS, np.array([1.0]))[0][0])
    most = max(values)
    assert top >= most * (1 - 1e-9) or most < VRAM_BUCKETS.first
    assert top <= max(most * VRAM_BUCKETS.growth * (1 + 1e-9), VRAM_BUCKETS.first)


def test_many_rows_and_levels_give_what_each_row_and_level_gives_alone():
    rows = ROWS_AT_ONCE * 2 + 3
    random = np.random.default_rng(1)
    weights = np.zeros((rows, COUNT), dtype=np.float32)
    add(weights, COMPUTE_BUCKETS, random.lognormal(1, 2, (rows, 20)), np.ones((rows, 20)))
    levels = random.random((2, rows))
    levels[:, ::5], levels[1, ::3] = np.nan, np.nan
    found = quantiles(weights, COMPUTE_BUCKETS, *levels)
    for level, together in zip(levels, found, strict=True):
        alone = [quantile(weights[row : row + 1], level[row]) for row in range(rows)]
        np.testing.assert_equal(together, alone)
        assert np.array_equal(np.isnan(together), np.isnan(level))


def test_what_lies_beyond_the_outermost_buckets_is_counted_in_them():
    for buckets in (COMPUTE_BUCKETS, VRAM_BUCKETS):
        first, beyond = buckets.first, buckets.first * buckets.growth**buckets.count
        below = np.array([-np.inf, -1.0, 0.0, 1e-12, 0.999 * first, np.nan])
        above = np.array([beyond / buckets.growth**1.5, beyond, 1e300, np.inf])
        assert buckets.index(below).tolist() == [0] * len(below)
        assert buckets.index(above).tolist() == [buckets.count - 1] * len(above)
        assert buckets.index(np.array([1.001 * first])).tolist() == [1]
