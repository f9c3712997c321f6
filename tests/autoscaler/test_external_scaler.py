"""External scalers over real loopback HTTP: what they answer, how they fail, and that they hold nobody else up."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from autoscaler.errors import ClusterError, ConfigError
from autoscaler.gateways.external_scaler import MAX_ANSWER_BYTES, Circuit, HttpScalers
from autoscaler.gateways.folder import FolderCluster
from autoscaler.model.config import ExternalScaler
from autoscaler.model.decision import Field
from autoscaler.model.external import Answer, Failure, Question, ScalerReason, ScalerState, parse_answer
from autoscaler.model.resources import GIB
from autoscaler.model.usage import WorkloadKey

NOW = 1_800_000_000.0
FULL = {
    "desiredReplicas": 3,
    "desiredResources": {"requests": {"tflops": 12.5, "vram": "4Gi"}, "limits": {"tflops": "20", "vram": "8Gi"}},
    "reason": "queue\n is growing",
}


@dataclass
class HandClock:
    at: float = NOW

    def now(self) -> float:
        return self.at


@dataclass
class Vault:
    """Secrets by namespace and name; `reads` counts."""

    values: dict[tuple[str, str], Mapping[str, str]] = field(default_factory=dict)
    reads: int = 0
    delay: float = 0.0

    async def secret(self, namespace: str, name: str) -> Mapping[str, str]:
        self.reads += 1
        await asyncio.sleep(self.delay)
        if (namespace, name) not in self.values:
            raise ClusterError(f"Secret {namespace}/{name} is not there")
        return self.values[namespace, name]


@dataclass
class Server:
    """A scaler on loopback: `mood` chooses how it behaves; `seen` are the requests."""

    mood: str = "answer"
    body: bytes = json.dumps(FULL).encode()
    status: int = 200
    seen: list[web.Request] = field(default_factory=list)
    bodies: list[dict[str, object]] = field(default_factory=list)
    open_now: int = 0
    open_most: int = 0
    url: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        self.bodies.append(await request.json())
        self.open_now += 1
        self.open_most = max(self.open_most, self.open_now)
        try:
            if self.mood == "hang":
                await asyncio.sleep(30)
            if self.mood == "redirect":
                raise web.HTTPTemporaryRedirect("http://127.0.0.1:1/elsewhere")
            if self.mood == "drip":
                response = web.StreamResponse()
                await response.prepare(request)
                for _ in range(300):
                    await response.write(b" ")
                    await asyncio.sleep(0.1)
                return response
            return web.Response(body=self.body, status=self.status)
        finally:
            self.open_now -= 1


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    app = web.Application()
    app.router.add_post("/scale", made.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/scale"
    yield made
    await runner.cleanup()


@dataclass
class Client:
    scalers: HttpScalers
    clock: HandClock
    vault: Vault

    async def ask(self, url: str, count: int = 1, **scaler: object) -> list[Answer | Failure]:
        made = ExternalScaler(url, enable=True, **{"timeout_seconds": 2.0, **scaler})  # type: ignore[arg-type]
        questions = [Question(WorkloadKey("ns", f"w{n}"), made, b'{"workload": "w"}') for n in range(count)]
        return list(await self.scalers.ask(questions))


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    clock, vault = HandClock(), Vault()
    made = Client(HttpScalers(vault, clock), clock, vault)
    yield made
    await made.scalers.close()


def reasons(came: list[Answer | Failure]) -> list[str]:
    return [one.reason if isinstance(one, Failure) else "answered" for one in came]


async def test_an_answer_becomes_figures(client: Client, server: Server):
    [came] = await client.ask(server.url)
    assert came == Answer(NOW, (12.5, 20.0, 4 * GIB, 8 * GIB, 3.0), "queue is growing")
    assert server.bodies == [{"workload": "w"}]


@pytest.mark.parametrize("key", ["apiKey", "token", "key", "mine"])
async def test_the_key_of_the_secret_is_sent_and_read_once_for_all(client: Client, server: Server, key: str):
    client.vault.values["ns", "s"] = {key: "hush\n", "other": "no"}
    named = "mine" if key == "mine" else ""
    assert reasons(await client.ask(server.url, 5, secret_name="s", secret_key=named)) == ["answered"] * 5
    assert {request.headers["Authorization"] for request in server.seen} == {"Bearer hush"}
    assert client.vault.reads == 1


async def test_without_its_key_a_scaler_is_not_asked_and_its_url_not_blamed(client: Client, server: Server):
    client.vault.values["ns", "empty"] = {"else": "x"}
    client.vault.values["ns", "odd"] = {"token": "two\r\nX-Admin: yes"}
    for secret in ({"secret_name": "none"}, {"secret_name": "empty"}, {"secret_name": "odd"},
                   {"secret_name": "empty", "secret_namespace": "other"}):  # fmt: skip
        [came] = await client.ask(server.url, 1, **secret)
        assert isinstance(came, Failure)
        assert came.reason is ScalerReason.SECRET_UNAVAILABLE
        assert "X-Admin" not in came.message
    assert server.seen == []
    assert reasons(await client.ask(server.url)) == ["answered"]


async def test_a_secret_that_takes_too_long_delays_only_to_half_of_the_time_out(client: Client, server: Server):
    client.vault.values["ns", "s"], client.vault.delay = {"token": "x"}, 30.0
    began = time.monotonic()
    assert reasons(await client.ask(server.url, secret_name="s", timeout_seconds=0.4)) == ["Busy"]
    assert time.monotonic() - began < 5
    assert server.seen == []


@pytest.mark.parametrize("mood", ["hang", "drip"])
async def test_no_answer_holds_longer_than_its_time_out_and_the_others_get_theirs(
    client: Client, server: Server, mood: str
):
    server.mood = mood
    began = time.monotonic()
    assert reasons(await client.ask(server.url, 50, timeout_seconds=0.5)) == ["TimedOut"] * 50
    assert time.monotonic() - began < 5
    server.mood = "answer"
    assert reasons(await client.ask(server.url + "?other=1")) == ["answered"]


@pytest.mark.parametrize(("status", "counts"), [(500, True), (503, True), (429, True), (404, False), (201, False)])
async def test_only_trouble_of_the_server_opens_the_circuit(client: Client, server: Server, status: int, counts: bool):
    server.status, server.body = status, b"<html>oops</html>"
    for _ in range(3):
        [came] = await client.ask(server.url)
        assert isinstance(came, Failure)
        assert came.reason is ScalerReason.HTTP_ERROR
        assert f"HTTP {status}: <html>oops" in came.message
    assert reasons(await client.ask(server.url)) == ["CircuitOpen" if counts else "HttpError"]


async def test_the_circuit_opens_after_three_failures_and_closes_with_a_probe_that_is_answered(
    client: Client, server: Server
):
    server.status = 500
    for pause in (60, 120, 240, 480, 600, 600):
        while "CircuitOpen" not in reasons(await client.ask(server.url)):
            pass
        asked = len(server.seen)
        client.clock.at += pause - 1
        assert reasons(await client.ask(server.url)) == ["CircuitOpen"]
        assert len(server.seen) == asked
        client.clock.at += 1
        assert sorted(reasons(await client.ask(server.url, 9))) == ["CircuitOpen"] * 8 + ["HttpError"]
        assert len(server.seen) == asked + 1
    server.status = 200
    client.clock.at += 600
    assert sorted(reasons(await client.ask(server.url, 3))) == ["CircuitOpen"] * 2 + ["answered"]
    assert reasons(await client.ask(server.url, 3)) == ["answered"] * 3


async def test_nobody_listening_and_redirects_are_failures_and_redirects_are_not_followed(
    client: Client, server: Server
):
    assert reasons(await client.ask("http://127.0.0.1:1/")) == ["Unreachable"]
    server.mood = "redirect"
    assert reasons(await client.ask(server.url)) == ["HttpError"]


async def test_an_answer_over_the_limit_is_cut_off(client: Client, server: Server):
    server.body = b" " * (MAX_ANSWER_BYTES + 1)
    [came] = await client.ask(server.url)
    assert isinstance(came, Failure)
    assert (came.reason, str(MAX_ANSWER_BYTES) in came.message) == (ScalerReason.UNREACHABLE, True)
    server.body = b" " * (MAX_ANSWER_BYTES - 2) + b"{}"
    assert reasons(await client.ask(server.url)) == ["answered"]


async def test_so_many_are_asked_at_once_and_the_rest_wait_their_turn(client: Client, server: Server):
    assert reasons(await client.ask(server.url, 200, timeout_seconds=20.0)) == ["answered"] * 200
    assert server.open_most <= 64


async def test_nonsense_is_named_with_key_value_and_what_is_allowed(client: Client, server: Server):
    server.body = b'{"desiredReplicas": "many", "desiredResource": {}}'
    [came] = await client.ask(server.url)
    assert isinstance(came, Failure)
    assert came.reason is ScalerReason.INVALID_ANSWER
    assert "desiredReplicas: 'many' is not allowed; allowed: a whole number from 0 to 10000" in came.message
    assert "desiredResource: '{}' is not allowed; allowed: no such key; known: desiredReplicas" in came.message


@pytest.mark.parametrize("body", [
    b"", b"null", b"[]", b"7", b"{", b'{"desiredReplicas": NaN}', b'{"desiredReplicas": -1}', b'{"desiredReplicas": 1.5}',
    b'{"desiredReplicas": true}', b'{"desiredReplicas": 10001}', b'{"desiredResources": []}', b'{"desiredResources": {"request": {}}}',
    b'{"desiredResources": {"requests": {"cpu": 1}}}', b'{"desiredResources": {"requests": {"tflops": "-3"}}}',
    b'{"desiredResources": {"requests": {"tflops": 0}}}', b'{"desiredResources": {"limits": {"vram": "9e18"}}}',
    b'{"desiredResources": {"limits": {"vram": "1e99"}}}', b'{"desiredResources": {"limits": {"tflops": 1e308}}}',
    b'{"desiredResources": {"limits": {"tflops": "1e999999999"}}}', b'{"desiredResources": {"limits": {"tflops": [1]}}}',
    b'{"desiredResources": {"requests": {"tflops": 3}, "limits": {"tflops": 2}}}', b'{"reason": 5}',
    b'{"reason": "' + b"x" * 1025 + b'"}', b"[" * 30_000, b'{"a":' * 10_000, b"\xff\xfe{}",
    b'{"needScaleUp": "yes"}', b'{"needScaleUp": true, "desiredReplicas": 2}',
], ids=lambda body: body[:60].decode(errors="replace"))  # fmt: skip
def test_what_is_not_an_answer_is_refused_whole(body: bytes):
    with pytest.raises(ConfigError) as caught:
        parse_answer(body, NOW)
    assert all(problem.allowed for problem in caught.value.problems)


def test_no_opinion_is_an_answer_without_figures_and_tensorfusions_form_is_read():
    assert all(figure != figure for figure in parse_answer(b'{"desiredReplicas": null}', NOW).figures)
    theirs = {"needScaleUp": True, "recommendedResources": {"requests": {"tflops": "30"}}, "reason": "busy"}
    told = parse_answer(msgspec.json.encode(theirs), NOW)
    assert told.figures[Field.COMPUTE_REQUEST] == 30
    assert told.reason == "busy"
    quiet = parse_answer(msgspec.json.encode({**theirs, "needScaleUp": False}), NOW)
    assert all(figure != figure for figure in quiet.figures)


async def test_a_secret_may_lie_in_a_folder_of_manifests_and_no_error_shows_it(tmp_path: Path):
    (tmp_path / "s.yaml").write_text(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {name: good, namespace: ns}\ndata: {token: aHVzaA==}\n"
        "stringData: {key: plain}\n"
        "---\napiVersion: v1\nkind: Secret\nmetadata: {name: bad, namespace: ns}\ndata: {token: hush!}\n"
    )
    folder = FolderCluster(tmp_path, HandClock())
    assert await folder.secret("ns", "good") == {"token": "hush", "key": "plain"}
    with pytest.raises(ClusterError, match=r"ns/other is not in"):
        await folder.secret("ns", "other")
    with pytest.raises(ClusterError, match=r"ns/bad: data.token is not base64") as caught:
        await folder.secret("ns", "bad")
    assert "hush" not in str(caught.value)


def test_an_answer_holds_for_three_intervals():
    scaler = ExternalScaler("http://x", enable=True, interval_seconds=60)
    state = ScalerState(scaler, answer=Answer(NOW, (1.0,) * 5))
    assert state.order(NOW + 180) is state.answer
    assert state.order(NOW + 181) is None


def test_a_probe_that_was_given_up_leaves_its_place_to_the_next():
    circuit = Circuit()
    for _ in range(3):
        assert circuit.enter(NOW)
        circuit.failed(NOW, "down")
    assert not circuit.enter(NOW + 59)
    assert circuit.enter(NOW + 60)
    assert not circuit.enter(NOW + 60)
    circuit.left()
    assert circuit.enter(NOW + 61)
