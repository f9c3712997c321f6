"""The controller's own HTTP server.

`/metrics`, `/healthz` (the loop turns), `/readyz` (a pass was made, or another controller leads), and
`/v1/decisions/NAMESPACE/NAME`: the record of a workload's last decision with its last changes and samples, as JSON.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from aiohttp import web

from autoscaler.model.usage import WorkloadKey
from autoscaler.report.account import account_data, unknown_workload
from autoscaler.report.ledger import Ledger

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
CACHE_SECONDS: Final = 5.0
"""Several scrapers share one rendering: it costs a second at 10,000 workloads."""


class Health:
    """Whether the loop turns. `monotonic` gives seconds that never go back.

    Who makes passes calls `turned` after each; who stands by calls `stood_by` after each look at who leads.
    """

    def __init__(self, monotonic: Callable[[], float], stuck_after_seconds: float) -> None:
        self._monotonic = monotonic
        self._stuck_after_seconds = stuck_after_seconds
        self._turned_at = monotonic()
        self._passed = False
        self._standing_by: tuple[str, str] | None = None

    def turned(self, *, passed: bool = True) -> None:
        """Note that the loop came round; `passed` False: failing, but alive."""
        self._turned_at = self._monotonic()
        self._passed = self._passed or passed

    def leads(self) -> None:
        """Note that passes are this process's part from now on; it is ready with the first one."""
        self._turned_at = self._monotonic()
        self._passed, self._standing_by = False, None

    def stood_by(self, leader: str, error: str = "") -> None:
        """Note a look at who leads: another controller, or nobody yet; `error`: that could not be told."""
        self._turned_at = self._monotonic()
        self._passed, self._standing_by = False, (leader, error)

    @property
    def role(self) -> str:
        """Return what this process does instead of making passes, for people; empty when it makes them."""
        if self._standing_by is None:
            return ""
        return f"standing by, {self._standing_by[0] or 'nobody'} leads"

    def stuck(self) -> str:
        """Return why the loop counts as stuck; empty while it turns."""
        age = self._monotonic() - self._turned_at
        if age <= self._stuck_after_seconds:
            return ""
        return f"the loop has not turned for {age:.0f} s (stuck after {self._stuck_after_seconds:.0f} s)"

    def unready(self) -> str:
        """Return why nobody should rely on this process yet.

        Empty once a pass was made, or another controller is seen to lead, and the loop turns.
        """
        if self._standing_by is None:
            return self.stuck() if self._passed else "no pass over the fleet was made yet"
        _, error = self._standing_by
        return f"standing by, but who leads can't be told: {error}" if error else self.stuck()


class _Cache:
    """One rendering at a time, off the event loop, shared for CACHE_SECONDS."""

    def __init__(self, render: Callable[[], bytes], monotonic: Callable[[], float]) -> None:
        self._render, self._monotonic = render, monotonic
        self._lock = asyncio.Lock()
        self._body, self._made_at = b"", -CACHE_SECONDS

    async def body(self) -> bytes:
        async with self._lock:
            if not self._body or self._monotonic() - self._made_at >= CACHE_SECONDS:
                self._body = await asyncio.to_thread(self._render)
                self._made_at = self._monotonic()
            return self._body


def application(
    render: Callable[[], bytes], health: Health, monotonic: Callable[[], float], ledger: Ledger | None = None
) -> web.Application:
    """Return the application; `render` gives the metrics' text and may take its time."""
    cache = _Cache(render, monotonic)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=await cache.body(), headers={"Content-Type": CONTENT_TYPE})

    async def healthz(_: web.Request) -> web.Response:
        return _answer(health.stuck())

    async def readyz(_: web.Request) -> web.Response:
        return _answer(health.unready(), health.role)

    async def decision(request: web.Request) -> web.Response:
        key = WorkloadKey(request.match_info["namespace"], request.match_info["name"])
        return _decision(ledger, key) if ledger is not None else _error(404, "this process decides nothing")

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics), web.get("/healthz", healthz), web.get("/readyz", readyz)])
    app.add_routes([web.get("/v1/decisions/{namespace}/{name}", decision)])
    return app


async def serve(app: web.Application, host: str, port: int) -> tuple[web.AppRunner, int]:
    """Start serving and return the runner (`await runner.cleanup()` stops it) and the port, chosen if 0 was asked.

    Raises:
        OSError: the address can't be bound.

    """
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner, int(runner.addresses[0][1])


def _decision(ledger: Ledger, key: WorkloadKey) -> web.Response:
    account = ledger.account(key)
    if account is not None:
        return web.json_response(account_data(account))
    if ledger.is_empty:
        return _error(503, "no pass over the fleet was made yet")
    return _error(404, unknown_workload(key, ledger.keys))


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


def _answer(trouble: str, role: str = "") -> web.Response:
    fine = f"ok: {role}" if role else "ok"
    return web.Response(status=503 if trouble else 200, text=(trouble or fine) + "\n")
