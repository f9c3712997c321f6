"""The admission webhook on a real API server: what is born, what is refused, and what happens while it is away.

Every test restricts its webhook configurations to a namespace of its own, and removes them.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from autoscaler.admission.certificate import self_signed
from autoscaler.contract import keys
from autoscaler.model.workload import ClusterView
from autoscaler.read.discovery import discover
from tests.autoscaler.admission_cases import ON, OWN, moved_status
from tests.autoscaler.apply_cases import amounts
from tests.e2e.apiserver import ApiServer, missing_manager_reason, missing_reason

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing_reason()), reason=missing_reason() or "a server can be used"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates"),
]
DEADLINE_SECONDS = 90.0
MUTATING = ("pods.tensor-fusion.ai", "workers.tensor-fusion.ai")
SPEC_CHANGES = (
    "oldObject == null || has(object.spec) != has(oldObject.spec) || "
    "(has(object.spec) && object.spec != oldObject.spec)"
)
BAD_ZONE = {
    "autoScalingConfig": {
        "cronScalingRules": [
            {"name": "a", "enable": True, "timeZone": "Mars/Olympus", "start": "0 8 * * *", "end": "0 9 * * *"}
        ]
    }
}
"""What the schema of the definitions can't refuse."""


@dataclass(frozen=True)
class Webhook:
    """A webhook process on loopback."""

    url: str
    metrics_url: str
    bundle: str


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def eventually(check: Callable[[], Any]) -> Any:
    """Return what `check` returns once it is true; AssertionError after a while."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        found = check()
        if found or time.monotonic() > deadline:
            assert found, check
            return found
        time.sleep(0.2)


@contextmanager
def webhook_process(folder: Path, port: int, metrics_port: int, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command until the block ends, and see that it stops when it is told to."""
    addresses = {"LISTEN": f"127.0.0.1:{port}", "METRICS_LISTEN": f"127.0.0.1:{metrics_port}", "DRAIN_SECONDS": "0"}
    given = {f"TF_AUTOSCALER_WEBHOOK_{name}": value for name, value in {**addresses, **variables}.items()}
    log = folder / f"webhook-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "autoscaler", "webhook"], env={**os.environ, **given}, stdout=output, stderr=output
        )
    try:
        eventually(lambda: process.poll() is not None or is_ready(metrics_port))
        assert process.poll() is None, log.read_text()
        yield process
        process.terminate()
        assert process.wait(timeout=30) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def is_ready(port: int) -> bool:
    return fetched(port, "/readyz").startswith("HTTP/1.1 200")


