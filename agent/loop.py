"""The node's sentence: sample, attribute, govern, enforce, export; once a tick, over all devices.

The order of a new document is: checked, stored, put into force, answered. Neighbours: `cli` wires the parts, `server`
hands documents in and states out, `run` and `lockstep` say when to tick.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import structlog

from agent.attribute import AtTick, Placed, attribute
from agent.enforce.live import LastUse
from agent.enforce.nearness import Nearness
from agent.enforce.preempting import Preempting
from agent.enforce.transition import Enforcer
from agent.evidence.witness import Signs, Throttled, Witness
from agent.export.exporter import Exporter
from agent.govern.lending import Lending
from agent.govern.pool import Layout, Pool, Share, claims, lay_out, rooms, within_limits
from agent.gpus import GpuTable
from agent.model.applied import Applied
from agent.model.exits import Exit
from agent.model.report import AgentStats, DurationRecorder, SourceStats, TickReport
from agent.model.samples import (
    Attribution,
    DeviceSample,
    DeviceSource,
    NodeSample,
    ProcessDirectory,
    SourceError,
    Worker,
    WorkerKey,
)
from agent.quotas.audit import changes
from agent.quotas.check import Denial, check_document, refuse
from agent.quotas.generations import Generations
from agent.quotas.states import capacities, device_infos, worker_states
from agent.quotas.store import QuotaStore, StoreError
from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import DevicesStatus, QuotaDocument, QuotaStatus, Refusal

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Parts:
    """What an agent is made of; `source_stats` and `witness` are None where the source has none.

    `shrink_below_use`: a VRAM limit below what is in use is put into force all the same.
    """

    source: DeviceSource
    directory: ProcessDirectory
    enforcer: Enforcer
    live_use: LastUse
    store: QuotaStore
    exporter: Exporter
    gpus: GpuTable
    source_stats: Callable[[], SourceStats] | None = None
    witness: Witness | None = None
    exits: Callable[[], tuple[Exit, ...]] | None = None
    throttled: Callable[[], Throttled] | None = None
    preempting: Preempting | None = None
    nearness: Nearness | None = None
    shrink_below_use: bool = False


@dataclass(frozen=True, slots=True)
class _Scene:
    """The last tick: what was measured, what was governed from it, and what became of it."""

    sample: NodeSample
    attribution: Attribution
    workers: tuple[Worker, ...]
    shares: tuple[Share, ...]
    applied: Mapping[WorkerKey, Applied]
    unasked: Mapping[WorkerKey, Applied]


class Agent:
    """One node. Ticks, looks between them and documents exclude each other; reading the state waits for none."""

    def __init__(self, node: str, parts: Parts, timer: Callable[[], float] = time.perf_counter) -> None:
        """Take up the stored quotas; the first tick puts them into force again.

        Raises:
            StoreError: the state directory cannot be used.
        """
        self.node = node
        self._parts = parts
        self._timer = timer
        self._lock = threading.Lock()
        self._scene: _Scene | None = None
        self._layout: Layout | None = None
        self._pool = Pool()
        self._lending, self._signs = Lending(), Signs(parts.witness, parts.exits, parts.throttled)
        self._devices: dict[str, DeviceSample] = {}
        self._placed, self._generations = Placed(), Generations()
        self._sample_seconds, self._apply_seconds = DurationRecorder(), DurationRecorder()
        self._applies: Counter[tuple[str, str, str]] = Counter()
        self._overruns = 0
        self._contact_at: float | None = None
        for problem in parts.store.load().problems:
            _log.error("quota_store_damaged", problem=problem)

    def tick(self, now: float) -> None:
        """Do the node's sentence once, at `now` (seconds since the epoch).

        Raises:
            SourceError: no device can be read; everything in force stays as it is, but nobody stays frozen.
        """
        with self._lock:
            try:
                sample = self._sample(now)
            except SourceError:
                self.let_go()
                raise
            directory = AtTick(self._parts.directory)
            previous = self._scene.attribution if self._scene is not None else None
            placed = self._placed.by(self._document, directory.workers())
            attribution = attribute(sample, directory, previous, placed)
            scene = self._settle(sample, attribution, directory.workers())
            self._signs.tick(now, scene.applied, sample, self._parts.live_use.tflops_of)
            self._export(scene, now)

    def watch(self) -> None:
        """Between ticks: read again what is held on devices where somebody is near its VRAM limit."""
        nearness = self._parts.nearness
        for uuid in nearness.devices if nearness is not None else ():
            # Device by device: who waits for the lock waits for one look.
            with self._lock:
                if nearness is None or nearness.is_resting:
                    return
                nearness.look(uuid)

    @property
    def is_watching(self) -> bool:
        """Whether anybody is near a limit."""
        return self._parts.nearness is not None and bool(self._parts.nearness.devices)

    def put(self, document: QuotaDocument, now: float, who: str = "") -> QuotaStatus | Refusal:
        """Take a document: checked, stored, put into force, answered; a refusal has changed nothing.

        `who` asked for it stands in the audit log, beside every figure that it changes.
        """
        with self._lock:
            self._contact_at = now
            refusal = check_document(document, self.node, self._document, capacities(self._devices, self._parts.gpus))
            if refusal is not None:
                return refusal
            before = self._document
            if document != before:
                try:
                    self._parts.store.save(document)
                except StoreError as error:
                    return refuse(Denial.NOT_STORED, str(error), self._document)
                for change in changes(before, document):
                    _log.info("quota_changed", who=who, generation=document.generation, **asdict(change))
            if self._scene is not None:
                self._settle(self._scene.sample, self._scene.attribution, self._scene.workers)
            return self.state()

    def state(self) -> QuotaStatus:
        """Return every worker of the node, desired and observed."""
        document, scene = self._document, self._scene
        epoch, generation = (document.epoch, document.generation) if document is not None else (0, 0)
        if scene is None:
            return QuotaStatus(self.node, epoch, generation, ())
        bypasses = self._signs.bypasses()
        workers = worker_states(scene.shares, scene.applied, scene.attribution, scene.unasked, bypasses)
        return QuotaStatus(self.node, epoch, generation, workers)

    def devices(self) -> DevicesStatus:
        """Return the devices of the last tick, and the backends that can enforce here."""
        sample = self._scene.sample if self._scene is not None else NodeSample(0.0, ())
        backend = self._parts.enforcer.backend.name
        return DevicesStatus(self.node, device_infos(sample, self._parts.gpus), (backend,))

    def exposition(self, *, openmetrics: bool) -> bytes:
        """Return the body of /metrics."""
        return self._parts.exporter.body(openmetrics)

    def contacted(self, now: float) -> None:
        """Note that a controller read the quotas."""
        self._contact_at = now

    def overran(self) -> None:
        """Count a tick that took longer than its interval."""
        self._overruns += 1

    @property
    def ready(self) -> bool:
        """Whether the devices were read and the stored quotas put into force at least once."""
        return self._scene is not None

    def let_go(self) -> None:
        """Thaw everybody: who is stopped is stopped for what is measured, and while nothing is, nobody may stay so.

        Waits for no tick, as one that hangs in the driver is a reason to call it.
        """
        if self._parts.preempting is not None:
            self._parts.preempting.close()

    def close(self) -> None:
        """Release the devices; what is in force stays, nobody stays frozen."""
        self.let_go()
        self._parts.enforcer.backend.close()
        self._parts.source.close()

    def _sample(self, now: float) -> NodeSample:
        started = self._timer()
        sample = self._parts.source.sample(now)
        self._sample_seconds.observe(self._timer() - started)
        for device in sample.devices:
            if device.healthy or device.uuid not in self._devices:
                self._devices[device.uuid] = device
        return sample

    @property
    def _document(self) -> QuotaDocument | None:
        return self._parts.store.document

    def _settle(self, sample: NodeSample, attribution: Attribution, workers: tuple[Worker, ...]) -> _Scene:
        """Govern and enforce, from what was measured and what is desired."""
        tflops = self._tflops()
        self._parts.live_use.update(attribution, sample, tflops)
        layout = self._layout = lay_out(self._document, workers, attribution, self._layout)
        totals = {device.uuid: device.vram_total_bytes for device in sample.devices if device.healthy}
        before, backend = self._scene, self._parts.enforcer.backend
        in_force = before.applied if before is not None else {}
        wanted = claims(layout, attribution, self._lending.working_bytes(layout, attribution, totals))
        wanted = within_limits(wanted, in_force, backend.observe, forced=self._parts.shrink_below_use)
        granted = self._pool.govern(wanted, rooms(sample, wanted))
        shares = self._lending.share_time(layout, granted, attribution, in_force, tflops)
        started = self._timer()
        # First what others changed since: what was cut or replaced must not be called in force.
        backend.turn(sample.at)
        # Then those without a share: what they hold from before has to be known before anybody grows.
        unasked = self._parts.enforcer.observed(attribution, layout.places)
        applied = self._parts.enforcer.enforce(shares, totals, layout.present)
        if self._parts.preempting is not None:
            self._parts.preempting.turn(sample, attribution, shares, applied, tflops)
        self._count(self._parts.enforcer.take_attempts(), self._timer() - started)
        scene = _Scene(sample, attribution, workers, shares, applied, unasked)
        self._scene = scene
        if self._parts.nearness is not None:
            self._parts.nearness.note(applied)
        self._generations.note(self._document, layout, applied)
        return scene

    def _count(self, attempts: tuple[Applied, ...], seconds: float) -> None:
        backend = self._parts.enforcer.backend
        if restored := backend.restored():
            self._applies[backend.name, "restored", Effect.IMMEDIATE.value] = restored
        if attempts:
            self._apply_seconds.observe(seconds)
        for attempt in attempts:
            result = "applied" if attempt.in_force else "refused"
            self._applies[backend.name, result, attempt.effect.value] += 1
            if attempt.reason:
                _log.warning("quota_not_in_force", reason=attempt.reason)

    def _export(self, scene: _Scene, now: float) -> None:
        """Count the tick; put together what is to be shown of it only when a rendering is due."""
        exporter, throttled = self._parts.exporter, self._signs.throttled()
        if not exporter.count(scene.attribution, throttled, self._signs.beyond()):
            return
        backend = self._parts.enforcer.backend
        stats = self._parts.source_stats() if self._parts.source_stats is not None else SourceStats()
        report = TickReport(
            at=now,
            node=self.node,
            sample=scene.sample,
            attribution=scene.attribution,
            desired={(*share.worker.id, share.quota.uuid): share.quota for share in scene.shares},
            observed={key: one.observed for key, one in (*scene.applied.items(), *scene.unasked.items())},
            generation=self._document.generation if self._document is not None else None,
            applied=self._generations.reached(),
            throttled=throttled,
            ooms=self._signs.ooms(scene.applied),
            bypassed=self._signs.bypassed(),
            credits=self._lending.credits(),
            backends={key: backend.serves(key) for key in scene.applied},
            last_contact_at=self._contact_at,
            stats=AgentStats(
                self._sample_seconds.read(), self._apply_seconds.read(), dict(self._applies), self._overruns, stats
            ),
        )
        exporter.render(report)

    def _tflops(self) -> dict[str, float]:
        known = capacities(self._devices, self._parts.gpus)
        return {uuid: capacity.tflops for uuid, capacity in known.items() if capacity.tflops is not None}
