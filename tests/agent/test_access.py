"""Who is let in: reviews as an API server answers them, and the agent's own answers over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from agent.assemble import assemble
from agent.kubeapi import ApiAddress, ApiError, KubeApi, in_cluster
from agent.quotas.audit import Change, changes
from agent.serve.access import ACCESS_REVIEWS, AUDIENCE, KEPT_MOST, KEPT_SECONDS, REVIEWS, TokenAccess
from agent.serve.pace import Pace
from agent.serve.server import PUTS_AT_ONCE, AgentApi
from agent.settings import AgentSettings
from autoscaler.contract.keys import QoS
from autoscaler.contract.quota import QUOTAS_PATH, DeviceQuota, QuotaDocument, Refusal, WorkerQuota
from tests.agent import scenes

NODE = "n1"


class Reviewer:
    """Answers as an API server does: who authenticates as whom, and who may what."""

    def __init__(self) -> None:
        self.users = {"good": "controller", "poor": "somebody"}
        self.rights = {("controller", "update"), ("controller", "get")}
        self.asked: list[tuple[str, Mapping[str, Any]]] = []
        self.error: ApiError | None = None
        self.audiences: list[str] | None = [AUDIENCE]

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        self.asked.append((path, body))
        if self.error is not None:
            raise self.error
        spec = body["spec"]
        if path == REVIEWS:
            user = self.users.get(spec["token"])
            # A real server leaves `authenticated` out of a refusal.
            status = (
                {"error": "invalid bearer token"}
                if user is None
                else {"authenticated": True, "user": {"username": user, "groups": ["g"]}}
            )
            return {**body, "status": status | ({"audiences": self.audiences} if self.audiences is not None else {})}
        verb = spec["resourceAttributes"]["verb"]
        return {**body, "status": {"allowed": (spec["user"], verb) in self.rights}}


class Clock:
    at = 0.0

    def __call__(self) -> float:
        return self.at


async def judge(reviewer: Reviewer, authorization: str = "Bearer good", verb: str = "update") -> tuple[int, str]:
    judged = await TokenAccess(reviewer, NODE, Clock()).judge(authorization, verb)
    return judged.status, judged.reason


async def test_a_token_of_the_right_audience_and_right_is_let_in_by_name() -> None:
    reviewer = Reviewer()
    judged = await TokenAccess(reviewer, NODE, Clock()).judge("Bearer good", "update")
    assert (judged.status, judged.user) == (200, "controller")
    assert reviewer.asked[0] == (REVIEWS, {"spec": {"token": "good", "audiences": [AUDIENCE]}})
    attributes = {"group": "agents.tensor-fusion.ai", "resource": "quotas", "verb": "update", "name": NODE}
    spec = {"user": "controller", "groups": ["g"], "resourceAttributes": attributes}
    assert reviewer.asked[1] == (ACCESS_REVIEWS, {"spec": spec})


@pytest.mark.parametrize("authorization", ["", "good", "Basic good", "Bearer ", "Bearer " + "x" * 20_000])
async def test_without_a_bearer_token_nobody_is_even_asked_about(authorization: str) -> None:
    reviewer = Reviewer()
    assert await judge(reviewer, authorization) == (401, "a bearer token is needed")
    assert reviewer.asked == []


async def test_a_token_that_nobody_knows_is_refused_in_the_servers_words() -> None:
    assert await judge(Reviewer(), "Bearer stolen") == (401, "invalid bearer token")


@pytest.mark.parametrize("audiences", [None, [], ["https://kubernetes.default.svc"]])
async def test_a_token_for_another_audience_is_refused(audiences: list[str] | None) -> None:
    reviewer = Reviewer()
    reviewer.audiences = audiences
    assert (await judge(reviewer))[0] == 401


async def test_who_has_no_right_is_told_which_one_is_missing() -> None:
    assert await judge(Reviewer(), "Bearer poor") == (
        403,
        "somebody may not update quotas.agents.tensor-fusion.ai 'n1'",
    )


async def test_while_the_api_server_is_away_nobody_is_let_in_and_nothing_is_remembered() -> None:
    reviewer, clock = Reviewer(), Clock()
    access = TokenAccess(reviewer, NODE, clock)
    reviewer.error = ApiError("connection refused")
    assert (await access.judge("Bearer good", "get")).status == 503
    reviewer.error = None
    assert (await access.judge("Bearer good", "get")).status == 200


async def test_a_judgement_is_kept_for_a_while_by_token_and_verb_and_no_longer() -> None:
    reviewer, clock = Reviewer(), Clock()
    access = TokenAccess(reviewer, NODE, clock)
    for _ in range(3):
        await access.judge("Bearer good", "get")
    assert len(reviewer.asked) == 2
    await access.judge("Bearer good", "update")
    assert len(reviewer.asked) == 4
    reviewer.rights.clear()
    assert (await access.judge("Bearer good", "get")).status == 200
    clock.at += KEPT_SECONDS
    assert (await access.judge("Bearer good", "get")).status == 403


async def test_however_many_tokens_are_tried_few_are_remembered() -> None:
    access = TokenAccess(Reviewer(), NODE, Clock())
    for number in range(KEPT_MOST + 50):
        await access.judge(f"Bearer guess-{number}", "get")
    assert len(access._kept) == KEPT_MOST


def served(tmp_path: Path, reviewer: Reviewer | None) -> TestServer:
    settings = AgentSettings(simulate=scenes.write(tmp_path, scenes.worker("a")), state_dir=tmp_path / "state")
    parts = assemble(settings)
    access = TokenAccess(reviewer, NODE, Clock()) if reviewer is not None else None
    return TestServer(AgentApi(parts.agent, parts.clock, None, access).app())


def document(generation: int, limit: float = 50.0) -> bytes:
    quota = DeviceQuota("GPU-0", 10.0, limit, 4 * scenes.GIB, 8 * scenes.GIB)
    worker = WorkerQuota("uid-a", "ns", "a", "a", QoS.HIGH, (quota,), "main")
    return msgspec.json.encode(QuotaDocument(1, generation, NODE, (worker,)))


@pytest.mark.parametrize(("token", "status", "error"), [("", 401, "Unauthenticated"), ("poor", 403, "Forbidden")])
async def test_the_uninvited_change_nothing_and_see_nothing(
    tmp_path: Path, token: str, status: int, error: str
) -> None:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with served(tmp_path, Reviewer()) as server, ClientSession(server.make_url("/")) as http:
        async with http.put(QUOTAS_PATH, data=document(1), headers=headers) as answer:
            assert answer.status == status
            assert msgspec.json.decode(await answer.read(), type=Refusal).error == error
            assert ("WWW-Authenticate" in answer.headers) == (status == 401)
        async with http.get(QUOTAS_PATH, headers=headers) as answer:
            assert answer.status == status
        async with http.get(QUOTAS_PATH, headers={"Authorization": "Bearer good"}) as answer:
            assert b'"generation":0' in await answer.read()
        async with http.get("/metrics") as answer:
            assert answer.status == 200


async def test_every_change_is_logged_with_who_what_from_and_to(tmp_path: Path) -> None:
    headers = {"Authorization": "Bearer good"}
    with structlog.testing.capture_logs() as lines:
        async with served(tmp_path, Reviewer()) as server, ClientSession(server.make_url("/")) as http:
            for generation, limit in ((1, 50.0), (2, 50.0), (3, 60.0)):
                async with http.put(QUOTAS_PATH, data=document(generation, limit), headers=headers) as answer:
                    assert answer.status == 200
    audited = [line for line in lines if line["event"] == "quota_changed"]
    assert [(line["who"], line["generation"]) for line in audited] == [("controller", 1), ("controller", 3)]
    assert audited[1]["worker"] == "ns/a/main"
    assert (audited[1]["before"], audited[1]["after"]) == (
        "tflops 10/50, vram bytes 4294967296/8589934592",
        "tflops 10/60, vram bytes 4294967296/8589934592",
    )


async def test_too_many_documents_at_once_are_told_when_to_come_again(tmp_path: Path) -> None:
    statuses = []
    async with served(tmp_path, None) as server, ClientSession(server.make_url("/")) as http:
        for _ in range(PUTS_AT_ONCE + 40):
            async with http.put(QUOTAS_PATH, data=b"{}") as answer:
                statuses.append(answer.status)
                if answer.status == 429:
                    assert int(answer.headers["Retry-After"]) >= 1
                    break
    assert statuses[-1] == 429
    assert len(statuses) > PUTS_AT_ONCE


def test_a_worker_that_left_the_document_is_a_change_to_nothing() -> None:
    before = msgspec.json.decode(document(1), type=QuotaDocument)
    after = msgspec.structs.replace(before, quotas=())
    assert list(changes(before, after)) == [
        Change("ns/a/main", "GPU-0", "tflops 10/50, vram bytes 4294967296/8589934592", "")
    ]
    assert list(changes(before, before)) == []


def test_a_pace_gives_its_burst_and_then_its_rate() -> None:
    pace = Pace(2.0, 3.0)
    assert [pace.wait_seconds(0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert pace.wait_seconds(0.5) == 0.0
    assert pace.wait_seconds(0.4) == 0.5


async def test_the_api_server_is_asked_with_the_token_as_the_file_has_it_now(tmp_path: Path) -> None:
    seen = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers["Authorization"])
        return web.json_response({"status": {"allowed": True}} if len(seen) < 3 else ["no object"])

    app = web.Application()
    app.router.add_post("/x", answer)
    token = tmp_path / "token"
    async with TestServer(app) as server:
        api = KubeApi(ApiAddress(str(server.make_url("")).rstrip("/"), token, None))
        for text in ("one\n", "two"):
            token.write_text(text)
            assert await api.post("/x", {}) == {"status": {"allowed": True}}
        with pytest.raises(ApiError, match="can't be read"):
            await api.post("/x", {})
        with pytest.raises(ApiError, match="404"):
            await api.get("/nowhere", {})
        token.unlink()
        with pytest.raises(ApiError, match="token"):
            await api.get("/x", {})
        await api.close()
    assert seen == ["Bearer one", "Bearer two", "Bearer two"]


def test_the_api_server_is_where_the_kubelet_says() -> None:
    assert in_cluster({}) == ""
    assert in_cluster({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) == "https://10.0.0.1:443"
    assert (
        in_cluster({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"})
        == "https://[fd00::1]:6443"
    )


def test_reviewed_tokens_need_tls_and_an_api_server() -> None:
    with pytest.raises(ValueError, match="in plain text is everybody's"):
        AgentSettings(node="n", token_review=True, api_url="https://x")
    files = {"tls_cert": "c", "tls_key": "k"}
    with pytest.raises(ValueError, match="needs an API server"):
        AgentSettings(node="n", token_review=True, **files)
    assert AgentSettings(node="n", token_review=True, api_url="https://x", listen="0.0.0.0:1", **files).authenticated
