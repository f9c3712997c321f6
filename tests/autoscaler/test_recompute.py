"""Every figure follows, bit for bit, from its record alone: as JSON, by other code than the one that decided."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from autoscaler.contract.keys import QoS
from autoscaler.contract.quota import DeviceInfo
from autoscaler.model.config import Bounds, LimitsPolicy, Mode, Pause, ReplicasPolicy, RequestsPolicy
from autoscaler.model.decision import Field
from autoscaler.model.reasons import Cause, Verdict
from autoscaler.model.record import Record, Step, as_data, from_data
from autoscaler.model.resources import GIB, MIB, Resource
from autoscaler.report.recompute import InconsistentError, recompute
from tests.autoscaler.stage import Stage, with_config

Demand = Callable[[float], float] | float
Scene = tuple[Stage, int, Demand, Demand]
STEADY = RequestsPolicy(mode=Mode.ON), LimitsPolicy(mode=Mode.ON)


def wave(middle: float, swing: float, period: float = 240.0) -> Callable[[float], float]:
    return lambda at: max(0.0, middle + swing * math.sin(2 * math.pi * at / period))


def bursts(low: float, high: float, every: int = 45, long: int = 6) -> Callable[[float], float]:
    return lambda at: high if at % every < long else low


def small_device(tflops: float, gib: float) -> DeviceInfo:
    return DeviceInfo("GPU-0", "NVIDIA T4", int(gib * GIB), tflops)


def paused(stage: Stage) -> Stage:
    stage.config = replace(stage.config, pause=Pause(up=False, down=True, until=stage.now + 5400))
    return stage


SCENES: dict[str, Callable[[], Scene]] = {
    "quiet": lambda: (Stage(), 200, 3.0, 2 * GIB),
    "idle": lambda: (Stage(with_config(qos=QoS.LOW)), 150, bursts(0.0, 6.0, 200, 60), bursts(GIB, 3 * GIB, 200, 60)),
    "wave": lambda: (Stage(), 300, wave(9, 6), wave(3 * GIB, GIB)),
    "saturated": lambda: (Stage(), 120, lambda at: 15.0 if at < 40 else 300.0, 2 * GIB),
    "out of memory": lambda: (Stage(), 240, 6.0, lambda at: 2 * GIB if at < 50 else 9.7 * GIB),
    "bursts": lambda: (Stage(with_config(qos=QoS.CRITICAL)), 240, bursts(2.0, 19.0), bursts(GIB, 7 * GIB)),
    "small device": lambda: (Stage(device=small_device(24.0, 9.0)), 200, bursts(3.0, 40.0), bursts(GIB, 8.5 * GIB)),
    "compute unknown": lambda: (Stage(), 20, math.nan, 2 * GIB),
    "near the limit": lambda: (Stage(), 50, 6.0, 7.8 * GIB),
    "bounds": lambda: (
        Stage(with_config(bounds=Bounds(min_ratio=(0.7, 0.9), max_allowed=(22.5, 8.3 * GIB)))),
        300,
        bursts(1.0, 60.0, 150, 40),
        wave(4 * GIB, 3.9 * GIB),
    ),
    "published formula": lambda: (
        Stage(
            with_config(
                requests=RequestsPolicy(mode=Mode.ON, percentile=0.9, buffer_ratio=0.2, stabilization_seconds=900.0),
                limits=LimitsPolicy(
                    mode=Mode.ON, percentile=0.99, vram_percentile=0.98, tflops_buffer_ratio=0.3, vram_buffer_ratio=0.1,
                    scale_up_step=1.5, max_ratio_to_requests=3.0, ignored_delta_ratio=0.1,
                ),
            )
        ),
        300,
        bursts(6.0, 45.0, 120, 30),
        wave(3 * GIB, 2 * GIB, 90),
    ),
    "recommend only": lambda: (
        Stage(with_config(requests=RequestsPolicy(mode=Mode.RECOMMEND), limits=LimitsPolicy(mode=Mode.ON))),
        300,
        wave(6, 5, 100),
        wave(3 * GIB, 2 * GIB, 130),
    ),
    "off": lambda: (Stage(with_config(requests=RequestsPolicy(), limits=LimitsPolicy())), 100, wave(9, 8), 6 * GIB),
    "paused": lambda: (paused(Stage()), 200, lambda at: 9.0 if at < 60 else 2.0, 2 * GIB),
    "dedicated": lambda: (Stage(with_config(dedicated_gpu=True)), 80, 2.0, 2 * GIB),
    "replicas": lambda: (
        Stage(
            with_config(
                limits=LimitsPolicy(), replicas_policy=ReplicasPolicy(mode=Mode.ON, target_tflops_ratio=0.5, max_replicas=4)
            ),
            replicas=2,
        ),
        240,
        lambda at: 19.0 if at < 90 else 1.0,
        2 * GIB,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=SCENES)
def records(request: pytest.FixtureRequest) -> list[Record]:
    return played(request.param)


_PLAYED: dict[str, list[Record]] = {}


def played(name: str) -> list[Record]:
    if name not in _PLAYED:
        stage, minutes, compute, vram = SCENES[name]()
        stage.run(minutes, compute, vram)
        _PLAYED[name] = stage.records
    return _PLAYED[name]


def same(one: float, other: float) -> bool:
    """Equal to the last bit; not known is not known."""
    return one == other or (math.isnan(one) and math.isnan(other))


def figures(all_records: list[Record]) -> Iterator[tuple[Record, Field]]:
    yield from ((record, field) for record in all_records for field in Field)


def test_every_figure_of_every_pass_follows_from_the_json_of_its_record_bit_for_bit(records: list[Record]):
    for record in records:
        told = from_data(json.loads(json.dumps(as_data(record), allow_nan=False)))
        for field, again in recompute(told).items():
            figure = record[field]
            what = (field.name, record.at, figure)
            assert same(again.estimated, figure.estimated.figure), what
            assert again.cause is figure.estimated.cause, what
            assert same(again.recommended, figure.recommended), what
            assert same(again.allowed, figure.allowed), what


def test_each_step_follows_from_its_numbers_and_not_from_its_result(records: list[Record]):
    for record, field in figures(records):
        figure = record[field]
        spoilt = [replace(step, after=math.nan) for step in figure.allowed_steps]
        if any(not step.numbers and step.guard not in KNOWN_HOLDS for step in figure.allowed_steps):
            continue
        again = recompute(replace(record, figures=changed(record, replace(figure, allowed_steps=tuple(spoilt)))))
        assert same(again[field].allowed, figure.allowed)


KNOWN_HOLDS = {"layer", "valid", "supported", "unpaused", "not_managed_elsewhere", "rate"}


def changed(record: Record, figure: object) -> tuple[object, ...]:
    return tuple(figure if one.field is figure.field else one for one in record.figures)


def test_the_scenes_show_every_cause_and_the_guards_of_a_single_workload():
    shown = [record[field] for name in SCENES for record in played(name) for field in Field]
    causes = {(figure.field.resource, figure.estimated.cause) for figure in shown}
    for resource in Resource:
        for cause in (Cause.UNCHANGED, Cause.RAISED, Cause.SURPLUS, Cause.SATURATED):
            assert (resource, cause) in causes
    assert {Cause.EXCEEDED, Cause.OOM_SEEN, Cause.IDLE, Cause.LOAD, Cause.NO_DATA} <= {cause for _, cause in causes}
    guards = {step.guard for figure in shown for step in (*figure.allowed_steps, *figure.recommended_steps)}
    assert {
        "enough", "unpaused", "supported", "dead_band", "stabilization", "cool_down", "bounds", "order", "published",
        "layer", "evaluation", "remembered",
    } <= guards  # fmt: skip


@pytest.mark.parametrize(
    ("guard", "before", "numbers", "after"),
    [
        ("step", 9.0, {"most_added": 2.0}, 6.0),
        ("step", 1.0, {"most_removed": 1.0}, 3.0),
        ("live_use", 1.0, {"live": 2.0, "headroom_ratio": 0.05}, 2.1),
        ("live_use", 1.0, {"live": math.nan, "headroom_ratio": 0.05}, 4.0),
        ("capacity", 9.0, {"room": 1.5}, 5.5),
        ("capacity", 4.0, {"most": 3.0, "given": 1.0}, 3.0),
        ("rollback", 2.0, {"last_good": 6.0, "until_at": math.inf}, 6.0),
        ("quota", 9.0, {"most": 5.0, "quota_left": 1.0}, 5.0),
    ],
)
def test_what_one_workload_alone_never_meets_follows_from_its_numbers_too(
    guard: str, before: float, numbers: dict[str, float], after: float
):
    record = played("quiet")[0]
    figure = record[Field.VRAM_LIMIT]
    estimated = replace(figure.estimated, figure=before, inputs={"ordered": before})
    step = Step(guard, Verdict.PASSED, before, math.nan, numbers)
    told = replace(figure, current=4.0, estimated=estimated, recommended_steps=(), allowed_steps=(step,))
    assert recompute(replace(record, figures=changed(record, told)))[Field.VRAM_LIMIT].allowed == after


def test_published_figures_have_three_significant_digits_or_whole_mebibytes():
    moved = [
        record[field] for name in SCENES for record in played(name) for field in Field
        if record[field].allowed != record[field].current and field.resource is not None
    ]  # fmt: skip
    assert moved
    for figure in moved:
        if figure.allowed in {figure.terms["maximum"], figure.terms["device"]}:
            continue
        unit = 10.0 ** (math.floor(math.log10(figure.allowed)) - 2) if figure.field < 2 else float(MIB)
        assert math.isclose(figure.allowed / unit, round(figure.allowed / unit), rel_tol=1e-12), figure


def test_a_step_that_does_not_begin_where_the_one_before_ended_is_no_explanation():
    record = next(r for r in played("wave") if r[Field.COMPUTE_LIMIT].allowed_steps)
    figure = record[Field.COMPUTE_LIMIT]
    first, *rest = figure.allowed_steps
    wrong = replace(figure, allowed_steps=(replace(first, before=first.before + 1), *rest))
    with pytest.raises(InconsistentError, match=r"COMPUTE_LIMIT: .* begins at"):
        recompute(replace(record, figures=changed(record, wrong)))


@pytest.mark.parametrize("data", [{}, {"version": 99}, {"version": 1, "namespace": "a"}, {"version": 1, "figures": 3}])
def test_what_is_no_record_is_refused(data: dict[str, object]):
    with pytest.raises(ValueError, match="record"):
        from_data(data)


def test_a_verdict_that_holds_back_stands_on_a_step(records: list[Record]):
    for record, field in figures(records):
        figure = record[field]
        if figure.verdict is not Verdict.PASSED and not same(figure.estimated.figure, figure.allowed):
            assert figure.allowed_steps, (field, record.at, figure)
