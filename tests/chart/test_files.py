"""Files beside the chart's templates: definitions, images, rules and the dashboard."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml

from autoscaler.model.crd import render_crds
from tests.chart.rendering import CHART, ROOT, free_settings

LISTING = (ROOT / "tests" / "contract" / "metrics.txt").read_text()
DOCKERFILES = ("Dockerfile.controller", "Dockerfile.agent")


def test_the_charts_definitions_are_those_of_the_model() -> None:
    copies = {path.name: path.read_text() for path in (CHART / "files" / "crds").iterdir()}

    assert copies == render_crds(), "run `make crds`"


def test_helm_finds_the_place_where_the_definitions_are_marked() -> None:
    for text in render_crds().values():
        assert text.count("metadata:\n  name:") == 1


def metrics_in(text: str) -> set[str]:
    return {
        re.sub(r"_bucket$", "", one)
        for one in re.findall(r"tensor_fusion_(?:autoscaler|worker|device|agent)_\w+", text)
    }


@pytest.mark.parametrize("name", ["rules.yaml", "dashboard.json"])
def test_rules_and_dashboard_ask_for_series_that_there_are(name: str) -> None:
    asked = metrics_in((CHART / "files" / name).read_text())

    assert asked
    assert asked <= {line.split()[0] for line in LISTING.splitlines() if line}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Prometheus) is not on PATH")
def test_prometheus_takes_the_rules() -> None:
    checked = subprocess.run(
        ["promtool", "check", "rules", str(CHART / "files" / "rules.yaml")], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Prometheus) is not on PATH")
def test_the_dashboard_asks_what_prometheus_can_parse(tmp_path: Path) -> None:
    panels = json.loads((CHART / "files" / "dashboard.json").read_text())["panels"]
    asked = [
        target["expr"].replace("$namespace", ".*").replace("$workload", ".*")
        for one in panels
        for target in one["targets"]
    ]
    rules = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(asked)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    checked = subprocess.run(
        ["promtool", "check", "rules", tmp_path / "rules.yaml"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def instructions(name: str) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", " ", (ROOT / name).read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_is_built_as_a_linter_wants_it(name: str) -> None:
    steps = instructions(name)
    kinds = [kind for kind, _ in steps]
    assert "ADD" not in kinds
    assert kinds.count("FROM") == 2
    base = dict(pair.split("=", 1) for kind, pair in steps if kind == "ARG")["PYTHON"]
    assert re.search(r":3\.\d+-slim-\w+$", base), "a pinned, slim base"
    last = len(kinds) - 1 - kinds[::-1].index("FROM")
    assert "AS" not in steps[last][1]
    final = steps[last:]
    assert [value for kind, value in final if kind == "USER"] == ["65532:65532"]
    assert [json.loads(value) for kind, value in final if kind == "ENTRYPOINT"] == [["tf-" + {"Dockerfile.agent": "agent"}.get(name, "autoscaler")]]  # fmt: skip
    assert not [value for kind, value in final if kind == "RUN" and ("pip" in value or "apt" in value)]
    assert not [value for kind, value in steps if kind == "RUN" and ("apt-get" in value or "curl" in value or "sudo" in value)]  # fmt: skip
    downloads = [value for kind, value in steps if kind == "RUN" and "pip download" in value]
    assert len(downloads) == 1
    assert "--require-hashes" in downloads[0]
    assert (ROOT / "constraints.txt").exists()


def test_the_agents_image_has_what_the_agent_imports_and_no_more() -> None:
    text = (ROOT / "Dockerfile.agent").read_text()
    (installed,) = re.findall(r"--find-links /wheels \\\n\s+(aiohttp .*) \\\n", text)
    files = [*(ROOT / "agent").rglob("*.py"), *(ROOT / "autoscaler" / "contract").rglob("*.py")]
    imported = {
        one for path in files for one in re.findall(r"^\s*(?:import|from) (\w+)", path.read_text(), re.MULTILINE)
    }
    modules = {"nvidia-ml-py": "pynvml", "protobuf": "google", "pyyaml": "yaml"}
    expected = {modules.get(name, name.replace("-", "_")) for name in installed.split()}
    known = expected | {"kubernetes", "numpy", "sklearn", "cronsim", "prometheus_api_client", "stamina", "tzdata"}
    assert imported & known == expected
    assert not {"numpy", "kubernetes"} & imported


def test_only_what_images_are_made_of_is_sent_to_the_builder() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for name in DOCKERFILES
        for kind, value in instructions(name)
        if kind == "COPY" and not value.startswith("--from")
        for source in value.split()[:-1]
    }
    assert kept == copied
    assert all((ROOT / source).exists() for source in kept)


def test_the_wheel_holds_the_data_that_the_programs_read(tmp_path: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    inside = set(zipfile.ZipFile(wheel).namelist())
    data = {
        str(path.relative_to(ROOT))
        for folder in ("autoscaler", "agent")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".json", ".csv", ".css", ".js"}
    }
    assert "autoscaler/recommend/prior.json" in data
    assert data <= inside


def value_names(values: dict[str, object], above: str = "") -> set[str]:
    return {f"{above}{key}" for key in values} | {
        name
        for key, below in values.items()
        if isinstance(below, dict) and not above
        for name in value_names(below, f"{key}.")
    }


def test_every_value_stands_in_the_readme_and_in_the_schema() -> None:
    readme = (CHART / "README.md").read_text()
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]
    for name in value_names(values):
        above, _, last = name.rpartition(".")
        assert re.search(rf"[`. ]{last}[`. ,}}:]", readme), f"{name} is not in the README"
        assert last in (schema[above]["properties"] if above else schema), f"{name} is not in the schema"


def test_the_table_of_backends_in_the_docs_is_that_of_the_chart() -> None:
    table = yaml.safe_load((CHART / "files" / "backends.yaml").read_text())
    docs = (ROOT / "docs" / "install.md").read_text()
    for name in (*table["backends"], *table["actuators"]):
        assert f"`{name}`" in docs
    for row in table["actuators"].values():
        assert all(f"`{path['path']}`" in docs for path in row["hostPaths"])


def test_values_may_set_every_knob_of_the_controller_that_the_chart_does_not_set_itself() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["controller"]["properties"][
        "settings"
    ]
    template_text = (CHART / "templates" / "controller-deployment.yaml").read_text()

    assert list(schema["properties"]) == free_settings(template_text), "run `python -m tests.chart.rendering`"
    assert schema["additionalProperties"] is False
    assert "changes_per_pass" in schema["properties"]
    assert "listen" not in schema["properties"]
