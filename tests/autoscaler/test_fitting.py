"""A row of `kubectl get tfw` stays within 120 characters as long as shorter figures can help."""

from __future__ import annotations

import pytest

from autoscaler.model.decision import Field
from autoscaler.model.resources import GIB, Amount, Amounts
from autoscaler.report.fitting import AGE_CHARACTERS, GAP, HEADERS, WIDTH, fitted

HELD = Amounts(Amount(10, 160), Amount(4 * GIB, 8 * GIB))
WANTED = {
    Field.COMPUTE_REQUEST: 71.4,
    Field.COMPUTE_LIMIT: 162,
    Field.VRAM_REQUEST: 2.1 * GIB,
    Field.VRAM_LIMIT: 3.18 * GIB,
}
CELLS = {"qos": "critical", "auto": "req,lim,rep", "replicas": "2→3", "applied": "2/2", "status": "PrometheusError"}


def row(name: str, cells: dict[str, str] = CELLS) -> tuple[int, tuple[str, str]]:
    """Return the width that kubectl prints, and the two texts."""
    texts = fitted(name, cells, HELD, WANTED)
    titles = ("Name", *HEADERS.values(), "TFlops", "VRAM")
    every = (name, *cells.values(), *texts)
    widths = (max(len(title), len(text.encode())) + GAP for title, text in zip(titles, every, strict=True))
    return sum(widths) + AGE_CHARACTERS, texts


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x", ("10/160→71.4/162", "4/8Gi→2.1/3.18Gi")),
        ("ranker-eu-1", ("10/160→71/162", "4/8→2.1/3.2Gi")),
        ("bert-serving-eu-1", ("10/160→71/162", "4→2.1Gi")),
        ("llama-serving-eu-west-1", ("10→71", "4→2.1Gi")),
    ],
)
def test_a_row_that_is_too_wide_is_told_shorter(name, expected):
    width, texts = row(name)
    assert texts == expected
    assert width <= WIDTH


def test_a_row_that_fits_is_told_whole():
    calm = CELLS | {"qos": "low", "auto": "off", "status": "Hold"}
    assert row("chat", calm)[1] == ("10/160→71.4/162", "4Gi/8Gi→2.1Gi/3.18Gi")


def test_where_nothing_helps_the_figures_stay():
    assert row("a-name-that-is-much-too-long-for-any-line-of-kubectl")[1] == ("10/160→71.4/162", "4/8Gi→2.1/3.18Gi")
