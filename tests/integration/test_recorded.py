"""How the story counts evaluations: those that had evidence, whatever time was lost between them, and no others."""

from __future__ import annotations

import json
from urllib.parse import urlencode

import pytest

from tests.integration.recorded import BUSY_METRIC, LIMIT_METRIC, WINDOW_METRIC, Told, evaluations, passes_of, told_of
from tests.integration.tap import Asked

DEVICE, BIN, DEMAND = 100.0, 5.0, 75.0
BIRTH = 25.0


def answer(samples):
    return json.dumps({"data": {"result": [{"metric": {}, "values": [[at, str(value)] for at, value in samples]}]}})


def asked(at, metric, end, samples, status=200, seconds=BIN):
    form = urlencode({"query": f"{metric}[{seconds * 1000:.0f}ms]", "time": f"{end:.3f}"})
    return Asked(at, "POST", "/api/v1/query", form.encode(), status, answer(samples).encode())


def reading(end, use, limits, status=200):
    """Return a pass's queries two seconds after a bin's end: `use` and `limits` (TFLOPs) by time."""
    times = [end - BIN - 0.5 + second for second in range(7)]
    busy, counter = [], 0.0
    for at in times:
        counter += use(at) / DEVICE
        busy.append((at, counter))
    metrics = {WINDOW_METRIC: [], LIMIT_METRIC: [(at, limits(at)) for at in times], BUSY_METRIC: busy}
    return [asked(end + 2.0, metric, end, samples, status) for metric, samples in metrics.items()]


def recorded(*readings):
    """Return the passes of some readings, each after a look at the node."""
    looks = [Asked(one[0].at - 0.5, "GET", "/v1/quotas", status=200) for one in readings]
    return passes_of(looks, [query for one in readings for query in one])


def clipped(end, limit=BIRTH):
    return reading(end, lambda _: limit, lambda _: limit)


def count(passes, *told):
    return evaluations(passes, [Told(float("-inf"), BIRTH), *told], DEMAND, DEVICE, BIN)


def test_a_controller_that_waits_although_it_has_evidence_is_charged_for_every_evaluation():
    passes = recorded(clipped(100.0), clipped(105.0), clipped(110.0), clipped(115.0))
    assert count(passes, Told(117.1, 80.0)) == 4


def test_an_evaluation_that_raises_counts_whatever_it_read():
    idle = reading(100.0, lambda _: 10.0, lambda _: BIRTH)
    assert count(recorded(idle, clipped(105.0, 50.0)), Told(102.1, 50.0), Told(107.1, 100.0)) == 2


def test_a_bin_in_which_the_limit_changed_is_no_evidence():
    straddling = reading(105.0, lambda at: BIRTH if at < 102.1 else 50.0, lambda at: BIRTH if at < 102.1 else 50.0)
    passes = recorded(clipped(100.0), straddling, clipped(110.0, 50.0))
    assert count(passes, Told(102.1, 50.0), Told(112.1, 100.0)) == 2


@pytest.mark.parametrize(
    "lost",
    [
        pytest.param(reading(105.0, lambda _: BIRTH, lambda _: BIRTH, status=503), id="not answered"),
        pytest.param([asked(107.0, metric, 105.0, []) for metric in (WINDOW_METRIC, LIMIT_METRIC)], id="no samples"),
        pytest.param(reading(105.0, lambda at: 10.0 if at < 102.0 else BIRTH, lambda _: BIRTH), id="clipped in part"),
    ],
)
def test_an_evaluation_that_could_not_tell_costs_nothing(lost):
    passes = recorded(lost, clipped(110.0))
    assert count(passes, Told(112.1, 80.0)) == 1


def test_what_comes_after_the_demand_is_covered_is_not_counted():
    passes = recorded(clipped(100.0), clipped(105.0, 80.0), clipped(110.0, 80.0))
    assert count(passes, Told(102.1, 80.0)) == 1


def test_only_accepted_documents_that_move_the_limit_are_told():
    def put(at, limit, status=200):
        document = {"quotas": [{"devices": [{"tflops_limit": limit}]}]}
        return Asked(at, "PUT", "/v1/quotas", json.dumps(document).encode(), status)

    told = told_of([put(1.0, 25.0), put(2.0, 50.0), put(3.0, 100.0, status=409), put(4.0, 50.0)], born=25.0)
    assert [(one.at, one.limit) for one in told[1:]] == [(2.0, 50.0)]


def test_a_pass_knows_its_window_and_when_the_next_one_read():
    first, second = recorded(clipped(100.0), clipped(105.0))
    assert (first.start, first.end, first.at, first.until) == (95.0, 100.0, 102.0, 107.0)
    assert second.until == float("inf")
