"""The agent's API over real HTTP: what is taken takes effect, what is refused changes nothing."""

import asyncio
import contextlib

import msgspec
import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer

from agent.assemble import assemble
from agent.serve.server import AgentApi
from agent.settings import AgentSettings
from autoscaler.contract.keys import QoS
from autoscaler.contract.quota import (
    DEVICES_PATH,
    MAX_BODY_BYTES,
    QUOTAS_PATH,
    DeviceQuota,
    DevicesStatus,
    QuotaDocument,
    QuotaStatus,
    Refusal,
    WorkerQuota,
)
from tests.agent import scenes
from tests.agent.scenes import A100_TFLOPS, GIB


def settings(tmp_path, scenario_path, **changes) -> AgentSettings:
    base = {"simulate": scenario_path, "lockstep": True, "tick_seconds": 10, "state_dir": tmp_path / "state"}
    return AgentSettings(**{**base, **changes})


@contextlib.asynccontextmanager
async def served(tmp_path, *workers, **changes):
    workers = workers or (scenes.worker("a"), scenes.worker("b"))
    parts = assemble(settings(tmp_path, scenes.write(tmp_path, *workers), **changes))
    async with (
        TestServer(AgentApi(parts.agent, parts.clock, parts.lockstep).app()) as server,
        ClientSession(server.make_url("/")) as http,
    ):
        yield http


def quota(
    name: str, limit_tflops: float = 50.0, vram_request: int = 4 * GIB, vram_limit: int = 16 * GIB
) -> WorkerQuota:
    device = DeviceQuota("GPU-0", 10.0, limit_tflops, vram_request, vram_limit)
    return WorkerQuota(f"uid-{name}", "ns", name, name, QoS.HIGH, (device,), "main")


def document(*quotas: WorkerQuota, epoch: int = 1, generation: int = 1, node: str = "n1") -> QuotaDocument:
    return QuotaDocument(epoch, generation, node, quotas)


async def put(http, body) -> tuple[int, QuotaStatus | Refusal]:
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    async with http.put(QUOTAS_PATH, data=content) as response:
        kind = QuotaStatus if response.status == 200 else Refusal
        return response.status, msgspec.json.decode(await response.read(), type=kind)


async def state(http) -> QuotaStatus:
    async with http.get(QUOTAS_PATH) as response:
        return msgspec.json.decode(await response.read(), type=QuotaStatus)


async def advance(http, to: float) -> dict:
    async with http.post("/simulate/advance", json={"to": to}) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def scrape(http, accept: str = "") -> tuple[str, str]:
    async with http.get("/metrics", headers={"Accept": accept}) as response:
        return response.headers["Content-Type"], await response.text()


async def test_a_document_is_in_force_when_it_is_answered(tmp_path):
    async with served(tmp_path) as http:
        status, answer = await put(http, document(quota("a"), quota("b", 30.0), generation=7))
        assert status == 200
        assert (answer.node, answer.epoch, answer.generation) == ("n1", 1, 7)
        assert [(w.pod, w.devices[0].applied, w.devices[0].observed.tflops_limit) for w in answer.workers] == [
            ("a", True, 50.0),
            ("b", True, 30.0),
        ]
        assert (await state(http)).workers == answer.workers


async def test_before_any_document_the_born_amounts_are_in_force(tmp_path):
    async with served(tmp_path) as http:
        answer = await state(http)
        assert answer.generation == 0
        assert [(w.devices[0].desired.tflops_request, w.devices[0].observed.tflops_limit) for w in answer.workers] == [
            (20.0, 40.0),
            (20.0, 40.0),
        ]


async def test_a_throttled_worker_uses_more_once_its_limit_is_raised(tmp_path):
    hungry = scenes.worker("a", parameters={"noise_ratio": 0, "tflops": 120})
    async with served(tmp_path, hungry) as http:
        first = (await advance(http, 100))["workers"][0]
        assert first["used_tflops_seconds"] == pytest.approx(40 * 100)
        assert first["throttled_seconds"] == 100
        await put(http, document(quota("a", 120.0)))
        second = (await advance(http, 200))["workers"][0]
        assert second["used_tflops_seconds"] - first["used_tflops_seconds"] == pytest.approx(120 * 100)
        assert second["throttled_seconds"] == 100


