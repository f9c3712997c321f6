"""Mutual TLS: who shows a certificate of the client authority is served, everyone else is not."""

import shutil
import ssl
import subprocess

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from agent.assemble import assemble
from agent.server import AgentApi, tls_context
from agent.settings import AgentSettings
from tests.agent import scenes

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="needs the openssl command to make certificates"
)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Self-signed: each certificate is its own authority."""
    directory = tmp_path_factory.mktemp("certificates")
    for name in ("server", "client", "stranger"):
        options = [
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-subj",
            f"/CN={name}",
        ]
        names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{name}.key", "-out", f"{name}.pem"]
        subprocess.run(["openssl", "req", "-x509", *options, *names], cwd=directory, check=True, capture_output=True)
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


def test_a_certificate_that_cannot_be_read_is_an_error(tmp_path):
    settings = AgentSettings(node="n1", tls_cert=tmp_path / "none.pem", tls_key=tmp_path / "none.key")
    with pytest.raises(FileNotFoundError):
        tls_context(settings)
