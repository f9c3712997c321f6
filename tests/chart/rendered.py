"""The golden files and the plain manifests as documents, and what is asked of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.chart.rendering import CHART, ROOT, VALUE_SETS, Manifest, documents, golden_file

PLAIN = "plain"
TABLE = yaml.safe_load((CHART / "files" / "backends.yaml").read_text())
TEXTS = {name: golden_file(name).read_text() for name in VALUE_SETS}
TEXTS[PLAIN] = (ROOT / "deploy" / "tf-autoscaler.yaml").read_text()
ALL = {name: documents(text) for name, text in TEXTS.items()}
CLUSTER_WIDE = {"Namespace", "ClusterRole", "ClusterRoleBinding", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"}  # fmt: skip
every = pytest.mark.parametrize("name", ALL)


def of_kind(name: str, *kinds: str) -> list[Manifest]:
    return [document for document in ALL[name] if document["kind"] in kinds]


def pods(name: str) -> dict[str, Manifest]:
    """Return pod templates by component."""
    templates = [document["spec"]["template"] for document in of_kind(name, "Deployment", "DaemonSet")]
    return {one["metadata"]["labels"]["app.kubernetes.io/component"]: one for one in templates}


def container(pod: Manifest) -> Manifest:
    (only,) = pod["spec"]["containers"]
    return only


def environment(pod: Manifest) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container(pod)["env"] if "value" in entry}


def matched(name: str, labels: dict[str, str]) -> list[str]:
    return [component for component, pod in pods(name).items() if labels.items() <= pod["metadata"]["labels"].items()]


def ports(pod: Manifest) -> dict[str, int]:
    return {one["name"]: one["containerPort"] for one in container(pod)["ports"]}


def rules(name: str, component: str, kind: str) -> Iterator[dict[str, Any]]:
    for role in of_kind(name, kind):
        if role["metadata"]["labels"]["app.kubernetes.io/component"] == component:
            yield from role["rules"]
