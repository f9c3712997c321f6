"""A layer that is turned off keeps its figures, or gives the user's own back where that is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.autoscaler.test_controller import Town


@pytest.fixture
def town(tmp_path: Path) -> Town:
    folder = tmp_path / "cluster"
    folder.mkdir()
    return Town(folder)


def turn_off(town: Town, **annotations: str) -> None:
    """Change the pod template only, as its owner does."""
    deployment = town.objects("Deployment")["llm"]
    marks = deployment["spec"]["template"]["metadata"]["annotations"]
    marks |= {"tensor-fusion.ai/auto-limits": "false", "tensor-fusion.ai/auto-requests": "false"}
    marks |= {f"tensor-fusion.ai/{key.replace('_', '-')}": value for key, value in annotations.items()}
    (town.folder / "llm.yaml").write_text(yaml.safe_dump(deployment))


async def test_figures_stay_when_a_layer_is_turned_off_and_go_back_where_that_is_asked_for(town: Town):
    town.deploy("llm")
    await town.controller.run_pass()
    for _ in range(3):
        await town.minute({"llm": 60})
    grown = town.limit("llm")
    turn_off(town)
    await town.minute({"llm": 60})
    assert town.limit("llm") == grown > 20
    turn_off(town, autoscaling_revert="true")
    await town.minute({"llm": 60})
    assert town.limit("llm") == 20
    assert town.agents.pushed[-1].quotas[0].devices[0].tflops_limit == 20
    status = town.objects("TensorFusionWorkload")["llm"]["status"]["autoscaling"]
    assert "the layer is off and tensor-fusion.ai/autoscaling-revert is 'true'" in status["lastChange"]


async def test_a_layer_that_is_on_is_not_taken_back(town: Town):
    town.deploy("llm", autoscaling_revert="true")
    await town.controller.run_pass()
    for _ in range(3):
        await town.minute({"llm": 60})
    assert town.limit("llm") > 20
