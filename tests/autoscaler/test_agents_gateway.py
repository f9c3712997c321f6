"""Agents over real loopback HTTP and in memory: what they tell, and what comes of every way to fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from autoscaler.contract.keys import Effect, QoS
from autoscaler.contract.quota import (
    DEVICES_PATH,
    QUOTAS_PATH,
    DeviceInfo,
    DeviceQuota,
    DevicesStatus,
    DeviceStatus,
    Observed,
    QuotaDocument,
    QuotaStatus,
    Refusal,
    WorkerQuota,
    WorkerStatus,
)
from autoscaler.errors import NodeError, RefusedError
from autoscaler.gateways.agents import AgentAccess, HttpAgents
from autoscaler.gateways.agents_memory import MemoryAgents
from autoscaler.model.resources import GIB

NODE = "node-1"
DEVICE = DeviceInfo("GPU-a", "NVIDIA A100-SXM4-80GB", 80 * GIB, tflops=312.0)
DEVICES = DevicesStatus(NODE, (DEVICE,), ("simulated",))


def document(generation: int = 1, epoch: int = 1, node: str = NODE, **amounts: float) -> QuotaDocument:
    figures = {"tflops_request": 10.0, "tflops_limit": 20.0, "vram_request_bytes": GIB, "vram_limit_bytes": 2 * GIB}
    quota = DeviceQuota(uuid="GPU-a", **(figures | amounts))  # type: ignore[arg-type]
    worker = WorkerQuota("uid-1", "lab", "chat-0", "chat", QoS.MEDIUM, (quota,))
    return QuotaDocument(epoch, generation, node, (worker,))


def status(generation: int = 0) -> QuotaStatus:
    device = DeviceStatus("GPU-a", applied=True, effect=Effect.IMMEDIATE, observed=Observed())
    return QuotaStatus(NODE, 1, generation, (WorkerStatus("uid-1", "lab", "chat-0", "chat", (device,)),))


def json_answer(body: msgspec.Struct, status_code: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status_code, content_type="application/json")


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Agent:
    """An agent whose answer to anything on the quotas path can be replaced."""

    quotas: Handler | None = None
    requests: list[web.Request] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    server: TestServer = field(init=False)

    def __post_init__(self) -> None:
        app = web.Application()
        app.router.add_get(DEVICES_PATH, self.get_devices)
        app.router.add_route("*", QUOTAS_PATH, self.any_quotas)
        self.server = TestServer(app)

    async def get_devices(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        return json_answer(DEVICES)

    async def any_quotas(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.bodies.append(await request.read())
        if self.quotas is not None:
            return await self.quotas(request)
        return json_answer(status(1 if request.method == "PUT" else 0))


@dataclass
class SetClock:
    at: float = 1000.0

    def now(self) -> float:
        return self.at


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    agent = Agent()
    await agent.server.start_server()
    yield agent
    await agent.server.close()


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
async def agents(agent: Agent, clock: SetClock) -> AsyncIterator[HttpAgents]:
    gateway = HttpAgents(AgentAccess(urls={NODE: str(agent.server.make_url("/"))}, timeout_seconds=5.0), clock)
    yield gateway
    await gateway.close()


def answering(body: bytes, status_code: int = 200) -> Handler:
    async def handle(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body, status=status_code)

    return handle


async def cut_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"node": "node-1", "epoch"')
    assert request.transport is not None
    request.transport.close()
    return response


async def never(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def test_a_node_tells_its_devices_and_quotas(agents: HttpAgents) -> None:
    state = (await agents.read((NODE,)))[NODE]

    assert state.reachable
    assert state.devices == (DEVICE,)
    assert state.quotas == status()


async def test_a_pushed_document_arrives_whole_and_its_acknowledgement_comes_back(
    agent: Agent, agents: HttpAgents
) -> None:
    acknowledged = await agents.push(document())

    assert acknowledged == status(1)
    assert msgspec.json.decode(agent.bodies[-1], type=QuotaDocument) == document()


async def test_the_token_is_read_anew_for_each_request(agent: Agent, clock: SetClock, tmp_path: Path) -> None:
    token = tmp_path / "token"
    access = AgentAccess(urls={NODE: str(agent.server.make_url("/"))}, token_file=token)
    gateway = HttpAgents(access, clock)
    for text in ("first\n", "second\n"):
        token.write_text(text)
        await gateway.push(document())
    await gateway.close()

    assert [request.headers["Authorization"] for request in agent.requests] == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize(
    ("quotas", "told"),
    [
        (answering(b"broken", 500), "HTTP 500: broken"),
        (answering(b"", 404), "HTTP 404"),
        (answering(b"login", 302), "HTTP 302"),
        (answering(b'{"node": "node-1", "epoch": 1'), "DecodeError"),
        (answering(b'{"node": "node-1", "epoch": "one"}'), "ValidationError"),
        (answering(b"\xff\xff"), "DecodeError"),
        (answering(msgspec.json.encode(QuotaStatus("node-2", 1, 1, ()))), "node-2"),
        (cut_off, "ClientPayloadError"),
    ],
    ids=["500", "404", "redirect", "truncated-json", "wrong-type", "not-text", "other-node", "cut-off"],
)
async def test_an_answer_that_cannot_be_believed_counts_as_away_and_the_last_state_stays(
    agent: Agent, agents: HttpAgents, quotas: Handler, told: str
) -> None:
    good = (await agents.read((NODE,)))[NODE]
    agent.quotas = quotas

    state = (await agents.read((NODE,)))[NODE]

    assert told in state.error
    assert NODE in state.error
    assert (state.devices, state.quotas) == (good.devices, good.quotas)
    with pytest.raises(NodeError) as caught:
        await agents.push(document())
    assert not isinstance(caught.value, RefusedError)


async def test_an_agent_that_does_not_answer_in_time_is_away(agent: Agent, clock: SetClock) -> None:
    agent.quotas = never
    gateway = HttpAgents(AgentAccess(urls={NODE: str(agent.server.make_url("/"))}, timeout_seconds=0.05), clock)

    state = (await gateway.read((NODE,)))[NODE]

    assert state.error == f"{NODE}: no answer within 0.05 s"
    assert state.quotas is None
    await gateway.close()


async def test_a_node_nobody_listens_on_is_away_and_the_others_are_read(
    agent: Agent, clock: SetClock, unused_tcp_port: int
) -> None:
    urls = {NODE: str(agent.server.make_url("/")), "node-2": f"http://127.0.0.1:{unused_tcp_port}"}
    gateway = HttpAgents(AgentAccess(urls=urls), clock)

    states = await gateway.read((NODE, "node-2"))

    assert states[NODE].reachable
    assert not states["node-2"].reachable
    await gateway.close()


async def test_a_refusal_carries_the_agents_reason(agent: Agent, agents: HttpAgents) -> None:
    async def refuse(_: web.Request) -> web.StreamResponse:
        return json_answer(Refusal("StaleGeneration", "epoch 1, generation 1 is older than 2, 7", 2, 7), 409)

    agent.quotas = refuse

    with pytest.raises(RefusedError, match="StaleGeneration: epoch 1, generation 1 is older than 2, 7"):
        await agents.push(document())


async def test_a_failure_in_the_agent_is_no_refusal_even_with_a_reason(agent: Agent, agents: HttpAgents) -> None:
    async def fail(_: web.Request) -> web.StreamResponse:
        return json_answer(Refusal("NotStored", "disk full"), 503)

    agent.quotas = fail

    with pytest.raises(NodeError, match="NotStored: disk full") as caught:
        await agents.push(document())
    assert not isinstance(caught.value, RefusedError)


async def test_a_node_that_failed_is_asked_again_after_pauses_of_1_2_4_up_to_60_seconds(
    agent: Agent, agents: HttpAgents, clock: SetClock
) -> None:
    agent.quotas = answering(b"", 500)
    start, asked_at = clock.at, []
    for second in range(200):
        clock.at = start + second
        before = len(agent.bodies)
        await agents.read((NODE,))
        asked_at += [second] * (len(agent.bodies) - before)

    assert asked_at == [0, 1, 3, 7, 15, 31, 63, 123, 183]


async def test_a_node_that_came_back_is_asked_on_every_read_again(
    agent: Agent, agents: HttpAgents, clock: SetClock
) -> None:
    agent.quotas = answering(b"", 500)
    await agents.read((NODE,))
    agent.quotas = None
    clock.at += 1

    states = [(await agents.read((NODE,)))[NODE] for _ in range(3)]

    assert all(state.reachable for state in states)
    assert len(agent.bodies) == 4


async def test_a_refusal_is_no_absence(agent: Agent, agents: HttpAgents) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return json_answer(Refusal("InvalidQuota", "no"), 422) if request.method == "PUT" else json_answer(status())

    agent.quotas = refuse
    with pytest.raises(RefusedError):
        await agents.push(document())

    assert (await agents.read((NODE,)))[NODE].reachable


def test_the_address_comes_from_the_mapping_else_the_template() -> None:
    access = AgentAccess("https://{node}.gpu.example:9400/", {"b": "http://10.0.0.7:1"})

    assert access.url("a", QUOTAS_PATH) == "https://a.gpu.example:9400/v1/quotas"
    assert access.url("b", QUOTAS_PATH) == "http://10.0.0.7:1/v1/quotas"


# In memory


@pytest.fixture
def memory() -> MemoryAgents:
    return MemoryAgents([DEVICES])


async def test_a_document_in_memory_is_in_force_and_seen_on_the_next_read(memory: MemoryAgents) -> None:
    acknowledged = await memory.push(document())

    state = (await memory.read((NODE,)))[NODE]
    assert state.quotas == acknowledged
    (device,) = acknowledged.workers[0].devices
    assert device.applied
    assert device.desired == document().quotas[0].devices[0]
    assert (device.observed.tflops_limit, device.observed.vram_limit_bytes) == (20.0, 2 * GIB)


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (document(generation=1), "StaleGeneration"),
        (document(generation=9, epoch=0), "StaleGeneration"),
        (document(generation=2, tflops_limit=30.0), "StaleGeneration"),
        (document(generation=3, vram_request_bytes=81 * GIB, vram_limit_bytes=80 * GIB), "VRAM requests"),
        (document(generation=3, vram_limit_bytes=81 * GIB), "vram_limit_bytes"),
        (document(generation=3, tflops_limit=313.0), "tflops_limit"),
        (
            QuotaDocument(1, 3, NODE, (WorkerQuota("u", "n", "p", "w", QoS.LOW, (DeviceQuota("GPU-x", 1, 1, 1, 1),)),)),
            "no device",
        ),
    ],
)
async def test_a_document_that_breaks_a_rule_is_refused_and_changes_nothing(
    memory: MemoryAgents, refused: QuotaDocument, reason: str
) -> None:
    await memory.push(document(generation=2))
    before = await memory.read((NODE,))

    with pytest.raises(RefusedError, match=reason):
        await memory.push(refused)

    assert await memory.read((NODE,)) == before
    assert len(memory.pushed) == 1


async def test_the_same_document_again_is_harmless(memory: MemoryAgents) -> None:
    assert await memory.push(document()) == await memory.push(document())


async def test_a_worker_left_out_of_the_document_keeps_running_without_a_wish(memory: MemoryAgents) -> None:
    await memory.push(document())

    acknowledged = await memory.push(QuotaDocument(1, 2, NODE, ()))

    (device,) = acknowledged.workers[0].devices
    assert device.desired is None


async def test_an_agent_in_memory_can_be_away_and_keeps_what_it_had(memory: MemoryAgents) -> None:
    await memory.push(document())
    await memory.read((NODE,))
    memory.go_away(NODE)

    state = (await memory.read((NODE,)))[NODE]
    with pytest.raises(NodeError):
        await memory.push(document(generation=2))

    assert state.error == "connection refused"
    assert state.quotas is not None
    memory.come_back(NODE)
    assert (await memory.read((NODE,)))[NODE].reachable


async def test_an_agent_in_memory_can_be_told_to_refuse(memory: MemoryAgents) -> None:
    memory.refuse(NODE, "maintenance")
    with pytest.raises(RefusedError, match="maintenance"):
        await memory.push(document())

    memory.refuse(NODE, "")
    await memory.push(document())


async def test_a_backend_that_enforces_nothing_says_so(memory: MemoryAgents) -> None:
    agents = MemoryAgents([DEVICES], Effect.UNSUPPORTED)

    (device,) = (await agents.push(document())).workers[0].devices

    assert (device.applied, device.effect, device.observed.tflops_limit) == (False, Effect.UNSUPPORTED, None)
    assert device.reason


async def test_a_node_that_was_never_there_is_away(memory: MemoryAgents) -> None:
    assert (await memory.read(("node-9",)))["node-9"].error == "no such node"
