"""Prometheus' pairs of time and value: every way of reading them tells the same, and nothing else is taken for pairs."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.errors import HistoryError
from autoscaler.read.answer import KnownLabels, samples_in
from autoscaler.read.pairs import LONG_BYTES, Pairs

Told = list[tuple[int, float]]


def text(told: Told) -> bytes:
    """As Prometheus writes it: milliseconds only where there are any, values in Go's shortest form."""
    moments = [f"{ms // 1000}.{ms % 1000:03}" if ms % 1000 else f"{ms // 1000}" for ms, _ in told]
    return ("[" + ",".join(f'[{at},"{value!r}"]' for at, (_, value) in zip(moments, told, strict=True)) + "]").encode()


def constant(count: int, value: float, first: int = 1_700_000_000_000) -> Told:
    return [(first + 60_000 * i, value) for i in range(count)]


moments = st.integers(10**12, 2 * 10**12) | st.integers(10**9, 2 * 10**9).map(lambda seconds: 1000 * seconds)
varied = st.lists(st.tuples(moments, st.floats(0, 1e300)), max_size=6)
long_constant = st.builds(constant, st.integers(150, 160), st.sampled_from([0.0, 40e9, 1e-7]), moments)


@given(st.lists(varied | long_constant, max_size=5))
def test_times_and_values_are_exactly_those_that_were_written(series):
    counts, times, values = Pairs().columns([text(told) for told in series])
    assert counts.tolist() == [len(told) for told in series]
    assert times.tolist() == [ms / 1000 for told in series for ms, _ in told]
    assert values.tolist() == [value for told in series for _, value in told]


def test_a_series_that_changes_once_is_not_taken_for_constant():
    told = constant(200, 5.0)
    told[100] = (told[100][0], 6.0)
    assert len(text(told)) > LONG_BYTES
    _, _, values = Pairs().columns([text(constant(200, 5.0)), text(told)])
    assert values.sum() == 2001


def test_not_a_number_and_infinities_are_read_as_such():
    written = b'[[1700000000,"NaN"],[1700000001.5,"+Inf"],[1700000002,"-Inf"],[1700000003,"1e+06"]]'
    _, times, values = Pairs().columns([written])
    assert math.isnan(values[0])
    assert values[1:].tolist() == [math.inf, -math.inf, 1e6]
    assert times.tolist() == [1700000000, 1700000001.5, 1700000002, 1700000003]


@pytest.mark.parametrize(
    "written",
    [
        b'[[1700000000,"1"],[1700000001]]',
        b"[[1700000000,1]]",
        b'[[1700000000,""]]',
        b'[[1700000000,"1,2"]]',
        b'[[1700000000,"1"',
        b'[[17000000x0,"1"]]',
        b'[["1","2"],[1700000000,"1"]]',
    ],
)
def test_what_is_no_list_of_pairs_is_refused(written: bytes):
    with pytest.raises(HistoryError):
        Pairs().columns([b'[[1700000000,"1"]]', written])


LABELS = {"__name__": "m", "container": "c", "namespace": "ns", "pod": 'a-0"},"values":[', "workload": "a"}


def answer(separators: tuple[str, str]) -> bytes:
    series = [{"metric": {**LABELS, "node": str(i)}, "values": [[1700000000, str(i)]]} for i in range(3)]
    told = {"status": "success", "data": {"resultType": "matrix", "result": series}}
    return json.dumps(told, separators=separators).encode()


def test_an_answer_is_the_same_however_its_json_is_spaced_and_marks_inside_of_labels_are_labels():
    dense, spaced = (list(samples_in(answer(with_), KnownLabels())) for with_ in ((",", ":"), (", ", ": ")))
    assert [samples.identities for samples in dense] == [samples.identities for samples in spaced]
    assert dense[0].identities[2].pod == LABELS["pod"]
    assert dense[0].identities[2].node == "2"
    np.testing.assert_array_equal(dense[0].values, [0, 1, 2])
    np.testing.assert_array_equal(spaced[0].values, [0, 1, 2])


def test_labels_without_the_name_are_those_with_it_and_are_forgotten_when_no_longer_asked_for():
    known = KnownLabels()
    named, bare = b'{"__name__":"m","pod":"a"}', b'{"pod":"a"}'
    first = known.identity(named)
    assert known.identity(bare) is first
    known.forget()
    assert known.identity(named) is first
    known.forget()
    known.forget()
    assert known.identity(named) is not first
