"""The webhook's HTTP servers: admission over TLS, and metrics and health beside it.

What can't be read is answered with 400 and a sentence; a defect of ours with 500, so that the failure policy of the
webhook configuration decides: pods are let through, profiles are not. Neighbours: `review` reads and writes the JSON.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import structlog
from aiohttp import web

from autoscaler.admission.birth import birth_annotations
from autoscaler.admission.judge import judge_pod, judge_profile
from autoscaler.admission.lookup import Lookup
from autoscaler.admission.metrics import AdmissionMetrics, Result
from autoscaler.admission.pods import pod_of
from autoscaler.admission.review import Answer, MalformedReviewError, Review, parse_review, render_answer
from autoscaler.ports import Clock

log = structlog.get_logger(__name__)
MAX_BODY_BYTES: Final = 8 * 2**20
"""The API server takes objects of up to 3 MiB, and sends the new and the old one."""
MUTATE_PODS: Final = "/mutate-pods"
VALIDATE_PODS: Final = "/validate-pods"
VALIDATE_PROFILES: Final = "/validate-profiles"
_CREATE: Final = "CREATE"
_JUDGED: Final = frozenset({_CREATE, "UPDATE"})
_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Judge = Callable[[Review], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Admission:
    """The three questions that are answered, by path; nothing is written, so a dry run needs no care."""

    lookup: Lookup
    clock: Clock

    @property
    def judges(self) -> Mapping[str, Judge]:
        """Return who answers what."""
        return {
            MUTATE_PODS: self.mutate_pods,
            VALIDATE_PODS: self.validate_pods,
            VALIDATE_PROFILES: self.validate_profiles,
        }

    async def mutate_pods(self, review: Review) -> Answer:
        """Give a pod that is being created the size of its running siblings."""
        pod = pod_of(review)
        if pod is None or review.operation != _CREATE:
            return Answer()
        around = await self.lookup.around(pod)
        return Answer(annotations=birth_annotations(pod, around, self.clock.now()))

    async def validate_pods(self, review: Review) -> Answer:
        """Refuse a pod whose annotations can't be used."""
        pod = pod_of(review)
        if pod is None or review.operation != _CREATE:
            return Answer()
        return judge_pod(pod, await self.lookup.around(pod))

    async def validate_profiles(self, review: Review) -> Answer:
        """Refuse a WorkloadProfile or TensorFusionWorkload that can't be used."""
        return judge_profile(review) if review.operation in _JUDGED else Answer()


def admission_application(
    admission: Admission, metrics: AdmissionMetrics, monotonic: Callable[[], float]
) -> web.Application:
    """Return what the API server asks; `monotonic` gives seconds that never go back."""
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    for path, judge in admission.judges.items():
        app.router.add_post(path, _handler(path, judge, metrics, monotonic))
    return app


def metrics_application(metrics: AdmissionMetrics, trouble: Callable[[], str]) -> web.Application:
    """Return what probes and scrapers ask; `trouble` says why nobody should be sent here, nothing while all is well."""

    async def scraped(_: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": _CONTENT_TYPE})

    async def alive(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(_: web.Request) -> web.Response:
        return web.Response(status=503 if trouble() else 200, text=f"{trouble() or 'ok'}\n")

    app = web.Application()
    app.add_routes([web.get("/metrics", scraped), web.get("/healthz", alive), web.get("/readyz", ready)])
    return app


async def listen(app: web.Application, address: str, tls: ssl.SSLContext | None = None) -> tuple[web.AppRunner, int]:
    """Start serving at HOST:PORT; return the runner (`await runner.cleanup()` stops it) and the port, chosen if 0.

    Raises:
        OSError: the address can't be bound.

    """
    host, _, port = address.rpartition(":")
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host.strip("[]"), int(port), ssl_context=tls).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner, int(runner.addresses[0][1])


def _handler(
    path: str, judge: Judge, metrics: AdmissionMetrics, monotonic: Callable[[], float]
) -> Callable[[web.Request], Awaitable[web.Response]]:
    operation = path.removeprefix("/").replace("-", "_")

    async def answer(request: web.Request) -> web.Response:
        begun = monotonic()
        result, response = await _answered(request, judge)
        metrics.requests.labels(operation, result.value).inc()
        metrics.seconds.labels(operation).observe(monotonic() - begun)
        return response

    return answer


async def _answered(request: web.Request, judge: Judge) -> tuple[Result, web.Response]:
    try:
        review = parse_review(await request.read())
    except MalformedReviewError as error:
        return Result.MALFORMED, web.Response(status=400, text=f"{error}\n")
    except web.HTTPRequestEntityTooLarge:
        return Result.MALFORMED, web.Response(status=413, text=f"the body is over {MAX_BODY_BYTES} bytes\n")
    what = f"{review.operation} {review.namespace}/{review.name}"
    try:
        answer = await judge(review)
        body = render_answer(review, answer)
    except Exception:
        # One question that was not foreseen must not take the others' answers away.
        log.exception("not_answered", path=request.path, uid=review.uid, what=what)
        text = f"the autoscaler's webhook could not judge {review.uid}: see its log\n"
        return Result.FAILED, web.Response(status=500, text=text)
    if answer.refusal:
        log.info("denied", path=request.path, what=what, message=answer.refusal)
    elif answer.annotations:
        log.info("sized", path=request.path, what=what, annotations=dict(answer.annotations))
    return _result(answer), web.Response(body=body, content_type="application/json")


def _result(answer: Answer) -> Result:
    if answer.refusal:
        return Result.DENIED
    return Result.SIZED if answer.annotations else Result.ALLOWED
