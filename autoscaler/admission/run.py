"""The webhook as a process: its certificate first, then its servers, until a signal ends them."""

from __future__ import annotations

import asyncio
import signal
import ssl
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass

import structlog

from autoscaler.admission.certificate import Certificates, FileCertificates, Pair, new_context, take
from autoscaler.admission.lookup import BUDGET_SECONDS, WatchedLookup
from autoscaler.admission.metrics import AdmissionMetrics
from autoscaler.admission.server import Admission, admission_application, listen, metrics_application
from autoscaler.admission.settings import WebhookSettings
from autoscaler.admission.shared import Names, SharedCertificates
from autoscaler.errors import AutoscalerError, ClusterError
from autoscaler.kube.client import KubeClient
from autoscaler.ports import Clock

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _WallClock:
    def now(self) -> float:
        return time.time()  # noqa: TID251  this is the Clock port's real side


class _Keeper:
    """Keeps the certificate in use the current one."""

    def __init__(self, certificates: Certificates, context: ssl.SSLContext, period_seconds: float) -> None:
        self._certificates, self._context, self._period = certificates, context, period_seconds
        self._served: Pair | None = None

    async def begin(self, stop: asyncio.Event) -> None:
        """Take the first certificate into use; a cluster that is away is waited for.

        Raises:
            CertificateError: there is none.

        """
        while not stop.is_set():
            try:
                await self._look()
            except ClusterError as error:
                log.warning("no_certificate_yet", error=str(error))
            else:
                return
            await _pause(stop, self._period)

    async def keep(self, stop: asyncio.Event) -> None:
        """Look again and again; whatever goes wrong, the certificate in use stays."""
        while not stop.is_set():
            await _pause(stop, self._period)
            try:
                await self._look()
            except AutoscalerError as error:
                log.warning("certificate_not_looked_at", error=str(error), effect="the one in use stays")

    async def _look(self) -> None:
        pair = await self._certificates.current()
        if pair != self._served:
            take(self._context, pair)
            self._served = pair
            log.info("certificate_in_use")


async def run_webhook(settings: WebhookSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ClusterError: there is no way to an API server.
        CertificateError: there is no certificate to serve.
        OSError: an address can't be bound.

    """
    stop = asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sign, stop.set)
    await serve_webhook(settings, stop)
    log.info("stopped")


async def serve_webhook(settings: WebhookSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set, and for `drain_seconds` after, not ready any more."""
    clock, metrics, context = _WallClock(), AdmissionMetrics(), new_context()
    async with AsyncExitStack() as cleanup:
        client = await KubeClient.connect(settings.kubeconfig)
        cleanup.push_async_callback(client.close)
        hasty = await KubeClient.connect(settings.kubeconfig, timeout_seconds=BUDGET_SECONDS)
        cleanup.push_async_callback(hasty.close)
        lookup = WatchedLookup(client, hasty)
        cleanup.push_async_callback(lookup.close)
        keeper = _Keeper(_certificates(settings, client, clock), context, settings.certificate_seconds)
        serving, known = asyncio.Event(), asyncio.Event()

        def trouble() -> str:
            if stop.is_set() or not serving.is_set():
                return "stopping" if stop.is_set() else "no certificate is served yet"
            # Only at first: later it can still refuse what is wrong by itself, and says nothing of what it lacks.
            lack = "" if known.is_set() else lookup.lack()
            if not lack:
                known.set()
            return lack

        runner, _ = await listen(metrics_application(metrics, trouble), settings.metrics_listen)
        cleanup.push_async_callback(runner.cleanup)
        lookup.follow()
        await keeper.begin(stop)
        app = admission_application(Admission(lookup, clock), metrics, time.monotonic)
        runner, port = await listen(app, settings.listen, context)
        cleanup.push_async_callback(runner.cleanup)
        serving.set()
        log.info("serving", address=settings.listen, port=port)
        await keeper.keep(stop)
        await asyncio.sleep(settings.drain_seconds)


def _certificates(settings: WebhookSettings, client: KubeClient, clock: Clock) -> Certificates:
    if settings.cert_file is not None and settings.key_file is not None:
        return FileCertificates(settings.cert_file, settings.key_file)
    names = Names(settings.service, settings.namespace, settings.secret, settings.configurations)
    return SharedCertificates(client, names, clock)


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
