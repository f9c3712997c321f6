"""The controller as a process: its server, its clock, its signals; one pass, or pass after pass while it leads."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

import structlog

from autoscaler.controller import Controller, World
from autoscaler.errors import ClusterError, LeadershipLostError
from autoscaler.gateways.fence import FencedCluster, FencedEnforcement
from autoscaler.ports import Leadership
from autoscaler.report.ledger import Ledger
from autoscaler.report.metrics import ControllerMetrics
from autoscaler.report.server import Health, application, serve
from autoscaler.report.writer import Passed
from autoscaler.settings import Settings

log = structlog.get_logger(__name__)
STUCK_INTERVALS = 10


class SystemClock:
    """The wall clock."""

    def now(self) -> float:
        """Return seconds since the epoch."""
        return time.time()  # noqa: TID251  this is the Clock port's real side


def log_to_stderr() -> None:
    """Log for people on a terminal, else one JSON object a line."""
    colours = sys.stderr.isatty()
    renderer = structlog.dev.ConsoleRenderer() if colours else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # as it is then, not as it is now
    )


async def run_once(world: World, settings: Settings, *, dry_run: bool) -> Passed:
    """Run one pass and release everything; takes no Lease."""
    controller = Controller(world, settings, ControllerMetrics(), dry_run=dry_run)
    try:
        return await controller.run_pass()
    finally:
        controller.close()
        await world.close()


@dataclass
class Duty:
    """Passes, term after term, until `stop`; each term begins with what a new process would begin with.

    So nothing of a term that was lost half way through a pass is taken for true in the next one.
    """

    world: World
    settings: Settings
    metrics: ControllerMetrics
    dry_run: bool = False
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    ledger: Ledger = field(default_factory=Ledger)
    seen: tuple[str, str] = ("", "")
    """Who led, and what was wrong, at the last look: only what is new is logged."""

    def __post_init__(self) -> None:
        self.controller: Controller | None = None
        self.health = Health(time.monotonic, STUCK_INTERVALS * self.settings.interval_seconds)
        self.metrics.leader.set(0)

    async def alone(self) -> None:
        """Make passes; there is no other controller."""
        controller = self._controller(self.world, 0)
        await self._term(controller, lambda: False)

    async def in_turn(self, leadership: Leadership) -> None:
        """Stand by, make passes while this process leads, and stand by again when the lead is lost."""
        world = replace(
            self.world,
            cluster=FencedCluster(self.world.cluster, leadership),
            enforcement=FencedEnforcement(self.world.enforcement, leadership),
        )

        async def term(number: int) -> None:
            controller = self._controller(world, number)
            await self._term(controller, lambda: controller.is_superseded)

        while not self.stop.is_set():
            try:
                await leadership.lead(term, self.stop, self._saw)
            except LeadershipLostError as error:
                log.warning("leadership_lost", error=str(error), then="standing by")

    def _controller(self, world: World, term: int) -> Controller:
        controller = Controller(world, self.settings, self.metrics, dry_run=self.dry_run)
        controller.epoch, controller.ledger = term + 1, self.ledger
        return controller

    async def _term(self, controller: Controller, is_over: Callable[[], bool]) -> None:
        """Make pass after pass, the first one at once; one that can't read the cluster is tried again at the next."""
        self.controller = controller
        self.health.leads()
        self.metrics.leader.set(1)
        try:
            while not self.stop.is_set():
                await self._turn(controller)
                if is_over():
                    # Nobody may overrule a node but who leads: whether that is still us, the next term shows.
                    log.warning("superseded", epoch=controller.epoch, then="applying for a new term")
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.stop.wait(), self.settings.interval_seconds)
        finally:
            self.metrics.leader.set(0)
            self.controller = None
            await controller.end()

    async def _turn(self, controller: Controller) -> None:
        try:
            await controller.run_pass()
        except ClusterError as error:
            log.warning("pass_skipped", error=str(error))
            self.health.turned(passed=False)
        else:
            self.health.turned()

    def _saw(self, leader: str, error: str) -> None:
        self.health.stood_by(leader, error)
        if (leader, error) == self.seen:
            return
        self.seen = leader, error
        if error:
            log.warning("leader_not_known", error=error)
        else:
            log.info("standing_by", leader=leader)


async def run_until_stopped(
    world: World,
    settings: Settings,
    *,
    dry_run: bool,
    metrics: ControllerMetrics | None = None,
    leadership: Leadership | None = None,
) -> None:
    """Run pass after pass until SIGTERM or SIGINT; a pass under way is finished first.

    With `leadership` only while this process leads; without, or in a dry run, always.
    """
    duty = Duty(world, settings, metrics or ControllerMetrics(), dry_run)
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, duty.stop.set)
    async with AsyncExitStack() as cleanup:
        cleanup.push_async_callback(world.close)
        if leadership is not None:
            cleanup.push_async_callback(leadership.close)
        if settings.listen:
            host, _, port = settings.listen.rpartition(":")
            app = application(duty.metrics.render, duty.health, time.monotonic, duty.ledger)
            runner, bound = await serve(app, host.strip("[]"), int(port))
            cleanup.push_async_callback(runner.cleanup)
            log.info("serving", host=host, port=bound)
        await (duty.alone() if leadership is None or dry_run else duty.in_turn(leadership))
    log.info("stopped")
