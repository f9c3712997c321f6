"""What the controller read and told, pass by pass, out of what the proxies recorded; pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tests.integration.tap import Asked

WINDOW_METRIC = "tensor_fusion_worker_vram_peak_bytes"
"""Every pass that reads history asks for this metric over just its window."""

LIMIT_METRIC = "tensor_fusion_worker_effective_tflops_limit"
BUSY_METRIC = "tensor_fusion_worker_compute_seconds_total"
CLIPPED_RATIO, COARSE_RATIO, COARSE_DEVICE_RATIO = 0.95, 0.05, 0.01
"""Use is clipped from .95 x limit on, less how coarse enforcement is: 5 % of the limit, or 1 % of the device."""

Samples = list[tuple[float, float]]
"""Time (seconds since the epoch) and value."""


@dataclass(frozen=True)
class Pass:
    """A pass's reading of history: when it asked, the window it got an answer for, when the next reading asked.

    All in seconds since the epoch; `until` is infinite for the last one. `answers` by metric.
    """

    at: float
    start: float
    end: float
    until: float = math.inf
    answers: dict[str, bytes] = field(default_factory=dict, repr=False)

    def samples(self, metric: str) -> Samples:
        """Return what was read of the only worker."""
        result = json.loads(self.answers.get(metric) or b'{"data": {"result": []}}')["data"]["result"]
        return [(float(at), float(value)) for at, value in result[0]["values"]] if result else []


@dataclass(frozen=True)
class Told:
    """A compute limit that the node was told, in TFLOPs, and when."""

    at: float
    limit: float


def passes_of(looks: Sequence[Asked], asked: Sequence[Asked]) -> list[Pass]:
    """Return the readings of history that were answered in full; a pass looks at the node, then reads history."""
    edges = [*(look.at for look in looks), math.inf]
    found = []
    for begin, end in pairwise(edges):
        together = [one for one in asked if begin <= one.at < end]
        answers = {metric: one for one in together if (metric := _metric(one))}
        window = answers.get(WINDOW_METRIC)
        if window is not None and all(one.status == 200 for one in together):
            until = float(window.form("time"))
            seconds = float(window.form("query").partition("[")[2].removesuffix("ms]")) / 1000
            found.append((window.at, until - seconds, until, {name: one.answer for name, one in answers.items()}))
    edges = [*(one[0] for one in found[1:]), math.inf]
    return [
        Pass(at, start, end, after, answers) for (at, start, end, answers), after in zip(found, edges, strict=False)
    ]


def told_of(puts: Iterable[Asked], born: float) -> list[Told]:
    """Return the limits that the node accepted for its only worker, each once, the one of its birth first."""
    told = [Told(-math.inf, born)]
    for put in puts:
        if put.status == 200:
            limit = float(json.loads(put.body)["quotas"][0]["devices"][0]["tflops_limit"])
            if limit != told[-1].limit:
                told.append(Told(put.at, limit))
    return told


def evaluations(passes: Iterable[Pass], told: Sequence[Told], demand: float, device: float, step: float) -> int:
    """Count the evaluations that it took to cover a demand, of those that could know of it.

    These are the passes that raised the limit, and those that had evidence to: a bin in which use was clipped from end
    to end at the limit then in force. Figures in TFLOPs, `device` is what the device has, `step` a bin in seconds.
    """
    covered_at = next(one.at for one in told if one.limit >= demand)
    return sum(one.at <= covered_at and (_raised(one, told) or has_evidence(one, told, device, step)) for one in passes)


def has_evidence(one: Pass, told: Sequence[Told], device: float, step: float) -> bool:
    """Tell whether a pass read a whole bin of use clipped at the limit that was in force when it asked."""
    in_force = [limit for limit in told if limit.at < one.at][-1]
    limits, busy = one.samples(LIMIT_METRIC), one.samples(BUSY_METRIC)
    clipped = CLIPPED_RATIO * in_force.limit - max(COARSE_RATIO * in_force.limit, COARSE_DEVICE_RATIO * device)
    starts = (one.start + step * count for count in range(round((one.end - one.start) / step)))
    return any(
        start >= in_force.at
        and _all_at(limits, start, start + step, in_force.limit)
        and device * _share(busy, start, start + step) >= clipped
        for start in starts
    )


def _raised(one: Pass, told: Sequence[Told]) -> bool:
    return any(one.at <= after.at < one.until and after.limit > before.limit for before, after in pairwise(told))


def _all_at(samples: Samples, start: float, end: float, value: float) -> bool:
    inside = [seen for at, seen in samples if start < at <= end]
    return bool(inside) and all(seen == value for seen in inside)


def _share(counter: Samples, start: float, end: float) -> float:
    """Return the share of time by which a counter of seconds rose, from the last sample before to the first after."""
    before, after = [one for one in counter if one[0] <= start], [one for one in counter if one[0] >= end]
    if not before or not after:
        return 0.0
    (first_at, first), (last_at, last) = before[-1], after[0]
    return (last - first) / (last_at - first_at)


def _metric(asked: Asked) -> str:
    """Return the metric of a query for raw samples, else nothing."""
    found = re.fullmatch(r"(\w+)\[\d+ms\]", asked.form("query"))
    return found[1] if found else ""
