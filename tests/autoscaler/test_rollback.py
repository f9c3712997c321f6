"""When a shrink is taken back, for how long shrinking rests after it, and what is no harm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autoscaler.guard.rollback import LONGEST_FREEZE_SECONDS
from autoscaler.model.decision import Field
from autoscaler.model.defaults import DAY
from autoscaler.model.proposal import Allowed, Wanted
from autoscaler.model.reasons import Cause, Verdict
from autoscaler.model.resources import GIB, Resource
from autoscaler.model.workload import ObjectRef
from autoscaler.report.events import EventReason, events_of
from autoscaler.report.message import sentence
from autoscaler.report.reported import MetricsHealth, Reported
from tests.autoscaler.shared_devices import NOW, Load, Town

LIMIT, REQUEST, VRAM_LIMIT = Field.COMPUTE_LIMIT, Field.VRAM_REQUEST, Field.VRAM_LIMIT


def harm(wanted: Wanted, resource: Resource, at: float, samples: float = 1) -> Wanted:
    """The newest troubled bin ended at `at`, the last of so many in a row."""
    wanted.trouble_at[:, resource], wanted.trouble_samples[:, resource] = at, samples
    return wanted


def shrunk(of: Field = VRAM_LIMIT, to: float = 6, **load: object) -> Town:
    """One workload whose figure was lowered at NOW from 8 GiB, or 20 TFLOPs; ten minutes have passed."""
    town = Town([Load("a", **load)])  # type: ignore[arg-type]
    assert town.told(town.decide(town.wants(Cause.SURPLUS, a={of: to})), "a", of)[0] == to
    town.now += 600
    return town


def after_harm(town: Town, of: Field = VRAM_LIMIT, samples: float = 1) -> Allowed:
    resource = of.resource
    assert resource is not None
    return town.decide(harm(town.wants(), resource, town.now - 30, samples))


def test_a_death_after_a_shrink_brings_the_last_good_figure_back_at_once():
    town = shrunk()
    allowed = after_harm(town)
    assert town.told(allowed, "a", VRAM_LIMIT) == (8, Verdict.ROLLED_BACK)
    inputs = allowed.decision(0)[VRAM_LIMIT].inputs
    assert (inputs["last_good"], inputs["shrinking_frozen_seconds"]) == (8 * GIB, DAY)
    assert "RolledBack" in sentence(allowed.decision(0)[VRAM_LIMIT])


def test_of_several_shrinks_in_one_window_the_first_ones_figure_comes_back():
    town = shrunk(to=7)
    town.decide(town.wants(Cause.SURPLUS, a={VRAM_LIMIT: 6}))
    town.now += 600
    assert town.told(after_harm(town), "a", VRAM_LIMIT)[0] == 8


@pytest.mark.parametrize(
    ("at", "expected"), [(NOW - 1, 6), (NOW + 1799, 8), (NOW + 1801, 6)], ids=["before", "in the window", "after it"]
)
def test_only_what_happens_within_half_an_hour_after_the_shrink_counts(at: float, expected: float):
    town = shrunk()
    town.now = NOW + 1900
    allowed = town.decide(harm(town.wants(), Resource.VRAM, at))
    assert town.told(allowed, "a", VRAM_LIMIT)[0] == expected


def test_harm_to_one_resource_leaves_the_other_as_it_is():
    town = shrunk()
    assert town.told(after_harm(town, LIMIT, 5), "a", VRAM_LIMIT)[0] == 6


def test_one_saturated_sample_is_a_probe_and_two_in_a_row_are_harm():
    town = shrunk(LIMIT, 16)
    assert town.told(after_harm(town, LIMIT, 1), "a", LIMIT)[0] == 16
    town.now += 60
    assert town.told(after_harm(town, LIMIT, 2), "a", LIMIT) == (20, Verdict.ROLLED_BACK)


def test_one_saturated_sample_is_harm_where_the_limit_is_below_what_was_in_use_before():
    town = shrunk(LIMIT, 16)
    town.memory["use_peaks"][:, Resource.COMPUTE, 0] = 18.0
    assert town.told(after_harm(town, LIMIT, 1), "a", LIMIT) == (20, Verdict.ROLLED_BACK)


def test_a_probe_past_the_last_good_limit_is_no_rollback_and_freezes_nothing():
    town = shrunk(LIMIT, 16)
    town.decide(town.wants(Cause.SATURATED, urgent=True, a={LIMIT: 32}))
    town.now += 60
    assert town.told(after_harm(town, LIMIT, 2), "a", LIMIT)[0] == 32
    town.now += 900
    assert town.told(town.decide(town.wants(Cause.SURPLUS, a={LIMIT: 20})), "a", LIMIT)[0] == 20


def test_an_idle_drop_is_only_lent_and_comes_back_within_the_cool_down_another_drop_waits():
    for cause, expected in ((Cause.IDLE, (4, Verdict.PASSED)), (Cause.SURPLUS, (2, Verdict.COOLING_DOWN))):
        town = Town([Load("a")])
        assert town.told(town.decide(town.wants(cause, a={REQUEST: 2})), "a", REQUEST)[0] == 2
        town.now += 300
        assert town.told(town.decide(town.wants(a={REQUEST: 4})), "a", REQUEST) == expected


def test_while_it_is_frozen_the_figure_stays_and_then_shrinks_again():
    town = shrunk()
    after_harm(town)
    began = town.now
    for later, expected in ((3600, 8), (DAY - 60, 8), (DAY, 6)):
        town.now = began + later
        assert town.told(town.decide(town.wants(Cause.SURPLUS, a={VRAM_LIMIT: 6})), "a", VRAM_LIMIT)[0] == expected


def test_the_freeze_doubles_up_to_sixteen_days_and_fades_with_calm():
    town, freezes = shrunk(), []
    for _ in range(6):
        after_harm(town)
        freezes.append(float(town.memory["freeze_seconds"][0, VRAM_LIMIT]) / DAY)
        town.now += freezes[-1] * DAY
        town.decide(town.wants(Cause.SURPLUS, a={VRAM_LIMIT: 6}))
        town.now += 600
    assert freezes == pytest.approx([1, 2, 4, 8, 16, 16], rel=0.01)
    town.decide(town.wants(a={VRAM_LIMIT: 8}))
    town.now += 2 * LONGEST_FREEZE_SECONDS  # two calm spans: back by two doublings, then on by one
    town.decide(town.wants(Cause.SURPLUS, a={VRAM_LIMIT: 6}))
    town.now += 600
    after_harm(town)
    assert town.memory["freeze_seconds"][0, VRAM_LIMIT] / DAY == pytest.approx(8, rel=0.01)


def test_a_return_for_which_there_was_no_room_is_tried_again():
    town = Town([Load("a", vram=(6, 6)), Load("b", vram=(4, 4))], vram=10)
    town.decide(town.wants(Cause.SURPLUS, a={REQUEST: 4}))
    town.loads[1].vram = (6, 6)
    town.now += 600
    assert town.told(after_harm(town), "a", REQUEST) == (4, Verdict.CAPACITY_LIMITED)
    town.loads[1].vram = (4, 4)
    town.now += 300
    assert town.told(town.decide(), "a", REQUEST) == (6, Verdict.ROLLED_BACK)


def test_guarding_twice_at_one_moment_takes_back_only_once():
    town = shrunk()
    wanted = harm(town.wants(), Resource.VRAM, town.now - 30)
    wanted.urgent[:, VRAM_LIMIT] = True
    first = town.decide(wanted)
    freeze = town.memory["freeze_seconds"].copy()
    town.loads[0].vram = (4, 6)
    assert np.array_equal(town.decide(wanted).figure, first.figure)
    assert np.array_equal(town.memory["freeze_seconds"], freeze)


def test_the_owner_is_told_by_an_event_with_the_numbers():
    town = shrunk()
    workload = town.loads[0].workload
    decision = after_harm(town).decision(0)
    owner = ObjectRef("apps/v1", "Deployment", "ns", "a", uid="d")
    reported = Reported(
        workload=replace(workload, owners=(owner,)),
        decision=decision,
        metrics=MetricsHealth(),
        now=town.now,
    )
    emitted = [one for one in events_of(reported) if one.reason == EventReason.ROLLED_BACK]
    assert [one.ref.kind for one in emitted] == ["TensorFusionWorkload", "Deployment"]
    assert emitted[0].warning
    assert "last good 8Gi" in emitted[0].message
    assert "shrinking frozen 1d" in emitted[0].message
