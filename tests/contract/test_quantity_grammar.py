"""The quantity grammar of annotation values, against worked figures and against exact fractions."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.contract.quantity import MAX_MAGNITUDE, parse_quantity

WORKED = {
    "0": "0",
    "1.": "1",
    ".5": "0.5",
    "+1": "1",
    "-1.5": "-1.5",
    "100m": "0.1",
    "250u": "0.00025",
    "3n": "0.000000003",
    "2k": "2000",
    "1.5Gi": "1610612736",
    "4Gi": "4294967296",
    "1Ei": "1152921504606846976",
    "1E": "1000000000000000000",
    "1E2": "100",
    "1e-3": "0.001",
    "1.e+3": "1000",
    "9223372036854775807": "9223372036854775807",
    "0.00000000000000000000000000000000000000000000000000000000001": "1e-59",
}
SCALES = {"m": Fraction(1, 1000), "": Fraction(1), "k": Fraction(1000), "Ki": Fraction(1024), "Ti": Fraction(1024**4)}


@pytest.mark.parametrize(("text", "value"), WORKED.items())
def test_a_quantity_has_its_exact_value(text, value):
    assert parse_quantity(text) == Decimal(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " 1",
        "1 ",
        "1\n",
        "1K",
        "1ki",
        "1kI",
        "e3",
        "1e",
        ".",
        "+",
        "--1",
        "1_000",
        "1,5",
        "0x10",
        "٣",
        "1Gi2",
        "1e2k",
        "nan",
        "inf",
        "9" * 65,
    ],
)
def test_what_is_no_quantity_is_refused_with_what_is_allowed(text):
    with pytest.raises(ValueError, match="allowed: a decimal number"):
        parse_quantity(text)


@pytest.mark.parametrize("text", ["8Ei", "-8.1Ei", "1e19", "1e65", "1e-65", "1e99999999999"])
def test_what_no_quantity_can_hold_is_refused(text):
    with pytest.raises(ValueError, match=r"largest quantity|exponent beyond"):
        parse_quantity(text)


@given(st.integers(-(10**6), 10**6), st.text("0123456789", max_size=20), st.sampled_from(sorted(SCALES)))
def test_every_decimal_with_a_suffix_is_exact(whole, fraction, suffix):
    number = f"{whole}.{fraction}"
    exact = Fraction(number + "0") * SCALES[suffix]
    assert abs(exact) <= MAX_MAGNITUDE
    assert Fraction(parse_quantity(number + suffix)) == exact
