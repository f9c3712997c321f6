"""The sentence: read history and cluster, recommend, guard, apply, report; once per pass, over the whole fleet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import structlog

from autoscaler.apply.desired import Kept
from autoscaler.apply.send import Batch, Outcome, send
from autoscaler.errors import HistoryError, StateError
from autoscaler.fit.daily import DailyFit
from autoscaler.guard import Limits, guard, note
from autoscaler.guard import new_memory as new_guard_memory
from autoscaler.model.decision import Decision
from autoscaler.model.fleet import Fleet, to_fleet
from autoscaler.model.proposal import Allowed
from autoscaler.model.rows import Rows
from autoscaler.model.snapshot import Snapshot
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import Discovered, Workload
from autoscaler.ports import Clock, Cluster, Enforcement, History, Scalers
from autoscaler.read.backfill import Backfill
from autoscaler.read.catchup import Catchup, Reach
from autoscaler.read.keeper import Keeper
from autoscaler.read.scalers import consult
from autoscaler.read.world import read_world
from autoscaler.recommend import UNTIL, learn, new_memory, recommend, watch
from autoscaler.recommend.older import relearn
from autoscaler.recommend.revision import revise
from autoscaler.report.ledger import Ledger
from autoscaler.report.metrics import ControllerMetrics
from autoscaler.report.outbox import Outbox
from autoscaler.report.timed import TimedEnforcement
from autoscaler.report.writer import Passed, report
from autoscaler.settings import Settings
from autoscaler.state.memories import restore, store
from autoscaler.state.models import built_in_model

log = structlog.get_logger(__name__)
LIVE_SECONDS: Final = 7200.0
"""Use older than this is learnt, but no longer held against the figures in force."""


@dataclass(frozen=True, slots=True)
class World:
    """The ports; without `scalers` nobody's own scaler is asked."""

    clock: Clock
    history: History
    cluster: Cluster
    enforcement: Enforcement
    scalers: Scalers | None = None

    async def close(self) -> None:
        """Release all connections."""
        for port in (self.history, self.cluster, self.enforcement, self.scalers):
            if port is not None:
                await port.close()


