"""`tf-agent probe` looks for actuators where the agent of the same pod does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent.cli import app
from tests.agent import scenes


def backends(tmp_path: Path) -> dict[str, dict[str, str]]:
    scenario = scenes.write(tmp_path, scenes.worker("a"), start=None)
    told = CliRunner().invoke(app, ["probe", "--simulate", str(scenario), "-o", "json"])
    assert told.exit_code == 0, told.output
    found: dict[str, dict[str, str]] = json.loads(told.stdout)["backends"]
    return found


def test_probe_looks_where_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regions = tmp_path / "regions"
    monkeypatch.setenv("TF_AGENT_HAMICORE_ROOT", str(regions))
    assert str(regions) in backends(tmp_path)["hamicore"]["reason"]

    regions.mkdir()

    assert backends(tmp_path)["hamicore"]["vram"] == "next_alloc"


def test_a_scenario_has_no_driver_whose_limits_could_be_set(tmp_path: Path) -> None:
    assert "driver" in backends(tmp_path)["dmem"]["reason"]
