"""What holds of the product's whole way from use to figures, whatever a workload did before.

Beside `test_guards` and `test_guard_histories`, which hold the guards to the same with estimates that are made up,
`test_layers` (figures known, in order, rounded; equal worlds decide equally), `test_recompute` (an explanation gives
the published figures to the last bit) and `test_replicas`.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autoscaler.contract.keys import QoS
from autoscaler.guard import guard, note
from autoscaler.guard import new_memory as new_guard_memory
from autoscaler.model.config import Bounds, Configuration, LimitsPolicy, Mode, ReplicasPolicy
from autoscaler.model.decision import AMOUNT_FIELDS, Field
from autoscaler.model.fleet import Fleet, to_fleet
from autoscaler.model.reasons import Cause, Verdict
from autoscaler.model.resources import GIB, Amount, Amounts, Resource
from autoscaler.model.rows import Rows
from autoscaler.model.usage import Usage, Window
from autoscaler.recommend import learn, new_memory, recommend, watch
from autoscaler.report.message import sentence
from autoscaler.state.memories import restore, store
from tests.autoscaler.stage import KEY, LIMITS, START, STEP, Stage, one_bin, with_config

Segment = tuple[int, float, float]
"""Minutes, TFLOPs, GiB."""
segments = st.tuples(
    st.integers(1, 14),
    st.sampled_from([0.0, 0.3, 4.0, 9.0, 15.0, 19.5, 45.0, 300.0]),
    st.sampled_from([0.3, 1.0, 2.0, 3.9, 7.0, 12.0, 30.0]),
)
histories = st.lists(segments, min_size=2, max_size=6)
levels = st.sampled_from(list(QoS))
SHORTAGES = {Cause.SATURATED, Cause.EXCEEDED, Cause.OOM_SEEN, Cause.RAISED}


@cache
def calm(config: Configuration) -> Stage:
    """Return a stage after a calm time in which figures were lowered; to be copied."""
    stage = Stage(config)
    stage.run(45, 5.0, 2 * GIB)
    return stage


def played(config: Configuration, history: Sequence[Segment]) -> Stage:
    """Return a stage after a calm time and the history; `decisions` are of both."""
    stage = deepcopy(calm(config))
    for minutes, compute, vram in history:
        stage.run(minutes, compute, vram * GIB)
    return stage


def now(stage: Stage) -> Fleet:
    return to_fleet(stage.snapshot(float(stage.learnt["use"][0, Resource.VRAM])))


@settings(max_examples=12)
@given(history=histories, level=levels)
def test_every_change_names_what_led_to_it_in_a_sentence_with_its_numbers(history: list[Segment], level: QoS):
    layers = ReplicasPolicy(mode=Mode.ON)
    for decision in played(with_config(qos=level, replicas_policy=layers), history).decisions:
        for one in decision.fields:
            if one.changed:
                told = sentence(one)
                # what an estimate does not lead to, a guard has to account for
                assert one.cause not in {Cause.UNCHANGED, Cause.NO_DATA} or one.verdict is not Verdict.PASSED, told
                assert one.cause in told
                assert "→" in told
                assert one.inputs
                assert all(name for name in one.inputs)


EAGER = LimitsPolicy(Mode.ON, percentile=0.5, aggregation_seconds=240.0, stabilization_seconds=0.0)
"""Follows use within a minute or two; nothing but the cool-down keeps its limits calm."""
UNRULY = [(4, 18.0, 3.9), (4, 9.0, 2.0)] * 4


@settings(max_examples=15)
@given(history=histories, level=levels, eager=st.booleans())
@example(history=UNRULY, level=QoS.LOW, eager=True)
def test_nothing_is_lowered_within_its_cool_down_and_nothing_raised_but_for_a_shortage(
    history: list[Segment], level: QoS, eager: bool
):
    config = with_config(qos=level)
    config = replace(config, limits=EAGER) if eager else config
    raised, lowered = np.full(4, -np.inf), np.full(4, -np.inf)
    for decision in played(config, history).decisions:
        for field in AMOUNT_FIELDS:
            one = decision[field]
            if one.allowed < one.current:
                assert decision.at - raised[field] >= 600, sentence(one)
                lowered[field] = decision.at
            if one.allowed > one.current:
                pulled = field in {Field.COMPUTE_LIMIT, Field.VRAM_LIMIT} and one.verdict is not Verdict.PASSED
                excused = one.cause in SHORTAGES or pulled
                assert decision.at - lowered[field] >= 600 or excused, sentence(one)
                raised[field] = decision.at


@settings(max_examples=12)
@given(
    history=histories,
    level=levels,
    least=st.sampled_from([0.5, 8.0, 25.0]),
    most=st.sampled_from([25.0, 60.0, 400.0]),
    sizes=st.sampled_from([(0.5, 4.0), (3.0, 10.0), (1.0, 60.0)]),
)
def test_bounds_hold_whatever_came_before_them(
    history: list[Segment], level: QoS, least: float, most: float, sizes: tuple[float, float]
):
    stage = played(with_config(qos=level), history)
    bounds = Bounds(min_allowed=(least, sizes[0] * GIB), max_allowed=(most, sizes[1] * GIB))
    stage.config = replace(stage.config, bounds=bounds)
    before = stage.figures
    for decision in stage.run(12, 300.0, 2 * GIB) + stage.run(30, 1.0, 0.3 * GIB):
        for resource in Resource:
            low, high = (least, sizes[0] * GIB)[resource], (most, sizes[1] * GIB)[resource]
            held = before[resource]
            for field, was in ((2 * resource, held.request), (2 * resource + 1, held.limit)):
                one = decision.fields[field]
                # what was outside may stay until it moves, but nothing moves outward
                assert min(low, was) <= one.allowed <= max(high, was), sentence(one)
                if one.changed and one.allowed > one.current:
                    assert one.allowed <= high, sentence(one)
                if one.changed and one.allowed < one.current and resource is Resource.COMPUTE:
                    assert one.allowed >= low, sentence(one)


@settings(max_examples=12)
@given(history=histories, level=levels)
def test_guarding_what_the_guards_allowed_changes_nothing(history: list[Segment], level: QoS):
    stage = played(with_config(qos=level), history)
    fleet = now(stage)
    wanted = recommend(fleet, stage.learnt)
    first = guard(fleet, wanted, stage.guarded, LIMITS)
    note(stage.guarded, fleet, first.figure)
    again = replace(fleet, current=first.figure)
    second = guard(again, recommend(again, stage.learnt), stage.guarded, LIMITS)
    assert np.array_equal(second.figure, first.figure)


@settings(max_examples=15)
@given(
    history=histories,
    level=levels,
    formula=st.booleans(),
    uses=st.tuples(st.floats(0.0, 100.0), st.floats(0.0, 100.0)).map(sorted),
)
def test_more_compute_in_the_newest_bin_never_asks_for_a_lower_limit(
    history: list[Segment], level: QoS, formula: bool, uses: list[float]
):
    limits = (
        LimitsPolicy(mode=Mode.ON, percentile=0.95, tflops_buffer_ratio=0.2) if formula else LimitsPolicy(mode=Mode.ON)
    )
    stage = played(with_config(qos=level, limits=limits), history)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "memory.npz"
        store(path, memories(stage.learnt, stage.guarded))
        limit = stage.figures.compute.limit
        figures = []
        for use in uses:
            restored = new_memory()
            restore(path, memories(restored, new_guard_memory()))
            stage.now += STEP
            fleet = now(stage)
            throttled = 0.0 if use <= limit else 1 - limit / use
            bin_ = one_bin(stage.now, min(use, limit), 2.0 * GIB, (limit, stage.figures.vram.limit), throttled)
            learn(restored, bin_, fleet)
            watch(restored, bin_, fleet)
            figures.append(float(recommend(fleet, restored).figure[0, Field.COMPUTE_LIMIT]))
            stage.now -= STEP
    assert figures[1] >= figures[0] * (1 - 1e-9)


def memories(learnt: Rows, guarded: Rows) -> dict[str, Rows]:
    """Return the memories as the controller keeps them."""
    return {"learnt": learnt, "series": learnt.series, "guarded": guarded, "devices": guarded.devices}  # type: ignore[attr-defined]


@settings(max_examples=12)
@given(history=histories, level=levels, after=segments)
def test_what_is_restored_from_a_checkpoint_decides_the_same_then_and_afterwards(
    history: list[Segment], level: QoS, after: Segment
):
    stage = played(with_config(qos=level, replicas_policy=ReplicasPolicy(mode=Mode.ON)), history)
    twin = Stage(stage.config)
    for name in ("now", "figures", "replicas", "ooms", "down_until"):
        setattr(twin, name, getattr(stage, name))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "memory.npz"
        store(path, memories(stage.learnt, stage.guarded))
        restore(path, memories(twin.learnt, twin.guarded))
    minutes, compute, vram = after
    for one, other in zip(stage.run(minutes, compute, vram * GIB), twin.run(minutes, compute, vram * GIB), strict=True):
        assert repr(one) == repr(other)  # NaN equals itself here, and every float is told exactly


@settings(max_examples=6)
@given(
    use=st.sampled_from([0.0, 0.4, 3.0, 8.0, 40.0]),
    vram=st.sampled_from([0.3, 2.0, 5.0]),
    level=levels,
    start=st.sampled_from([(5.0, 60.0, 1.0, 8.0), (10.0, 80.0, 6.0, 12.0), (100.0, 400.0, 20.0, 40.0)]),
)
def test_a_constant_load_makes_no_change_after_a_day_of_learning(
    use: float, vram: float, level: QoS, start: tuple[float, float, float, float]
):
    figures = Amounts(Amount(*start[:2]), Amount(start[2] * GIB, start[3] * GIB))
    stage = Stage(with_config(qos=level, amounts=figures, replicas_policy=ReplicasPolicy(mode=Mode.ON)))
    day = a_day(use, vram * GIB, (figures.compute.limit, figures.vram.limit))
    stage.now = day.window.end
    fleet = now_empty(stage)
    learn(stage.learnt, day, fleet)
    watch(stage.learnt, day, fleet)
    # The least surplus that counts, a tenth, takes 250 minutes to be believed.
    stage.run(270, use, vram * GIB)
    assert [sentence(one) for made in stage.run(60, use, vram * GIB) for one in made.fields if one.changed] == []


def now_empty(stage: Stage) -> Fleet:
    """Return the fleet, with memories that have a row for it."""
    fleet = to_fleet(stage.snapshot(None))
    stage.learnt.align(fleet.keys, fleet.uids)
    stage.guarded.align(fleet.keys, fleet.uids)
    return fleet


def a_day(compute: float, vram: float, ceiling: tuple[float, float]) -> Usage:
    """Return a day of one worker's constant use, clipped nowhere."""
    one, bins = one_bin(START + STEP, compute, vram, ceiling), 1440
    window = Window(START, START + bins * STEP, STEP)
    assert one.keys == (KEY,)
    return Usage(
        window=window,
        keys=one.keys,
        peak=np.repeat(one.peak, bins, axis=2),
        total=np.repeat(one.total, bins, axis=2),
        ceiling=np.repeat(one.ceiling, bins, axis=2),
        clipped=np.repeat(one.clipped, bins, axis=2),
        ooms=np.repeat(one.ooms, bins, axis=1),
        workers=np.repeat(one.workers, bins, axis=1),
        last_seen=np.array([window.end]),
    )
