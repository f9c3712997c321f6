"""Rendering the chart with helm, where it is found: on PATH, or as the variable HELM says.

`python -m tests.chart.rendering` writes the golden files, and the names of the controller's knobs in the schema of the
values, anew; look at their diff before you commit it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoscaler.settings import Settings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "tensor-fusion-autoscaler"
HERE = Path(__file__).parent
VALUE_SETS = sorted(path.stem for path in (HERE / "values").glob("*.yaml"))
RELEASE, NAMESPACE = "tf-autoscaler", "gpu"

Manifest = dict[str, Any]

HELM = os.environ.get("HELM") or shutil.which("helm") or ""
needs_helm = pytest.mark.skipif(not HELM, reason="helm is neither on PATH nor named by HELM")

_MADE_ANEW = re.compile(r"^(  (?:ca\.crt|tls\.crt|tls\.key): ).+$", re.MULTILINE)


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm without a cluster and without what the user has configured."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HELM_", "KUBE"))}
    return subprocess.run(
        [HELM, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def template(*arguments: str) -> str:
    """Return what `helm template` renders, with definitions left out unless they are asked for."""
    done = helm("template", RELEASE, str(CHART), "--namespace", NAMESPACE, "--set", "crds.install=false", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def golden(name: str) -> str:
    """Return a value set rendered, without what is made anew each time."""
    return plain(_MADE_ANEW.sub(r"\1bWFkZSBhbmV3", template("--values", str(HERE / "values" / f"{name}.yaml"))))


def plain(text: str) -> str:
    """Return a rendered text without the blank lines in which helm's versions differ."""
    return "".join(f"{line}\n" for line in text.removeprefix("---\n").splitlines() if line.strip())


def parts(text: str) -> list[str]:
    """Return the documents of a text in an order that does not depend on helm's version."""
    return sorted(plain(text).split("---\n"))


def golden_file(name: str) -> Path:
    """Return where the golden file of a value set lies."""
    return HERE / "golden" / f"{name}.yaml"


def documents(text: str) -> list[Manifest]:
    """Return the manifests of a rendered text."""
    return [document for document in yaml.safe_load_all(text) if document]


def free_settings(text: str) -> list[str]:
    """Return the controller's knobs that values may set: those that the chart does not set itself."""
    set_by_chart = {name.lower() for name in re.findall(r"- name: TF_AUTOSCALER_([A-Z_]+)$", text, re.MULTILINE)}
    places = {"cluster_dir", "kubeconfig"}  # nothing of that kind is in the pod
    return [name for name in Settings.model_fields if name not in set_by_chart | places]


def write_schema() -> None:
    """Name the knobs in the schema of the values, so that a typo is refused."""
    path = CHART / "values.schema.json"
    schema = json.loads(path.read_text())
    template_text = (CHART / "templates" / "controller-deployment.yaml").read_text()
    scalar: Manifest = {"type": ["string", "number", "integer", "boolean", "object", "array"]}
    settings = schema["properties"]["controller"]["properties"]["settings"]
    settings["properties"] = dict.fromkeys(free_settings(template_text), scalar)
    settings.pop("patternProperties", None)
    path.write_text(json.dumps(schema, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write_schema()
    for value_set in VALUE_SETS:
        golden_file(value_set).write_text(golden(value_set))
