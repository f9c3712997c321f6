"""A real Kubernetes API server on loopback: etcd and kube-apiserver from a folder of binaries, torn down at the end.

Found as envtest finds them: `TEST_ASSET_<NAME>`, the folder `KUBEBUILDER_ASSETS`, /usr/local/kubebuilder/bin. With
`USE_EXISTING_CLUSTER=true` the cluster of KUBECONFIG is used and left running; with `REQUIRE_ENVTEST=1` tests fail
where they would be skipped. No scheduler and no nodes: objects are stored, validated and watched for real, and where
kube-controller-manager is found, Deployments make pods (that stay pending) and owners' deletion is followed.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

BINARIES_VARIABLE = "KUBEBUILDER_ASSETS"
EXISTING_VARIABLE = "USE_EXISTING_CLUSTER"
REQUIRED_VARIABLE = "REQUIRE_ENVTEST"
DEFAULT_FOLDER = Path("/usr/local/kubebuilder/bin")
SERVER_BINARIES = ("etcd", "kube-apiserver", "kubectl")
MANAGER = "kube-controller-manager"
START_DEADLINE_SECONDS = 300.0
ANSWER_SECONDS = 300.0


@dataclass(frozen=True)
class ApiServer:
    """How to reach the server: a kubeconfig of a cluster admin, and the pieces it is made of.

    `has_manager`: kube-controller-manager runs beside it.
    """

    kubeconfig: Path
    url: str
    token: str
    kubectl: Path
    has_manager: bool = False

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run kubectl against this server and return what it said."""
        return subprocess.run(
            [self.kubectl, f"--kubeconfig={self.kubeconfig}", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=ANSWER_SECONDS,
        )


def asset(name: str) -> Path | None:
    """Return where a binary is, None where it is nowhere."""
    named = os.environ.get("TEST_ASSET_" + name.upper().replace("-", "_"))
    folder = os.environ.get(BINARIES_VARIABLE)
    places = [Path(named)] if named else [Path(folder) / name] if folder else [DEFAULT_FOLDER / name]
    return next((place for place in places if place.is_file()), None)


def is_existing() -> bool:
    """Tell whether a cluster that runs already is to be used."""
    return os.environ.get(EXISTING_VARIABLE, "").lower() == "true"


def missing_reason() -> str:
    """Return why tests with a server are to be skipped here, or an empty string."""
    return "" if os.environ.get(REQUIRED_VARIABLE) == "1" else _lack()


def missing_own_reason() -> str:
    """Return why tests that count all that a server has, and so need one of their own, are to be skipped here."""
    return f"{EXISTING_VARIABLE} is true: this needs a server of its own" if is_existing() else missing_reason()


def missing_manager_reason() -> str:
    """Return why tests that need Deployments to make pods are to be skipped here, or an empty string."""
    if os.environ.get(REQUIRED_VARIABLE) == "1" or is_existing():
        return missing_reason()
    return missing_reason() or ("" if asset(MANAGER) else f"{MANAGER} is not among the binaries: nothing makes pods")


def _lack() -> str:
    if is_existing():
        place = _existing_kubeconfig()
        return "" if place.is_file() else f"{EXISTING_VARIABLE} is true, but {place} is not a file"
    absent = [name for name in SERVER_BINARIES if asset(name) is None]
    if absent:
        folder = os.environ.get(BINARIES_VARIABLE)
        where = f"{BINARIES_VARIABLE} ({folder})" if folder else f"{BINARIES_VARIABLE} is not set and {DEFAULT_FOLDER}"
        return f"{where} lacks {', '.join(absent)}"
    return "" if shutil.which("openssl") else "openssl is needed to make the service account key"


def _existing_kubeconfig() -> Path:
    return Path(os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config")


@contextmanager
def api_server(folder: Path, *, manager: bool = False) -> Iterator[ApiServer]:
    """Start the server with its data under `folder`, or use the one that runs; stop what was started on leaving.

    `manager`: start kube-controller-manager, too, where it is found.
    """
    if lack := _lack():
        raise RuntimeError(f"{REQUIRED_VARIABLE} is 1, but {lack}")
    if is_existing():
        yield _existing()
        return
    client_port, peer_port, port, manager_port = _free_ports(4)
    url, token = f"https://127.0.0.1:{port}", secrets.token_hex(16)
    _write_credentials(folder, token)
    with ExitStack() as processes:
        processes.enter_context(_process(_etcd(folder, client_port, peer_port), folder / "etcd.log"))
        command = _apiserver(folder, client_port, port)
        server = processes.enter_context(_process(command, folder / "apiserver.log"))
        _wait_until_ready(server, url, token, folder)
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(json.dumps(_kubeconfig(folder, url, token)))
        has_manager = manager and asset(MANAGER) is not None
        if has_manager:
            processes.enter_context(_process(_manager(folder, kubeconfig, manager_port), folder / "manager.log"))
        yield ApiServer(kubeconfig, url, token, _found("kubectl"), has_manager)


def _existing() -> ApiServer:
    kubectl = asset("kubectl") or Path(shutil.which("kubectl") or "kubectl")
    kubeconfig = _existing_kubeconfig()
    text = subprocess.run(
        [kubectl, f"--kubeconfig={kubeconfig}", "config", "view", "--minify", "--raw", "-o", "json"],
        check=True,
        capture_output=True,
    ).stdout
    found = json.loads(text)
    token = found["users"][0]["user"].get("token", "")
    return ApiServer(kubeconfig, found["clusters"][0]["cluster"]["server"], token, kubectl, has_manager=True)


def _found(name: str) -> Path:
    place = asset(name)
    assert place is not None, name
    return place


def _manager(folder: Path, kubeconfig: Path, port: int) -> list[str]:
    return [
        str(_found(MANAGER)),
        f"--kubeconfig={kubeconfig}",
        f"--service-account-private-key-file={folder / 'service-account.key'}",
        f"--secure-port={port}",
        f"--cert-dir={folder / 'manager-certificates'}",
        "--use-service-account-credentials=false",
        "--leader-elect=false",
    ]


def _etcd(folder: Path, client_port: int, peer_port: int) -> list[str]:
    client, peer = f"http://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
    return [
        str(_found("etcd")),
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
    ]


def _apiserver(folder: Path, etcd_port: int, port: int) -> list[str]:
    return [
        str(_found("kube-apiserver")),
        f"--etcd-servers=http://127.0.0.1:{etcd_port}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        f"--secure-port={port}",
        f"--cert-dir={folder / 'certificates'}",
        f"--token-auth-file={folder / 'tokens.csv'}",
        "--authorization-mode=RBAC",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={folder / 'service-account.key'}",
        f"--service-account-signing-key-file={folder / 'service-account.key'}",
        # Nothing would create the default ServiceAccount that this plugin waits for.
        "--disable-admission-plugins=ServiceAccount",
    ]


def _write_credentials(folder: Path, token: str) -> None:
    (folder / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
    subprocess.run(
        ["openssl", "genrsa", "-out", str(folder / "service-account.key"), "2048"], check=True, capture_output=True
    )


def _kubeconfig(folder: Path, url: str, token: str) -> dict[str, object]:
    # kube-apiserver signs its own certificate and leaves it in its certificate folder.
    cluster = {"server": url, "certificate-authority": str(folder / "certificates" / "apiserver.crt")}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin", "namespace": "default"}}],
        "current-context": "test",
    }


@contextmanager
def _process(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_ready(server: subprocess.Popen[bytes], url: str, token: str, folder: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        if _is_ready(url, token):
            return
        time.sleep(0.2)
    tail = (folder / "apiserver.log").read_text(errors="replace")[-2000:]
    raise RuntimeError(f"kube-apiserver did not become ready; the end of its log:\n{tail}")


def _is_ready(url: str, token: str) -> bool:
    # The certificate does not exist before the server has made it, and it is our own process on loopback.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    request = urllib.request.Request(f"{url}/readyz", headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, context=context, timeout=30) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _free_ports(count: int) -> list[int]:
    with ExitStack() as sockets:
        opened = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for item in opened:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in opened]
