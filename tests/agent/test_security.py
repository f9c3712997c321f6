"""The API as strangers and fools meet it, by TLS: nothing is read before it is known who asks, and nothing is changed."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import structlog
from aiohttp.test_utils import TestServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.assemble import assemble
from agent.serve.access import TokenAccess
from agent.serve.doors import LONGEST_SECONDS, MOST, bound
from agent.serve.server import AgentApi, tls_context
from agent.settings import AgentSettings
from autoscaler.contract.quota import MAX_BODY_BYTES, QUOTAS_PATH, QuotaDocument, QuotaStatus, Refusal
from tests.agent import scenes
from tests.agent.certificates import needs_openssl, self_signed
from tests.agent.test_access import NODE, Clock, Reviewer, document

pytestmark = needs_openssl


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificate")
    self_signed(folder, "agent")
    return folder


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as entries:
        yield entries


class Strict(Reviewer):
    """Knows a token for the API server, too, which is for another audience."""

    async def post(self, path: str, body: Any) -> dict[str, Any]:
        elsewhere = body["spec"].get("token") == "elsewhere"
        self.audiences = ["https://kubernetes.default.svc"] if elsewhere else ["tensor-fusion-agent"]
        self.users["elsewhere"] = "controller"
        return await super().post(path, body)


@asynccontextmanager
async def served(tmp_path: Path, certificate: Path) -> AsyncIterator[tuple[TestServer, aiohttp.ClientSession]]:
    chosen = AgentSettings(
        simulate=scenes.write(tmp_path, scenes.worker("a")),
        state_dir=tmp_path / "state",
        lockstep=True,
        tls_cert=certificate / "agent.pem",
        tls_key=certificate / "agent.key",
    )
    parts = assemble(chosen)
    api = AgentApi(parts.agent, parts.clock, parts.lockstep, TokenAccess(Strict(), NODE, Clock()))
    server = TestServer(api.app(), scheme="https", host="127.0.0.1")
    await server.start_server(ssl=tls_context(chosen))
    trust = ssl.create_default_context(cafile=certificate / "agent.pem")
    try:
        async with aiohttp.ClientSession(
            server.make_url("/"), connector=aiohttp.TCPConnector(ssl=trust), timeout=aiohttp.ClientTimeout(20)
        ) as http:
            yield server, http
    finally:
        await server.close()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


async def stored(http: aiohttp.ClientSession) -> QuotaStatus:
    async with http.get(QUOTAS_PATH, headers=bearer("good")) as answer:
        return msgspec.json.decode(await answer.read(), type=QuotaStatus)


def changed(**changes: Any) -> bytes:
    known = msgspec.json.decode(document(5), type=QuotaDocument)
    return msgspec.json.encode(msgspec.structs.replace(known, **changes))


async def in_pieces(content: bytes) -> AsyncIterator[bytes]:
    """A body whose length nobody told."""
    for start in range(0, len(content), 65_536):
        yield content[start : start + 65_536]


@pytest.mark.parametrize(
    ("token", "body", "status", "error"),
    [
        ("", document(6), 401, "Unauthenticated"),
        ("stolen", document(6), 401, "Unauthenticated"),
        ("elsewhere", document(6), 401, "Unauthenticated"),
        ("poor", document(6), 403, "Forbidden"),
        ("good", changed(epoch=0, generation=9), 409, "StaleGeneration"),
        ("good", changed(generation=4), 409, "StaleGeneration"),
        ("good", changed(quotas=()), 409, "GenerationConflict"),
        ("good", changed(node="n2", generation=9), 409, "OtherNode"),
        ("good", b" " * (MAX_BODY_BYTES + 1), 413, "TooLarge"),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
async def test_who_may_not_or_asks_for_what_cannot_be_changes_nothing(
    tmp_path: Path, certificate: Path, token: str, body: bytes, status: int, error: str, chunked: bool
) -> None:
    async with served(tmp_path, certificate) as (_, http):
        async with http.put(QUOTAS_PATH, data=document(5), headers=bearer("good")) as answer:
            assert answer.status == 200
        before = await stored(http)
        data = in_pieces(body) if chunked else body
        async with http.put(QUOTAS_PATH, data=data, headers=bearer(token)) as answer:
            assert answer.status == status
            assert msgspec.json.decode(await answer.read(), type=Refusal).error == error
        assert await stored(http) == before


async def test_a_stranger_is_answered_before_anything_of_the_body_is_waited_for(
    tmp_path: Path, certificate: Path
) -> None:
    async with served(tmp_path, certificate) as (server, _):
        trust = ssl.create_default_context(cafile=certificate / "agent.pem")
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=trust)
        writer.write(f"PUT {QUOTAS_PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: {MAX_BODY_BYTES}\r\n\r\n".encode())
        line = await asyncio.wait_for(reader.readline(), 10)
        writer.close()
    assert line.split()[1] == b"401"


async def test_a_body_that_trickles_is_given_up_and_changes_nothing(tmp_path: Path) -> None:
    parts = assemble(AgentSettings(simulate=scenes.write(tmp_path, scenes.worker("a")), state_dir=tmp_path / "state"))
    api = AgentApi(parts.agent, parts.clock)
    api.body_seconds = 0.1

    async def trickle() -> AsyncIterator[bytes]:
        yield document(6)[:50]
        await asyncio.Event().wait()

    async with TestServer(api.app()) as server, aiohttp.ClientSession(server.make_url("/")) as http:
        async with http.put(QUOTAS_PATH, data=trickle()) as answer:
            assert answer.status == 408
            assert msgspec.json.decode(await answer.read(), type=Refusal).error == "TooSlow"
        async with http.get(QUOTAS_PATH) as answer:
            assert b'"generation":0' in await answer.read()


async def test_no_token_stands_in_any_log_or_answer(
    tmp_path: Path, certificate: Path, logged: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    answers = []
    async with served(tmp_path, certificate) as (_, http):
        for token in ("good", "poor", "elsewhere", "secret-guess"):
            for body in (document(6), b"no JSON"):
                async with http.put(QUOTAS_PATH, data=body, headers=bearer(token)) as answer:
                    answers.append(await answer.text())
    said = json.dumps(logged, default=str) + "".join(answers) + "".join(capfd.readouterr())
    assert "quota_changed" in said
    assert not [token for token in ("Bearer", "elsewhere", "secret-guess", "poor") if token in said]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
_SOUND = msgspec.json.decode(document(5))


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _places(child, (*path, key))


def _with(value: Any, path: tuple[Any, ...], other: Any) -> Any:
    if not path:
        return other
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[path[0]] = _with(value[path[0]], path[1:], other)
    return copied


_ODD = st.sampled_from(
    [10**30, -1, 2**63, 1e308, float("nan"), float("inf"), "\x00", "../../etc", "é" * 300, [], {}, None, True, "5"]
)
_SPOILT = st.builds(
    lambda path, other: json.dumps(_with(_SOUND, path, other)).encode(),
    st.sampled_from(list(_places(_SOUND))),
    _ODD | _JSON,
)
_RAW = st.sampled_from(
    [
        b"[" * 100_000,
        b'{"epoch":' + b"[" * 100_000,
        b'{"quotas":' + b'[{"devices":' * 50_000,
        b'{"x":' * 50_000,
        b'{"epoch":1,"epoch":2,"generation":1,"node":"n1"}',
        b'{"epoch":1e999,"generation":1,"node":"n1","quotas":[]}',
        document(5).replace(b'"a"', b'"\xff\xfe"'),
        document(5).replace(b"5", b"-0", 1),
        b"",
        b"null",
        document(5)[:-1],
        document(5) * 2,
    ]
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[Any]:
    """Serve on a loop of its own, for many examples."""
    with asyncio.Runner() as runner:
        context = served(tmp_path_factory.mktemp("fuzzed"), certificate)
        _, http = runner.run(context.__aenter__())
        yield runner, http
        runner.run(context.__aexit__(None, None, None))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=_SPOILT | _JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=200) | _RAW)
def test_no_document_however_broken_is_a_crash_or_a_change(running: Any, body: bytes) -> None:
    runner, http = running

    async def ask() -> tuple[int, bytes, QuotaStatus, QuotaStatus]:
        before = await stored(http)
        async with http.put(QUOTAS_PATH, data=body, headers=bearer("good")) as answer:
            return answer.status, await answer.read(), before, await stored(http)

    status, content, before, after = runner.run(ask())
    if status == 200:
        # By chance it was sound: then it is in force as it was asked.
        sent = msgspec.json.decode(body, type=QuotaDocument)
        assert (after.epoch, after.generation) == (sent.epoch, sent.generation)
        return
    assert 400 <= status < 500, content
    assert msgspec.json.decode(content, type=Refusal).error
    assert before == after


class Door:
    """A connection that remembers how it was ended."""

    ended = ""

    def close(self) -> None:
        self.ended = "after its request"

    def force_close(self) -> None:
        self.ended = "at once"


def test_connections_that_stay_are_ended_and_of_too_many_the_oldest() -> None:
    doors = [Door() for _ in range(MOST + 3)]
    since = bound(doors, {}, 100.0)
    assert [door.ended for door in doors] == ["at once"] * 3 + [""] * MOST
    since = bound(doors[3:], since, 100.0 + LONGEST_SECONDS + 1)
    assert {door.ended for door in doors[3:]} == {"after its request"}
    bound(doors[3:], since, 100.0 + 2 * LONGEST_SECONDS + 1)
    assert {door.ended for door in doors[3:]} == {"at once"}
