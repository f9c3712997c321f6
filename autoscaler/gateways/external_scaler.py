"""External scalers over HTTP(S): a question per workload, all at once, and none waits longer than its own time-out.

A URL that fails three times in a row is left alone for a minute, then probed with one question; each failed probe
doubles the pause, up to ten minutes. What counts is whether an answer came in time and in one piece, and no 5xx or 429;
one that says nonsense is only that workload's trouble. No answer is ever half believed. Neighbours: `model.external`
reads answers, `read.scalers` decides who is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import aiohttp

from autoscaler.errors import ClusterError, ConfigError
from autoscaler.model.external import Answer, Failure, Question, ScalerReason, parse_answer
from autoscaler.ports import Clock, Secrets

MAX_ANSWER_BYTES: Final = 64 * 1024
FAILURES_TO_OPEN: Final = 3
FIRST_PAUSE_SECONDS: Final = 60.0
LONGEST_PAUSE_SECONDS: Final = 600.0
CONCURRENT_PER_URL: Final = 64
CONCURRENT: Final = 512
DEFAULT_KEYS: Final = ("apiKey", "token", "key")
"""Keys of a Secret that are looked for, in this order, where none is named."""
_SHOWN_CHARACTERS: Final = 200


class _FailedError(Exception):
    """A question that got no usable answer; `unavailable`: the scaler itself is at fault, not what it said."""

    def __init__(self, reason: ScalerReason, message: str, *, unavailable: bool = False) -> None:
        super().__init__(message)
        self.failure = Failure(reason, message)
        self.unavailable = unavailable


@dataclass(slots=True)
class Circuit:
    """One URL's circuit breaker; `now` in seconds since the epoch.

    Closed it lets everyone through. Open it lets nobody through until `until`; then a single probe at a time.
    """

    failures: int = 0
    pause_seconds: float = 0.0
    until: float = 0.0
    probing: bool = False
    last: str = ""

    def enter(self, now: float) -> bool:
        """Tell whether a question may be asked now; where the circuit is open, whoever is told yes is the probe."""
        if self.pause_seconds == 0.0:
            return True
        if now < self.until or self.probing:
            return False
        self.probing = True
        return True

    def succeeded(self) -> None:
        """Close it."""
        self.failures, self.pause_seconds, self.probing, self.last = 0, 0.0, False, ""

    def failed(self, now: float, why: str) -> None:
        """Count a failure; open the circuit at the third, or longer when a probe fails."""
        self.failures, self.last = self.failures + 1, why
        if self.probing or (self.pause_seconds == 0.0 and self.failures >= FAILURES_TO_OPEN):
            self.pause_seconds = min(2 * self.pause_seconds or FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
            self.until = now + self.pause_seconds
        self.probing = False

    def left(self) -> None:
        """Give the probe's place back: it was given up before it could tell anything."""
        self.probing = False


