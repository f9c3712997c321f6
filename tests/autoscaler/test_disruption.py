"""Below how many replicas nothing scales in, by disruption budgets and by gangs, and what the guard makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from autoscaler.contract import keys
from autoscaler.guard.held import held_numbers
from autoscaler.model.decision import Field
from autoscaler.model.proposal import Allowed
from autoscaler.model.reasons import VERDICTS, Cause, Verdict
from autoscaler.model.workload import Floor
from autoscaler.read.discovery import discover
from autoscaler.read.disruption import floor_of, selects
from tests.autoscaler.test_discovery import AMOUNTS, Manifest, chat, obj, only, pod
from tests.autoscaler.test_guards import ALL_ON, Run, fleet_of, wants, workload

LABELS = {"app": "chat", "tier": "gpu"}


def budget(name: str = "some", status: dict[str, Any] | None = None, **spec: Any) -> Manifest:
    return obj("PodDisruptionBudget", name, spec={"selector": {}, **spec}) | {"status": status or {}}


@pytest.mark.parametrize(
    ("spec", "status", "least"),
    [
        ({"minAvailable": 3}, {}, 3),
        ({"minAvailable": 9}, {}, 4),
        ({"minAvailable": "50%"}, {}, 2),
        ({"minAvailable": "30%"}, {}, 2),
        ({"maxUnavailable": 1}, {}, 3),
        ({"maxUnavailable": "25%"}, {}, 3),
        ({"maxUnavailable": 9}, {}, 0),
        ({"minAvailable": 1}, {"disruptionsAllowed": 0, "observedGeneration": 1}, 4),
        ({"minAvailable": 3}, {"disruptionsAllowed": 3, "observedGeneration": 1}, 1),
        ({"minAvailable": 3}, {"disruptionsAllowed": 3, "observedGeneration": 0}, 3),
        ({}, {}, 0),
        ({"minAvailable": "many"}, {}, 0),
    ],
)
def test_what_may_go_now_is_the_controllers_word_else_the_budgets_own_figure(
    spec: dict[str, Any], status: dict[str, Any], least: int
) -> None:
    assert floor_of(4, [budget(status=status, **spec)], [pod("a", {})], 0).by_budget == least


def test_the_tightest_of_several_budgets_counts_and_is_named() -> None:
    floor = floor_of(4, [budget("loose", minAvailable=1), budget("tight", minAvailable=3)], [pod("a", {})], 2)
    assert floor == Floor(3, 2, "tight")


@pytest.mark.parametrize(
    ("selector", "taken"),
    [
        ({}, True),
        (None, False),
        ({"matchLabels": {"app": "chat"}}, True),
        ({"matchLabels": {"app": "chat", "tier": "cpu"}}, False),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["chat", "talk"]}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["chat"]}]}, False),
        ({"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["chat"]}]}, True),
        ({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}, False),
        ({"matchExpressions": [{"key": "tier", "operator": "Like"}]}, False),
    ],
)
def test_selectors_are_judged_as_kubernetes_does(selector: Manifest | None, taken: bool) -> None:
    assert selects(selector, LABELS) is taken


def test_budgets_and_the_profiles_gang_reach_the_workload() -> None:
    view = chat(AMOUNTS | {keys.WORKLOAD_PROFILE: "gang"})
    profile = obj("WorkloadProfile", "gang", spec={"replicas": 4, "gangScheduling": {"minMembers": 2}})
    away = budget("away", minAvailable=2)
    away["metadata"]["namespace"] = "elsewhere"

    first = discover(replace(view, profiles=(profile,), budgets=(away,)), {})
    assert only(first).floor == Floor(0, 2)
    second = discover(replace(view, profiles=(profile,), budgets=(budget(minAvailable=2),)), {}, first)
    assert only(second).floor == Floor(2, 2, "some")


def shrunk(floor: Floor, wish: float = 1.0, replicas: int = 4) -> Allowed:
    config = replace(ALL_ON, replicas_policy=replace(ALL_ON.replicas_policy, stabilization_seconds=0))
    fleet = fleet_of(workload(config=config, replicas=replicas, floor=floor))
    return Run()(fleet, wants(fleet, Cause.LOAD, replicas=wish))


@pytest.mark.parametrize(
    ("floor", "count", "verdict", "name"),
    [
        (Floor(4, 0, "all"), 4, Verdict.DISRUPTION_LIMITED, "budget_count"),
        (Floor(0, 4), 4, Verdict.GANG_LIMITED, "gang_count"),
        (Floor(2, 2, "two"), 3, Verdict.STEP_LIMITED, ""),
        (Floor(9, 0, "more"), 4, Verdict.DISRUPTION_LIMITED, "budget_count"),
    ],
)
def test_replicas_stop_at_the_floor_with_its_number_and_never_grow_for_it(
    floor: Floor, count: float, verdict: Verdict, name: str
) -> None:
    allowed = shrunk(floor)

    assert allowed.figure[0, Field.REPLICAS] == count
    assert VERDICTS[allowed.verdict[0, Field.REPLICAS]] is verdict
    if name:
        assert held_numbers(allowed, 0, Field.REPLICAS)[name] == 4.0
        assert allowed.decision(0)[Field.REPLICAS].inputs[name] == 4.0
