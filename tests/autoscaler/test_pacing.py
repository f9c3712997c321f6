"""How fast the API server is asked, and with which token: on a clock that only the tests move."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import kmock as scripted
import pytest
import stamina
from kubernetes.aio import client

from autoscaler.errors import ClusterError
from autoscaler.kube.access import Access
from autoscaler.kube.client import ATTEMPTS, KubeClient, StatusError, UnreachableError
from autoscaler.kube.pacing import TokenBucket

pytestmark = pytest.mark.kmock(cls=scripted.RawHandler)
THING = "/api/v1/namespaces/lab/pods/chat-0"


@dataclass
class HandTime:
    """Time that passes only where somebody sleeps."""

    now: float = 100.0
    slept: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


def bucket(time: HandTime, qps: float = 10.0, burst: int = 3) -> TokenBucket:
    return TokenBucket(qps, burst, time.monotonic, time.sleep)


async def test_a_burst_goes_at_once_and_what_follows_at_the_rate() -> None:
    time = HandTime()
    pace = bucket(time)
    at = []
    for _ in range(6):
        await pace.turn()
        at.append(round(time.now - 100.0, 6))
    assert at == [0, 0, 0, 0.1, 0.2, 0.3]


async def test_a_rest_fills_the_bucket_up_to_the_burst_and_no_further() -> None:
    time = HandTime()
    pace = bucket(time)
    for _ in range(3):
        await pace.turn()
    time.now += 3600
    at = []
    for _ in range(5):
        await pace.turn()
        at.append(round(time.now - 3700.0, 6))
    assert at == [0, 0, 0, 0.1, 0.2]


async def test_a_pause_stops_everybody_and_nobody_bursts_afterwards() -> None:
    time = HandTime()
    pace = bucket(time)
    pace.pause(7)
    at = []
    for _ in range(3):
        await pace.turn()
        at.append(round(time.now - 100.0, 6))
    assert at == [7, 7.1, 7.2]


async def test_a_pause_holds_those_who_wait_already() -> None:
    time, gone = HandTime(), []
    woken = asyncio.Event()

    async def sleep(seconds: float) -> None:
        if woken.is_set():
            await time.sleep(seconds)
        else:
            await woken.wait()
            time.now += seconds

    pace = TokenBucket(10.0, 1, time.monotonic, sleep)
    await pace.turn()

    async def go() -> None:
        await pace.turn()
        gone.append(time.now)

    waiting = asyncio.create_task(go())
    await asyncio.sleep(0)
    pace.pause(5)
    woken.set()
    await waiting
    assert gone == [pytest.approx(105.0)]


async def test_a_shorter_pause_does_not_end_a_longer_one() -> None:
    time = HandTime()
    pace = bucket(time)
    pace.pause(7)
    pace.pause(1)
    await pace.turn()
    assert time.now == pytest.approx(107.0)


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    with stamina.set_testing(True, attempts=ATTEMPTS, cap=True):
        yield


@pytest.fixture
async def paced(kmock: Any) -> AsyncIterator[tuple[KubeClient, HandTime]]:
    time = HandTime()
    settings = client.Configuration(host=str(kmock.url).rstrip("/"))
    made = KubeClient(client.ApiClient(settings), 5.0, pace=bucket(time, burst=10))
    yield made, time
    await made.close()


def answer(payload: Any = None, status: int = 200, **headers: str) -> scripted.Response:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return scripted.Response(status=status, payload=payload or {}, headers=named)


def in_turn(*answers: scripted.Response) -> Callable[[], scripted.Response]:
    remaining = list(answers)
    return lambda: remaining.pop(0) if len(remaining) > 1 else remaining[0]


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {"Retry_After": "7"}, 7.0),
        (429, {}, 1.0),
        (429, {"Retry_After": "3600"}, 30.0),
        (503, {"Retry_After": "7"}, 7.0),
        (503, {}, 0.0),
        (500, {"Retry_After": "7"}, 0.0),
    ],
)
async def test_one_request_that_a_busy_server_sends_away_lets_all_others_wait(
    kmock: Any, paced: tuple[KubeClient, HandTime], status: int, headers: dict[str, str], seconds: float
) -> None:
    kube, time = paced
    kmock["patch", THING] << answer({"message": "busy"}, status, **headers)
    kmock["get", THING] << answer({"kind": "Pod"})

    with pytest.raises(StatusError):
        await kube.request_once("PATCH", THING, {})
    await kube.request_once("GET", THING)

    assert time.now - 100.0 == pytest.approx(seconds)


async def test_each_attempt_takes_a_turn_so_that_retries_are_paced_too(kmock: Any) -> None:
    time = HandTime()
    kmock["get", THING] << answer({"message": "broken"}, 500)
    settings = client.Configuration(host=str(kmock.url).rstrip("/"))
    kube = KubeClient(client.ApiClient(settings), 5.0, pace=bucket(time, qps=10.0, burst=1))

    with pytest.raises(StatusError):
        await kube.request("GET", THING)
    await kube.close()

    assert len(kmock["get", THING]) == ATTEMPTS
    assert time.now - 100.0 == pytest.approx(0.1 * (ATTEMPTS - 1))


async def test_every_attempt_to_write_is_counted_by_verb_and_code_and_readings_are_not(
    kmock: Any, paced: tuple[KubeClient, HandTime]
) -> None:
    kube, _ = paced
    counted: Counter[tuple[str, str]] = Counter()
    kube.observe = lambda verb, code: counted.update([(verb, code)])
    kmock["patch", THING] << in_turn(answer({"message": "broken"}, 500), answer())
    kmock["post", THING] << answer(status=201)
    kmock["get", THING] << answer()

    await kube.request("PATCH", THING, body={})
    await kube.request("POST", THING, body={})
    await kube.request("GET", THING)

    assert counted == {("patch", "500"): 1, ("patch", "200"): 1, ("create", "201"): 1}


async def test_a_write_that_gets_no_answer_is_counted_as_unreachable(unused_tcp_port: int) -> None:
    counted: list[tuple[str, str]] = []
    kube = KubeClient(client.ApiClient(client.Configuration(host=f"http://127.0.0.1:{unused_tcp_port}")))
    kube.observe = lambda verb, code: counted.append((verb, code))

    with pytest.raises(UnreachableError):
        await kube.request_once("PATCH", THING, {})
    await kube.close()

    assert counted == [("patch", "unreachable")]


@pytest.mark.parametrize(
    ("status", "message", "attempts"),
    [
        (500, "failed to create typed patch object (/p; x/v1, Kind=P): .status.n: expected numeric, got string", 1),
        (422, "status.phase: Unsupported value", 1),
        (500, "etcdserver: request timed out", ATTEMPTS),
    ],
)
async def test_what_the_server_will_never_take_is_not_sent_again(
    kmock: Any, paced: tuple[KubeClient, HandTime], status: int, message: str, attempts: int
) -> None:
    kube, _ = paced
    kmock["patch", THING] << answer({"message": message}, status)

    with pytest.raises(StatusError) as caught:
        await kube.request("PATCH", THING, body={})

    assert caught.value.is_refusal is (attempts == 1)
    assert len(kmock["patch", THING]) == attempts


def kubeconfig(folder: Path, url: str, user: dict[str, Any]) -> Path:
    place = folder / "kubeconfig"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "gpu-system"}}],
        "current-context": "x",
    }
    place.write_text(json.dumps(content))
    return place


def judge(kmock: Any, valid: set[str], then: Callable[[], None] = lambda: None) -> None:
    """Let the server know the bearer tokens in `valid`; `then` is called when it refused one."""

    def judged(request: Any) -> scripted.Response:
        if request.headers.get("Authorization", "").removeprefix("Bearer ") in valid:
            return answer({"kind": "Pod"})
        then()
        return answer({"message": "Unauthorized"}, 401)

    kmock["get", THING] << judged


async def test_a_token_that_expired_is_read_again_from_its_file_once(kmock: Any, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    valid = {"old"}
    judge(kmock, valid)
    kube = await KubeClient.connect(kubeconfig(tmp_path, str(kmock.url).rstrip("/"), {"tokenFile": str(token)}))
    assert (await kube.request("GET", THING))["kind"] == "Pod"

    valid.clear()
    valid.add("new")
    token.write_text("new")
    for _ in range(2):
        assert (await kube.request("GET", THING))["kind"] == "Pod"
    await kube.close()

    assert len(kmock["get", THING]) == 1 + 2 + 1


async def test_a_token_that_was_not_replaced_is_an_error_after_one_request(kmock: Any, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    judge(kmock, set())
    kube = await KubeClient.connect(kubeconfig(tmp_path, str(kmock.url).rstrip("/"), {"tokenFile": str(token)}))

    with pytest.raises(StatusError, match="401"):
        await kube.request("GET", THING)
    await kube.close()

    assert len(kmock["get", THING]) == 1


async def test_many_requests_with_an_expired_token_read_it_once(kmock: Any, tmp_path: Path) -> None:
    """A plugin that gives tokens is asked once, however many requests were refused at the same time."""
    asked = tmp_path / "asked"
    script = tmp_path / "plugin"
    told = json.dumps({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {}})
    script.write_text(
        "#!/bin/sh\n"
        f"echo asked >> {asked}\n"
        f"number=$(wc -l < {asked})\n"
        f'echo \'{told}\' | sed "s/{{}}/{{\\"token\\": \\"token-$number\\"}}/"\n'
    )
    script.chmod(0o755)
    user = {
        "exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(script), "interactiveMode": "Never"}
    }
    valid = {"token-2"}
    judge(kmock, valid)
    kube = await KubeClient.connect(kubeconfig(tmp_path, str(kmock.url).rstrip("/"), user))

    answers = await asyncio.gather(*(kube.request("GET", THING) for _ in range(5)))
    await kube.close()

    assert [one["kind"] for one in answers] == ["Pod"] * 5
    assert asked.read_text().splitlines() == ["asked"] * 2


async def test_a_watch_with_an_expired_token_fails_once_and_shows_the_new_one_when_it_is_opened_again(
    kmock: Any, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    judge(kmock, {"new"})
    kube = await KubeClient.connect(kubeconfig(tmp_path, str(kmock.url).rstrip("/"), {"tokenFile": str(token)}))
    token.write_text("new")

    with pytest.raises(StatusError, match="401"):
        async with kube.stream(THING, {"watch": "true"}, 5.0):
            pass
    async with kube.stream(THING, {"watch": "true"}, 5.0):
        pass
    await kube.close()

    assert len(kmock["get", THING]) == 2


async def test_a_watch_that_a_busy_server_sends_away_lets_all_others_wait(
    kmock: Any, paced: tuple[KubeClient, HandTime]
) -> None:
    kube, time = paced
    kmock["get", THING] << in_turn(answer({"message": "busy"}, 429, Retry_After="7"), answer({"kind": "Pod"}))

    with pytest.raises(StatusError, match="429"):
        async with kube.stream(THING, {"watch": "true"}, 5.0):
            pass
    await kube.request("GET", THING)

    assert time.now - 100.0 == pytest.approx(7.0)


def service_account(folder: Path, token: str = "first") -> Access:
    (folder / "token").write_text(f"{token}\n")
    (folder / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\n")
    (folder / "namespace").write_text("gpu-system\n")
    environment = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    return Access(None, folder, environment)


async def test_in_a_pod_address_token_and_namespace_are_the_service_accounts(tmp_path: Path) -> None:
    access, settings = service_account(tmp_path), client.Configuration()
    await access.load(settings)
    assert access.in_cluster
    assert (settings.host, settings.api_key["BearerToken"]) == ("https://10.0.0.1:443", "Bearer first")
    assert access.namespace() == "gpu-system"


async def test_a_pods_token_is_read_again_before_it_can_expire(tmp_path: Path) -> None:
    time = HandTime()
    access, settings = replace(service_account(tmp_path), monotonic=time.monotonic), client.Configuration()
    await access.load(settings)
    (tmp_path / "token").write_text("second")

    assert await settings.get_api_key_with_prefix("BearerToken") == "Bearer first"
    time.now += 61
    assert await settings.get_api_key_with_prefix("BearerToken") == "Bearer second"


@pytest.mark.parametrize("broken", ["token", "ca.crt"])
async def test_a_service_account_with_an_empty_file_is_no_way_in(tmp_path: Path, broken: str) -> None:
    access = service_account(tmp_path)
    (tmp_path / broken).write_text("")
    with pytest.raises(ClusterError, match="no way to an API server"):
        await access.load(client.Configuration())


def test_outside_of_a_pod_the_namespace_is_the_kubeconfigs(tmp_path: Path) -> None:
    access = Access(kubeconfig(tmp_path, "http://127.0.0.1:1", {}))
    assert not access.in_cluster
    assert access.namespace() == "gpu-system"
    assert Access(tmp_path / "absent").namespace() == "default"