def fetched(port: int, path: str) -> str:
    """Return what an HTTP server on loopback answers, empty while there is none."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as opened:
            opened.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            return b"".join(iter(lambda: opened.recv(65536), b"")).decode()
    except OSError:
        return ""


@pytest.fixture(scope="module")
def webhook(cluster: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webhook]:
    """One process for all tests here, with a certificate in files, made as the webhook makes its own."""
    folder = tmp_path_factory.mktemp("webhook")
    pair = asyncio.run(self_signed("127.0.0.1"))
    (folder / "tls.crt").write_bytes(pair.certificate)
    (folder / "tls.key").write_bytes(pair.key)
    port, metrics_port = free_port(), free_port()
    files = {"CERT_FILE": str(folder / "tls.crt"), "KEY_FILE": str(folder / "tls.key")}
    with webhook_process(folder, port, metrics_port, KUBECONFIG=str(cluster.kubeconfig), **files):
        bundle = base64.b64encode(pair.certificate).decode()
        yield Webhook(f"https://127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}", bundle)


def entry(name: str, namespace: str, client: dict[str, str], **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "clientConfig": client,
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Ignore",
        "timeoutSeconds": 5,
        "namespaceSelector": {
            "matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": [namespace]}]
        },
        **more,
    }


def rule(group: str, resource: str, *operations: str) -> dict[str, Any]:
    return {"operations": list(operations), "apiGroups": [group], "apiVersions": ["v1"], "resources": [resource]}


def configurations(name: str, namespace: str, url: str, bundle: str = "") -> list[dict[str, Any]]:
    """Return both configurations as the chart has them, but for where the webhook is and which namespace it is for."""

    def client(path: str) -> dict[str, str]:
        return {"url": url + path} | ({"caBundle": bundle} if bundle else {})

    pods = {"rules": [rule("", "pods", "CREATE")]}
    enabled = {"objectSelector": {"matchLabels": {keys.ENABLED: "true"}}}
    workers = {
        "objectSelector": {
            "matchExpressions": [
                {"key": keys.WORKLOAD, "operator": "Exists"},
                {"key": keys.ENABLED, "operator": "DoesNotExist"},
            ]
        }
    }
    profile_rules = {"matchConditions": [{"name": "spec-changes", "expression": SPEC_CHANGES}]}
    ours = "tensor-fusion.ai"
    mutating = [
        entry(webhook, namespace, client("/mutate-pods"), reinvocationPolicy="IfNeeded", **pods, **selector)
        for webhook, selector in zip(MUTATING, (enabled, workers), strict=True)
    ]
    profiles, workloads = (
        entry(
            f"{short}.{ours}",
            namespace,
            client("/validate-profiles"),
            **profile_rules,
            failurePolicy=policy,
            rules=[rule(ours, plural, "CREATE", "UPDATE")],
        )
        for short, plural, policy in (
            ("profiles", "workloadprofiles", "Fail"),
            ("workloads", "tensorfusionworkloads", "Ignore"),
        )
    )
    validating = [entry(f"validate-pods.{ours}", namespace, client("/validate-pods"), **pods, **enabled)]
    group = "admissionregistration.k8s.io/v1"
    return [
        {"apiVersion": group, "kind": kind, "metadata": {"name": name}, "webhooks": entries}
        for kind, entries in (
            ("MutatingWebhookConfiguration", mutating),
            ("ValidatingWebhookConfiguration", [*validating, profiles, workloads]),
        )
    ]


@contextmanager
def installed(cluster: ApiServer, found: list[dict[str, Any]]) -> Iterator[None]:
    """Install webhook configurations for a while, and wait until the API server goes by them."""
    name = found[0]["metadata"]["name"]
    with ExitStack() as cleanup:
        for kind in ("mutatingwebhookconfiguration", "validatingwebhookconfiguration"):
            cleanup.callback(cluster.run, "delete", kind, name, "--ignore-not-found")
        for configuration in found:
            done(cluster.run("create", "-f", "-", stdin=json.dumps(configuration)))
        yield


def done(ran: subprocess.CompletedProcess[str]) -> str:
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def create(
    cluster: ApiServer, namespace: str, manifest: dict[str, Any], *more: str
) -> subprocess.CompletedProcess[str]:
    return cluster.run("create", "-n", namespace, "-o", "json", "-f", "-", *more, stdin=json.dumps(manifest))


def pod(name: str, annotations: dict[str, str], labels: dict[str, str] | None = None) -> dict[str, Any]:
    metadata = {"name": name, "labels": labels or {keys.ENABLED: "true"}, "annotations": annotations}
    spec = {"containers": [{"name": "python", "image": "python:3"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def profile(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "tensor-fusion.ai/v1", "kind": "WorkloadProfile", "metadata": {"name": name}, "spec": spec}


def moved_workload(cluster: ApiServer, namespace: str, name: str) -> None:
    """Create a workload whose figures the controller moved from 10/20 to 12/24 TFLOPs and from 4Gi to 3Gi/5Gi."""
    metadata = {"name": name, "labels": {"app.kubernetes.io/managed-by": keys.FIELD_MANAGER}}
    spec = {"resources": {"limits": {"tflops": "20", "vram": "4Gi"}}}
    made = {"apiVersion": "tensor-fusion.ai/v1", "kind": "TensorFusionWorkload", "metadata": metadata, "spec": spec}
    done(create(cluster, namespace, made))
    status = json.dumps({"status": moved_status()})
    done(cluster.run("patch", "tfw", name, "-n", namespace, "--subresource=status", "--type=merge", "-p", status))


def waited_for(cluster: ApiServer, namespace: str) -> None:
    """Wait until the API server asks the webhook about pods of this namespace."""

    def is_asked() -> bool:
        tried = create(cluster, namespace, pod("probe", OWN | {keys.QOS: "urgent"}), "--dry-run=server")
        return tried.returncode != 0 and keys.QOS in tried.stderr

    eventually(is_asked)


@pytest.fixture
def guarded(cluster: ApiServer, namespace: str, webhook: Webhook) -> Iterator[str]:
    """Return a namespace in which the webhook is asked."""
    with installed(cluster, configurations(f"webhook-{namespace}", namespace, webhook.url, webhook.bundle)):
        waited_for(cluster, namespace)
        yield namespace


def figures(annotations: dict[str, str]) -> list[str | None]:
    names = (keys.TFLOPS_REQUEST, keys.TFLOPS_LIMIT, keys.VRAM_REQUEST, keys.VRAM_LIMIT)
    return [annotations.get(name) for name in names]


@pytest.mark.skipif(bool(missing_manager_reason()), reason=missing_manager_reason() or "a manager runs")
def test_pods_of_a_deployment_are_born_at_the_size_of_their_siblings(cluster: ApiServer, guarded: str) -> None:
    moved_workload(cluster, guarded, "chat")
    template = {
        "metadata": {"labels": {"app": "chat", keys.ENABLED: "true"}, "annotations": OWN | ON},
        "spec": {"containers": [{"name": "python", "image": "python:3"}]},
    }
    spec = {"replicas": 2, "selector": {"matchLabels": {"app": "chat"}}, "template": template}
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "chat"}, "spec": spec}
    done(create(cluster, guarded, deployment))

    def pods() -> list[dict[str, Any]]:
        return list(json.loads(done(cluster.run("get", "pods", "-n", guarded, "-o", "json")))["items"])

    born = eventually(lambda: found if len(found := pods()) == 2 else None)
    for one in born:
        annotations = one["metadata"]["annotations"]
        assert figures(annotations) == ["12", "24", "3Gi", "5Gi"]
        original = json.loads(annotations[keys.AUTOSCALING_ORIGINAL])
        assert original == {key.removeprefix(keys.PREFIX): text for key, text in OWN.items()}
        origin = json.loads(annotations[keys.AUTOSCALING_BORN])
        assert (origin["workload"], origin["generation"]) == ("chat", 3)
    stored = json.loads(done(cluster.run("get", "deployment", "chat", "-n", guarded, "-o", "json")))
    assert stored["spec"]["template"]["metadata"]["annotations"] == OWN | ON
    replica_sets = json.loads(done(cluster.run("get", "rs", "-n", guarded, "-o", "json")))["items"]
    workloads = json.loads(done(cluster.run("get", "tfw", "-n", guarded, "-o", "json")))["items"]
    view = ClusterView(pods=tuple(born), owners=(stored, *replica_sets), workloads=tuple(workloads))
    (workload,) = discover(view, {}).workloads
    assert workload.original == amounts()
    assert workload.current == amounts((12.0, 24.0), (3.0, 5.0))


def test_worker_pods_and_dry_runs_are_sized_too(cluster: ApiServer, guarded: str) -> None:
    moved_workload(cluster, guarded, "chat")
    worker = pod("worker", OWN | ON, {keys.WORKLOAD: "chat"})
    tried = json.loads(done(create(cluster, guarded, worker, "--dry-run=server")))
    made = json.loads(done(create(cluster, guarded, worker)))
    for one in (tried, made):
        assert figures(one["metadata"]["annotations"]) == ["12", "24", "3Gi", "5Gi"]
    client = json.loads(done(create(cluster, guarded, pod("client", OWN | ON | {keys.WORKLOAD: "chat"}))))
    assert figures(client["metadata"]["annotations"]) == list(OWN.values())


def test_asked_twice_about_one_pod_it_gives_the_same_figures_and_keeps_the_first_original(
    cluster: ApiServer, namespace: str, webhook: Webhook
) -> None:
    moved_workload(cluster, namespace, "chat")
    found = configurations(f"webhook-{namespace}", namespace, webhook.url, webhook.bundle)
    pods = found[0]["webhooks"][0]
    found[0]["webhooks"] = [pods, {**pods, "name": "again.tensor-fusion.ai"}]
    with installed(cluster, found):
        waited_for(cluster, namespace)
        made = json.loads(done(create(cluster, namespace, pod("twice", OWN | ON | {keys.WORKLOAD: "chat"}))))
    annotations = made["metadata"]["annotations"]
    assert figures(annotations) == ["12", "24", "3Gi", "5Gi"]
    assert json.loads(annotations[keys.AUTOSCALING_ORIGINAL])["tflops-limit"] == "20"


def test_a_bad_annotation_is_refused_and_a_typo_is_warned_about(cluster: ApiServer, guarded: str) -> None:
    refused = create(cluster, guarded, pod("bad", OWN | {keys.QOS: "urgent"}))
    assert refused.returncode != 0
    assert "tensor-fusion.ai/qos: 'urgent' is not allowed; allowed: " in refused.stderr
    assert 'admission webhook "validate-pods.tensor-fusion.ai" denied the request' in refused.stderr
    warned = create(cluster, guarded, pod("typo", OWN | {f"{keys.PREFIX}tflop-limit": "3"}))
    done(warned)
    assert "did you mean tensor-fusion.ai/tflops-limit?" in warned.stderr


def test_a_bad_profile_is_refused_and_a_stored_one_can_still_be_labelled_reported_and_deleted(
    cluster: ApiServer, namespace: str, webhook: Webhook
) -> None:
    done(create(cluster, namespace, profile("old", BAD_ZONE)))
    with installed(cluster, configurations(f"webhook-{namespace}", namespace, webhook.url, webhook.bundle)):
        waited_for(cluster, namespace)
        refused = create(cluster, namespace, profile("new", BAD_ZONE))
        assert refused.returncode != 0
        assert "timeZone: 'Mars/Olympus' is not allowed; allowed: " in refused.stderr
        done(create(cluster, namespace, profile("good", {"qos": "high"})))
        patch = ("patch", "wp", "old", "-n", namespace, "--type=merge", "-p")
        done(cluster.run(*patch, '{"metadata": {"labels": {"a": "b"}}}'))
        done(cluster.run(*patch, '{"status": {"workloads": 1}}', "--subresource=status"))
        kept = cluster.run(*patch, '{"spec": {"qos": "low"}}')
        done(kept)
        assert "Mars/Olympus" in kept.stderr
        worse = cluster.run(
            "patch", "wp", "good", "-n", namespace, "--type=merge", "-p", json.dumps({"spec": BAD_ZONE})
        )
        assert worse.returncode != 0
        done(cluster.run("delete", "wp", "old", "-n", namespace))


def test_while_the_webhook_is_away_pods_are_created_as_they_are_and_profiles_keep_their_spec(
    cluster: ApiServer, namespace: str
) -> None:
    moved_workload(cluster, namespace, "chat")
    done(create(cluster, namespace, profile("small", {"qos": "low"})))
    with installed(cluster, configurations(f"webhook-{namespace}", namespace, f"https://127.0.0.1:{free_port()}")):
        eventually(lambda: create(cluster, namespace, profile("other", {}), "--dry-run=server").returncode != 0)
        made = json.loads(done(create(cluster, namespace, pod("alone", OWN | ON | {keys.WORKLOAD: "chat"}))))
        assert figures(made["metadata"]["annotations"]) == list(OWN.values())
        patch = ("patch", "wp", "small", "-n", namespace, "--type=merge", "-p")
        assert "failed calling webhook" in cluster.run(*patch, '{"spec": {"qos": "high"}}').stderr
        done(cluster.run(*patch, '{"metadata": {"labels": {"a": "b"}}}'))
        done(cluster.run(*patch, '{"status": {"workloads": 1}}', "--subresource=status"))
        # Machines make these: they must not stand still.
        spec = {"apiVersion": "tensor-fusion.ai/v1", "kind": "TensorFusionWorkload", "metadata": {"name": "made"}}
        done(create(cluster, namespace, spec | {"spec": {}}))
        done(cluster.run("delete", "wp", "small", "-n", namespace))


def test_a_webhook_that_hangs_holds_a_pod_no_longer_than_its_time_out(cluster: ApiServer, namespace: str) -> None:
    with hanging_server() as port:
        found = configurations(f"webhook-{namespace}", namespace, f"https://127.0.0.1:{port}")
        for one in found:
            one["webhooks"] = [{**item, "timeoutSeconds": 1} for item in one["webhooks"] if "pods" in item["name"]]
        with installed(cluster, found):

            def took() -> float:
                begun = time.monotonic()
                done(create(cluster, namespace, pod("waits", OWN), "--dry-run=server"))
                return time.monotonic() - begun

            # Only then it is asked; one that mutates and one that validates.
            seconds = eventually(lambda: found if (found := took()) >= 2.0 else None)
            assert seconds < 60.0
            done(create(cluster, namespace, pod("waits", OWN)))


@contextmanager
def hanging_server() -> Iterator[int]:
    """Accept connections on loopback and say nothing."""
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            while True:
                try:
                    accepted.append(listening.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield int(listening.getsockname()[1])
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=10)
    for one in accepted:
        one.close()


def test_without_files_it_makes_a_certificate_shares_it_and_has_the_api_server_trust_it(
    cluster: ApiServer, namespace: str, tmp_path: Path
) -> None:
    name, port, metrics_port = f"webhook-{secrets.token_hex(4)}", free_port(), free_port()
    variables = {
        "KUBECONFIG": str(cluster.kubeconfig),
        "SERVICE": "admission",
        "NAMESPACE": namespace,
        "CONFIGURATIONS": name,
        "CERTIFICATE_SECONDS": "0.5",
    }

    def bundles() -> set[str]:
        found = [
            json.loads(done(cluster.run("get", f"{kind}webhookconfiguration", name, "-o", "json")))["webhooks"]
            for kind in ("mutating", "validating")
        ]
        assert [len(entries) for entries in found] == [2, 3]
        return {one["clientConfig"].get("caBundle", "") for entries in found for one in entries}

    def served(bundle: str) -> bytes:
        """Return the certificate that is served, as the API server would see it."""
        context = ssl.create_default_context(cadata=base64.b64decode(bundle).decode())
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as opened,
            context.wrap_socket(opened, server_hostname=f"admission.{namespace}.svc") as secure,
        ):
            return secure.getpeercert(binary_form=True) or b""

    def data() -> dict[str, str]:
        secret = cluster.run("get", "secret", "tf-autoscaler-webhook-tls", "-n", namespace, "-o", "json")
        return dict(json.loads(done(secret))["data"])

    with installed(cluster, configurations(name, namespace, f"https://127.0.0.1:{port}")):
        with webhook_process(tmp_path, port, metrics_port, **variables):
            (bundle,) = bundles()
            first = served(bundle)
            assert bundle == data()["ca.crt"]
            for configuration in configurations(name, namespace, f"https://127.0.0.1:{port}"):
                done(cluster.run("replace", "-f", "-", stdin=json.dumps(configuration)))
            eventually(lambda: bundles() == {bundle})
            # A certificate that can't be used any more is made anew; what others still serve stays trusted.
            old = data()
            spoilt = json.dumps({"data": {"tls.key": ""}})
            done(cluster.run("patch", "secret", "tf-autoscaler-webhook-tls", "-n", namespace, "-p", spoilt))
            eventually(lambda: data().get("tls.key") and data()["tls.crt"] != old["tls.crt"])
            trusted = eventually(lambda: next(iter(bundles() - {bundle}), None))
            assert base64.b64decode(old["tls.crt"]) in base64.b64decode(trusted)
            second = eventually(lambda: found if (found := served(trusted)) != first else None)
        other, other_metrics = free_port(), free_port()
        with webhook_process(tmp_path, other, other_metrics, **variables):
            port = other
            assert served(trusted) == second
