"""What helm makes of the chart: the golden files are current, and bad values are refused in words."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.chart.rendering import (
    CHART,
    HELM,
    HERE,
    ROOT,
    VALUE_SETS,
    documents,
    golden,
    golden_file,
    helm,
    needs_helm,
    parts,
    template,
)

pytestmark = needs_helm


@pytest.mark.parametrize("name", VALUE_SETS)
def test_the_golden_file_is_what_helm_renders(name: str) -> None:
    assert parts(golden(name)) == parts(golden_file(name).read_text()), (
        "look at the diff of `python -m tests.chart.rendering`"
    )


@pytest.mark.parametrize("name", VALUE_SETS)
def test_helm_lints_without_a_warning(name: str) -> None:
    linted = helm("lint", "--strict", str(CHART), "--values", str(HERE / "values" / f"{name}.yaml"))

    assert linted.returncode == 0, linted.stdout


def test_the_plain_manifests_are_current(tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    made = ROOT / "deploy" / "tf-autoscaler.yaml"
    told = subprocess.run(
        ["make", "--dry-run", "--silent", "manifests", f"HELM={HELM}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    script = told.replace("> deploy/tf-autoscaler.yaml", f"> {tmp_path}/rendered.yaml")
    assert str(tmp_path) in script
    subprocess.run(["bash", "-c", script], cwd=ROOT, check=True, capture_output=True)

    assert parts((tmp_path / "rendered.yaml").read_text()) == parts(made.read_text()), "run `make manifests`"


REFUSED = {
    "an unknown value": ("nope=1", "nope"),
    "a backend that has no row": ("agent.backend=magic", "/agent/backend"),
    "an actuator that has no row": ("agent.actuators={magic}", "/agent/actuators/0"),
    "stopping workers where nothing is enforced": ("agent.freeze=true", "agent.freeze"),
    "simulated without scenarios": ("agent.backend=simulated", "agent.scenarios"),
    "an address that is no URL": ("prometheus.url=prometheus:9090", "/prometheus/url"),
    "certificates from nowhere": ("certificates.provider=magic", "/certificates/provider"),
    "existing certificates that are not named": ("certificates.provider=existing", "certificates.existing"),
    "a tag that is no version": ("controller.image.tag=latest", "latest"),
    "a digest that is none": ("controller.image.digest=sha256:abc", "/controller/image/digest"),
    "a time-out beyond the API server's": ("webhook.timeoutSeconds=31", "/webhook/timeoutSeconds"),
    "a setting that no program has by that form": ("controller.settings.changesPerPass=3", "changesPerPass"),
    "a setting that the chart sets itself": ("controller.settings.listen=:1", "listen"),
    "no replica": ("controller.replicas=0", "/controller/replicas"),
    "the node's root as a state folder": ("agent.stateHostPath=/", "/agent/stateHostPath"),
    "a kubelet's folder that is no path": ("agent.kubelet.rootDir=kubelet", "/agent/kubelet/rootDir"),
    "a port that is none": ("agent.port=70000", "/agent/port"),
    "Secrets without names": ("externalScaler.secrets[0].namespace=lab", "names"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_value_is_refused_and_named(case: str) -> None:
    value, named = REFUSED[case]
    refused = helm("template", "x", str(CHART), "--set", value)

    assert refused.returncode != 0
    # Older versions of helm write paths with dots.
    assert named in refused.stderr or named.strip("/").replace("/", ".") in refused.stderr


def test_the_definitions_are_kept_when_the_release_goes_and_otherwise_those_of_the_crds_folder() -> None:
    rendered = documents(template("--set", "crds.install=true", "--show-only", "templates/crds.yaml"))
    plain = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml"))]

    assert [document["metadata"]["name"] for document in rendered] == [
        document["metadata"]["name"] for document in plain
    ]
    for document, original in zip(rendered, plain, strict=True):
        assert document["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert document["metadata"].pop("labels") == {"app.kubernetes.io/part-of": "tensor-fusion-autoscaler"}
        assert document == original


def test_certificates_of_helm_are_trusted_by_the_other_side_and_by_no_one_else(tmp_path: Path) -> None:
    import base64

    secrets = {
        item["metadata"]["name"]: {key: base64.b64decode(value) for key, value in item["data"].items()}
        for item in documents(template("--show-only", "templates/agent-certificates.yaml"))
    }
    agent, controller = secrets["tf-autoscaler-tensor-fusion-autoscaler-agent-tls"], secrets["tf-autoscaler-tensor-fusion-autoscaler-agent-client-tls"]  # fmt: skip
    for side, files in (("agent", agent), ("controller", controller)):
        for name, content in files.items():
            (tmp_path / f"{side}-{name}").write_bytes(content)

    def verified(authority: str, certificate: str) -> bool:
        command = ["openssl", "verify", "-CAfile", f"{authority}-ca.crt", f"{certificate}-tls.crt"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0

    assert verified("controller", "agent")
    assert verified("agent", "controller")
    assert not verified("agent", "agent"), "an agent's certificate would pass for the controller's"
