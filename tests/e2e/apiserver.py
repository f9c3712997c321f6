"""A real Kubernetes API server on loopback: etcd and kube-apiserver from a folder of binaries, torn down at the end.

Nothing runs beside them: no scheduler, no controllers, no nodes. Objects are stored, validated and watched for real.
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
START_DEADLINE_SECONDS = 300.0
ANSWER_SECONDS = 300.0


@dataclass(frozen=True)
class ApiServer:
    """How to reach the server: a kubeconfig of a cluster admin, and the pieces it is made of."""

    kubeconfig: Path
    url: str
    token: str
    kubectl: Path

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


def missing_reason() -> str:
    """Return why no server can be started here, or an empty string."""
    folder = os.environ.get(BINARIES_VARIABLE)
    if not folder:
        return f"{BINARIES_VARIABLE} is not set: it names a folder with etcd, kube-apiserver and kubectl"
    absent = [name for name in ("etcd", "kube-apiserver", "kubectl") if not (Path(folder) / name).is_file()]
    if absent:
        return f"{BINARIES_VARIABLE} ({folder}) lacks {', '.join(absent)}"
    return "" if shutil.which("openssl") else "openssl is needed to make the service account key"


@contextmanager
def api_server(folder: Path) -> Iterator[ApiServer]:
    """Start both processes with their data under `folder`; stop them on leaving."""
    binaries = Path(os.environ[BINARIES_VARIABLE])
    client_port, peer_port, port = _free_ports(3)
    url, token = f"https://127.0.0.1:{port}", secrets.token_hex(16)
    _write_credentials(folder, token)
    with ExitStack() as processes:
        processes.enter_context(_process(_etcd(binaries, folder, client_port, peer_port), folder / "etcd.log"))
        command = _apiserver(binaries, folder, client_port, port)
        server = processes.enter_context(_process(command, folder / "apiserver.log"))
        _wait_until_ready(server, url, token, folder)
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(json.dumps(_kubeconfig(folder, url, token)))
        yield ApiServer(kubeconfig, url, token, binaries / "kubectl")


def _etcd(binaries: Path, folder: Path, client_port: int, peer_port: int) -> list[str]:
    client, peer = f"http://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
    return [
        str(binaries / "etcd"),
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
    ]


def _apiserver(binaries: Path, folder: Path, etcd_port: int, port: int) -> list[str]:
    return [
        str(binaries / "kube-apiserver"),
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
