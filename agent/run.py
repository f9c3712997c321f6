"""Running: the server and the ticker side by side until a signal ends them; what is in force stays in force."""

from __future__ import annotations

import asyncio
import gc
import signal
import ssl
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final

import structlog
from aiohttp import web

from agent.assemble import Assembled
from agent.kubeapi import KubeApi
from agent.loop import Agent
from agent.model.samples import SourceError
from agent.serve.access import TokenAccess
from agent.serve.doors import Arrivals, watch
from agent.serve.server import AgentApi, certificate_times, load_certificates
from agent.settings import AgentSettings

_log = structlog.get_logger(__name__)
RENEWAL_SECONDS: Final = 60.0
"""Time between looks at the certificates' files: who issues them renews them days before they expire."""
HANGING_SECONDS: Final = 3.0
"""A tick that takes longer hangs in the driver: whoever is frozen is let go meanwhile."""


async def serve(parts: Assembled, settings: AgentSettings, tls: ssl.SSLContext | None) -> None:
    """Serve the API, and tick unless time is moved from outside, until SIGTERM or SIGINT.

    Raises:
        OSError: the address cannot be bound, or the port file not be written.
    """
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    agent = parts.agent
    # What was made so far stays: looking through it for garbage again and again would cost more than a tick.
    gc.freeze()
    async with AsyncExitStack() as cleanup:
        api = AgentApi(agent, parts.clock, parts.lockstep, _access(settings, cleanup))
        port = await _start(cleanup, api.app(), (settings.host, settings.port), tls)
        if settings.metrics_address is not None:
            await _start(cleanup, api.metrics_app(), settings.metrics_address, None)
        if settings.port_file is not None:
            _write_port(settings.port_file, port)
        _log.info("serving", host=settings.host, port=port, access=_described(settings))
        for follower in parts.followers:
            cleanup.push_async_callback(_ended, asyncio.create_task(follower.run()))
        if tls is not None:
            cleanup.push_async_callback(_ended, asyncio.create_task(renew_certificates(tls, settings, RENEWAL_SECONDS)))
        if settings.lockstep:
            await stop.wait()
        else:
            await tick_until(stop, agent, settings.tick_seconds, settings.watch_seconds)
    _log.info("stopped", quotas="stay in force")


def _access(settings: AgentSettings, cleanup: AsyncExitStack) -> TokenAccess | None:
    """Return who judges tokens, None where certificates or the loopback do."""
    if not settings.token_review or settings.api is None:
        return None
    api = KubeApi(settings.api)
    cleanup.push_async_callback(api.close)
    return TokenAccess(api, settings.node, time.monotonic)


def _described(settings: AgentSettings) -> str:
    ways = [("mutual TLS", settings.client_ca is not None), ("reviewed tokens", settings.token_review)]
    return " and ".join(name for name, is_on in ways if is_on) or "no authentication, so loopback only"


async def renew_certificates(tls: ssl.SSLContext, settings: AgentSettings, period_seconds: float) -> None:
    """Take new certificates into use when their files change; those that cannot be read leave the old ones in use."""
    seen = certificate_times(settings)
    while True:
        await asyncio.sleep(period_seconds)
        try:
            found = certificate_times(settings)
            if found != seen:
                load_certificates(tls, settings)
                seen = found
                _log.info("certificates_renewed")
        except OSError as error:
            _log.warning("certificates_unreadable", error=str(error), effect="the old ones stay in use")


async def _start(
    cleanup: AsyncExitStack, app: web.Application, address: tuple[str, int], tls: ssl.SSLContext | None
) -> int:
    """Serve an application until the stack unwinds, and return its port."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    cleanup.push_async_callback(runner.cleanup)
    assert runner.server is not None
    arrivals = Arrivals(runner.server, tls)
    cleanup.callback(arrivals.close)
    listener = await asyncio.get_running_loop().create_server(arrivals, *address, reuse_address=True)
    cleanup.callback(listener.close)
    cleanup.push_async_callback(_ended, asyncio.create_task(watch(runner.server)))
    return int(listener.sockets[0].getsockname()[1])


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def tick_until(
    stop: asyncio.Event,
    agent: Agent,
    tick_seconds: float,
    watch_seconds: float,
    hanging_seconds: float = HANGING_SECONDS,
) -> None:
    """Tick at a steady pace until told to stop, and between the ticks look after whoever is near a limit."""
    loop = asyncio.get_running_loop()
    due, complaint = loop.time(), ""
    while not stop.is_set():
        due += tick_seconds
        while not stop.is_set() and (left := due - loop.time()) > 0.0:
            patience = min(left, watch_seconds) if agent.is_watching else left
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), patience)
            if patience < left and not stop.is_set():
                await asyncio.to_thread(agent.watch)
        if not stop.is_set():
            complaint = await _tick(agent, complaint, hanging_seconds)
        if loop.time() > due + tick_seconds:
            agent.overran()
            due = loop.time()


async def _tick(agent: Agent, complaint: str, hanging_seconds: float) -> str:
    try:
        # The driver's clock stamps the samples with the time of day, so the ticks carry it too.
        ticking = asyncio.create_task(asyncio.to_thread(agent.tick, time.time()))  # noqa: TID251  the shell owns the clock
        done, _ = await asyncio.wait({ticking}, timeout=hanging_seconds)
        if not done:
            _log.error("tick_hangs", seconds=hanging_seconds, quotas="stay in force", frozen="nobody")
            await asyncio.to_thread(agent.let_go)
        await ticking
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
