"""Every contender on every demand, over several processes, and what comes of it.

Each job is a function of its inputs alone, and results stand in the order of the jobs, so that equal input gives equal
output however many processes share the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np

from autoscaler.model.usage import Floats, WorkloadKey
from autoscaler.replay.contend import STATIC, Card, Case, Contender
from autoscaler.replay.demand import Demand, Progress
from autoscaler.replay.loop import Figures, Held, Judged, replay
from autoscaler.replay.measure import Measures, measured, total, warm_up_seconds
from autoscaler.replay.policy import Policy
from autoscaler.replay.strip import DemandStrip, RunStrip, Span, demand_strip, over_time, run_strip


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """One contender on one demand. `reserved` (2, FLEET_COLUMNS): its requests over the whole span, by Resource."""

    name: str
    began_with: Figures
    measures: Measures
    strip: RunStrip
    reserved: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """All contenders on one demand; the first outcome is `static`. `needed`: the demand, as Outcome.reserved."""

    key: WorkloadKey
    card: Card
    step: float
    hours: float
    censored_hours: float
    strip: DemandStrip
    has_vram: bool
    needed: Floats
    outcomes: tuple[Outcome, ...]

    def outcome(self, name: str) -> Outcome:
        """Return a contender's outcome; who did not contend here held what is set."""
        return next((one for one in self.outcomes if one.name == name), self.outcomes[0])

    @property
    def name(self) -> str:
        """Return the workload's short name."""
        return self.key.name if self.key.namespace == "default" else str(self.key)


@dataclass(frozen=True, slots=True, eq=False)
class Backtest:
    """What came of it: one result per demand. `names`: the contenders in order, static first."""

    source: str
    results: tuple[Result, ...]
    names: tuple[str, ...]
    span: Span
    notes: tuple[str, ...]

    def total(self, name: str) -> Measures:
        """Return a contender's measures over all workloads."""
        return total(result.outcome(name).measures for result in self.results)

    @property
    def static(self) -> Measures:
        """Return what holding the figures that are set comes to."""
        return self.total(STATIC)

    @property
    def tried(self) -> tuple[str, ...]:
        """Return the contenders that are compared with static."""
        return self.names[1:]

    @property
    def censored_hours(self) -> float:
        """Return the hours in which demand was only estimated."""
        return sum(result.censored_hours for result in self.results)


@dataclass(frozen=True, slots=True)
class Job:
    """One contender on one demand; `warm_up` in seconds, None: the rule of `measure`."""

    demand: Demand
    contender: Contender
    card: Card
    warm_up: float | None
    span: Span


def judged(contender: Contender) -> Judged:
    """Return who decides for a contender: nobody, or the product."""
    return Held() if contender.config is None else Policy(contender.config)


def run_job(job: Job) -> Outcome:
    """Replay one contender and keep what reports need of it."""
    demand, contender, card = job.demand, job.contender, job.card
    run = replay(demand, judged(contender), contender.figures)
    warm_up = warm_up_seconds(demand) if job.warm_up is None else job.warm_up
    requests = run.figures[[0, 2]]
    if demand.vram is None:
        requests = requests * np.array([[1.0], [0.0]])
    return Outcome(
        contender.name,
        contender.figures,
        measured(demand, run, (card.tflops, card.vram_bytes), warm_up),
        run_strip(demand, run),
        over_time(demand, requests, job.span),
    )


def backtest(cases: Sequence[Case], jobs: int, warm_up: float | None, progress: Progress) -> tuple[Result, ...]:
    """Return what every contender of every case comes to, run by `jobs` processes."""
    span = span_of(cases)
    work = [Job(case.demand, contender, case.card, warm_up, span) for case in cases for contender in case.contenders]
    outcomes = []
    for outcome in _outcomes(work, min(jobs, len(work))):
        outcomes.append(outcome)
        progress(len(outcomes), len(work))
    each = iter(outcomes)
    return tuple(_result(case, tuple(next(each) for _ in case.contenders), span) for case in cases)


def span_of(cases: Sequence[Case]) -> Span:
    """Return the time that all demands together cover."""
    return Span(min(case.demand.start for case in cases), max(case.demand.end for case in cases))


def names_of(cases: Sequence[Case]) -> tuple[str, ...]:
    """Return the names of all contenders, in the order of their first appearance in the richest case."""
    ordered = sorted(cases, key=lambda case: -len(case.contenders))
    return tuple(dict.fromkeys(contender.name for case in ordered for contender in case.contenders))


def _outcomes(work: Sequence[Job], jobs: int) -> Iterator[Outcome]:
    if jobs <= 1:
        yield from map(run_job, work)
        return
    # Spawned, as threads of the parent may hold locks at the moment of a fork.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(run_job, work)


def _result(case: Case, outcomes: tuple[Outcome, ...], span: Span) -> Result:
    demand = case.demand
    vram = np.zeros(len(demand.compute)) if demand.vram is None else demand.vram
    return Result(
        key=demand.key,
        card=case.card,
        step=demand.step,
        hours=(demand.end - demand.start) / 3600.0,
        censored_hours=demand.censored_hours,
        strip=demand_strip(demand),
        has_vram=demand.vram is not None,
        needed=over_time(demand, np.stack([demand.compute, vram]), span),
        outcomes=outcomes,
    )
