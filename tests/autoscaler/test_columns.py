"""A fleet of one is worked on as numbers: it gets what each of its workloads gets among others, to the last bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autoscaler.contract.keys import QoS
from autoscaler.model import columns
from autoscaler.model.config import Configuration, LimitsPolicy, Mode, Prediction, RequestsPolicy
from autoscaler.model.fleet import Fleet, to_fleet
from autoscaler.model.resources import GIB
from autoscaler.model.rows import Row
from autoscaler.model.snapshot import Snapshot
from autoscaler.model.usage import Usage, Window, WorkloadKey
from autoscaler.model.workload import Discovered
from autoscaler.recommend import learn, new_memory, recommend, watch
from autoscaler.recommend.memory import COLUMNS
from autoscaler.state.models import built_in_model
from tests.autoscaler.stage import ON, START, STEP, Stage

BINS = 5
WINDOWS = 320
SPAN = BINS * STEP
FORECAST = RequestsPolicy(mode=Mode.ON, prediction=Prediction(enable=True))
CONFIGS: tuple[Configuration, ...] = (
    ON,
    replace(ON, qos=QoS.CRITICAL, requests=FORECAST, limits=LimitsPolicy(mode=Mode.ON, percentile=0.9)),
    replace(ON, qos=QoS.LOW, requests=replace(FORECAST, percentile=0.8, buffer_ratio=0.2)),
    replace(ON, qos=QoS.HIGH, requests=FORECAST, limits=LimitsPolicy(prediction=Prediction(enable=True))),
)


def fleet_of(configs: tuple[Configuration, ...], first: int = 0) -> Fleet:
    loads = []
    for row, config in enumerate(configs, first):
        one = Stage(config=config).workload
        loads.append(replace(one, key=WorkloadKey("a", f"w{row}"), ref=replace(one.ref, name=f"w{row}", uid=f"u{row}")))
    return to_fleet(Snapshot(START, Discovered(tuple(loads)), {}))


def windows(count: int, seed: int = 3) -> list[Usage]:
    """Days of bursts and idleness with gaps, deaths and clipped bins."""
    rng = np.random.default_rng(seed)
    bins = BINS * WINDOWS
    shape = count, bins
    busy = rng.random(shape) < 0.6
    compute = np.where(busy, rng.gamma(2.0, 3.0, shape), 0.0) * (1.2 + np.sin(np.arange(bins) / 200.0))
    vram = (2 + np.where(busy, rng.gamma(1.5, 1.0, shape), 0.0)) * GIB
    gone = rng.random(shape) < 0.03
    peak = np.where(gone, np.nan, np.array([compute, vram])).astype(np.float32)
    parts = (slice(at, at + BINS) for at in range(0, bins, BINS))
    clipped, ooms = rng.random(peak.shape) < 0.05, (rng.random(shape) < 0.003).astype(np.float32)
    return [
        Usage(
            window=Window(START + SPAN * number, START + SPAN * (number + 1), STEP),
            keys=tuple(WorkloadKey("a", f"w{row}") for row in range(count)),
            peak=peak[:, :, part],
            total=peak[:, :, part],
            ceiling=np.where(np.arange(count)[:, None] % 2, 9.0, np.nan)[None] * np.ones_like(peak[:, :, part]),
            clipped=clipped[:, :, part],
            ooms=ooms[:, part],
            workers=np.ones((count, BINS), dtype=np.float32),
            last_seen=np.full(count, START + SPAN * (number + 1)),
        )
        for number, part in enumerate(parts)
    ]


def test_a_workload_gets_the_same_alone_and_among_others():
    among, alone = fleet_of(CONFIGS), [fleet_of((config,), row) for row, config in enumerate(CONFIGS)]
    memories = [new_memory(built_in_model()) for _ in range(len(CONFIGS) + 1)]
    for memory, fleet in zip(memories, [among, *alone], strict=True):
        memory.align(fleet.keys, fleet.uids)
    figures = among.current
    causes = set()
    for number, usage in enumerate(windows(len(CONFIGS))):
        wanted = []
        for row, (memory, fleet) in enumerate(zip(memories, [among, *alone], strict=True), -1):
            current = figures if row < 0 else figures[[row]]
            now = replace(fleet, now=usage.window.end, current=current)
            learn(memory, usage, now)
            watch(memory, usage, now)
            wanted.append(recommend(now, memory, horizontal=False))
        for row, one in enumerate(wanted[1:]):
            for name in ("figure", "lower", "upper", "cause", "urgent", "trouble_at", "trouble_samples", "samples"):
                np.testing.assert_array_equal(getattr(one, name)[0], getattr(wanted[0], name)[row], name)
            for field, inputs in one.inputs.items():
                # what only others asked for is not named here
                for name, column in inputs.items():
                    np.testing.assert_array_equal(column[0], wanted[0].inputs[field][name][row], name)
        causes |= set(wanted[0].cause.flat)
        figures = np.where(number % 3 == 0, wanted[0].figure, figures)
    assert len(causes) >= 6, "the history is too calm to show anything"
    for row, memory in enumerate(memories[1:]):
        for name in COLUMNS:
            np.testing.assert_array_equal(memory.arrays[name][0], memories[0].arrays[name][row], name)


VALUES = [0.0, -1.5, 2.0, 1e300, float("inf"), float("nan")]


@pytest.mark.parametrize("name", ["fmax", "fmin", "maximum", "minimum", "ratio"])
def test_a_function_of_two_numbers_is_that_of_two_columns(name: str):
    function = getattr(columns, name)
    for one in VALUES:
        for other in VALUES:
            of_columns = function(np.array([one, one]), np.array([other, other]))[1]
            np.testing.assert_array_equal(function(one, other), of_columns, f"{one} {other}")


def test_a_row_is_written_through_and_reads_what_was_written():
    array = np.array([[1.0, 2.0, 3.0]])
    row = Row(array[0])
    row[:, 1] = 7.0
    assert row[:, 1] == array[0, 1] == columns.largest(row) == 7.0
    before = np.array([9.0])
    assert columns.last_known(Row(np.array([1.0, 4.0, np.nan])), before) == 4.0
    assert columns.last_known(Row(np.array([np.nan])), before) is before
