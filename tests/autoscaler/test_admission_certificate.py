"""Certificates of the webhook: made, judged, taken into use while serving, shared by replicas, and renewed in time."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from autoscaler.admission.certificate import (
    DAY,
    RENEW_BEFORE_SECONDS,
    VALID_DAYS,
    CertificateError,
    FileCertificates,
    Pair,
    expires_at,
    new_context,
    self_signed,
    take,
)
from autoscaler.admission.run import serve_webhook
from autoscaler.admission.settings import WebhookSettings
from autoscaler.admission.shared import Names, SharedCertificates
from autoscaler.errors import ClusterError, ConfigError
from autoscaler.kube.client import KubeClient
from autoscaler.settings import loaded

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
NAMES = Names("admission", "tf", "tls", "autoscaler")


@pytest.fixture(scope="module")
def pair() -> Pair:
    return asyncio.run(self_signed("127.0.0.1"))


@pytest.fixture(scope="module")
def other() -> Pair:
    return asyncio.run(self_signed("127.0.0.1"))


def write(folder: Path, pair: Pair) -> tuple[Path, Path]:
    (folder / "tls.crt").write_bytes(pair.certificate)
    (folder / "tls.key").write_bytes(pair.key)
    return folder / "tls.crt", folder / "tls.key"


def served(port: int) -> bytes | None:
    """Return the certificate that is served on loopback (DER), None while there is none."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as opened,
            context.wrap_socket(opened) as secure,
        ):
            return secure.getpeercert(binary_form=True)
    except OSError:
        return None


async def until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := await asyncio.to_thread(condition)):
        assert time.monotonic() < deadline, "it did not come to that"
        await asyncio.sleep(0.02)
    return found


async def test_a_certificate_of_our_own_is_its_own_authority_for_its_name_and_lasts_a_year():
    made = await self_signed("admission.tf.svc")
    end = expires_at(made.certificate, "admission.tf.svc")
    assert end is not None
    assert abs(end - time.time() - VALID_DAYS * DAY) < DAY
    assert expires_at(made.certificate, "elsewhere.tf.svc") is None
    assert expires_at(b"no certificate", "admission.tf.svc") is None
    assert expires_at(b"", "admission.tf.svc") is None
    take(new_context(), made)


async def test_without_openssl_it_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CertificateError, match="give cert_file and key_file"):
        await self_signed("admission.tf.svc")


async def test_a_pair_that_does_not_fit_together_leaves_the_one_in_use(pair, other):
    context = new_context()
    take(context, pair)
    with pytest.raises(CertificateError):
        take(context, Pair(other.certificate, pair.key))
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        found = await asyncio.to_thread(served, server.sockets[0].getsockname()[1])
    assert found == ssl.PEM_cert_to_DER_cert(pair.certificate.decode())


async def test_files_that_are_missing_are_an_error_with_their_name(tmp_path):
    with pytest.raises(CertificateError, match=r"absent\.crt"):
        await FileCertificates(tmp_path / "absent.crt", tmp_path / "absent.key").current()


