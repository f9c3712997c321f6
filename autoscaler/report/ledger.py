"""What a running controller keeps of its decisions for whoever asks: the last pass, the last changes, a few samples.

Bounded: CHANGES per workload, and SAMPLES of use, request and limit, each of at least SAMPLE_SECONDS (8 hours; 23 MB
for 10,000 workloads). A record is made only when it is asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

import numpy as np

from autoscaler.guard.trace import record_of
from autoscaler.model.decision import AMOUNT_FIELDS, Field, field_of
from autoscaler.model.proposal import Allowed
from autoscaler.model.reasons import CAUSES
from autoscaler.model.resources import Resource, Side
from autoscaler.model.rows import Column, Rows
from autoscaler.model.usage import Floats, WorkloadKey
from autoscaler.report.account import Account, Change, Lines, Points

CHANGES: Final = 32
SAMPLES: Final = 96
SAMPLE_SECONDS: Final = 300.0


class Ledger:
    """The decisions of one controller; `take` is called after every pass."""

    def __init__(self) -> None:
        self._rows = Rows({"samples": Column((SAMPLES, len(Resource) + len(AMOUNT_FIELDS)), np.nan, np.float32)})
        self._times = np.full(SAMPLES, np.nan)
        self._slot = -1
        self._began = -np.inf
        self._changes: dict[WorkloadKey, deque[Change]] = {}
        self._allowed: Allowed | None = None

    @property
    def keys(self) -> tuple[WorkloadKey, ...]:
        """Return the workloads that there is something to tell about."""
        return () if self._allowed is None else self._allowed.fleet.keys

    @property
    def is_empty(self) -> bool:
        """Whether no pass was made yet."""
        return self._allowed is None

    def take(self, allowed: Allowed, use: Floats, failed: Iterable[WorkloadKey] = ()) -> None:
        """Take in a pass: its decisions, `use` (W, 2) of the largest worker, and the workloads that weren't written."""
        fleet, failures = allowed.fleet, frozenset(failed)
        if fleet.keys != self._rows.keys:
            self._rows.align(fleet.keys, fleet.uids)
            kept = set(fleet.keys)
            self._changes = {key: known for key, known in self._changes.items() if key in kept}
        self._sample(fleet.now, use, fleet.current[:, list(AMOUNT_FIELDS)])
        for row in np.flatnonzero(allowed.changed):
            if fleet.keys[row] not in failures:
                known = self._changes.setdefault(fleet.keys[row], deque(maxlen=CHANGES))
                known.extend(_changes_of(allowed, int(row)))
        self._allowed = allowed

    def account(self, key: WorkloadKey) -> Account | None:
        """Return what there is to tell about a workload, None when it is not known."""
        if self._allowed is None or key not in self._allowed.fleet.keys:
            return None
        row = self._allowed.fleet.keys.index(key)
        compute, vram = (self._lines(row, resource) for resource in Resource)
        return Account(record_of(self._allowed, row), tuple(self._changes.get(key, ())), (compute, vram))

    def _sample(self, now: float, use: Floats, figures: Floats) -> None:
        samples = self._rows.weights("samples")
        if now - self._began >= SAMPLE_SECONDS:
            self._slot, self._began = (self._slot + 1) % SAMPLES, now
            samples[:, self._slot] = np.nan
        self._times[self._slot] = now
        samples[:, self._slot, : len(Resource)] = np.fmax(samples[:, self._slot, : len(Resource)], use)
        samples[:, self._slot, len(Resource) :] = figures

    def _lines(self, row: int, resource: Resource) -> Lines:
        places = [(self._slot + 1 + place) % SAMPLES for place in range(SAMPLES)]
        places = [place for place in places if not np.isnan(self._times[place])]
        samples = self._rows.weights("samples")[row]

        def points(column: int) -> Points:
            return tuple((float(self._times[place]), float(samples[place, column])) for place in places)

        sides = (len(Resource) + field_of(resource, side) for side in Side)
        return Lines(points(resource), *(points(column) for column in sides))


def _changes_of(allowed: Allowed, row: int) -> Iterable[Change]:
    current, figure = allowed.fleet.current[row], allowed.figure[row]
    for field in Field:
        before, after = float(current[field]), float(figure[field])
        if before != after:
            yield Change(allowed.fleet.now, field, before, after, CAUSES[int(allowed.wanted.cause[row, field])])
