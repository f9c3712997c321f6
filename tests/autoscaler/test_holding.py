"""What holds replicas and for how long: pending pods, rollouts, figures that somebody else set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from autoscaler.guard.held import held_numbers
from autoscaler.model.decision import Field
from autoscaler.model.holding import STUCK_SECONDS
from autoscaler.model.proposal import Allowed
from autoscaler.model.reasons import Verdict
from autoscaler.model.takeover import REST_SECONDS, TakenOver
from autoscaler.model.workload import Worker
from autoscaler.read.owners import rollout_in_progress
from tests.autoscaler.test_discovery import Manifest, obj
from tests.autoscaler.test_guards import ALL_ON, NOW, Run, fleet_of, outcome, wants, workload

CONFIG = replace(ALL_ON, replicas_policy=replace(ALL_ON.replicas_policy, stabilization_seconds=0))
OUT, IN = 4.0, 1.0


def decided(wish: float, **facts: Any) -> Allowed:
    fleet = fleet_of(workload(config=CONFIG, **facts))
    return Run()(fleet, wants(fleet, replicas=wish))


def pending(*ages: float) -> tuple[Worker, ...]:
    one = workload().workers[0]
    return (one, *(replace(one, pending=True, ready=False, born_at=NOW - age) for age in ages))


@pytest.mark.parametrize(
    ("ages", "wish", "expected"),
    [
        ((60.0,), IN, (2, Verdict.PODS_PENDING)),
        ((60.0,), OUT, (2, Verdict.PODS_PENDING)),
        ((STUCK_SECONDS,), IN, (1, Verdict.PASSED)),
        ((STUCK_SECONDS,), OUT, (2, Verdict.PODS_PENDING)),
        ((STUCK_SECONDS, 60.0), IN, (2, Verdict.PODS_PENDING)),
        ((np.nan,), IN, (2, Verdict.PODS_PENDING)),
    ],
)
def test_a_pod_that_is_pending_for_too_long_frees_the_way_inward_and_never_outward(
    ages: tuple[float, ...], wish: float, expected: tuple[float, Verdict]
) -> None:
    assert outcome(decided(wish, workers=pending(*ages)), Field.REPLICAS) == expected


@pytest.mark.parametrize(
    ("since", "wish", "expected"),
    [
        (NOW - 60, IN, (2, Verdict.ROLLOUT_IN_PROGRESS)),
        (np.nan, IN, (2, Verdict.ROLLOUT_IN_PROGRESS)),
        (NOW - STUCK_SECONDS, IN, (1, Verdict.PASSED)),
        (NOW - STUCK_SECONDS, OUT, (4, Verdict.PASSED)),
    ],
)
def test_a_rollout_that_makes_no_pod_any_more_holds_nothing(
    since: float, wish: float, expected: tuple[float, Verdict]
) -> None:
    allowed = decided(wish, rollout_in_progress=True, rollout_since=since)
    assert outcome(allowed, Field.REPLICAS) == expected


def test_replicas_that_nobody_can_set_are_only_recommended() -> None:
    allowed = decided(OUT, unscalable="Job train has no scale subresource")
    assert outcome(allowed, Field.REPLICAS) == (2, Verdict.NOT_SCALABLE)
    assert allowed.target[0, Field.REPLICAS] == OUT


def test_a_figure_that_somebody_set_rests_and_the_others_move() -> None:
    taken = (TakenOver(Field.COMPUTE_REQUEST, 10.0, 12.0, NOW - 60),)
    fleet = fleet_of(workload(config=CONFIG, taken=taken))
    allowed = Run()(fleet, wants(fleet, compute_request=15, vram_request=5e9))

    assert outcome(allowed, Field.COMPUTE_REQUEST) == (10, Verdict.ADOPTED)
    assert outcome(allowed, Field.VRAM_REQUEST)[1] is Verdict.PASSED
    assert held_numbers(allowed, 0, Field.COMPUTE_REQUEST)["until_at"] == NOW - 60 + REST_SECONDS
    later = fleet_of(workload(config=CONFIG, taken=taken), now=NOW + REST_SECONDS)
    assert outcome(Run()(later, wants(later, compute_request=15)), Field.COMPUTE_REQUEST) == (15, Verdict.PASSED)


def owner(kind: str, status: Manifest, spec: Manifest | None = None, **more: Any) -> Manifest:
    return obj(kind, "chat", spec={"replicas": 3, **(spec or {})}, generation=2) | {"status": status, **more}


GIVEN_UP = [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]
HALF = {"observedGeneration": 2, "updatedReplicas": 1, "replicas": 4, "availableReplicas": 3}
REVISIONS = {"observedGeneration": 2, "currentRevision": "a", "updateRevision": "b"}


@pytest.mark.parametrize(
    ("manifest", "goes_on"),
    [
        (owner("Deployment", HALF), True),
        (owner("Deployment", HALF | {"conditions": GIVEN_UP}), False),
        (owner("Deployment", HALF | {"conditions": GIVEN_UP, "observedGeneration": 1}), True),
        (owner("StatefulSet", REVISIONS | {"updatedReplicas": 1}), True),
        (owner("StatefulSet", REVISIONS | {"updatedReplicas": 1}, {"updateStrategy": {"type": "OnDelete"}}), False),
        (
            owner(
                "StatefulSet",
                REVISIONS | {"updatedReplicas": 1},
                {"updateStrategy": {"rollingUpdate": {"partition": 2}}},
            ),
            False,
        ),
        (owner("StatefulSet", REVISIONS, {"updateStrategy": {"rollingUpdate": {"partition": 2}}}), True),
        (owner("StatefulSet", {"observedGeneration": 2, "currentRevision": "b", "updateRevision": "b"}), False),
        (owner("Rollout", {"observedGeneration": "1"}, scale={"spec": {"replicas": 3}}), True),
        (owner("Rollout", {"observedGeneration": "2", "updatedReplicas": 1}, scale={"spec": {"replicas": 3}}), True),
        (owner("Rollout", {"observedGeneration": "2", "updatedReplicas": 3}, scale={"spec": {"replicas": 3}}), False),
        (owner("Rollout", {"observedGeneration": "6d4f"}, scale={"spec": {"replicas": 3}}), False),
        (owner("Fleet", {"observedGeneration": 2}, scale={"spec": {"replicas": 3}}), False),
    ],
)
def test_what_counts_as_a_rollout_depends_on_the_kind_and_ends_with_its_deadline(
    manifest: Manifest, goes_on: bool
) -> None:
    assert rollout_in_progress(manifest) is goes_on
