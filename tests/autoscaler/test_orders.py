"""What is ordered by the clock or by an external scaler, through the whole pass: in force at once, and given back."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from autoscaler.controller import Controller, World
from autoscaler.gateways.external_scaler import MemoryScalers
from autoscaler.gateways.folder import FolderCluster
from autoscaler.model.external import Failure, ScalerReason
from autoscaler.report.metrics import ControllerMetrics
from autoscaler.settings import Settings
from tests.autoscaler.test_controller import Town

BERLIN = ZoneInfo("Europe/Berlin")
URL = "https://scaler.example/ask"
OFFICE = {
    "name": "office",
    "enable": True,
    "timeZone": "Europe/Berlin",
    "start": "0 8 * * 1-5",
    "end": "0 20 * * 1-5",
    "desiredReplicas": 4,
    "desiredResources": {"requests": {"tflops": "30"}, "limits": {"tflops": "60"}},
}


def berlin(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()


class Ruled(Town):
    """A town with one workload `llm` under a profile, all layers off; no history is measured."""

    def start(self, **changes: Any) -> Controller:
        self.scalers = MemoryScalers(self.clock)
        cluster = FolderCluster(self.folder, self.clock)
        settings = Settings(scrape_interval_seconds=60, settle_seconds=0, history_seconds=86400, **changes)
        world = World(self.clock, self.history, cluster, self.agents, self.scalers)
        return Controller(world, settings, ControllerMetrics())

    def profile(self, **config: Any) -> None:
        manifest = {
            "apiVersion": "tensor-fusion.ai/v1", "kind": "WorkloadProfile",
            "metadata": {"name": "ruled", "namespace": "default"}, "spec": {"autoScalingConfig": config},
        }  # fmt: skip
        self.write("profile", manifest)

    def place(self, *rules: dict[str, Any], **annotations: str) -> None:
        self.profile(cronScalingRules=list(rules))
        off = {"auto_requests": "false", "auto_limits": "false", "auto_replicas": "false"}
        self.deploy("llm", **{**off, "workload_profile": "ruled", **annotations})

    def with_scaler(self, answer: bytes | Failure, **config: Any) -> None:
        self.place()
        self.profile(externalScaler={"enable": True, "url": URL}, **config)
        self.scalers.answers[URL] = answer

    async def at(self, text: str) -> None:
        self.clock.at = berlin(text)
        await self.controller.run_pass()

    @property
    def figures(self) -> tuple[str, str, int]:
        marks = self.annotations("llm")
        owner: int = self.objects("Deployment")["llm"]["spec"]["replicas"]
        return marks["tflops-request"], marks["tflops-limit"], owner

    @property
    def workload(self) -> dict[str, Any]:
        return self.objects("TensorFusionWorkload")["llm"]

    @property
    def told(self) -> dict[str, Any]:
        told: dict[str, Any] = self.workload["status"]["autoscaling"]
        return told


@pytest.fixture
def town(tmp_path: Path) -> Ruled:
    folder = tmp_path / "cluster"
    folder.mkdir()
    return Ruled(folder)


async def test_a_rule_alone_moves_a_workload_with_all_layers_off_and_gives_it_back(town: Ruled):
    town.place(OFFICE)
    await town.at("2026-11-23T07:59")
    assert town.figures == ("10", "20", 1)
    assert "activeCronRule" not in town.told
    assert town.told["nextCronTransition"] == "2026-11-23T07:00:00Z"
    await town.at("2026-11-23T08:00")
    assert town.figures == ("30", "60", 4)
    assert town.told["activeCronRule"] == "office"
    assert town.told["nextCronTransition"] == "2026-11-23T19:00:00Z"
    assert "rule office (0 8 * * 1-5 to 0 20 * * 1-5 Europe/Berlin)" in town.told["lastChange"]
    assert "until 2026-11-23T19:00Z" in town.told["lastChange"]
    assert town.agents.pushed[-1].quotas[0].devices[0].tflops_limit == 60
    await town.at("2026-11-23T19:59")
    assert town.figures == ("30", "60", 4)
    await town.at("2026-11-23T20:00")
    assert town.figures == ("10", "20", 1)
    assert "activeCronRule" not in town.told
    assert "CronRuleEnded" in town.told["lastChange"]
    assert town.told["nextCronTransition"] == "2026-11-24T07:00:00Z"
    await town.at("2026-11-23T20:01")  # the count of before has served
    assert "autoscaling-original" not in str(town.workload["metadata"].get("annotations"))


async def test_a_restart_in_the_middle_and_one_after_the_end_forget_nothing(town: Ruled):
    town.place(OFFICE)
    await town.at("2026-11-23T08:00")
    town.controller = town.start()
    await town.at("2026-11-23T12:00")
    assert town.figures == ("30", "60", 4)
    town.controller = town.start()  # nobody runs at the end of the rule
    await town.at("2026-11-24T03:00")
    assert town.figures == ("10", "20", 1)
    await town.at("2026-11-24T03:01")
    assert "autoscaling-original" not in str(town.workload["metadata"].get("annotations"))


async def test_a_rule_that_is_deleted_while_in_force_gives_back_also_over_a_restart(town: Ruled):
    town.place(OFFICE)
    await town.at("2026-11-23T08:00")
    town.profile()
    await town.at("2026-11-23T08:01")
    assert town.figures == ("10", "20", 1)
    town.profile(cronScalingRules=[OFFICE])
    await town.at("2026-11-23T08:02")
    await town.at("2026-11-23T08:03")
    assert town.figures == ("30", "60", 4)
    town.profile()
    town.controller = town.start()
    await town.at("2026-11-23T08:04")
    assert town.figures == ("10", "20", 1)


async def test_what_a_rule_does_not_name_and_a_count_that_the_user_sets_later_stay(town: Ruled):
    town.place({**OFFICE, "desiredResources": {"limits": {"vram": "12Gi"}}})
    await town.at("2026-11-23T08:00")
    assert town.figures == ("10", "20", 4)
    assert town.annotations("llm")["vram-limit"] == "12Gi"
    await town.at("2026-11-23T20:00")
    await town.at("2026-11-23T20:01")
    for kind in ("Deployment", "TensorFusionWorkload"):
        manifest = town.objects(kind)["llm"]
        manifest["spec"]["replicas"] = 3
        name = "llm" if kind == "Deployment" else "tensorfusionworkload-default-llm"
        town.write(name, manifest)
    await town.at("2026-11-23T20:02")
    assert town.figures == ("10", "20", 3)


async def test_a_rule_waits_for_no_sample_and_no_prometheus(town: Ruled):
    town.history.broken = "Prometheus is away"
    town.place(OFFICE)
    await town.at("2026-11-23T08:00")
    assert town.figures == ("30", "60", 4)
    assert town.condition("llm", "LimitsApplied")[:2] == ("True", "Applied")
    assert town.condition("llm", "MetricsAvailable")[:2] == ("False", "PrometheusError")


async def test_the_owners_pause_and_bounds_hold_for_rules_too(town: Ruled):
    town.place(OFFICE, autoscaling_paused="true")
    await town.at("2026-11-23T08:00")
    assert town.figures == ("10", "20", 1)
    assert town.condition("llm", "ReplicasApplied")[:2] == ("False", "Paused")
    town.place(OFFICE)
    town.profile(
        cronScalingRules=[OFFICE],
        bounds={"maxAllowed": {"tflops": 40}},
        autoSetReplicas={"enable": False, "maxReplicas": 3},
    )
    await town.at("2026-11-23T08:01")
    assert town.figures == ("30", "40", 3)
    assert town.condition("llm", "LimitsApplied")[:2] == ("False", "BoundLimited")


async def test_more_replicas_than_the_built_in_bound_and_none_at_all_can_be_ordered(town: Ruled):
    night = {"name": "night", "enable": True, "timeZone": "Europe/Berlin", "start": "0 22 * * *", "end": "0 6 * * *"}
    town.place({**OFFICE, "desiredReplicas": 25}, {**night, "desiredReplicas": 0})
    await town.at("2026-11-23T08:00")
    assert town.figures[2] == 25
    await town.at("2026-11-23T22:00")
    assert town.figures[2] == 0
    await town.at("2026-11-24T06:00")
    assert town.figures[2] == 1


async def test_memory_is_never_ordered_below_what_is_in_use(town: Ruled):
    town.place({**OFFICE, "desiredResources": {"requests": {"vram": "1Gi"}, "limits": {"vram": "1Gi"}}})
    await town.at("2026-11-23T08:00")
    assert town.annotations("llm")["vram-limit"] == "2151Mi"  # 2 GiB in use and 5 %
    assert town.condition("llm", "LimitsApplied")[:2] == ("False", "LiveUse")


async def test_a_rule_that_turned_wrong_is_told_and_the_last_good_one_stays_in_force(town: Ruled):
    town.place(OFFICE)
    await town.at("2026-11-23T08:00")
    town.profile(cronScalingRules=[{**OFFICE, "end": "0 0 30 2 *"}, {**OFFICE, "name": "x", "timeZone": "Mars/Base"}])
    await town.at("2026-11-23T12:00")
    status, _, message = town.condition("llm", "ConfigValid")
    assert status == "False"
    assert "cronScalingRules[0].end: '0 0 30 2 *' is not allowed; allowed: a cron expression" in message
    assert "cronScalingRules[1].timeZone: 'Mars/Base' is not allowed; allowed: an IANA time zone" in message
    assert town.figures == ("30", "60", 4)
    await town.at("2026-11-23T20:00")
    assert town.figures == ("10", "20", 1)


async def test_when_a_rule_ends_a_layer_that_is_on_takes_over(town: Ruled):
    town.place({**OFFICE, "end": "30 8 * * 1-5"}, auto_limits="true", auto_requests="true")
    town.clock.at = berlin("2026-11-23T07:00")
    await town.controller.run_pass()
    while town.clock.at < berlin("2026-11-23T08:29"):
        await town.minute({"llm": 8})
    assert town.figures[:2] == ("30", "60")
    for _ in range(30):
        await town.minute({"llm": 8})
    request, limit, count = town.figures
    assert float(limit) < 60
    assert float(request) < 30
    assert count == 1
    assert "CronRuleEnded, back" not in town.told["tflops"]["message"]


async def test_an_external_scaler_orders_what_it_names(town: Ruled):
    town.with_scaler(b'{"desiredReplicas": 2, "desiredResources": {"limits": {"tflops": 50}}, "reason": "queue of 80"}')
    await town.at("2026-11-23T08:00")
    assert town.figures == ("10", "50", 2)
    assert town.condition("llm", "ExternalScalerAvailable")[:2] == ("True", "Answered")
    assert f"{URL} said so at 2026-11-23T07:00Z, queue of 80" in town.told["lastChange"]
    body = town.scalers.asked[0].body
    assert b'"workload":"llm"' in body
    await town.at("2026-11-23T08:01")
    assert b'"recommendation":{"replicas":2' in town.scalers.asked[1].body
    assert b'"usage":{"vram":"2Gi"}' in town.scalers.asked[1].body


@pytest.mark.parametrize(("came", "reason", "text"), [
    (Failure(ScalerReason.TIMED_OUT, "no answer within 5 s"), "TimedOut", "no answer within 5 s"),
    (b'{"desiredReplicas": -4}', "InvalidAnswer", "desiredReplicas: '-4' is not allowed; allowed: a whole number"),
])  # fmt: skip
async def test_a_failing_scaler_holds_its_own_figures_and_nothing_else(
    town: Ruled, came: bytes | Failure, reason: str, text: str
):
    town.with_scaler(b'{"desiredReplicas": 2}', cronScalingRules=[{**OFFICE, "desiredReplicas": None}])
    await town.at("2026-11-23T07:59")
    town.scalers.answers[URL] = came
    await town.at("2026-11-23T08:00")
    assert town.figures == ("30", "60", 2)
    told = town.condition("llm", "ExternalScalerAvailable")
    assert told[:2] == ("False", reason)
    assert text in told[2]
    assert "still holds" in told[2]
    await town.at("2026-11-23T08:03")
    assert town.figures == ("30", "60", 2)
    assert town.condition("llm", "ReplicasApplied")[:2] == ("False", "RecommendOnly")


async def test_a_rules_word_goes_before_the_scalers(town: Ruled):
    town.with_scaler(b'{"desiredReplicas": 2}', cronScalingRules=[OFFICE])
    await town.at("2026-11-23T08:00")
    assert town.figures == ("30", "60", 4)
    await town.at("2026-11-23T20:00")
    assert town.figures == ("10", "20", 2)


async def test_a_scaler_is_asked_once_per_interval_after_its_initial_delay(town: Ruled):
    town.with_scaler(b"{}")
    scaler = {"enable": True, "url": URL, "interval": "5m", "initialDelayPeriod": "10m"}
    town.profile(externalScaler=scaler)
    await town.at("2026-11-23T08:00")
    assert town.condition("llm", "ExternalScalerAvailable")[:2] == ("Unknown", "NotAskedYet")
    for minute in range(9, 31):
        await town.at(f"2026-11-23T08:{minute:02}")
    assert [question.scaler.interval_seconds for question in town.scalers.asked] == [300.0] * 5
