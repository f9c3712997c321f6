"""Manifests judged without a cluster, as users have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoscaler.contract import keys
from autoscaler.contract.keys import QoS
from autoscaler.model.config import Configuration
from autoscaler.model.resources import GIB, Amount, Amounts
from autoscaler.model.validate import validate_documents
from autoscaler.model.validation import Document, ValidationReport, render_json, render_text

FIXTURES = Path(__file__).parent / "fixtures"
CHAT = Configuration(
    amounts=Amounts(Amount(12.5, 50.0), Amount(9 * GIB, 9 * GIB)),
    qos=QoS.CRITICAL,
    gpu_model="L40s",
    pool="serving",
    replicas=3,
    is_local_gpu=True,
)


def fixture(name: str) -> Document:
    return Document(name, 0, 1, yaml.safe_load((FIXTURES / name).read_text()))


def judge(*bodies: Any) -> ValidationReport:
    return validate_documents(Document("file.yaml", place, place + 1, body) for place, body in enumerate(bodies))


def deployment(annotations: dict[str, Any], **more: Any) -> dict[str, Any]:
    metadata = {"annotations": annotations, "labels": {keys.ENABLED: "true"}}
    template = {"metadata": metadata, "spec": {"containers": [{"name": "app"}]}}
    return {"kind": "Deployment", "metadata": {"name": "web"}, "spec": {"template": template, "replicas": 1} | more}


AMOUNTS = {keys.TFLOPS_LIMIT: "20", keys.VRAM_LIMIT: "4Gi"}


def test_annotations_on_a_deployment_resolve_though_the_profile_is_elsewhere() -> None:
    report = validate_documents([fixture("deployment-annotations.yaml")])
    assert report.ok
    [item] = report.objects
    assert item.configuration is not None
    assert item.configuration.warnings == (f"{keys.REPLICAS}: 2 workers, but the owner's replicas are 1",)
    assert item.configuration == Configuration(
        amounts=Amounts(Amount(31.25, 62.5), Amount(13 * GIB // 2, 12 * GIB)),
        qos=QoS.HIGH,
        gpu_count=2,
        pool="research-pool",
        replicas=2,
        workload="diffusion",
        profile="shared-defaults",
        inject_containers=("trainer", "metrics"),
        is_local_gpu=True,
        warnings=item.configuration.warnings,
    )
    assert any("shared-defaults is not among the files" in warning.message for warning in report.warnings)


def test_bare_annotations_resolve() -> None:
    report = validate_documents([fixture("pod-annotations.yaml")])
    assert (report.problems, report.warnings) == ((), ())
    assert report.objects[0].configuration == Configuration(
        amounts=Amounts(Amount(40.0, 40.0), Amount(8 * GIB, 8 * GIB)), qos=QoS.LOW, inject_containers=("worker",)
    )


def test_a_profile_resolves_by_itself() -> None:
    report = validate_documents([fixture("workloadprofile.yaml")])
    assert (report.problems, report.warnings) == ((), ())
    assert report.objects[0].configuration == CHAT


def test_a_placeholder_is_named_and_the_rest_is_still_judged() -> None:
    report = validate_documents([fixture("deployment-profile.yaml"), fixture("workloadprofile.yaml")])
    [problem] = report.problems
    assert (problem.source, problem.path, problem.value) == ("deployment-profile.yaml:1", "metadata.name", "<...>")
    assert "replace the placeholder" in problem.allowed
    configuration = report.objects[0].configuration
    assert configuration is not None
    assert (configuration.amounts, configuration.profile) == (CHAT.amounts, "chat-service")


def test_a_deployment_that_only_names_a_missing_profile_is_accepted_but_not_resolved() -> None:
    report = judge(deployment({keys.WORKLOAD_PROFILE: "elsewhere"}))
    assert report.ok
    assert report.objects[0].configuration is None
    assert [warning.message for warning in report.warnings] == [
        "WorkloadProfile elsewhere is not among the files; what it sets is not judged"
    ]


def test_a_missing_profile_hides_no_other_problem() -> None:
    report = judge(deployment({keys.WORKLOAD_PROFILE: "elsewhere", keys.QOS: "urgent", keys.INJECT_CONTAINER: "ghost"}))
    assert {problem.path for problem in report.problems} == {keys.QOS, keys.INJECT_CONTAINER}


def test_a_profile_of_another_namespace_is_not_taken() -> None:
    profile = yaml.safe_load((FIXTURES / "workloadprofile.yaml").read_text())
    stranger = deployment({keys.WORKLOAD_PROFILE: "chat-service"}) | {"metadata": {"name": "web", "namespace": "lab"}}
    assert judge(stranger, profile).objects[0].configuration is None
    neighbour = stranger | {"metadata": {"name": "web", "namespace": "chat"}}
    assert judge(neighbour, profile).objects[0].configuration is not None


def test_a_joined_workload_is_followed() -> None:
    joined = yaml.safe_load((FIXTURES / "workload-later-form.yaml").read_text())
    own = deployment({keys.GENERATE_WORKLOAD: "false", keys.WORKLOAD: "later"})
    report = judge(own, joined)
    assert report.ok
    assert report.objects[0].configuration is not None
    assert report.objects[0].configuration.amounts.compute == Amount(30.0, 60.0)
    alone = judge(own)
    assert alone.ok
    assert alone.objects[0].configuration is None


@pytest.mark.parametrize("kind", ["Pod", "Deployment", "StatefulSet", "Job", "CronJob"])
def test_every_kind_with_pods_is_read(kind: str) -> None:
    pod = deployment(AMOUNTS)["spec"]["template"]
    body = {
        "Pod": pod,
        "CronJob": {"spec": {"jobTemplate": {"spec": {"template": pod}}}},
    }.get(kind, {"spec": {"template": pod}})
    [item] = judge({"kind": kind} | body).objects
    assert item.kind == kind
    assert item.configuration is not None
    assert item.configuration.inject_containers == ("app",)
    assert item.configuration.replicas == (1 if kind in ("Deployment", "StatefulSet") else None)


def test_lists_are_opened_and_foreign_objects_and_empty_documents_are_left_alone() -> None:
    service = {"kind": "Service", "metadata": {"name": "Not A Name"}}
    plain = {"kind": "Deployment", "metadata": {"name": "_"}, "spec": {"template": {}}}
    report = judge({"kind": "List", "items": [service, deployment(AMOUNTS), plain]}, None)
    assert report.ok
    assert [item.kind for item in report.objects] == ["Deployment"]


def test_keys_in_the_wrong_place_and_a_missing_label_are_warned_about() -> None:
    body = deployment(AMOUNTS)
    body["metadata"]["annotations"] = {keys.QOS: "low"}
    del body["spec"]["template"]["metadata"]["labels"]
    report = judge(body)
    assert report.ok
    messages = " ".join(warning.message for warning in report.warnings)
    assert f"{keys.QOS} stands on the Deployment" in messages
    assert f"label {keys.ENABLED}" in messages
    configuration = report.objects[0].configuration
    assert configuration is not None
    assert configuration.qos is QoS.MEDIUM


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ("just text", "document"),
        ([1, 2], "document"),
        ({"metadata": {}}, "kind"),
        ({"kind": "Deployment", "spec": {"template": "x"}}, "spec.template"),
        ({"kind": "Deployment", "spec": {"template": {"metadata": {"annotations": []}}}}, "spec.template.metadata.annotations"),
        (deployment(AMOUNTS | {keys.REPLICAS: 2}), keys.REPLICAS),
        ({"kind": "WorkloadProfile", "spec": {}}, "apiVersion"),
        ({"kind": "WorkloadProfile", "apiVersion": "tensor-fusion.ai/v1", "spec": {"qos": 1}}, "spec.qos"),
    ],
)  # fmt: skip
def test_a_broken_document_is_a_problem_and_the_next_is_judged(body: Any, path: str) -> None:
    report = judge(body, deployment(AMOUNTS))
    [problem] = report.problems
    assert (problem.source, problem.path) == ("file.yaml:1", path)
    assert report.objects[-1].configuration is not None


def test_the_text_names_file_path_value_and_what_is_allowed() -> None:
    text = render_text(judge(deployment(AMOUNTS | {keys.AUTO_LIMITS: "true"}), deployment({keys.TFLOPS_LIMIT: "20TF"})))
    lines = text.splitlines()
    assert lines[0] == (
        "file.yaml:1: Deployment web: 20 TFLOPs, 4Gi VRAM, qos medium, 1 GPU a worker, replicas 1, limits on"
    )
    assert lines[1] == "file.yaml:2: Deployment web: not resolved"
    assert lines[2].startswith(f"file.yaml:2: error: {keys.TFLOPS_LIMIT}: '20TF' is not allowed; allowed: a positive")
    assert lines[3].startswith(f"file.yaml:2: error: {keys.VRAM_REQUEST}: is missing; allowed: a request or a limit")
    assert lines[-1] == "2 objects, 2 problems, 0 warnings"


def test_the_json_holds_everything() -> None:
    answer = json.loads(render_json(judge(deployment(AMOUNTS), deployment({keys.QOS: "x"} | AMOUNTS))))
    assert answer["ok"] is False
    assert answer["problems"] == [
        {"path": keys.QOS, "value": "x", "allowed": "one of low, medium, high, critical", "source": "file.yaml:2"}
    ]
    assert answer["objects"][0]["configuration"]["amounts"] == {
        "compute": {"request": 20.0, "limit": 20.0},
        "vram": {"request": 4 * GIB, "limit": 4 * GIB},
    }
    assert answer["objects"][0]["configuration"]["limits"]["targets"] == ["tflops", "vram"]
