"""The generated custom resource definitions against a real API server: what it accepts, refuses, shows and scales."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoscaler.errors import ConfigError
from autoscaler.model.crd import render_crds
from autoscaler.model.profile import parse_profile
from tests.e2e.apiserver import ApiServer, api_server, missing_reason

FIXTURES = Path(__file__).parents[1] / "autoscaler" / "fixtures"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing_reason()), reason=missing_reason() or "a server can be started"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with api_server(tmp_path_factory.mktemp("apiserver")) as running:
        for text in render_crds().values():
            applied = running.run("apply", "-f", "-", stdin=text)
            assert applied.returncode == 0, applied.stderr
        established = running.run("wait", "--for=condition=Established", "crd", "--all", "--timeout=240s")
        assert established.returncode == 0, established.stderr
        for namespace in ("lab", "chat"):
            running.run("create", "namespace", namespace)
        yield running


def document(name: str) -> dict[str, Any]:
    return yaml.safe_load((FIXTURES / name).read_text())


def changed(path: str, value: object, base: str = "workloadprofile-full.yaml") -> dict[str, Any]:
    """Return the full profile with one field set to another value; list places are numbers."""
    manifest = copy.deepcopy(document(base))
    *parents, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    target = manifest["spec"]
    for part in parents:
        target = target[part]
    if isinstance(last, int) and last == len(target):
        target.append(value)
    else:
        target[last] = value
    return manifest


def test_the_definitions_are_structural(server: ApiServer) -> None:
    for plural in ("workloadprofiles", "tensorfusionworkloads"):
        crd = json.loads(server.run("get", "crd", f"{plural}.tensor-fusion.ai", "-o", "json").stdout)
        conditions = {item["type"]: item["status"] for item in crd["status"]["conditions"]}
        assert conditions["Established"] == "True"
        assert conditions.get("NonStructuralSchema", "False") == "False"


@pytest.mark.parametrize("name", ["workloadprofile.yaml", "workloadprofile-full.yaml", "workload-later-form.yaml"])
def test_what_users_write_is_accepted_and_kept_whole(server: ApiServer, name: str) -> None:
    manifest = document(name)
    applied = server.run("apply", "--validate=strict", "-o", "json", "-f", "-", stdin=yaml.safe_dump(manifest))
    assert applied.returncode == 0, applied.stderr
    stored = json.loads(applied.stdout)["spec"]
    stored.pop("gpuCount", None)  # the one field with a default of the schema
    manifest["spec"].pop("gpuCount", None)
    assert stored == manifest["spec"]


AUTO = "autoScalingConfig"
ACCEPTED = {
    "a ratio as a number": (f"{AUTO}.autoSetLimits.percentile", 0.5),
    "a ratio as a percentage": (f"{AUTO}.autoSetLimits.percentile", "50%"),
    "a whole ratio": (f"{AUTO}.autoSetLimits.scaleUpStep", 3),
    "a compound duration": (f"{AUTO}.initialDelayPeriod", "1h30m"),
    "a fractional duration": (f"{AUTO}.initialDelayPeriod", "1.5h"),
    "a whole quantity": ("resources.limits.tflops", 60),
    "milli units": ("resources.limits.tflops", "60500m"),
    "an exponent": ("resources.limits.tflops", "1e3"),
    "a cron macro": (f"{AUTO}.cronScalingRules.0.start", "@daily"),
    "a step as a count": (f"{AUTO}.autoSetReplicas.scaleUpStep", 2),
    "no autoscaling at all": (AUTO, {}),
}
REFUSED = {
    "an unknown service level": ("qos", "urgent", "spec.qos"),
    "a unit that Kubernetes does not have": ("resources.requests.vram", "4GB", "spec.resources.requests.vram"),
    "a negative text": ("resources.requests.tflops", "-5", "spec.resources.requests.tflops"),
    "a negative number": ("resources.requests.tflops", -5, "spec.resources.requests.tflops"),
    "a request above the limit": ("resources.requests.tflops", "30", "spec.resources.requests.tflops"),
    "a VRAM request above the limit in other units": ("resources.requests.vram", "5000Mi", "spec.resources.requests.vram"),
    "a duration with a word": (f"{AUTO}.autoSetLimits.evaluationPeriod", "5min", "evaluationPeriod"),
    "a duration without a unit": (f"{AUTO}.initialDelayPeriod", "5", "initialDelayPeriod"),
    "a word for a ratio": (f"{AUTO}.autoSetLimits.percentile", "abc", "percentile"),
    "a boolean for a ratio": (f"{AUTO}.autoSetLimits.percentile", True, "percentile"),
    "a list for a ratio": (f"{AUTO}.autoSetLimits.percentile", [], "percentile"),
    "a mapping for a ratio": (f"{AUTO}.autoSetLimits.percentile", {}, "percentile"),
    "no GPU": ("gpuCount", 0, "gpuCount"),
    "too many GPUs": ("gpuCount", 129, "gpuCount"),
    "fewest above most replicas": (f"{AUTO}.autoSetReplicas.minReplicas", 11, "minReplicas"),
    "a step of nothing": (f"{AUTO}.autoSetReplicas.scaleDownStep", "0%", "scaleDownStep"),
    "least above most allowed": (f"{AUTO}.bounds.minAllowed.vram", "41Gi", "bounds.minAllowed.vram"),
    "both forms of one layer": (f"{AUTO}.autoSetResources", {"enable": True}, AUTO),
    "a cron expression of four fields": (f"{AUTO}.cronScalingRules.0.start", "0 8 * *", "start"),
    "two rules of one name": (
        f"{AUTO}.cronScalingRules.1", {"name": "office", "start": "0 1 * * *", "end": "0 2 * * *"}, "cronScalingRules[1]",
    ),
    "a rule whose request is above its limit": (
        f"{AUTO}.cronScalingRules.0.desiredResources.requests.tflops", 31, "desiredResources.requests.tflops",
    ),
    "a gang larger than the replicas": ("gangScheduling.minMembers", 3, "gangScheduling.minMembers"),
    "a misspelt field": (f"{AUTO}.autoSetRequest", {"enable": True}, "autoSetRequest"),
}  # fmt: skip


@pytest.mark.parametrize("case", ACCEPTED)
def test_server_and_parser_both_accept(server: ApiServer, case: str) -> None:
    manifest = changed(*ACCEPTED[case])
    tried = server.run("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=renamed(manifest))
    assert tried.returncode == 0, tried.stderr
    parse_profile(manifest)


@pytest.mark.parametrize("case", REFUSED)
def test_server_and_parser_both_refuse_and_name_the_field(server: ApiServer, case: str) -> None:
    path, value, named = REFUSED[case]
    manifest = changed(path, value)
    tried = server.run("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=renamed(manifest))
    assert tried.returncode != 0
    assert named in tried.stderr
    with pytest.raises(ConfigError) as caught:
        parse_profile(manifest)
    assert any(named in problem.path for problem in caught.value.problems)


def renamed(manifest: dict[str, Any]) -> str:
    return yaml.safe_dump({**manifest, "metadata": {"name": "tried", "namespace": "lab"}})


def test_only_the_gpu_count_has_a_default(server: ApiServer) -> None:
    bare = {"apiVersion": "tensor-fusion.ai/v1", "kind": "WorkloadProfile", "metadata": {"name": "bare"}}
    applied = server.run("apply", "-o", "json", "-f", "-", stdin=yaml.safe_dump(bare | {"spec": {AUTO: {}}}))
    assert json.loads(applied.stdout)["spec"] == {AUTO: {}, "gpuCount": 1}


def test_a_workload_can_be_scaled_and_its_columns_fit(server: ApiServer) -> None:
    manifest = document("workload-later-form.yaml")
    manifest["metadata"]["name"] = "llama-3-70b-serving-eu1"
    applied = server.run("apply", "-f", "-", stdin=yaml.safe_dump(manifest))
    assert applied.returncode == 0, applied.stderr
    name = "tfw/llama-3-70b-serving-eu1"
    scaled = server.run("scale", name, "-n", "lab", "--replicas=3")
    assert scaled.returncode == 0, scaled.stderr
    display = {
        "qos": "critical", "auto": "req,lim,rep", "tflops": "10/20→12/24", "vram": "4Gi→6Gi", "replicas": "2→3",
        "status": "CapacityLimited",
    }  # fmt: skip
    status = {"status": {"workerCount": 3, "selector": "a=b", "autoscaling": {"applied": "2/2", "display": display}}}
    patched = server.run("patch", name, "-n", "lab", "--subresource=status", "--type=merge", "-p", json.dumps(status))
    assert patched.returncode == 0, patched.stderr
    header, row = server.run("get", name, "-n", "lab").stdout.splitlines()
    assert header.split() == ["NAME", "QOS", "AUTO", "TFLOPS", "VRAM", "REPLICAS", "APPLIED", "STATUS", "AGE"]
    assert len(row) <= 120
    assert {"10/20→12/24", "4Gi→6Gi", "2→3", "2/2", "CapacityLimited"} <= set(row.split())
    path = "/apis/tensor-fusion.ai/v1/namespaces/lab/tensorfusionworkloads/llama-3-70b-serving-eu1/scale"
    scale = json.loads(server.run("get", "--raw", path).stdout)
    assert (scale["spec"]["replicas"], scale["status"]) == (3, {"replicas": 3, "selector": "a=b"})
