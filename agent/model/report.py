"""What one tick of the agent hands to its exporter: frozen figures, and the counters read from the shell.

Neighbours: `agent.loop` builds a `TickReport` per tick, `agent.export.exporter` renders it. Keys of worker figures are
`WorkerKey`; all totals and histograms count since the agent started.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from agent.model.beyond import Beyond
from agent.model.samples import Attribution, NodeSample, WorkerKey
from autoscaler.contract.quota import DeviceQuota, Observed

DURATION_BOUNDS_SECONDS: Final = (0.00001, 0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


@dataclass(frozen=True, slots=True)
class Durations:
    """A histogram of durations: `counts` per bucket of DURATION_BOUNDS_SECONDS, the last one for what is longer."""

    counts: tuple[int, ...] = (0,) * (len(DURATION_BOUNDS_SECONDS) + 1)
    total_seconds: float = 0.0


class DurationRecorder:
    """Counts durations as they happen; `read` gives the frozen histogram."""

    def __init__(self) -> None:
        self._counts = [0] * (len(DURATION_BOUNDS_SECONDS) + 1)
        self._total_seconds = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self._counts[bisect_left(DURATION_BOUNDS_SECONDS, seconds)] += 1
        self._total_seconds += seconds

    def read(self) -> Durations:
        """Return what was counted so far."""
        return Durations(tuple(self._counts), self._total_seconds)


@dataclass(frozen=True, slots=True)
class SourceStats:
    """How the device source is doing: call durations by call, errors by (call, code), dropped samples by reason."""

    calls: Mapping[str, Durations] = field(default_factory=dict)
    errors: Mapping[tuple[str, str], int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AgentStats:
    """The agent about itself; `applies` counts quotas put into force by (backend, result, effect)."""

    sample: Durations = Durations()
    apply: Durations = Durations()
    applies: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    tick_overruns: int = 0
    source: SourceStats = SourceStats()


@dataclass(frozen=True, slots=True)
class TickReport:
    """One tick, complete: measurements, quotas desired and in force, and the agent's own counters.

    `observed` has every worker that is known on a device, `desired` those for whom something was asked. `generation` is
    that of the newest document received (None before the first); `applied` the newest generation in force by worker.
    `throttled` says whether the limit held the worker back in this tick, None or no entry where nothing can tell.
    `ooms` are totals by key and source; no entry where nothing can tell. `backends` name what enforces a worker's
    quota. `credits` are in TFLOP-seconds, no entry where bursts need none. `bypassed` says who goes around an effective
    limit, no entry where none is effective; `beyond` what is used past one, no entry where nothing.
    Times are seconds since the epoch.
    """

    at: float
    node: str
    sample: NodeSample
    attribution: Attribution
    desired: Mapping[WorkerKey, DeviceQuota] = field(default_factory=dict)
    observed: Mapping[WorkerKey, Observed] = field(default_factory=dict)
    generation: int | None = None
    applied: Mapping[WorkerKey, int] = field(default_factory=dict)
    throttled: Mapping[WorkerKey, bool | None] = field(default_factory=dict)
    ooms: Mapping[tuple[str, str, str, str], int] = field(default_factory=dict)
    backends: Mapping[WorkerKey, str] = field(default_factory=dict)
    credits: Mapping[WorkerKey, float] = field(default_factory=dict)
    bypassed: Mapping[WorkerKey, bool] = field(default_factory=dict)
    beyond: Mapping[WorkerKey, Beyond] = field(default_factory=dict)
    last_contact_at: float | None = None
    stats: AgentStats = AgentStats()
