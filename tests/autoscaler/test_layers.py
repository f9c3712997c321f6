"""The three layers in a closed loop: what a workload's owner sees minute by minute."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.contract.keys import QoS
from autoscaler.model.config import Bounds, LimitsPolicy, Mode, ReplicasPolicy, RequestsPolicy
from autoscaler.model.decision import Field
from autoscaler.model.fleet import to_fleet
from autoscaler.model.reasons import CAUSES, Cause, Verdict
from autoscaler.model.resources import GIB, Amount, Amounts
from autoscaler.model.sizing import ModelSize, Precision
from autoscaler.model.usage import Window, empty_usage
from autoscaler.recommend import learn, recommend, watch
from tests.autoscaler.stage import KEY, Stage, one_bin, with_config


def test_a_demand_three_times_the_limit_is_covered_within_three_evaluation_periods():
    stage = Stage()
    stage.run(60, 15.0)
    limit = stage.figures.compute.limit
    stage.run(3, 3 * limit)
    assert stage.figures.compute.limit >= 3 * limit


def test_a_demand_ten_times_the_limit_is_covered_at_the_third_interval():
    stage = Stage()
    stage.run(60, 15.0)
    limit = stage.figures.compute.limit
    stage.run(3, 10 * limit)
    assert stage.figures.compute.limit >= 10 * limit


def test_a_start_with_a_tenth_of_the_need_recovers_while_confidence_is_still_low():
    stage = Stage()
    stage.run(4, 200.0)
    assert stage.figures.compute.limit >= 200.0
    assert stage.figures.compute.request == 10  # the baseline waits for evidence


def test_every_probe_says_that_it_was_saturated_and_by_which_step():
    stage = Stage()
    first, second = stage.run(2, 1000.0)
    assert first[Field.COMPUTE_LIMIT].cause is Cause.SATURATED
    assert first[Field.COMPUTE_LIMIT].inputs["step"] == 2.0
    assert second[Field.COMPUTE_LIMIT].inputs["step"] == 4.0
    assert (first[Field.COMPUTE_LIMIT].allowed, second[Field.COMPUTE_LIMIT].allowed) == (40.0, 160.0)


def test_a_probe_stops_at_the_device_and_at_the_ratio_to_the_request_and_says_so():
    on_device = Stage()
    on_device.run(10, 5000.0)
    assert on_device.figures.compute.limit == 989.0
    capped = Stage(with_config(limits=LimitsPolicy(mode=Mode.ON, max_ratio_to_requests=3.0)))
    last = capped.run(5, 5000.0)[-1]
    assert capped.figures.compute.limit == 30.0
    assert last[Field.COMPUTE_LIMIT].verdict is Verdict.BOUND_LIMITED


def test_the_request_follows_use_down_only_after_the_initial_delay_and_keeps_a_buffer():
    stage = Stage(with_config(amounts=Amounts(Amount(100, 200), Amount(4 * GIB, 8 * GIB))))
    early = stage.run(29, 10.0)
    assert all(d[Field.COMPUTE_REQUEST].allowed == 100 for d in early)
    assert early[-1][Field.COMPUTE_REQUEST].verdict is Verdict.INITIAL_DELAY
    stage.run(3 * 60, 10.0)
    assert 10.0 <= stage.figures.compute.request <= 10.0 * 1.05 * 1.15 * 1.01


def test_vram_is_never_lowered_below_what_is_in_use():
    stage = Stage(with_config(amounts=Amounts(Amount(10, 20), Amount(40 * GIB, 60 * GIB)), qos=QoS.LOW))
    for decision in stage.run(6 * 60, 5.0, lambda t: (10 + 5 * math.sin(t / 30)) * GIB):
        live = decision[Field.VRAM_LIMIT].inputs["live"]
        assert decision[Field.VRAM_LIMIT].allowed >= 1.05 * live
    assert stage.ooms == 0
    assert stage.figures.vram.limit < 60 * GIB


def test_an_out_of_memory_event_raises_the_limit_by_half_and_holds_it_for_two_hours():
    stage = Stage()
    stage.run(30, 5.0, 2 * GIB)
    limit = stage.figures.vram.limit
    died = stage.run(1, 5.0, 1.4 * limit)[0]
    assert died[Field.VRAM_LIMIT].cause is Cause.OOM_SEEN
    assert died[Field.VRAM_LIMIT].allowed >= 1.5 * limit
    after = stage.run(115, 5.0, 2 * GIB)
    assert all(d[Field.VRAM_LIMIT].allowed >= 1.5 * limit for d in after)
    assert stage.ooms == 1


def test_an_idle_weekend_shows_four_different_vram_lines():
    lines = {}
    for qos in QoS:
        stage = Stage(with_config(qos=qos, amounts=Amounts(Amount(10, 20), Amount(20 * GIB, 30 * GIB))))
        stage.run(2 * 60, lambda t: 5.0 + t % 3, lambda t: (8 + 2 * math.sin(t)) * GIB)
        stage.run(30, 0.0, 2 * GIB)
        after_half_an_hour = stage.figures.vram.request
        stage.now += 8 * 3600  # longer than any memory of the last peak
        stage.run(40, 0.0, 2 * GIB)
        lines[qos] = (after_half_an_hour, stage.figures.vram.request)
    assert lines[QoS.LOW][0] < lines[QoS.MEDIUM][0]  # low cools first
    assert lines[QoS.MEDIUM][1] == pytest.approx(1.05 * 2 * GIB, rel=0.01)
    assert lines[QoS.HIGH][1] > 8 * GIB
    assert lines[QoS.CRITICAL][1] > lines[QoS.HIGH][1]


def test_cooled_memory_is_back_after_the_first_evaluation_with_an_active_sample():
    stage = Stage(with_config(qos=QoS.LOW, amounts=Amounts(Amount(10, 20), Amount(20 * GIB, 30 * GIB))))
    stage.run(2 * 60, lambda t: 5.0 + t % 3, 8 * GIB)
    warm = stage.figures.vram.request
    stage.run(60, 0.0, 1 * GIB)
    assert stage.figures.vram.request < warm / 4
    stage.run(6, 5.0, 1 * GIB)
    assert stage.figures.vram.request >= 0.95 * warm


def test_an_idle_ceiling_stays_at_the_working_level_so_that_the_next_run_does_not_die():
    stage = Stage(with_config(qos=QoS.LOW, amounts=Amounts(Amount(10, 20), Amount(20 * GIB, 30 * GIB))))
    stage.run(2 * 60, lambda t: 5.0 + t % 3, 8 * GIB)
    stage.run(60, 0.0, 1 * GIB)
    stage.now += 8 * 3600  # no hourly peak remembers the work any more
    stage.run(30, 0.0, 1 * GIB)
    assert stage.figures.vram.request < 2 * GIB
    assert stage.figures.vram.limit >= 8 * GIB
    stage.run(10, 6.0, 8 * GIB)
    assert stage.ooms == 0


def test_an_out_of_memory_event_raises_the_guarantee_over_the_limit_that_was_in_force():
    stage = Stage(with_config(amounts=Amounts(Amount(10, 20), Amount(1 * GIB, 8 * GIB))))
    stage.run(40, 5.0, 0.5 * GIB)
    stage.now += 60
    # the device is crowded: only 1.2 GiB of the published limit are in force
    died = one_bin(stage.now, 5.0, 1.2 * GIB, (20.0, 1.2 * GIB), ooms=1.0)
    fleet = to_fleet(stage.snapshot(1.2 * GIB))
    learn(stage.learnt, died, fleet)
    watch(stage.learnt, died, fleet)
    wanted = recommend(fleet, stage.learnt)
    assert wanted.figure[0, Field.VRAM_REQUEST] >= 1.2 * 1.2 * GIB
    assert CAUSES[int(wanted.cause[0, Field.VRAM_REQUEST])] is Cause.OOM_SEEN
    assert wanted.urgent[0, Field.VRAM_REQUEST]


def test_a_gap_after_a_saturated_sample_does_not_probe_again():
    stage = Stage()
    stage.run(20, 12.0)
    stage.run(1, 100.0)
    limit = stage.figures.compute.limit
    stage.now += 60
    unknown = empty_usage(Window(stage.now - 60, stage.now, 60.0), (KEY,))
    fleet = to_fleet(stage.snapshot(2 * GIB))
    learn(stage.learnt, unknown, fleet)
    watch(stage.learnt, unknown, fleet)
    assert recommend(fleet, stage.learnt).figure[0, Field.COMPUTE_LIMIT] == limit


def test_constant_load_makes_no_change_once_it_is_learnt():
    stage = Stage()
    stage.run(6 * 60, 12.0, 3 * GIB)
    assert not any(decision.changed for decision in stage.run(4 * 60, 12.0, 3 * GIB))


def test_a_small_worker_on_a_large_device_is_not_taken_for_saturated_again_and_again():
    stage = Stage()
    stage.run(60, 8.0)  # 1 % of the device is 9.89 TFLOPs: enforcement is that coarse
    limits = {decision[Field.COMPUTE_LIMIT].allowed for decision in stage.run(120, 8.0)}
    assert len(limits) == 1


def test_a_layer_that_only_recommends_shows_its_figure_and_changes_nothing():
    stage = Stage(with_config(requests=RequestsPolicy(mode=Mode.RECOMMEND), limits=LimitsPolicy()))
    last = stage.run(4 * 60, 50.0, 6 * GIB)[-1]
    assert not any(decision.changed for decision in stage.decisions)
    assert last[Field.COMPUTE_REQUEST].verdict is Verdict.RECOMMEND_ONLY
    assert last[Field.COMPUTE_REQUEST].wanted > 20


def test_only_the_targeted_resource_moves():
    only_compute = frozenset({0})
    stage = Stage(
        with_config(
            requests=RequestsPolicy(mode=Mode.ON, targets=only_compute),
            limits=LimitsPolicy(mode=Mode.ON, targets=only_compute),
        )
    )
    stage.run(4 * 60, 60.0, 6 * GIB)
    assert stage.figures.vram == Amount(4 * GIB, 8 * GIB)
    assert stage.figures.compute.limit >= 60


def test_an_explicit_percentile_and_buffer_are_the_published_formula():
    limits = LimitsPolicy(mode=Mode.ON, percentile=0.5, tflops_buffer_ratio=0.5)
    amounts = Amounts(Amount(100, 400), Amount(4 * GIB, 8 * GIB))
    stage = Stage(with_config(amounts=amounts, limits=limits, requests=RequestsPolicy()))
    last = stage.run(3 * 60, 120.0)[-1][Field.COMPUTE_LIMIT]
    assert 120 <= last.inputs["quantile"] <= 120 * 1.05
    assert stage.figures.compute.limit == pytest.approx(last.inputs["quantile"] * 1.5, rel=0.06)


def test_bounds_hold_and_keep_the_uncapped_figure():
    bounds = Bounds(max_allowed=(15.0, None), min_allowed=(None, 3.0 * GIB))
    stage = Stage(with_config(bounds=bounds, amounts=Amounts(Amount(10, 12), Amount(4 * GIB, 8 * GIB))))
    last = stage.run(2 * 60, 100.0, 1 * GIB)[-1]
    assert stage.figures.compute.limit == 15.0
    assert last[Field.COMPUTE_LIMIT].uncapped > 15.0
    assert stage.figures.vram.request >= 3 * GIB


def test_replicas_grow_only_when_the_limit_cannot_and_shrink_without_oscillating():
    policy = ReplicasPolicy(mode=Mode.ON, min_replicas=1, max_replicas=6)
    stage = Stage(with_config(limits=LimitsPolicy(), replicas_policy=policy))  # limits off: vertical is exhausted
    stage.run(40, 20.0)
    assert stage.replicas == 2  # 20 of 20 TFLOPs used, target .7: ceil(20 / 14)
    growable = Stage(with_config(replicas_policy=policy))
    growable.run(40, 20.0)
    assert growable.replicas == 1


def test_request_and_limit_stay_in_order_at_every_minute_of_a_wild_day():
    rng = np.random.default_rng(7)
    stage = Stage()
    for decision in stage.run(300, lambda _: float(rng.gamma(0.5, 60)), lambda _: float(rng.uniform(0.5, 12)) * GIB):
        assert decision[Field.COMPUTE_REQUEST].allowed <= decision[Field.COMPUTE_LIMIT].allowed <= 989
        assert decision[Field.VRAM_REQUEST].allowed <= decision[Field.VRAM_LIMIT].allowed <= 80 * GIB


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.floats(min_value=0, max_value=500), min_size=20, max_size=60),
    st.lists(st.floats(min_value=0.1, max_value=70), min_size=20, max_size=60),
    st.sampled_from(list(QoS)),
)
def test_whatever_is_measured_figures_are_known_positive_ordered_and_within_the_device(
    compute: list[float], vram: list[float], qos: QoS
):
    stage = Stage(with_config(qos=qos))
    for c, v in zip(compute, vram, strict=False):
        decision = stage.minute(c, v * GIB)
        for one in decision.fields:
            assert math.isfinite(one.allowed)
            assert one.allowed > 0
        assert stage.figures.compute.request <= stage.figures.compute.limit <= 989
        assert stage.figures.vram.request <= stage.figures.vram.limit <= 80 * GIB


def test_figures_that_change_are_published_with_three_digits_and_whole_mebibytes():
    stage = Stage()
    for decision in stage.run(300, lambda t: 10 + t / 7, lambda t: (2 + t / 90) * GIB):
        for one in decision.fields[:2]:
            if one.changed:
                assert one.allowed == float(f"{one.allowed:.3g}")
        for one in decision.fields[2:4]:
            if one.changed:
                assert one.allowed % 2**20 == 0


def test_equal_worlds_give_equal_decisions():
    def story(stage: Stage) -> list[tuple[float, ...]]:
        return [
            tuple(f.allowed for f in d.fields) for d in stage.run(200, lambda t: 20 + 15 * math.sin(t / 9), 3 * GIB)
        ]

    assert story(Stage()) == story(Stage())


def test_a_paused_workload_stays_where_it_is_until_the_pause_ends():
    from autoscaler.model.config import Pause

    stage = Stage(with_config(pause=Pause(up=True, down=True)))
    held = stage.run(30, 500.0)
    assert not any(decision.changed for decision in held)
    assert held[-1][Field.COMPUTE_LIMIT].verdict is Verdict.PAUSED
    stage.config = replace(stage.config, pause=Pause(up=True, down=True, until=stage.now))
    stage.run(3, 500.0)
    assert stage.figures.compute.limit >= 80


def test_a_new_worker_whose_model_size_is_told_keeps_room_for_its_weights():
    size = ModelSize(params=14e9, precision=Precision.FP16)
    told = Stage(with_config(model_size=size, amounts=Amounts(Amount(10, 20), Amount(30 * GIB, 40 * GIB))))
    silent = Stage(with_config(amounts=Amounts(Amount(10, 20), Amount(30 * GIB, 40 * GIB))))
    for stage in (told, silent):
        stage.run(50, 5.0, 2 * GIB)
    assert silent.decisions[-1][Field.VRAM_REQUEST].wanted < 4 * GIB
    assert told.decisions[-1][Field.VRAM_REQUEST].wanted >= 28 * GIB
    told.run(40, 5.0, 2 * GIB)
    assert told.decisions[-1][Field.VRAM_REQUEST].wanted < 4 * GIB