class Controller:
    """One pass after the other; between passes it remembers what was learnt, when figures moved, and what was read."""

    def __init__(self, world: World, settings: Settings, metrics: ControllerMetrics, *, dry_run: bool = False) -> None:
        self.world, self.settings, self.metrics, self.dry_run = world, settings, metrics, dry_run
        self.learnt, self.guarded = new_memory(built_in_model()), new_guard_memory()
        self.ledger = Ledger()
        self.epoch = 0
        self._met: set[str] = set()
        self._discovered: Discovered | None = None
        self._before: Passed | None = None
        self._kept, self._outbox, self._keeper = Kept(), Outbox(), Keeper()
        self._stored_at = world.clock.now()
        reach = Reach(settings.bin_seconds, settings.settled_seconds, settings.history_seconds)
        self._catchup, self._backfill = Catchup(world.history, reach), Backfill(world.history, reach)
        self._fit = DailyFit(settings.forecast_fit_seconds, settings.state_dir)
        self._restore()

    async def run_pass(self) -> Passed:
        """Read, recommend, guard, apply and report once.

        Raises:
            ClusterError: the cluster can't be read; nothing was decided.

        """
        with self.metrics.pass_seconds.labels("read").time():
            snapshot = await self._consult(await self._read_world())
            fleet = self._lay_out(snapshot)
            history_error = await self._read_history(snapshot, fleet)
        with self.metrics.pass_seconds.labels("recommend").time():
            self._turn_fit(fleet)
            wanted = recommend(fleet, self.learnt)
        with self.metrics.pass_seconds.labels("guard").time():
            allowed = guard(fleet, wanted, self.guarded, self._limits(history_error))
        with self.metrics.pass_seconds.labels("apply").time():
            batch = self._batch(snapshot, allowed)
            agents = TimedEnforcement(self.world.enforcement, self.metrics.push_seconds)
            outcome = await send(batch, self.world.cluster, agents, dry_run=self.dry_run)
            self._note(allowed, batch, outcome)
        with self.metrics.pass_seconds.labels("report").time():
            passed = self._passed(snapshot, allowed, outcome, history_error)
            await report(passed, self.world.cluster, self.metrics, self._outbox, dry_run=self.dry_run)
            self.ledger.take(allowed, self.learnt["use"], outcome.errors)
        self._before = passed.alone()
        self._store()
        return passed

    @property
    def is_superseded(self) -> bool:
        """Whether a node obeyed a later epoch than ours in the last pass: another one has led since."""
        nodes = self._before.nodes.values() if self._before is not None else ()
        return any(one.reachable and one.quotas is not None and one.quotas.epoch > self.epoch for one in nodes)

    def close(self) -> None:
        """Keep what was learnt."""
        self._store(now=True)

    async def end(self) -> None:
        """End what runs beside the passes, and keep what was learnt."""
        await self._fit.close()
        self.close()

    async def _read_world(self) -> Snapshot:
        world = self.world
        snapshot = await read_world(
            world.cluster, world.enforcement, world.clock.now(), self._discovered, self.settings.agents
        )
        if not self.dry_run and await self._keeper.keep(world.cluster, snapshot):
            snapshot = await read_world(
                world.cluster, world.enforcement, world.clock.now(), snapshot.discovered, self.settings.agents
            )
        self._discovered = snapshot.discovered
        self._meet(snapshot)
        return snapshot

    async def _consult(self, snapshot: Snapshot) -> Snapshot:
        """Ask the external scalers that are due; takes no longer than the longest of their time-outs."""
        if self.world.scalers is None:
            return snapshot
        before = self._before.allowed if self._before is not None else None
        workloads, known = snapshot.discovered.workloads, self._before.snapshot.external if self._before else {}
        return replace(snapshot, external=await consult(self.world.scalers, workloads, before, known, snapshot.now))

    def _meet(self, snapshot: Snapshot) -> None:
        """Take an epoch over any that a node, met for the first time, has seen."""
        for name, state in snapshot.nodes.items():
            if state.quotas is not None and state.reachable and name not in self._met:
                self._met.add(name)
                self.epoch = max(self.epoch, state.quotas.epoch + 1)
        self.epoch = max(self.epoch, 1)

    def _lay_out(self, snapshot: Snapshot) -> Fleet:
        fleet = to_fleet(snapshot, self._before.allowed.fleet if self._before is not None else None)
        self._backfill.meet(snapshot.discovered.workloads)
        if UNTIL in self.learnt.marks:
            self._backfill.notice(self.learnt.strangers(fleet.keys, fleet.uids), self.learnt.marks[UNTIL])
        self.learnt.align(fleet.keys, fleet.uids)
        for row in np.flatnonzero(revise(self.learnt, fleet, self.settings.bin_seconds)):
            log.info("new_revision", workload=str(fleet.keys[row]), then="its history is a prior only")
        self.guarded.align(fleet.keys, fleet.uids)
        return fleet

    async def _read_history(self, snapshot: Snapshot, fleet: Fleet) -> str:
        """Learn what is due; return why history could not be read, or nothing."""
        try:
            with self.metrics.query_seconds.time():
                async for usage in self._catchup.read(fleet.now, self.learnt.marks.get(UNTIL)):
                    learn(self.learnt, usage, fleet)
                    if usage.window.start >= fleet.now - LIVE_SECONDS:
                        watch(self.learnt, usage, fleet)
        except HistoryError as error:
            log.warning("history_not_read", error=str(error))
            return str(error)
        await self._read_older(snapshot)
        return ""

    async def _read_older(self, snapshot: Snapshot) -> None:
        """Read on in what is older than a workload's first pass, and learn it once it is whole."""
        try:
            older = await self._backfill.read(self.learnt.marks.get(UNTIL, -np.inf))
        except HistoryError as error:
            log.warning("older_history_not_read", error=str(error), then="it is tried again")
            return
        for workload in snapshot.discovered.workloads if older is not None else ():
            if older is not None and older.is_of(workload.key, workload.ref.uid):
                alone = to_fleet(Snapshot(snapshot.now, Discovered((workload,)), {}))
                taken = relearn(self.learnt, older.usages, alone)
                log.info("older_history_learnt", workload=str(workload.key), taken=taken)

    def _turn_fit(self, fleet: Fleet) -> None:
        verdict = None if self.dry_run else self._fit.turn(fleet, self.learnt)
        if verdict is not None:
            self.metrics.forecast_fits.labels("refused" if verdict.model is None else "taken").inc()

    def _limits(self, history_error: str) -> Limits:
        """Without history nothing is fresh: everything is held."""
        fresh = -np.inf if history_error else self.settings.fresh_seconds
        settings = self.settings
        guarded = settings.changes_per_pass, settings.min_samples, settings.vram_reserve
        return Limits(fresh, *guarded, needs_room=settings.replicas_need_room)

    def _batch(self, snapshot: Snapshot, allowed: Allowed) -> Batch:
        """Decide for those that move, whose workers don't all hold the same, or whose count is noted for nothing."""
        workloads, ruled = snapshot.discovered.workloads, allowed.fleet.orders.ruled
        uneven = (
            self._is_uneven(load) or (load.original_replicas is not None and not ruled[row])
            for row, load in enumerate(workloads)
        )
        rows = np.flatnonzero(allowed.changed | np.fromiter(uneven, dtype=bool, count=len(workloads)))
        decisions: Mapping[WorkloadKey, Decision] = {
            allowed.fleet.keys[row]: allowed.decision(int(row)) for row in rows
        }
        broken = frozenset(broken.key for broken in snapshot.discovered.broken)
        return Batch(workloads, decisions, snapshot.nodes, self.epoch, broken, self._kept)

    def _is_uneven(self, workload: Workload) -> bool:
        """Tell whether its workers hold different figures; one that settled as it is needed no decision."""
        settled = self._kept.settled.get(workload.key)
        if settled is not None and settled.workload is workload:
            return False
        return any(worker.current != workload.current for worker in workload.workers)

    def _passed(self, snapshot: Snapshot, allowed: Allowed, outcome: Outcome, history_error: str) -> Passed:
        return Passed(
            snapshot=snapshot,
            allowed=allowed,
            nodes=outcome.nodes,
            errors=outcome.errors,
            held={one.pod_uid: one.reason for one in outcome.held},
            history_error=history_error,
            fresh_seconds=self.settings.fresh_seconds,
            before=self._before,
            number=0 if self._before is None else self._before.number + 1,
        )

    def _note(self, allowed: Allowed, batch: Batch, outcome: Outcome) -> None:
        """Remember the moves that were written; in a dry run none was."""
        self._kept = outcome.kept
        if self.dry_run:
            return
        figure = allowed.figure.copy()
        for row in np.flatnonzero(allowed.changed):
            if allowed.fleet.keys[row] in outcome.errors:
                figure[row] = allowed.fleet.current[row]
        note(self.guarded, allowed.fleet, figure)
        for key, error in outcome.errors.items():
            log.warning("not_written", workload=str(key), error=error)
        for node, error in outcome.node_errors.items():
            log.warning("node_not_reached", node=node, epoch=batch.epoch, error=error)

    @property
    def _memories(self) -> Mapping[str, Rows]:
        return {
            "learnt": self.learnt,
            "series": self.learnt.series,
            "guarded": self.guarded,
            "devices": self.guarded.devices,
        }

    @property
    def _checkpoint(self) -> Path | None:
        return None if self.settings.state_dir is None else self.settings.state_dir / "memory.npz"

    def _restore(self) -> None:
        self._fit.restore(self.learnt)
        if self._checkpoint is None or not self._checkpoint.exists():
            return
        try:
            restore(self._checkpoint, self._memories)
        except StateError as error:
            log.warning("checkpoint_not_used", error=str(error), then="history is read again")
            self.learnt, self.guarded = new_memory(self.learnt.model), new_guard_memory()

    def _store(self, *, now: bool = False) -> None:
        at = self.world.clock.now()
        due = now or at - self._stored_at >= self.settings.checkpoint_seconds
        if self._checkpoint is None or not due or self.dry_run:
            return
        try:
            store(self._checkpoint, self._memories)
        except OSError as error:
            log.warning("checkpoint_not_written", error=str(error))
        self._stored_at = at
