"""A new revision: noticed by image, GPU model and model size, and after half an hour its own use outweighs the old."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.contract import keys
from autoscaler.model.fleet import Fleet, to_fleet
from autoscaler.model.snapshot import Snapshot
from autoscaler.model.workload import ClusterView, Discovered
from autoscaler.read.discovery import discover
from autoscaler.recommend import learn, new_memory
from autoscaler.recommend.histogram import COMPUTE_BUCKETS, VRAM_BUCKETS
from autoscaler.recommend.memory import Learnt
from autoscaler.recommend.revision import HISTOGRAMS, revise
from tests.autoscaler.stage import START, STEP, Stage, one_bin

GIB = 2.0**30


def fleet(revision: int, now: float = START) -> Fleet:
    stage = Stage()
    stage.now = now
    return to_fleet(Snapshot(now, Discovered((replace(stage.workload, revision=revision),)), {}))


def used(memory: Learnt, minutes: int, at: float, use: tuple[float, float]) -> float:
    """Learn minutes of the same use in compute and an ever moving VRAM around it, which is active."""
    for minute in range(minutes):
        at += STEP
        vram = use[1] * (1.0 + 0.02 * (minute % 2))
        learn(memory, one_bin(at, use[0], vram, (100.0, 80 * GIB)), fleet(0, at))
    return at


def share_of_old(memory: Learnt, name: str, border: float) -> float:
    buckets = VRAM_BUCKETS if name == "vram_weights" else COMPUTE_BUCKETS
    weights = memory.weights(name)[0].astype(float)
    return float(weights[: buckets.index(np.array([border]))[0]].sum() / weights.sum())


@pytest.mark.parametrize("minutes", [20, 300, 3 * 24 * 60])
def test_after_half_an_hour_old_use_is_at_most_half_of_every_histogram(minutes: int):
    memory = new_memory()
    memory.align(fleet(1).keys, fleet(1).uids)
    assert not revise(memory, fleet(1), STEP).any()
    at = used(memory, minutes, START, (2.0, 1.0 * GIB))
    before = memory.weights("request_weights").sum()
    assert revise(memory, fleet(2, at), STEP).all()
    assert memory.weights("request_weights").sum() <= before
    assert all(memory.weights(name).sum() > 0 for name in HISTOGRAMS), "history stays as a prior"
    used(memory, 30, at, (20.0, 30.0 * GIB))
    assert all(share_of_old(memory, name, 5.0 if name != "vram_weights" else 5 * GIB) <= 0.5 for name in HISTOGRAMS)


def test_a_revision_counts_once_and_an_unknown_one_not_at_all():
    memory = new_memory()
    memory.align(fleet(1).keys, fleet(1).uids)
    changes = [bool(revise(memory, fleet(number), STEP)[0]) for number in (1, 1, 0, 1, 2, 2, 0, 2, 1)]
    assert changes == [False, False, False, False, True, False, False, False, True]


def test_short_history_is_not_scaled_up():
    memory = new_memory()
    memory.align(fleet(1).keys, fleet(1).uids)
    revise(memory, fleet(1), STEP)
    at = used(memory, 5, START, (2.0, GIB))
    before = memory.weights("request_weights").copy()
    revise(memory, fleet(2, at), STEP)
    np.testing.assert_array_equal(memory.weights("request_weights"), before)


@given(st.floats(min_value=1, max_value=300))
def test_bins_of_any_width_leave_room_for_the_new_ones(step: float):
    memory = new_memory()
    memory.align(fleet(1).keys, fleet(1).uids)
    revise(memory, fleet(1), step)
    memory.weights("limit_weights")[0, 10] = 1e5
    revise(memory, fleet(2), step)
    assert memory.weights("limit_weights").sum() <= 1800 / step


def deployment(image: str = "app:1", version: str = "1", **annotations: str) -> dict[str, object]:
    figures = {"tflops-limit": "10", "vram-limit": "8Gi"} | {k.replace("_", "-"): v for k, v in annotations.items()}
    template = {
        "metadata": {
            "labels": {keys.ENABLED: "true"},
            "annotations": {keys.PREFIX + key: text for key, text in figures.items()},
        },
        "spec": {"containers": [{"name": "main", "image": image} if image else {"name": "main"}]},
    }
    metadata = {"name": "llm", "namespace": "default", "uid": "d-0", "resourceVersion": version}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": {"template": template}}


def revision(manifest: dict[str, object]) -> int:
    [workload] = discover(ClusterView(owners=(manifest,)), {}).workloads
    return workload.revision


@pytest.mark.parametrize(
    "other",
    [
        deployment("app:2"),
        deployment(gpu_model="A100"),
        deployment(model_params="7B", model_precision="fp8"),
    ],
)
def test_image_gpu_model_and_model_size_make_a_revision(other: dict[str, object]):
    assert revision(other) != revision(deployment())


@pytest.mark.parametrize("other", [deployment(tflops_limit="20"), deployment(qos="high"), deployment(version="2")])
def test_amounts_and_service_level_don_t(other: dict[str, object]):
    assert revision(other) == revision(deployment()) != 0


def test_without_images_nothing_is_known():
    assert revision(deployment("")) == 0


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_change_is_seen_though_the_rest_was_remembered_also_in_a_file_that_was_edited_by_hand(version: str):
    first = discover(ClusterView(owners=(deployment(),)), {})
    second = discover(ClusterView(owners=(deployment("app:2", version=version),)), {}, first)
    assert first.workloads[0].revision != second.workloads[0].revision
