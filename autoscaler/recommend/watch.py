"""Use against the figures in force: exceedances, saturation, and at which limit a worker died."""

from __future__ import annotations

from typing import Any

import numpy as np

from autoscaler.model.columns import fmax, where
from autoscaler.model.decision import AMOUNT_FIELDS, Field
from autoscaler.model.defaults import MINUTE
from autoscaler.model.fleet import Fleet
from autoscaler.model.rows import Row, Rows
from autoscaler.model.usage import SATURATED_RATIO, SATURATION_SLACK_RATIO, Bools, Floats, Usage
from autoscaler.recommend.bins import Bins, in_row_order
from autoscaler.recommend.memory import WATCHED_AT


def watch(memory: Rows, usage: Usage, fleet: Fleet) -> None:
    """Hold a window's bins against the figures in force: exceedances, saturation, out-of-memory floors."""
    bins = in_row_order(memory, usage)
    _note_changes(memory, fleet)
    above, oom = bins.compute > fleet.current[:, Field.COMPUTE_REQUEST, None], bins.ooms > 0
    if above.any() or oom.any() or bins.clipped.any() or memory["saturated"].any():
        _hold_against(memory, bins, fleet, (above, oom))
    memory.marks[WATCHED_AT] = fleet.now


def _hold_against(memory: Rows, bins: Bins, fleet: Fleet, short: tuple[Bools, Bools]) -> None:
    """Take in a window in which, or just before which, something was short; `short`: above the request, killed."""
    above, oom = short
    limit, ceiling = fleet.current[:, Field.COMPUTE_LIMIT, None], bins.compute_ceiling
    near = bins.compute >= (SATURATED_RATIO - SATURATION_SLACK_RATIO) * ceiling
    whole = bins.ends - bins.step >= memory["limit_changed_at"][:, None]
    # A worker that did not have the limit in force yet says nothing about it: a slow node must not raise it twice.
    under = ceiling < SATURATED_RATIO * limit
    saturated = bins.clipped & (near | whole) & ~under
    silent = np.isnan(bins.compute) | under | ~whole  # a bin that straddles the change tells nothing either way
    if saturated.any() or above.any() or oom.any():
        at_death = np.where(np.isnan(bins.vram_ceiling), fleet.current[:, Field.VRAM_LIMIT, None], bins.vram_ceiling)
        _watch_bins(memory, (bins.ends, bins.step), (bins.compute, above, saturated, silent, oom, at_death))
    else:
        memory["saturated"][~silent.all(axis=1)] = 0.0


def _watch_bins(memory: Rows, when: tuple[Floats, float], seen: tuple[Any, ...]) -> None:
    """Take in bin by bin what was seen (W, T); `when`: their ends and width."""
    if len(memory.keys) == 1:
        memory, seen = memory.alone(), tuple(Row(one[0]) for one in seen)
    compute, above, saturated, silent, oom, at_death = seen
    ends, step = when
    for column, end in enumerate(ends):
        _note_exceedance(memory, compute[:, column], above[:, column], (end, step))
        now, streak = saturated[:, column], memory["saturated"]
        memory["saturated"] = where(now, streak + 1, where(silent[:, column], streak, 0.0))
        memory["saturated_at"] = where(now, end, memory["saturated_at"])
        memory["oom_level"] = where(oom[:, column], at_death[:, column], memory["oom_level"])


def _note_changes(memory: Rows, fleet: Fleet) -> None:
    """Notice figures that changed since the last pass: what was counted against the old ones no longer counts."""
    amounts, seen = fleet.current[:, : len(AMOUNT_FIELDS)], memory["seen"]
    changed = (seen != amounts) & ~np.isnan(seen)
    if changed.any():
        memory["limit_changed_at"][changed[:, Field.COMPUTE_LIMIT]] = memory.marks.get(WATCHED_AT, -np.inf)
        request = changed[:, Field.COMPUTE_REQUEST]
        memory["surplus"][request] = 0.0
        raised = request & (amounts[:, Field.COMPUTE_REQUEST] > seen[:, Field.COMPUTE_REQUEST])
        memory["exceeded_at"][raised] = -np.inf
        memory["exceeded_peak"][raised] = 0.0
    seen[:] = amounts


def _note_exceedance(memory: Rows, compute: Floats, above: Bools, span: tuple[float, float]) -> None:
    """Count use above the request; `span`: end and width of the bin. One of two minutes counts as two samples."""
    end, step = span
    times, peak = memory["exceeded_at"], memory["exceeded_peak"]
    latest = times[:, 0]
    counted = where(end - latest > 30 * MINUTE, compute, fmax(peak, compute))
    memory["exceeded_peak"] = where(above, counted, peak)
    times[:, 1] = where(above, latest if step < 2 * MINUTE else end, times[:, 1])
    times[:, 0] = where(above, end, latest)
