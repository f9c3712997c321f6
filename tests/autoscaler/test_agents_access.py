"""How agents are found and trusted: by the address of their pod, by certificates, renewed ones included."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from autoscaler.contract.quota import DEVICES_PATH, QUOTAS_PATH, DevicesStatus, QuotaStatus
from autoscaler.errors import ClusterError, ConfigError
from autoscaler.gateways.agents import AgentAccess, HttpAgents
from autoscaler.kube.agent_pods import addresses_of
from autoscaler.settings import settings_of

NODE = "node-1"


class FixedClock:
    def now(self) -> float:
        return 1000.0


@dataclass
class Cluster:
    """Tells where agents are, or fails."""

    addresses: dict[str, str] = field(default_factory=dict)
    broken: bool = False

    async def __call__(self) -> Mapping[str, str]:
        if self.broken:
            raise ClusterError("the API server is away")
        return dict(self.addresses)


def answer(body: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


async def devices(_: web.Request) -> web.Response:
    return answer(DevicesStatus(NODE, (), ("observe",)))


async def quotas(_: web.Request) -> web.Response:
    return answer(QuotaStatus(NODE, 0, 0, ()))


def agent() -> TestServer:
    app = web.Application()
    app.router.add_get(DEVICES_PATH, devices)
    app.router.add_get(QUOTAS_PATH, quotas)
    return TestServer(app, scheme="https", host="127.0.0.1")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Self-signed for the name tf-agent, as the chart makes them: no address in them; each is its own authority."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make certificates")
    directory = tmp_path_factory.mktemp("certificates")
    for name in ("server", "client", "renewed"):
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=tf-agent"]
        files = ["-addext", "subjectAltName=DNS:tf-agent", "-keyout", f"{name}.key", "-out", f"{name}.pem"]
        subprocess.run(["openssl", "req", "-x509", *key, *files], cwd=directory, check=True, capture_output=True)
    return directory


@pytest.fixture
async def server(certificates: Path) -> AsyncIterator[TestServer]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.load_verify_locations(certificates / "client.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    running = agent()
    await running.start_server(ssl=context)
    yield running
    await running.close()


def access(server: TestServer, certificates: Path, **changes: Any) -> AgentAccess:
    known: dict[str, Any] = {
        "template": f"https://{{ip}}:{server.port}",
        "ca_file": certificates / "server.pem",
        "client_cert": certificates / "client.pem",
        "client_key": certificates / "client.key",
        "tls_name": "tf-agent",
    }
    return AgentAccess(**(known | changes))


async def error_of(gateway: HttpAgents) -> str:
    state = (await gateway.read((NODE,)))[NODE]
    return state.error


async def test_an_agent_is_reached_at_its_pod_and_both_sides_prove_who_they_are(
    server: TestServer, certificates: Path
) -> None:
    gateway = HttpAgents(access(server, certificates), FixedClock(), Cluster({NODE: "127.0.0.1"}))

    assert await error_of(gateway) == ""
    await gateway.close()


@pytest.mark.parametrize(
    "changes",
    [{"client_cert": None, "client_key": None}, {"ca_file": None}, {"tls_name": ""}, {"tls_name": "other"}],
    ids=["shows-no-certificate", "trusts-no-authority", "expects-the-address", "expects-another-name"],
)
async def test_an_agent_is_away_when_either_side_cannot_be_trusted(
    server: TestServer, certificates: Path, changes: dict[str, Any]
) -> None:
    gateway = HttpAgents(access(server, certificates, **changes), FixedClock(), Cluster({NODE: "127.0.0.1"}))

    assert NODE in await error_of(gateway)
    await gateway.close()


async def test_a_node_without_an_agents_pod_says_so(server: TestServer, certificates: Path) -> None:
    gateway = HttpAgents(access(server, certificates), FixedClock(), Cluster())

    assert await error_of(gateway) == "node-1: no agent runs there"
    await gateway.close()


async def test_addresses_stay_known_while_the_api_server_is_away(server: TestServer, certificates: Path) -> None:
    cluster = Cluster({NODE: "127.0.0.1"})
    gateway = HttpAgents(access(server, certificates), FixedClock(), cluster)
    assert await error_of(gateway) == ""
    cluster.broken = True

    assert await error_of(gateway) == ""
    await gateway.close()


async def test_a_client_certificate_that_was_renewed_is_shown_from_the_next_read_on(
    server: TestServer, certificates: Path, tmp_path: Path
) -> None:
    files = {"client_cert": tmp_path / "live.pem", "client_key": tmp_path / "live.key"}
    for kind in ("pem", "key"):
        shutil.copyfile(certificates / f"renewed.{kind}", tmp_path / f"live.{kind}")
    # The agent does not know the authority of what is shown, until the right one is put there.
    clock = FixedClock()
    gateway = HttpAgents(access(server, certificates, **files), clock, Cluster({NODE: "127.0.0.1"}))
    assert NODE in await error_of(gateway)
    for kind in ("pem", "key"):
        shutil.copyfile(certificates / f"client.{kind}", tmp_path / f"live.{kind}")
    clock.now = lambda: 2000.0  # type: ignore[method-assign]

    assert await error_of(gateway) == ""
    await gateway.close()


def test_an_address_of_the_sixth_version_stands_in_brackets() -> None:
    known = AgentAccess(template="https://{ip}:9400")

    assert known.url(NODE, "/v1/quotas", {NODE: "fd00::7"}) == "https://[fd00::7]:9400/v1/quotas"


def pod(node: str, ip: str, phase: str = "Running", **metadata: str) -> dict[str, Any]:
    return {"metadata": metadata, "spec": {"nodeName": node}, "status": {"phase": phase, "podIP": ip}}


def test_of_two_agents_on_a_node_the_one_that_stays_is_asked() -> None:
    going = pod("a", "10.0.0.1", deletionTimestamp="2026-01-01T00:00:00Z")

    assert addresses_of((pod("a", "10.0.0.2"), going)) == {"a": "10.0.0.2"}
    assert addresses_of((going, pod("b", "", "Pending"), pod("c", "10.0.0.3", "Failed"))) == {"a": "10.0.0.1"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"agent_client_cert": "c.pem"}, "belong together"),
        ({"agent_url_template": "https://{ip}:9400"}, "agent_namespace"),
        (
            {"agent_url_template": "https://{ip}:9400", "agent_namespace": "n", "cluster_dir": "."},
            "needs a cluster",
        ),
    ],
)
def test_settings_that_lead_to_no_agent_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        settings_of(given)