class Api:
    """An API server with a Secret and two webhook configurations, as far as the webhook writes to them."""

    def __init__(self) -> None:
        entries = [{"name": "pods.tensor-fusion.ai", "clientConfig": {"service": {"name": "admission"}}}]
        self.secret: dict[str, Any] | None = None
        self.configurations: dict[str, Any] = {
            kind: {"metadata": {"name": "autoscaler"}, "webhooks": json.loads(json.dumps(entries))}
            for kind in ("mutating", "validating")
        }
        self.writes: list[str] = []
        self.on_create: Callable[[], None] = lambda: None

    def app(self) -> web.Application:
        app = web.Application()
        path = "/api/v1/namespaces/tf/secrets"
        group = "/apis/admissionregistration.k8s.io/v1/{kind}webhookconfigurations/autoscaler"
        app.add_routes(
            [
                web.get(f"{path}/tls", self.get_secret),
                web.post(path, self.put_secret),
                web.put(f"{path}/tls", self.put_secret),
                web.get(group, self.get_configuration),
                web.patch(group, self.patch_configuration),
            ]
        )
        return app

    async def get_secret(self, _: web.Request) -> web.Response:
        return web.json_response(self.secret) if self.secret else web.json_response({"message": "none"}, status=404)

    async def put_secret(self, request: web.Request) -> web.Response:
        self.on_create()
        body = await request.json()
        held = self.secret
        is_stale = held is not None and held["metadata"]["resourceVersion"] != body["metadata"].get("resourceVersion")
        if is_stale:
            return web.json_response({"message": "conflict"}, status=409)
        version = str(int(held["metadata"]["resourceVersion"]) + 1 if held else 1)
        self.secret = {**body, "metadata": {**body["metadata"], "resourceVersion": version}}
        self.writes.append(request.method)
        return web.json_response(self.secret)

    async def get_configuration(self, request: web.Request) -> web.Response:
        found = self.configurations.get(request.match_info["kind"])
        return web.json_response(found) if found else web.json_response({"message": "none"}, status=404)

    async def patch_configuration(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/strategic-merge-patch+json"
        found = self.configurations[request.match_info["kind"]]
        for one in (await request.json())["webhooks"]:
            (held,) = [entry for entry in found["webhooks"] if entry["name"] == one["name"]]
            held["clientConfig"] |= one["clientConfig"]
        self.writes.append("PATCH")
        return web.json_response(found)

    @property
    def bundles(self) -> set[bytes]:
        return {
            base64.b64decode(entry["clientConfig"].get("caBundle", ""))
            for found in self.configurations.values()
            for entry in found["webhooks"]
        }


@dataclass
class SetClock:
    at: float

    def now(self) -> float:
        return self.at


@pytest.fixture
async def api(aiohttp_server_url: Any) -> Api:
    return aiohttp_server_url[0]


@pytest.fixture
async def aiohttp_server_url() -> AsyncIterator[tuple[Api, str]]:
    made = Api()
    runner = web.AppRunner(made.app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield made, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
async def kube(aiohttp_server_url: tuple[Api, str]) -> AsyncIterator[KubeClient]:
    from kubernetes.aio import client

    made = KubeClient(client.ApiClient(client.Configuration(host=aiohttp_server_url[1])), 5.0)
    yield made
    await made.close()


async def test_the_first_replica_makes_the_certificate_and_the_others_take_it(api, kube):
    clock = SetClock(time.time())
    first = await SharedCertificates(kube, NAMES, clock).current()
    assert api.writes == ["POST", "PATCH", "PATCH"]
    assert api.bundles == {first.certificate}
    assert api.configurations["mutating"]["webhooks"][0]["clientConfig"]["service"] == {"name": "admission"}
    second = await SharedCertificates(kube, NAMES, clock).current()
    assert second == first
    assert api.writes == ["POST", "PATCH", "PATCH"]


async def test_of_two_that_make_one_at_once_the_second_takes_the_firsts(api, kube):
    theirs = await self_signed(NAMES.dns)
    held = {"tls.crt": theirs.certificate, "tls.key": theirs.key, "ca.crt": theirs.certificate}

    def they_were_faster() -> None:
        data = {name: base64.b64encode(value).decode() for name, value in held.items()}
        api.secret = {"metadata": {"resourceVersion": "5"}, "data": data}

    api.on_create = they_were_faster
    assert await SharedCertificates(kube, NAMES, SetClock(time.time())).current() == theirs
    assert api.bundles == {theirs.certificate}


async def test_it_is_renewed_long_before_its_end_and_the_one_before_stays_trusted_until_the_next_time(api, kube):
    clock = SetClock(time.time())
    certificates = SharedCertificates(kube, NAMES, clock)
    first = await certificates.current()
    clock.at += VALID_DAYS * DAY - RENEW_BEFORE_SECONDS - DAY
    assert await certificates.current() == first
    clock.at += 2 * DAY
    second = await certificates.current()
    assert second != first
    assert api.bundles == {second.certificate + first.certificate}
    clock.at += VALID_DAYS * DAY
    third = await certificates.current()
    assert api.bundles == {third.certificate + second.certificate}


async def test_what_was_spoilt_in_the_secret_or_lost_from_the_configurations_is_put_right(api, kube):
    certificates = SharedCertificates(kube, NAMES, SetClock(time.time()))
    first = await certificates.current()
    del api.configurations["validating"]["webhooks"][0]["clientConfig"]["caBundle"]
    assert await certificates.current() == first
    assert api.bundles == {first.certificate}
    api.secret["data"].pop("tls.key")
    second = await certificates.current()
    assert api.bundles == {second.certificate + first.certificate}
    api.secret["data"]["tls.crt"] = base64.b64encode(b"rubbish").decode()
    third = await certificates.current()
    assert api.bundles == {third.certificate}
    api.secret["data"]["tls.crt"] = "§"
    with pytest.raises(ClusterError, match="can't be read"):
        await certificates.current()


async def test_a_configuration_that_is_not_installed_is_none_of_its_business(api, kube):
    del api.configurations["mutating"]
    pair = await SharedCertificates(kube, NAMES, SetClock(time.time())).current()
    assert api.bundles == {pair.certificate}


async def test_a_process_serves_new_files_without_a_restart_and_says_when_it_stops(
    tmp_path, pair, other, aiohttp_server_url
):
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "a", "cluster": {"server": aiohttp_server_url[1]}}],
                "users": [{"name": "a", "user": {"token": "t"}}],
                "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
                "current-context": "a",
            }
        )
    )
    certificate, key = write(tmp_path, pair)
    port, metrics_port = free_port(), free_port()
    given = {
        "listen": f"127.0.0.1:{port}",
        "metrics_listen": f"127.0.0.1:{metrics_port}",
        "kubeconfig": kubeconfig,
        "cert_file": certificate,
        "key_file": key,
        "certificate_seconds": 0.05,
        "drain_seconds": 0.0,
    }
    stop = asyncio.Event()
    running = asyncio.create_task(serve_webhook(loaded(WebhookSettings, given), stop))
    first = await until(lambda: served(port))
    assert first == ssl.PEM_cert_to_DER_cert(pair.certificate.decode())
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{metrics_port}/readyz") as ready:
        # Its certificate is there, but this API server has no lists.
        assert ready.status == 503
        assert "not listed yet" in await ready.text()
    key.write_bytes(b"half written")
    key.write_bytes(other.key)
    certificate.write_bytes(other.certificate)
    second = await until(lambda: found if (found := served(port)) not in {None, first} else None)
    assert second == ssl.PEM_cert_to_DER_cert(other.certificate.decode())
    stop.set()
    await asyncio.wait_for(running, 30.0)
    assert served(port) is None


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "needs service and namespace"),
        ({"cert_file": "a"}, "belong together"),
        ({"listen": "nowhere", "service": "s", "namespace": "n"}, "listen"),
    ],
)
def test_settings_that_can_not_work_are_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        loaded(WebhookSettings, given)