class HttpScalers:
    """The Scalers port over HTTP(S); `secrets` yields the keys that are sent as bearer tokens."""

    def __init__(self, secrets: Secrets, clock: Clock) -> None:
        self._secrets = secrets
        self._clock = clock
        self._circuits: dict[str, Circuit] = {}
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, questions: Sequence[Question]) -> Sequence[Answer | Failure]:
        """Ask all at once and return what came of each, in their order; returns within the longest time-out."""
        slots = {question.scaler.url: asyncio.Semaphore(CONCURRENT_PER_URL) for question in questions}
        keys: dict[tuple[str, str], asyncio.Task[Mapping[str, str]]] = {}
        try:
            return await asyncio.gather(*(self._ask(one, slots[one.scaler.url], keys) for one in questions))
        finally:
            for task in keys.values():
                task.cancel()
            await asyncio.gather(*keys.values(), return_exceptions=True)
            self._forget({question.scaler.url for question in questions})

    async def close(self) -> None:
        """Release connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _ask(
        self,
        question: Question,
        slots: asyncio.Semaphore,
        keys: dict[tuple[str, str], asyncio.Task[Mapping[str, str]]],
    ) -> Answer | Failure:
        """Wait for a slot and the key, at most half of the time-out, so that the URL is judged by a fair wait only."""
        seconds = question.scaler.timeout_seconds
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout(seconds / 2) as waiting, slots:
                headers = await self._headers(question, keys)
                waiting.reschedule(None)
                return await self._through(question, headers, deadline)
        except TimeoutError:
            return Failure(ScalerReason.BUSY, f"not asked: no turn, or no key, within {seconds / 2:g} s")
        except _FailedError as error:
            return error.failure

    async def _through(self, question: Question, headers: Mapping[str, str], deadline: float) -> Answer:
        """Ask through the URL's circuit breaker."""
        url = question.scaler.url
        circuit = self._circuits.setdefault(url, Circuit())
        if not circuit.enter(self._clock.now()):
            raise _FailedError(ScalerReason.CIRCUIT_OPEN, _open_text(circuit))
        try:
            answer = await self._post(question, headers, deadline)
        except _FailedError as error:
            if error.unavailable:
                circuit.failed(self._clock.now(), str(error))
            else:
                circuit.succeeded()
            raise
        except asyncio.CancelledError:
            circuit.left()
            raise
        circuit.succeeded()
        return answer

    async def _post(self, question: Question, headers: Mapping[str, str], deadline: float) -> Answer:
        url, timeout = question.scaler.url, question.scaler.timeout_seconds
        try:
            async with (
                asyncio.timeout_at(deadline),
                self._open().post(url, data=question.body, headers=headers, allow_redirects=False) as response,
            ):
                content = await _read_all(response)
                status = response.status
        except TimeoutError:
            raise _FailedError(ScalerReason.TIMED_OUT, f"no answer within {timeout:g} s", unavailable=True) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            told = f"{type(error).__name__}: {error}"[:_SHOWN_CHARACTERS]
            raise _FailedError(ScalerReason.UNREACHABLE, told, unavailable=True) from error
        if status != 200:
            said = content[:_SHOWN_CHARACTERS].decode(errors="replace").strip()
            raise _FailedError(
                ScalerReason.HTTP_ERROR, f"HTTP {status}: {said}", unavailable=status >= 500 or status == 429
            )
        try:
            return parse_answer(content, self._clock.now())
        except ConfigError as error:
            raise _FailedError(ScalerReason.INVALID_ANSWER, str(error)) from None

    async def _headers(
        self, question: Question, keys: dict[tuple[str, str], asyncio.Task[Mapping[str, str]]]
    ) -> dict[str, str]:
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        scaler, namespace = question.scaler, question.key.namespace
        if not scaler.secret_name:
            return headers
        if scaler.secret_namespace not in {"", namespace}:
            raise _FailedError(
                ScalerReason.SECRET_UNAVAILABLE,
                f"apiKeySecretRef.namespace: {scaler.secret_namespace!r} is not allowed; allowed: {namespace}",
            )
        place = namespace, scaler.secret_name
        if place not in keys:  # one reading per Secret and pass
            keys[place] = asyncio.ensure_future(self._secrets.secret(*place))
        try:
            found = await asyncio.shield(keys[place])
        except ClusterError as error:
            raise _FailedError(ScalerReason.SECRET_UNAVAILABLE, str(error)) from error
        names = (scaler.secret_key,) if scaler.secret_key else DEFAULT_KEYS
        token = next((found[name].strip() for name in names if name in found), "")
        if not token or not token.isascii() or not token.isprintable():
            text = f"Secret {'/'.join(place)} has no usable key {' or '.join(names)}"
            raise _FailedError(ScalerReason.SECRET_UNAVAILABLE, text)
        return {**headers, "Authorization": f"Bearer {token}"}

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONCURRENT),
                timeout=aiohttp.ClientTimeout(total=None),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    def _forget(self, asked: set[str]) -> None:
        """Drop the circuits of URLs that nobody asks any more and that have nothing to remember."""
        now = self._clock.now()
        self._circuits = {
            url: one for url, one in self._circuits.items() if url in asked or now < one.until + LONGEST_PAUSE_SECONDS
        }


class MemoryScalers:
    """The Scalers port without a network: answers by URL, as JSON or a Failure; `asked` are the questions so far."""

    def __init__(self, clock: Clock, answers: Mapping[str, bytes | Failure] | None = None) -> None:
        self._clock = clock
        self.answers = dict(answers or {})
        self.asked: list[Question] = []

    async def ask(self, questions: Sequence[Question]) -> Sequence[Answer | Failure]:
        """Answer each question as its URL does."""
        self.asked += questions
        return [self._answer(question) for question in questions]

    async def close(self) -> None:
        """Hold nothing."""

    def _answer(self, question: Question) -> Answer | Failure:
        said = self.answers.get(question.scaler.url, Failure(ScalerReason.UNREACHABLE, "nobody listens there"))
        if isinstance(said, Failure):
            return said
        try:
            return parse_answer(said, self._clock.now())
        except ConfigError as error:
            return Failure(ScalerReason.INVALID_ANSWER, str(error))


async def _read_all(response: aiohttp.ClientResponse) -> bytes:
    chunks, size = [], 0
    async for chunk in response.content.iter_chunked(16 * 1024):
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            response.close()
            raise ValueError(f"the answer is over {MAX_ANSWER_BYTES} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _open_text(circuit: Circuit) -> str:
    return (
        f"left alone after {circuit.failures} failures in a row, for {circuit.pause_seconds:g} s at a time"
        f"; the last: {circuit.last}"
    )
