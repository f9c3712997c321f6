"""Mutual TLS: who shows a certificate of the client authority is served, everyone else is not."""

import asyncio
import contextlib
import shutil
import ssl
import subprocess
import time

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from agent.assemble import assemble
from agent.run import renew_certificates
from agent.serve.server import AgentApi, tls_context
from agent.settings import AgentSettings
from tests.agent import scenes
from tests.agent.certificates import needs_openssl, self_signed

pytestmark = needs_openssl


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Self-signed: each certificate is its own authority."""
    directory = tmp_path_factory.mktemp("certificates")
    for name in ("server", "client", "stranger"):
        self_signed(directory, name)
    return directory


def client(certificates, name: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificates / "server.pem")
    if name is not None:
        context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    return context


@pytest.fixture
async def server(tmp_path, certificates):
    settings = AgentSettings(
        simulate=scenes.write(tmp_path, scenes.worker("a")),
        lockstep=True,
        state_dir=tmp_path / "state",
        tls_cert=certificates / "server.pem",
        tls_key=certificates / "server.key",
        client_ca=certificates / "client.pem",
    )
    parts = assemble(settings)
    server = TestServer(AgentApi(parts.agent, parts.clock).app(), scheme="https", host="127.0.0.1")
    await server.start_server(ssl=tls_context(settings))
    yield server
    await server.close()


async def test_a_client_of_the_authority_is_served(server, certificates):
    connector = aiohttp.TCPConnector(ssl=client(certificates, "client"))
    async with aiohttp.ClientSession(connector=connector) as http, http.get(server.make_url("/v1/quotas")) as response:
        assert response.status == 200


@pytest.mark.parametrize("name", ["stranger", None])
async def test_anyone_else_is_not_served(server, certificates, name):
    connector = aiohttp.TCPConnector(ssl=client(certificates, name))
    async with aiohttp.ClientSession(connector=connector) as http:
        with pytest.raises(aiohttp.ClientError):
            await http.get(server.make_url("/v1/quotas"))


def test_of_one_authority_a_servers_certificate_is_no_clients(tmp_path):
    """As cert-manager issues them: what a certificate is good for stands in it, and OpenSSL looks."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True)

    openssl("req", "-x509", *key, "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
    for name, usage in (("server", "serverAuth"), ("client", "clientAuth")):
        (tmp_path / f"{name}.ext").write_text(f"extendedKeyUsage={usage}\nsubjectAltName=DNS:{name}\n")
        openssl("req", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", f"{name}.ext"]
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signing)
    files = {"tls_cert": tmp_path / "server.pem", "tls_key": tmp_path / "server.key", "client_ca": tmp_path / "ca.pem"}
    agents = tls_context(AgentSettings(node="n1", **files))

    assert shaken(agents, tmp_path, "client")
    assert not shaken(agents, tmp_path, "server")


def shaken(agents: ssl.SSLContext, directory, name: str) -> bool:
    """Return whether hands are shaken with whoever shows this certificate; in memory, as both sides see it."""
    trusting = ssl.create_default_context(cafile=directory / "ca.pem")
    trusting.load_cert_chain(directory / f"{name}.pem", directory / f"{name}.key")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_side = trusting.wrap_bio(to_client, to_server, server_hostname="server")
    server_side = agents.wrap_bio(to_server, to_client, server_side=True)
    waiting = [client_side, server_side]
    for side in (client_side, server_side) * 3:
        try:
            if side in waiting:
                side.do_handshake()
                waiting.remove(side)
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError:
            return False
    return not waiting


async def served_name(server, context: ssl.SSLContext) -> str:
    """Return the common name of the certificate that a new connection is shown."""
    _, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
    shown = writer.get_extra_info("peercert")
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return dict(pair for (pair,) in shown["subject"])["commonName"]


async def test_certificates_that_were_renewed_are_shown_to_whoever_connects_next(tmp_path, certificates):
    def put(name: str) -> None:
        for kind in ("pem", "key"):
            shutil.copyfile(certificates / f"{name}.{kind}", tmp_path / f"live.{kind}")

    put("server")
    settings = AgentSettings(
        simulate=scenes.write(tmp_path, scenes.worker("a")),
        lockstep=True,
        state_dir=tmp_path / "state",
        tls_cert=tmp_path / "live.pem",
        tls_key=tmp_path / "live.key",
        client_ca=certificates / "client.pem",
    )
    parts, tls = assemble(settings), tls_context(settings)
    assert tls is not None
    server = TestServer(AgentApi(parts.agent, parts.clock).app(), scheme="https", host="127.0.0.1")
    await server.start_server(ssl=tls)
    renewal = asyncio.create_task(renew_certificates(tls, settings, period_seconds=0.01))
    trusting = client(certificates, "client")
    trusting.load_verify_locations(certificates / "stranger.pem")
    try:
        assert await served_name(server, trusting) == "server"
        (tmp_path / "live.pem").write_text("half a")
        put("stranger")
        end = time.monotonic() + 30
        while (shown := await served_name(server, trusting)) == "server" and time.monotonic() < end:
            await asyncio.sleep(0.02)
        assert shown == "stranger"
    finally:
        renewal.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await renewal
        await server.close()


async def test_the_metrics_listener_serves_measurements_and_takes_no_quotas(tmp_path):
    settings = AgentSettings(
        simulate=scenes.write(tmp_path, scenes.worker("a")), lockstep=True, state_dir=tmp_path / "state"
    )
    parts = assemble(settings)
    server = TestServer(AgentApi(parts.agent, parts.clock, parts.lockstep).metrics_app(), host="127.0.0.1")
    await server.start_server()
    async with aiohttp.ClientSession() as http:
        told = {path: (await http.get(server.make_url(path))).status for path in ("/metrics", "/healthz")}
        refused = {
            (await http.request(method, server.make_url(path))).status
            for method, path in (("PUT", "/v1/quotas"), ("GET", "/v1/quotas"), ("POST", "/simulate/advance"))
        }
    await server.close()
    assert told == {"/metrics": 200, "/healthz": 200}
    assert refused == {404}


@pytest.mark.parametrize("address", ["9401", ":9401", "0.0.0.0", "0.0.0.0:99999", "0.0.0.0:x"])
def test_an_address_that_is_none_is_refused_by_name(address):
    with pytest.raises(ValueError, match="metrics_listen is"):
        AgentSettings(node="n1", metrics_listen=address)


def test_a_certificate_that_cannot_be_read_is_an_error(tmp_path):
    settings = AgentSettings(node="n1", tls_cert=tmp_path / "none.pem", tls_key=tmp_path / "none.key")
    with pytest.raises(FileNotFoundError):
        tls_context(settings)
