"""The generated definitions: current, structural, described, within the limits that CEL's cost estimate needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoscaler.model.crd import render_crds
from autoscaler.model.docs import render_docs

ROOT = Path(__file__).parents[2]
CRDS = {name: yaml.safe_load(text) for name, text in render_crds().items()}


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")


def schema_nodes(crd: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return list(nodes(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]))


def test_the_files_in_the_repository_are_current() -> None:
    stored = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "crds").glob("*.yaml")}
    assert stored == render_crds()


@pytest.mark.parametrize("page", sorted(render_docs()))
def test_the_reference_pages_are_current(page: str) -> None:
    assert (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8") == render_docs()[page]


@pytest.mark.parametrize("name", CRDS)
def test_every_field_is_described(name: str) -> None:
    for path, node in schema_nodes(CRDS[name]):
        if path not in ("", ".metadata") and not path.endswith("[]"):
            assert node.get("description", "").endswith("."), path


@pytest.mark.parametrize("name", CRDS)
def test_the_schema_is_structural(name: str) -> None:
    for path, node in schema_nodes(CRDS[name]):
        assert not {"$ref", "$defs", "anyOf", "oneOf", "title", "additionalProperties", "const"} & set(node), path
        typed = "type" in node or "x-kubernetes-int-or-string" in node or "x-kubernetes-preserve-unknown-fields" in node
        assert typed, path
        assert "nullable" not in node, path


@pytest.mark.parametrize("name", CRDS)
def test_every_list_and_string_of_the_spec_is_limited(name: str) -> None:
    for path, node in schema_nodes(CRDS[name]):
        if path.startswith(".spec."):
            assert node.get("type") != "array" or "maxItems" in node, path
            assert node.get("type") != "string" or "maxLength" in node or "enum" in node, path
            assert "x-kubernetes-int-or-string" not in node or "maxLength" in node, path


@pytest.mark.parametrize("name", CRDS)
def test_only_the_gpu_count_has_a_default(name: str) -> None:
    assert [path for path, node in schema_nodes(CRDS[name]) if "default" in node] == [".spec.gpuCount"]


def test_only_the_workload_can_be_scaled_and_both_have_a_status() -> None:
    subresources = {
        crd["spec"]["names"]["kind"]: sorted(crd["spec"]["versions"][0]["subresources"]) for crd in CRDS.values()
    }
    assert subresources == {"WorkloadProfile": ["status"], "TensorFusionWorkload": ["scale", "status"]}


def test_every_column_and_scale_path_leads_to_a_field() -> None:
    for crd in CRDS.values():
        known = {path for path, _ in schema_nodes(crd)} | {".metadata.creationTimestamp"}
        version = crd["spec"]["versions"][0]
        paths = [column["jsonPath"].split("[?")[0] for column in version["additionalPrinterColumns"]]
        assert set(paths) | set(version["subresources"].get("scale", {}).values()) <= known


def test_the_columns_are_those_that_users_read() -> None:
    shown = {
        crd["spec"]["names"]["shortNames"][0]: [
            column["name"]
            for column in crd["spec"]["versions"][0]["additionalPrinterColumns"]
            if column.get("priority", 0) == 0
        ]
        for crd in CRDS.values()
    }
    assert shown == {
        "wp": ["QoS", "Auto", "TFlops", "VRAM", "Replicas", "Workloads", "Ready", "Age"],
        "tfw": ["QoS", "Auto", "TFlops", "VRAM", "Replicas", "Applied", "Status", "Age"],
    }
