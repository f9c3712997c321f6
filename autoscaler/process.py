"""The controller as a process: its server, its clock, its signals; one pass or pass after pass."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import AsyncExitStack

import structlog

from autoscaler.controller import Controller, World
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


async def run_once(world: World, settings: Settings, *, dry_run: bool) -> Passed:
    """Run one pass and release everything."""
    controller = Controller(world, settings, ControllerMetrics(), dry_run=dry_run)
    try:
        return await controller.run_pass()
    finally:
        controller.close()
        await world.close()


async def run_until_stopped(world: World, settings: Settings, *, dry_run: bool) -> None:
    """Run pass after pass until SIGTERM or SIGINT; a pass under way is finished first."""
    metrics = ControllerMetrics()
    health = Health(time.monotonic, STUCK_INTERVALS * settings.interval_seconds)
    controller = Controller(world, settings, metrics, dry_run=dry_run)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, stop.set)
    async with AsyncExitStack() as cleanup:
        cleanup.push_async_callback(world.close)
        cleanup.callback(controller.close)
        if settings.listen:
            host, _, port = settings.listen.rpartition(":")
            app = application(metrics.render, health, time.monotonic, controller.ledger)
            runner, bound = await serve(app, host.strip("[]"), int(port))
            cleanup.push_async_callback(runner.cleanup)
            log.info("serving", host=host, port=bound)
        metrics.leader.set(1)
        await controller.run(stop, health)
    log.info("stopped")
