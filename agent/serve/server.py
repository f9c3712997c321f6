"""The agent's HTTP API: quotas in, states and metrics out. A 4xx answer says what is wrong and has changed nothing."""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Final

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from agent.lockstep import Lockstep
from agent.loop import Agent
from agent.quotas.check import HTTP_STATUS, Denial
from agent.serve.access import TokenAccess
from agent.serve.pace import Pace
from agent.settings import AgentSettings
from autoscaler.contract.quota import DEVICES_PATH, MAX_BODY_BYTES, QUOTAS_PATH, QuotaDocument, Refusal

ADVANCE_PATH: Final = "/simulate/advance"
PUTS_PER_SECOND: Final = 5.0
PUTS_AT_ONCE: Final = 20
"""A controller sends a few documents a minute; each one costs a check, a write and its limits."""
BODY_SECONDS: Final = 10.0
"""A whole body takes a moment; who sends it byte by byte holds memory of the node."""
_DENIALS: Final = {401: Denial.UNAUTHENTICATED, 403: Denial.FORBIDDEN, 503: Denial.NOT_JUDGED}
_WHO: Final[ContextVar[str]] = ContextVar("who", default="")
"""Who asked for what this task does."""
_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
_OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class _Advance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    to: float


class AgentApi:
    """The handlers; `clock` gives seconds since the epoch, `lockstep` is None where time runs by itself."""

    def __init__(
        self,
        agent: Agent,
        clock: Callable[[], float],
        lockstep: Lockstep | None = None,
        access: TokenAccess | None = None,
    ) -> None:
        self._agent = agent
        self._clock = clock
        self._lockstep = lockstep
        self._access = access
        self.body_seconds = BODY_SECONDS
        self._pace = Pace(PUTS_PER_SECOND, PUTS_AT_ONCE)

    def app(self) -> web.Application:
        """Return the application with its routes."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_too_large, self._let_in])
        app.router.add_put(QUOTAS_PATH, self.put_quotas)
        app.router.add_get(QUOTAS_PATH, self.get_quotas)
        app.router.add_get(DEVICES_PATH, self.get_devices)
        self._add_metrics(app)
        if self._lockstep is not None:
            app.router.add_post(ADVANCE_PATH, self.advance)
        return app

    def metrics_app(self) -> web.Application:
        """Return the application of the metrics' own listener: nothing there changes anything."""
        app = web.Application()
        self._add_metrics(app)
        return app

    def _add_metrics(self, app: web.Application) -> None:
        app.router.add_get("/metrics", self.get_metrics)
        app.router.add_get("/healthz", self.get_health)
        app.router.add_get("/readyz", self.get_ready)

    async def put_quotas(self, request: web.Request) -> web.Response:
        """Take a document, and answer with the state of every worker once the quotas are in force."""
        # Where time is moved from outside, so is the pace.
        wait = 0.0 if self._lockstep is not None else self._pace.wait_seconds(asyncio.get_running_loop().time())
        if wait > 0:
            answer = self._refused(Denial.TOO_MANY, f"over {PUTS_PER_SECOND:g} documents a second")
            answer.headers["Retry-After"] = f"{math.ceil(wait)}"
            return answer
        try:
            async with asyncio.timeout(self.body_seconds):
                body = await request.read()
            document = msgspec.json.decode(body, type=QuotaDocument)
        except TimeoutError:
            return self._refused(Denial.TOO_SLOW, f"the body did not come within {self.body_seconds:g} s")
        except msgspec.ValidationError as error:
            return self._refused(Denial.INVALID, f"not a quota document: {error}")
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return self._refused(Denial.MALFORMED, f"not JSON: {error}")
        # The shield lets a document that was begun be finished when its sender hangs up.
        who = _WHO.get()
        taken = await asyncio.shield(asyncio.to_thread(self._agent.put, document, self._clock(), who))
        if isinstance(taken, Refusal):
            return _json(taken, HTTP_STATUS[Denial(taken.error)])
        return _json(taken)

    async def get_quotas(self, _request: web.Request) -> web.Response:
        """Return desired and observed."""
        self._agent.contacted(self._clock())
        return _json(self._agent.state())

    async def get_devices(self, _request: web.Request) -> web.Response:
        """Return capacity and backends."""
        return _json(self._agent.devices())

    async def get_metrics(self, request: web.Request) -> web.Response:
        """Return the exposition in the format that the scraper prefers."""
        openmetrics = "application/openmetrics-text" in request.headers.get("Accept", "")
        body = self._agent.exposition(openmetrics=openmetrics)
        return web.Response(body=body, headers={"Content-Type": _OPENMETRICS if openmetrics else _TEXT})

    async def get_health(self, _request: web.Request) -> web.Response:
        """Answer while the process serves."""
        return web.Response(text="ok\n")

    async def get_ready(self, _request: web.Request) -> web.Response:
        """Answer 200 once the stored quotas are in force."""
        if self._agent.ready:
            return web.Response(text="ok\n")
        return web.Response(status=503, text="no device was read yet\n")

    async def advance(self, request: web.Request) -> web.Response:
        """Move simulated time, and answer with the truth about every worker so far."""
        assert self._lockstep is not None
        try:
            wanted = msgspec.json.decode(await request.read(), type=_Advance)
        except msgspec.DecodeError as error:
            return self._refused(Denial.MALFORMED, f'expected {{"to": seconds}}: {error}')
        if not math.isfinite(wanted.to):
            return self._refused(Denial.MALFORMED, f"to is {wanted.to}, must be a time in seconds")
        return _json(await asyncio.to_thread(self._lockstep.advance, wanted.to))

    @web.middleware
    async def _let_in(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Ask who is asking before anything of the body is read; metrics and health are for everybody who gets here."""
        if request.path in {QUOTAS_PATH, DEVICES_PATH}:
            if self._access is not None:
                verb = "update" if request.method == "PUT" else "get"
                judged = await self._access.judge(request.headers.get("Authorization", ""), verb)
                if judged.status != 200:
                    answer = self._refused(_DENIALS[judged.status], judged.reason)
                    if judged.status == 401:
                        answer.headers["WWW-Authenticate"] = "Bearer"
                    return answer
                _WHO.set(judged.user)
            else:
                _WHO.set(_peer(request))
        return await handler(request)

    def _refused(self, denial: Denial, message: str) -> web.Response:
        state = self._agent.state()
        return _json(Refusal(denial.value, message, state.epoch, state.generation), HTTP_STATUS[denial])


def tls_context(settings: AgentSettings) -> ssl.SSLContext | None:
    """Return how to serve TLS, None to serve without.

    Raises:
        OSError: a file cannot be read, or is no certificate or key.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    load_certificates(context, settings)
    return context


def load_certificates(context: ssl.SSLContext, settings: AgentSettings) -> None:
    """Read the files into a context; what connects from now on meets the new ones.

    Raises:
        OSError: a file cannot be read, or is no certificate or key.
    """
    if settings.tls_cert is not None:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    if settings.client_ca is not None:
        context.load_verify_locations(settings.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED


def certificate_times(settings: AgentSettings) -> tuple[int, ...]:
    """Return when each file was changed (ns since the epoch).

    Raises:
        OSError: a file is not there.
    """
    files = (settings.tls_cert, settings.tls_key, settings.client_ca)
    return tuple(path.stat().st_mtime_ns for path in files if path is not None)


def _peer(request: web.Request) -> str:
    """Return who a connection is from: the common name of its certificate, else its address."""
    certificate = request.get_extra_info("peercert")
    for part in (certificate or {}).get("subject", ()):
        for name, value in part:
            if name == "commonName":
                return str(value)
    return request.remote or ""


@web.middleware
async def _too_large(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        answer: Awaitable[web.StreamResponse] = handler(request)
        return await answer
    except web.HTTPRequestEntityTooLarge:
        refusal = Refusal(Denial.TOO_LARGE.value, f"the body is over {MAX_BODY_BYTES} bytes")
        return _json(refusal, HTTP_STATUS[Denial.TOO_LARGE])


def _json(answer: msgspec.Struct, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(answer), status=status, content_type="application/json")
