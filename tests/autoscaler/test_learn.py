"""Learning: the same from one window as bin by bin, from a restart as from going on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autoscaler.model.fleet import Fleet, to_fleet
from autoscaler.model.resources import GIB
from autoscaler.model.rows import Rows
from autoscaler.model.usage import Usage, Window
from autoscaler.recommend import learn, new_memory, watch
from autoscaler.recommend.memory import COLUMNS
from tests.autoscaler.stage import KEY, START, STEP, Stage

MINUTES = 26 * 60


def history() -> Usage:
    """A bit more than a day: bursts, gaps, a clipped hour and two deaths."""
    rng = np.random.default_rng(11)
    compute = rng.gamma(0.7, 12, MINUTES)
    vram = (3 + np.cumsum(rng.normal(0, 0.05, MINUTES)).clip(-2, 6)) * GIB
    compute[300:330] = vram[300:330] = np.nan
    peak = np.array([compute, vram], dtype=np.float32)[:, None, :]
    ooms = np.zeros((1, MINUTES), dtype=np.float32)
    ooms[0, [200, 900]] = 1
    clipped = np.zeros((2, 1, MINUTES), dtype=bool)
    clipped[0, 0, 600:660] = True
    return Usage(
        window=Window(START, START + STEP * MINUTES, STEP),
        keys=(KEY,),
        peak=peak,
        total=peak.copy(),
        ceiling=np.full_like(peak, 12 * GIB),
        clipped=clipped,
        ooms=ooms,
        workers=np.ones((1, MINUTES), dtype=np.float32),
        last_seen=np.array([START + STEP * MINUTES]),
    )


def cut(usage: Usage, first: int, last: int) -> Usage:
    part = slice(first, last)
    return replace(
        usage,
        window=Window(START + STEP * first, START + STEP * last, STEP),
        peak=usage.peak[:, :, part],
        total=usage.total[:, :, part],
        ceiling=usage.ceiling[:, :, part],
        clipped=usage.clipped[:, :, part],
        ooms=usage.ooms[:, part],
        workers=usage.workers[:, part],
    )


def fleet() -> Fleet:
    return to_fleet(Stage(now=START + STEP * MINUTES).snapshot(None))


def learnt(*parts: Usage) -> Rows:
    memory, now = new_memory(), fleet()
    memory.align(now.keys, now.uids)
    for part in parts:
        learn(memory, part, now)
        watch(memory, part, now)
    return memory


@pytest.mark.parametrize("step", [1, 7, 240])
def test_what_is_learnt_does_not_depend_on_how_history_is_cut(step: int):
    usage = history()
    whole = learnt(usage)
    pieces = learnt(*(cut(usage, first, min(first + step, MINUTES)) for first in range(0, MINUTES, step)))
    assert pieces.marks == whole.marks
    for name in COLUMNS:
        assert np.allclose(pieces.arrays[name], whole.arrays[name], rtol=2e-4, equal_nan=True), name


def test_bins_after_a_death_teach_nothing_about_working_memory_for_five_minutes():
    usage = history()
    before = learnt(cut(usage, 0, 201))
    after = learnt(cut(usage, 0, 205))
    assert after["vram_samples"][0] == before["vram_samples"][0]
    assert after["oom_at"][0] == START + STEP * 201


def test_unknown_bins_move_no_count_and_no_peak():
    usage = history()
    before, after = learnt(cut(usage, 0, 300)), learnt(cut(usage, 0, 330))
    assert after["samples"][0] == before["samples"][0] == 300
    assert after["last_at"][0] == before["last_at"][0]
    assert np.array_equal(after["compute_peaks"], before["compute_peaks"])
