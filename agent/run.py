"""Running: the server and the ticker side by side until a signal ends them; what is in force stays in force."""

from __future__ import annotations

import asyncio
import signal
import ssl
import time
from pathlib import Path

import structlog
from aiohttp import web

from agent.loop import Agent
from agent.samples import SourceError
from agent.settings import AgentSettings

_log = structlog.get_logger(__name__)


async def serve(agent: Agent, app: web.Application, settings: AgentSettings, tls: ssl.SSLContext | None) -> None:
    """Serve the API, and tick unless time is moved from outside, until SIGTERM or SIGINT.

    Raises:
        OSError: the address cannot be bound, or the port file not be written.
    """
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.host, settings.port, ssl_context=tls).start()
        port = runner.addresses[0][1]
        if settings.port_file is not None:
            _write_port(settings.port_file, port)
        access = "mutual TLS" if settings.authenticated else "no authentication, so loopback only"
        _log.info("serving", host=settings.host, port=port, access=access)
        if settings.lockstep:
            await stop.wait()
        else:
            await _tick_until(agent, settings.tick_seconds, stop)
    finally:
        await runner.cleanup()
    _log.info("stopped", quotas="stay in force")


async def _tick_until(agent: Agent, tick_seconds: float, stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    due, complaint = loop.time(), ""
    while not stop.is_set():
        due += tick_seconds
        try:
            await asyncio.wait_for(stop.wait(), max(0.0, due - loop.time()))
        except TimeoutError:
            complaint = await _tick(agent, complaint)
        if loop.time() > due + tick_seconds:
            agent.overran()
            due = loop.time()


async def _tick(agent: Agent, complaint: str) -> str:
    try:
        # The driver's clock stamps the samples with the time of day, so the ticks carry it too.
        await asyncio.to_thread(agent.tick, time.time())  # noqa: TID251  the shell owns the clock
    except SourceError as error:
        if str(error) != complaint:
            _log.error("devices_unreadable", error=str(error), quotas="stay in force")
        return str(error)
    if complaint:
        _log.info("devices_readable_again")
    return ""


def _write_port(path: Path, port: int) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(f"{port}\n")
    temporary.replace(path)