@pytest.mark.parametrize(
    ("body", "status", "error", "said"),
    [
        (msgspec.json.encode(document(quota("a")))[:-9], 400, "Malformed", "not JSON"),
        (b"", 400, "Malformed", "not JSON"),
        (b"\xff\xfe", 400, "Malformed", "not JSON"),
        (b'{"epoch":1}', 422, "InvalidQuota", "generation"),
        (b'{"epoch":1,"generation":"2","node":"n1","quotas":[]}', 422, "InvalidQuota", "$.generation"),
        (b'{"epoch":1,"generation":2,"node":"n1","quotas":[],"extra":1}', 422, "InvalidQuota", "extra"),
        (document(quota("a"), node="n2"), 409, "OtherNode", "n2"),
        (document(quota("a"), generation=4), 409, "StaleGeneration", "older than 1, 5"),
        (document(quota("a", 99.0), generation=5), 409, "GenerationConflict", "other content"),
        (document(quota("a", A100_TFLOPS * 1.01), generation=6), 422, "InvalidQuota", "tflops_limit"),
        (document(quota("a", vram_limit=81 * GIB), generation=6), 422, "InvalidQuota", "vram_limit_bytes"),
        (document(quota("a", 50.0, 41 * GIB, 50 * GIB), quota("b", 50.0, 40 * GIB, 50 * GIB), generation=6), 422, "InvalidQuota", "VRAM requests"),
    ],
)  # fmt: skip
async def test_a_refused_body_changes_nothing_and_says_why(tmp_path, body, status, error, said):
    async with served(tmp_path) as http:
        await put(http, document(quota("a"), quota("b"), generation=5))
        before, stored = await state(http), (tmp_path / "state" / "quotas.json").read_bytes()
        answered, refusal = await put(http, body)
        assert (answered, refusal.error) == (status, error)
        assert said in refusal.message
        assert (refusal.epoch, refusal.generation) == (1, 5)
        assert await state(http) == before
        assert (tmp_path / "state" / "quotas.json").read_bytes() == stored


async def test_a_body_over_the_size_limit_is_refused(tmp_path):
    async with served(tmp_path) as http:
        status, refusal = await put(http, b" " * (MAX_BODY_BYTES + 1))
        assert (status, refusal.error) == (413, "TooLarge")


async def test_a_body_of_just_the_size_limit_is_read(tmp_path):
    async with served(tmp_path) as http:
        body = msgspec.json.encode(document(quota("a")))
        status, _ = await put(http, body + b" " * (MAX_BODY_BYTES - len(body)))
        assert status == 200


async def test_a_sender_that_hangs_up_inside_the_body_changes_nothing(tmp_path):
    async with served(tmp_path) as http:
        body = msgspec.json.encode(document(quota("a")))
        url = http._base_url
        _, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(
            f"PUT {QUOTAS_PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body[:-5]
        )
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert (await state(http)).generation == 0
        assert not (tmp_path / "state" / "quotas.json").exists()


async def test_the_same_document_twice_is_answered_alike(tmp_path):
    async with served(tmp_path) as http:
        assert await put(http, document(quota("a"))) == await put(http, document(quota("a")))


async def test_a_document_that_cannot_be_stored_is_not_put_into_force(tmp_path):
    async with served(tmp_path) as http:
        before = await state(http)
        (tmp_path / "state" / "quotas.json.tmp").mkdir()
        status, refusal = await put(http, document(quota("a")))
        assert (status, refusal.error) == (503, "NotStored")
        assert await state(http) == before


async def test_a_new_agent_has_the_stored_quotas_in_force_before_it_serves(tmp_path):
    async with served(tmp_path) as http:
        _, answer = await put(http, document(quota("a", 77.0), generation=3))
    async with served(tmp_path) as http:
        again = await state(http)
        assert (again.epoch, again.generation) == (1, 3)
        assert again.workers[0].devices[0].observed.tflops_limit == 77.0
        assert again.workers == answer.workers


async def test_a_vram_limit_below_live_use_waits_and_says_so_with_the_numbers(tmp_path):
    holding = scenes.worker("a", parameters={"noise_ratio": 0, "vram_bytes": 12 * GIB})
    async with served(tmp_path, holding) as http:
        _, answer = await put(http, document(quota("a", vram_limit=8 * GIB)))
        device = answer.workers[0].devices[0]
        assert not device.applied
        assert device.reason.startswith("VRAMInUse: 12.00 GiB in use")
        assert device.observed.vram_limit_bytes >= 12 * GIB
        assert (await advance(http, 100))["workers"][0]["ooms"] == 0


