"""Figures as people write them."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.model.quantity import (
    format_amount,
    format_duration,
    format_ratio,
    parse_amount,
    parse_duration,
    parse_ratio,
    round_amount,
)
from autoscaler.model.resources import GIB, MIB, Resource

COMPUTE, VRAM = Resource.COMPUTE, Resource.VRAM


@pytest.mark.parametrize(
    ("text", "tflops"),
    [("10", 10.0), ("12.5", 12.5), ("500m", 0.5), ("31250m", 31.25), ("1e3", 1000.0), ("+5", 5.0), (".5", 0.5), ("1k", 1000.0), (7, 7.0), (0.1, 0.1)],
)  # fmt: skip
def test_tflops_are_read_in_every_notation(text: object, tflops: float) -> None:
    assert parse_amount(COMPUTE, text) == tflops


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4Gi", 4 * GIB), ("6.5Gi", 13 * GIB // 2), ("1536Mi", 3 * GIB // 2), ("1G", 10**9), ("1E", 10**18),
        ("1e9", 10**9), ("0.1Gi", 107374183), ("1m", 1), ("1500m", 2), (4294967296, 4 * GIB), (1.5, 2),
        ("9007199254740993", 9007199254740993),
    ],
)  # fmt: skip
def test_bytes_are_whole_and_exact_and_a_fraction_rounds_up(text: object, size: int) -> None:
    parsed = parse_amount(VRAM, text)
    assert parsed == size
    assert isinstance(parsed, int)


@pytest.mark.parametrize(
    "text", ["", "4GB", "4gi", "-5", "0", "0Gi", "five", "1 Gi", "1e", "10K", "NaN", "Infinity", "1e999", "9" * 70, True, None, [], {}, math.nan, math.inf]
)  # fmt: skip
@pytest.mark.parametrize("resource", list(Resource))
def test_what_is_no_positive_quantity_is_refused_with_what_is_allowed(resource: Resource, text: object) -> None:
    with pytest.raises(ValueError, match="a positive quantity of"):
        parse_amount(resource, text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (4 * GIB, "4Gi"), (13 * GIB // 2, "6.5Gi"), (3 * GIB // 2, "1536Mi"), (1024 * GIB, "1Ti"), (5 * GIB // 4, "1280Mi"),
        (250 * MIB, "250Mi"), (1000, "1000"), (2048, "2Ki"), (2 * GIB + 1, "2147483649"),
    ],
)  # fmt: skip
def test_bytes_are_written_short_and_exact(size: int, text: str) -> None:
    assert format_amount(VRAM, size) == text


@pytest.mark.parametrize(
    ("tflops", "text"), [(12.5, "12.5"), (10.0, "10"), (0.1, "0.1"), (1000.0, "1000"), (1e-4, "0.0001")]
)
def test_tflops_are_written_without_exponent_or_trailing_zero(tflops: float, text: str) -> None:
    assert format_amount(COMPUTE, tflops) == text


@given(st.integers(1, 2**62))
def test_every_number_of_bytes_survives_writing_and_reading(size: int) -> None:
    assert parse_amount(VRAM, format_amount(VRAM, size)) == size


@given(st.floats(1e-6, 1e6))
def test_every_number_of_tflops_survives_writing_and_reading(tflops: float) -> None:
    assert parse_amount(COMPUTE, format_amount(COMPUTE, tflops)) == tflops


@given(st.decimals("0.001", "100000", places=3), st.sampled_from(["", "k", "M", "G", "Ki", "Mi", "Gi"]))
def test_bytes_are_the_exact_product_rounded_up(number: Decimal, suffix: str) -> None:
    scale = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}[suffix]
    assert parse_amount(VRAM, f"{number}{suffix}") == math.ceil(Fraction(number) * scale)


@given(st.floats(0.01, 1e5))
def test_published_tflops_have_three_digits_and_are_near(tflops: float) -> None:
    rounded = round_amount(COMPUTE, tflops)
    assert abs(rounded - tflops) <= 0.005 * tflops * (1 + 1e-9)
    assert round_amount(COMPUTE, rounded) == rounded
    assert len(format_amount(COMPUTE, rounded).replace(".", "").strip("0")) <= 3


@given(st.floats(1, 2**40))
def test_published_vram_is_whole_mib_and_never_less(size: float) -> None:
    rounded = round_amount(VRAM, size)
    assert rounded % MIB == 0
    assert size <= rounded < size + MIB


@pytest.mark.parametrize("resource", list(Resource))
def test_a_missing_figure_stays_missing_and_has_no_text(resource: Resource) -> None:
    assert math.isnan(round_amount(resource, math.nan))
    with pytest.raises(ValueError, match="no amount"):
        format_amount(resource, math.nan)


@pytest.mark.parametrize("same", ["10%", "0.1", 0.1, "0.10", "10.0%"])
def test_a_ratio_is_the_same_in_every_form(same: object) -> None:
    assert parse_ratio(same) == 0.1


@pytest.mark.parametrize("text", ["", "abc", "-0.1", -0.1, "10 %", "%", True, None, [1], {}, math.nan, "1e-1", ".5"])
def test_what_is_no_ratio_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="a ratio such as"):
        parse_ratio(text)


@given(st.decimals(0, 1000, places=4))
def test_every_ratio_survives_writing_and_reading(ratio: Decimal) -> None:
    assert parse_ratio(format_ratio(float(ratio))) == float(ratio)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1h30m", 5400), ("7d", 604800), ("1.5h", 5400), ("1w", 604800), ("500ms", 0.5), ("1d12h", 129600), ("0s", 0)],
)
def test_go_and_prometheus_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["5min", "5", "", "1 day", "P1D", "-1m", "1h 30m", "m", "1.h", 60, None, True])
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="a duration such as"):
        parse_duration(text)


@given(st.integers(0, 10**11))
def test_every_millisecond_survives_writing_and_reading(milliseconds: int) -> None:
    text = format_duration(milliseconds / 1000)
    assert round(parse_duration(text) * 1000) == milliseconds
