"""One sentence per figure, with the numbers from which it can be recomputed."""

from __future__ import annotations

import math

import pytest

from autoscaler.model.config import Mode
from autoscaler.model.decision import Field
from autoscaler.model.reasons import Cause, Verdict
from autoscaler.model.resources import GIB, Resource
from autoscaler.report.message import (
    CAUSE_TEXT,
    VERDICT_TEXT,
    amount_text,
    explanation,
    is_blocked,
    sentence,
    sentences_of,
)
from tests.autoscaler.apply_cases import decision, figure

LIMIT, VRAM = Field.COMPUTE_LIMIT, Field.VRAM_REQUEST


def test_a_probe_names_both_limits_the_use_and_the_step():
    probe = figure(LIMIT, 20.0, 40.0, cause=Cause.SATURATED, inputs={"use": 19.8, "step": 2.0, "percentile": math.nan})
    assert sentence(probe) == (
        "compute limit 20 → 40 TFLOPs: Saturated, use is clipped at the limit, so demand is unknown and the limit "
        "probes upward (use 19.8, step 2)"
    )


def test_a_held_shrink_names_what_was_wanted_and_what_holds_it():
    held = figure(LIMIT, 20.0, 12.4, allowed=20.0, cause=Cause.SURPLUS, verdict=Verdict.STABILIZING)
    assert sentence(held) == (
        "compute limit held at 20 TFLOPs, wanted 12.4: Surplus, the estimate stays below the figure in force; "
        "Stabilizing, it must stay low for the whole window"
    )


def test_memory_is_written_as_people_write_it_and_keeps_its_uncapped_value():
    capped = figure(
        VRAM,
        4 * GIB,
        6 * GIB,
        uncapped=40 * GIB,
        verdict=Verdict.BOUND_LIMITED,
        inputs={"peak_4h": 5.5 * GIB, "margin_ratio": 0.15, "idle_seconds": 5400.0},
    )
    text = sentence(capped)
    assert text.startswith("VRAM request 4Gi → 6Gi (uncapped 40Gi): Raised")
    assert "(peak 4h 5.5Gi, margin ratio 0.15, idle 1h30m)" in text
    assert text.endswith("BoundLimited, cut to the bounds")


def test_growth_that_is_only_partly_allowed_says_what_was_wanted():
    cut = figure(Field.REPLICAS, 2.0, 8.0, allowed=4.0, cause=Cause.LOAD, verdict=Verdict.STEP_LIMITED)
    assert sentence(cut).startswith("replicas 2 → 4, wanted 8: Load")


@pytest.mark.parametrize("mode", [Mode.OFF, Mode.RECOMMEND])
def test_a_layer_that_is_not_on_recommends(mode):
    shown = figure(LIMIT, 20.0, 40.0, allowed=20.0, mode=mode, verdict=Verdict.RECOMMEND_ONLY)
    assert sentence(shown).startswith("compute limit 20 TFLOPs, recommended 40: ")


def test_what_is_not_known_is_not_called_zero():
    unknown = figure(LIMIT, 20.0, math.nan, allowed=20.0, cause=Cause.NO_DATA, verdict=Verdict.STALE)
    text = sentence(unknown)
    assert text.startswith("compute limit stays 20 TFLOPs: NoData")
    assert text.endswith("Stale, the newest sample is too old")
    assert "nan" not in text


def test_a_figure_that_nobody_knows_does_not_move():
    blind = figure(LIMIT, math.nan, math.nan, cause=Cause.NO_DATA, verdict=Verdict.STALE)
    assert sentence(blind).startswith("compute limit stays unknown TFLOPs")


@pytest.mark.parametrize(("enum", "texts"), [(Cause, CAUSE_TEXT), (Verdict, VERDICT_TEXT)])
def test_every_cause_and_verdict_has_its_words(enum, texts):
    assert set(texts) == set(enum)


def test_a_figure_that_got_what_it_asked_for_is_not_blocked():
    assert not is_blocked(figure(LIMIT, 20.0, 40.0))
    assert not is_blocked(figure(LIMIT, 20.0, 20.0, verdict=Verdict.PAUSED))
    assert is_blocked(figure(LIMIT, 20.0, 30.0, uncapped=40.0, verdict=Verdict.BOUND_LIMITED))


def test_an_explanation_leaves_out_what_has_nothing_to_say():
    still, moved = decision(), decision({LIMIT: 40.0})
    assert explanation(still, sentences_of(still)) == "every figure is where it should be"
    assert explanation(moved, sentences_of(moved)).count(";") == 0


@pytest.mark.parametrize(
    ("resource", "value", "text"),
    [(0, 12.4999, "12.5"), (1, 4 * GIB, "4Gi"), (None, 3.0, "3"), (1, math.nan, "unknown"), (0, math.inf, "inf")],
)
def test_amounts_read_short(resource, value, text):
    assert amount_text(None if resource is None else Resource(resource), value) == text