async def test_with_the_observe_backend_nothing_is_called_applied(tmp_path):
    async with served(tmp_path, backend="observe") as http:
        _, answer = await put(http, document(quota("a")))
        device = answer.workers[0].devices[0]
        assert (device.applied, device.effect.value, device.observed.tflops_limit) == (False, "unsupported", None)
        assert device.observed.vram_used_bytes == 8 * GIB


async def test_devices_tell_capacity_and_backend(tmp_path):
    async with served(tmp_path) as http, http.get(DEVICES_PATH) as response:
        answer = msgspec.json.decode(await response.read(), type=DevicesStatus)
        assert (answer.node, answer.backends) == ("n1", ("simulated",))
        assert [(d.uuid, d.tflops, d.vram_total_bytes) for d in answer.devices] == [("GPU-0", A100_TFLOPS, 80 * GIB)]


async def test_metrics_carry_the_quotas_in_both_formats(tmp_path):
    async with served(tmp_path) as http:
        await put(http, document(quota("a", 66.0), quota("b"), generation=9))
        await advance(http, 10)
        kind, text = await scrape(http)
        assert kind.startswith("text/plain")
        own = [line for line in text.splitlines() if 'pod="a"' in line]
        values = {
            line.split("{")[0].removeprefix("tensor_fusion_worker_"): float(line.rsplit(" ", 1)[1]) for line in own
        }
        assert values["effective_tflops_limit"] == 66
        assert values["tflops_request"] == 10
        assert values["vram_limit_bytes"] == 16 * GIB
        assert values["quota_generation"] == values["quota_applied_generation"] == 9
        assert values["compute_seconds_total"] == pytest.approx(10 * 20 / A100_TFLOPS)
        kind, text = await scrape(http, "application/openmetrics-text; version=1.0.0")
        assert kind.startswith("application/openmetrics-text")
        assert text.endswith("# EOF\n")


async def test_advancing_stops_at_whole_ticks_and_never_goes_back(tmp_path):
    async with served(tmp_path) as http:
        assert {key: value for key, value in (await advance(http, 95)).items() if key != "workers"} == {
            "at": 90,
            "ticks": 9,
        }
        assert (await advance(http, 10))["ticks"] == 0
        assert (await advance(http, 100))["at"] == 100


@pytest.mark.parametrize("body", [b"{}", b'{"to": "soon"}', b"", b'{"to": 1, "from": 2}'])
async def test_an_advance_that_names_no_time_is_refused(tmp_path, body):
    async with served(tmp_path) as http, http.post("/simulate/advance", data=body) as response:
        assert response.status == 400


async def test_time_cannot_be_moved_from_outside_where_it_runs_by_itself(tmp_path):
    async with served(tmp_path, lockstep=False) as http, http.post("/simulate/advance", json={"to": 10}) as response:
        assert response.status == 404


async def test_it_is_healthy_and_ready_once_it_serves(tmp_path):
    async with served(tmp_path) as http:
        for path in ("/healthz", "/readyz"):
            async with http.get(path) as response:
                assert response.status == 200


@pytest.mark.parametrize("listen", ["0.0.0.0:9400", "[::]:9400", "10.0.0.1:9400", "gpu-node:9400"])
def test_without_authentication_only_loopback_may_be_bound(listen):
    with pytest.raises(ValueError, match="without authentication only a loopback address may be bound"):
        AgentSettings(node="n1", listen=listen)


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:9400", "[::1]:9400"])
def test_loopback_needs_no_authentication(listen):
    assert AgentSettings(node="n1", listen=listen).port in (0, 9400)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tls_cert": "c.pem"}, "belong together"),
        ({"client_ca": "ca.pem"}, "needs tls_cert"),
        ({"listen": "9400"}, "HOST:PORT"),
        ({"listen": "127.0.0.1:99999"}, "HOST:PORT"),
        ({"lockstep": True}, "scenario"),
        ({"node": ""}, "node is not given"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        AgentSettings(**{"node": "n1", **changes})


def test_mutual_tls_opens_other_addresses():
    files = {"tls_cert": "c.pem", "tls_key": "k.pem", "client_ca": "ca.pem"}
    assert AgentSettings(node="n1", listen="0.0.0.0:9400", **files).authenticated
