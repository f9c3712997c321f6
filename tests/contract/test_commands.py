"""The commands and their exit codes, as users and scripts rely on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from agent.cli import app as agent_app
from autoscaler.cli import app

PROFILE = """
apiVersion: tensor-fusion.ai/v1
kind: WorkloadProfile
metadata: {name: small, namespace: default}
spec:
  qos: %s
  resources: {requests: {tflops: "10", vram: 4Gi}, limits: {tflops: "20", vram: 8Gi}}
"""


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def names(application: typer.Typer) -> list[str]:
    return sorted(
        command.name or command.callback.__name__ for command in application.registered_commands if command.callback
    )


def test_the_commands_are_these():
    assert names(app) == [
        "backtest",
        "crds",
        "demo",
        "estimate",
        "explain",
        "fit",
        "get",
        "recommend",
        "run",
        "validate",
        "webhook",
    ]
    assert names(agent_app) == ["probe", "quotas", "record", "run"]


def test_validate_exits_0_for_good_and_1_for_bad_manifests_and_names_file_path_value_and_what_is_allowed(
    tmp_path: Path,
):
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(PROFILE % "high")
    bad.write_text(PROFILE % "urgent")
    assert run("validate", str(good))[0] == 0
    code, out, _ = run("validate", str(good), str(bad))
    assert code == 1
    assert f"{bad}:" in out
    assert "spec.qos: 'urgent' is not allowed; allowed: " in out
    code, out, _ = run("validate", "-o", "json", str(bad))
    assert code == 1
    assert json.loads(out)["ok"] is False


def test_usage_errors_exit_2_and_say_what_is_allowed(tmp_path: Path):
    assert run("validate", str(tmp_path / "absent.yaml"))[0] == 2
    code, _, err = run("run", "--cluster-dir", str(tmp_path))
    assert (code, "--prometheus-url" in err) == (2, True)
    code, _, err = run(
        "run", "--prometheus-url", "http://127.0.0.1:1", "--cluster-dir", str(tmp_path), "--agent", "node"
    )
    assert (code, "NODE=URL" in err) == (2, True)
    code, _, err = run("webhook", "--cert-file", "tls.crt")
    assert (code, "cert_file and key_file belong together" in err) == (2, True)
    code, _, err = run("demo", "--duration", "5min")
    assert (code, "5min" in err) == (2, True)


def test_one_pass_without_prometheus_says_so_in_one_line_and_exits_1(tmp_path: Path):
    code, out, _ = run("run", "--once", "--cluster-dir", str(tmp_path), "--prometheus-url", "http://127.0.0.1:1")
    assert code == 1
    assert "history: " in out


@pytest.mark.parametrize("options", [(), ("--docs",)])
def test_generated_files_are_written_and_stale_ones_are_named(tmp_path: Path, options: tuple[str, ...]):
    assert run("crds", *options, str(tmp_path))[0] == 0
    assert run("crds", *options, "--check", str(tmp_path))[0] == 0
    stale = min(tmp_path.iterdir())
    stale.write_text("old")
    code, _, err = run("crds", *options, "--check", str(tmp_path))
    assert (code, stale.name in err) == (1, True)


def test_get_shows_the_workloads_of_a_folder_as_table_and_json(tmp_path: Path):
    (tmp_path / "profile.yaml").write_text(PROFILE % "high")
    code, out, _ = run("get", "wp", "--cluster-dir", str(tmp_path))
    assert code == 0
    assert out.splitlines()[0].split()[:2] == ["NAME", "QOS"]
    assert "small" in out.splitlines()[1]
    assert json.loads(run("get", "wp", "-o", "json", "--cluster-dir", str(tmp_path))[1])[0]["Name"] == "small"
