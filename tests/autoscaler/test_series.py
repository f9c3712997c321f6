"""Raw samples become use of workloads: worked numbers, properties, and what must stay unknown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.model.resources import GIB, Resource
from autoscaler.model.usage import Usage, Window, WorkloadKey
from autoscaler.read import readings
from autoscaler.read.bins import gap_seconds
from autoscaler.read.readings import Reading, reduced
from autoscaler.read.samples import identity_of, samples_of
from autoscaler.read.series import joined, parts_of, usage_of

C, V = Resource.COMPUTE, Resource.VRAM
START = 1_700_000_040.0
SCRAPE = 15.0
CAPACITY = 300.0

Points = Sequence[tuple[float, float]]
Told = Mapping[Reading, Sequence[tuple[Mapping[str, str], Points]]]


def worker(pod: str = "a-0", **labels: str) -> dict[str, str]:
    base = {"namespace": "ns", "workload": "a", "pod": pod, "container": "c", "node": "n", "gpu_uuid": "G"}
    return {**base, **labels}


DEVICE = {"node": "n", "gpu_uuid": "G"}
DEVICES: Told = {
    readings.TFLOPS_CAPACITY: [(DEVICE, [(-600, CAPACITY)])],
    readings.VRAM_CAPACITY: [(DEVICE, [(-600, 80 * GIB)])],
}


def read(told: Told, bins: int = 3, step: float = 60.0, *, start: float = 0.0) -> Usage:
    """Times in the stories are seconds after START."""
    window = Window(START + start, START + start + bins * step, step)
    binned = {
        reading: reduced(
            reading,
            samples_of(
                (
                    identity_of(labels),
                    START + np.array([t for t, _ in points], float),
                    np.array([v for _, v in points], float),
                )
                for labels, points in series
            ),
            window,
            gap_seconds(SCRAPE),
        )
        for reading, series in {**DEVICES, **told}.items()
    }
    return usage_of(window, binned)


def counter(share: Callable[[float], float] | float, times: Sequence[float], first: float = 50.0) -> Points:
    """A counter whose rate between two scrapes is the share at the first of them."""
    points = [(times[0], first)]
    for before, after in pairwise(times):
        rate = share(before) if callable(share) else share
        points.append((after, points[-1][1] + rate * (after - before)))
    return points


def every(seconds: float, start: float, end: float) -> list[float]:
    return list(np.arange(start, end + 1e-6, seconds))


def test_compute_is_the_counters_increase_times_the_devices_capacity():
    points = counter(lambda t: 0.25 if t < 60 else 0.5, every(15, -15, 180))
    usage = read({readings.COMPUTE: [(worker(), points)]})
    assert usage.keys == (WorkloadKey("ns", "a"),)
    assert usage.peak[C, 0] == pytest.approx([75, 150, 150])
    assert usage.total[C, 0] == pytest.approx([75, 150, 150])
    assert usage.workers[0] == pytest.approx([1, 1, 1])
    assert usage.last_seen[0] == START + 180
    assert np.isnan(usage.peak[V, 0]).all()


def test_a_scrape_on_both_sides_of_an_edge_is_shared_by_time():
    # 10 s before the edge and 5 s after it, at a rate of .6: 6 s of the increase fall in the first bin.
    points = [(5, 0.0), (50, 0.0), (65, 9.0), (120, 9.0)]
    usage = read({readings.COMPUTE: [(worker(), points)]}, bins=2)
    assert usage.peak[C, 0] == pytest.approx([CAPACITY * 6 / 55, CAPACITY * 3 / 60])


def test_a_counter_that_fell_began_again_at_zero():
    points = [(0, 1000.0), (30, 1015.0), (45, 6.0), (60, 12.0)]
    usage = read({readings.COMPUTE: [(worker(), points)]}, bins=1)
    assert usage.peak[C, 0] == pytest.approx([CAPACITY * (15 + 6 + 6) / 60])


def test_the_first_sample_of_a_new_series_is_no_increase():
    points = [(20, 40.0), (35, 40.0), (50, 40.0), (65, 40.0)]
    usage = read({readings.COMPUTE: [(worker(), points)]}, bins=2)
    assert usage.peak[C, 0, 0] == 0
    assert math.isnan(usage.peak[C, 0, 1])


def test_bins_touched_by_a_gap_are_unknown_and_never_idle():
    times = [*every(15, 0, 90), *every(15, 90 + 135, 420)]
    usage = read({readings.COMPUTE: [(worker(), counter(0.5, times))]}, bins=7)
    assert np.isnan(usage.peak[C, 0]).tolist() == [False, True, True, True, False, False, False]
    assert usage.peak[C, 0, [0, 4, 5, 6]] == pytest.approx(150)


def test_a_gap_of_two_minutes_is_bridged():
    usage = read({readings.COMPUTE: [(worker(), counter(0.5, [*every(15, 0, 60), *every(15, 180, 240)]))]}, bins=4)
    assert usage.peak[C, 0] == pytest.approx(150)


def test_the_newest_bin_is_the_mean_over_what_was_scraped_of_it():
    usage = read({readings.COMPUTE: [(worker(), counter(0.5, every(15, 0, 105)))]}, bins=2)
    assert usage.peak[C, 0] == pytest.approx([150, 150])


def test_a_device_of_unknown_capacity_leaves_compute_unknown():
    told: Told = {
        readings.TFLOPS_CAPACITY: [(DEVICE, [(-600, 0.0)])],
        readings.COMPUTE: [(worker(), counter(0.5, every(15, 0, 180)))],
        readings.VRAM_PEAK: [(worker(), [(30, 2.0 * GIB)])],
    }
    usage = read(told)
    assert np.isnan(usage.peak[C]).all()
    assert np.isnan(usage.total[C]).all()
    assert usage.peak[V, 0, 0] == 2 * GIB


@pytest.mark.parametrize("rate", [1.2, 60.0])
def test_a_counter_that_runs_faster_than_time_is_unknown(rate: float):
    usage = read({readings.COMPUTE: [(worker(), counter(rate, every(15, 0, 180)))]})
    assert np.isnan(usage.peak[C, 0]).all()


def test_a_share_a_little_above_one_is_all_of_the_device():
    usage = read({readings.COMPUTE: [(worker(), counter(1.03, every(15, 0, 180)))]})
    assert usage.peak[C, 0] == pytest.approx(CAPACITY)


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -math.inf, -1.0, 200 * 2.0**40])
def test_nonsense_bytes_are_unknown(nonsense: float):
    told: Told = {readings.VRAM_PEAK: [(worker(), [(30, nonsense), (90, 3.0 * GIB), (100, nonsense)])]}
    usage = read(told)
    assert math.isnan(usage.peak[V, 0, 0])
    assert usage.peak[V, 0, 1] == 3 * GIB


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -5.0])
def test_nonsense_in_a_counter_is_skipped(nonsense: float):
    points = list(counter(0.5, every(15, 0, 180)))
    points[4] = (60.0, nonsense)
    usage = read({readings.COMPUTE: [(worker(), points)]})
    assert usage.peak[C, 0] == pytest.approx(150)


def test_vram_is_the_highest_peak_in_the_bin_and_the_edge_belongs_to_the_bin_it_ends():
    points = [(0, 9.0 * GIB), (15, 1.0 * GIB), (45, 4.0 * GIB), (60, 2.0 * GIB), (75, 1.5 * GIB)]
    usage = read({readings.VRAM_PEAK: [(worker(), points)]})
    assert usage.peak[V, 0, :2] == pytest.approx([4 * GIB, 1.5 * GIB])
    assert math.isnan(usage.peak[V, 0, 2])


def test_vram_in_use_stands_in_where_no_peak_is_told():
    told: Told = {
        readings.VRAM_PEAK: [(worker("a-0"), [(30, 4.0 * GIB)])],
        readings.VRAM_USED: [(worker("a-0"), [(30, 3.0 * GIB)]), (worker("a-1"), [(30, 6.0 * GIB)])],
    }
    usage = read(told, bins=1)
    assert usage.peak[V, 0, 0] == 6 * GIB
    assert usage.total[V, 0, 0] == 10 * GIB


def test_peak_is_the_largest_worker_and_device_and_total_their_sum():
    series = [
        (worker("a-0"), counter(0.1, every(15, 0, 60))),
        (worker("a-0", gpu_uuid="H"), counter(0.4, every(15, 0, 60))),
        (worker("a-1"), counter(0.2, every(15, 0, 60))),
        (worker("b-0", workload="b"), counter(0.7, every(15, 0, 60))),
    ]
    capacity = [({"node": "n", "gpu_uuid": "G"}, [(-9, 300.0)]), ({"node": "n", "gpu_uuid": "H"}, [(-9, 100.0)])]
    usage = read({readings.COMPUTE: series, readings.TFLOPS_CAPACITY: capacity}, bins=1)
    assert usage.keys == (WorkloadKey("ns", "a"), WorkloadKey("ns", "b"))
    assert usage.peak[C, :, 0] == pytest.approx([60, 210])
    assert usage.total[C, :, 0] == pytest.approx([30 + 40 + 60, 210])
    assert usage.workers[:, 0] == pytest.approx([2, 1])


def test_devices_of_one_name_are_told_apart_by_their_nodes():
    told: Told = {
        readings.COMPUTE: [(worker(pod, node=pod), counter(0.5, every(15, 0, 60))) for pod in ("x", "y", "z")],
        readings.TFLOPS_CAPACITY: [
            ({"node": "x", "gpu_uuid": "G"}, [(-30, 100.0)]),
            ({"node": "y", "gpu_uuid": "G"}, [(-9, 900.0)]),
        ],
    }
    assert read(told, bins=1).total[C, 0] == pytest.approx([50 + 450 + 450])


def test_a_total_is_unknown_while_a_living_worker_is():
    gap = [*every(15, 0, 60), *every(15, 240, 360)]
    told: Told = {
        readings.COMPUTE: [
            (worker("a-0"), counter(0.1, every(15, 0, 360))),
            (worker("a-1", gpu_uuid="?"), counter(0.1, gap)),
        ]
    }
    usage = read(told, bins=6)
    assert usage.peak[C, 0] == pytest.approx(30)
    assert np.isnan(usage.total[C, 0]).tolist() == [True, False, False, False, True, True]


def test_a_dead_pods_history_counts_and_its_end_is_no_zero():
    told: Told = {
        readings.COMPUTE: [
            (worker("a-old"), counter(0.8, every(15, 0, 60))),
            (worker("a-new"), counter(0.2, every(15, 75, 180))),
        ]
    }
    usage = read(told)
    assert usage.peak[C, 0] == pytest.approx([240, 60, 60])
    assert usage.workers[0] == pytest.approx([1, 1, 1])


def test_an_agent_that_returns_with_another_address_goes_on_with_its_workers():
    told: Told = {
        readings.COMPUTE: [
            ({**worker(), "instance": "10.0.0.1:80"}, counter(0.8, every(15, 0, 60))),
            ({**worker(), "instance": "10.0.0.2:80"}, counter(0.2, every(15, 65, 120), first=0.0)),
        ]
    }
    usage = read(told, bins=2)
    assert usage.peak[C, 0] == pytest.approx([240, 60])
    assert usage.total[C, 0] == pytest.approx([240, 60])
    assert usage.workers[0] == pytest.approx([1, 1])


def test_the_agents_own_labels_win_over_the_scrapes():
    labels = {
        **worker(namespace="monitoring", pod="tf-agent-x", container="agent", workload="a"),
        "exported_namespace": "ns", "exported_pod": "a-0", "exported_container": "c",
    }  # fmt: skip
    usage = read({readings.COMPUTE: [(labels, counter(0.5, every(15, 0, 60)))]}, bins=1)
    assert usage.keys == (WorkloadKey("ns", "a"),)
    assert identity_of(labels) == identity_of(worker())


def test_series_without_a_workload_are_ignored():
    orphan = {name: value for name, value in worker().items() if name != "workload"}
    usage = read({readings.COMPUTE: [(orphan, counter(0.5, every(15, 0, 60)))], readings.OOMS: [(orphan, [(5, 1.0)])]})
    assert usage.keys == ()
    assert usage.peak.shape == (2, 0, 3)


def test_use_at_the_effective_limit_is_clipped_and_the_last_limit_of_a_bin_is_its_ceiling():
    told: Told = {
        readings.COMPUTE: [(worker(), counter(0.5, every(15, 0, 180)))],
        readings.TFLOPS_CEILING: [(worker(), [(15, 400.0), (60, 150.0), (75, 150.0), (120, 200.0), (150, 200.0)])],
        readings.VRAM_PEAK: [(worker(), [(15, 3.9 * GIB), (75, 2.0 * GIB), (150, 2.0 * GIB)])],
        readings.VRAM_CEILING: [(worker(), [(15, 4.0 * GIB), (75, 4.0 * GIB)])],
    }
    usage = read(told)
    assert usage.ceiling[C, 0] == pytest.approx([150, 200, 200])
    assert usage.clipped[C, 0].tolist() == [True, False, False]
    assert usage.clipped[V, 0].tolist() == [True, False, False]
    assert math.isnan(usage.ceiling[V, 0, 2])


def test_one_clipped_worker_clips_the_workload_and_the_ceiling_is_the_largest_workers():
    told: Told = {
        readings.COMPUTE: [
            (worker("a-0"), counter(0.5, every(15, 0, 60))),
            (worker("a-1"), counter(0.3, every(15, 0, 60))),
            (worker("a-2"), counter(0.1, every(15, 0, 60))),
        ],
        readings.TFLOPS_CEILING: [
            (worker("a-0"), [(30, 250.0)]),
            (worker("a-1"), [(30, 90.0)]),
            (worker("a-2"), [(30, 280.0)]),
        ],
    }
    usage = read(told, bins=1)
    assert usage.clipped[C, 0].tolist() == [True]
    assert usage.ceiling[C, 0] == pytest.approx([250])


@pytest.mark.parametrize(("share", "clipped"), [(0.04, False), (0.06, True)])
def test_more_than_a_twentieth_throttled_is_clipped(share: float, clipped: bool):
    told: Told = {
        readings.COMPUTE: [(worker(), counter(0.1, every(15, 0, 60)))],
        readings.TFLOPS_CEILING: [(worker(), [(30, 200.0)])],
        readings.THROTTLED: [(worker(), counter(share, every(15, 0, 60)))],
    }
    usage = read(told, bins=1)
    assert usage.clipped[C, 0].tolist() == [clipped]
    assert not usage.clipped[V].any()


def story_of_a_bypass() -> Told:
    """Three minutes: at the limit of 30 TFLOPs, then 50 more from its last second on; its memory is at its limit."""
    times = every(15, 0, 180)
    return {
        readings.COMPUTE: [(worker(), [(at, 0.1 * at + max(0, at - 59) / 6) for at in times])],
        readings.COMPUTE_BEYOND: [(worker(), [(at, max(0, at - 59) / 6) for at in times])],
        readings.TFLOPS_CEILING: [(worker(), [(at, 30.0) for at in times])],
        readings.VRAM_PEAK: [(worker(), [(at, 3.0 * GIB) for at in times])],
        readings.VRAM_CEILING: [(worker(), [(at, 3.0 * GIB) for at in times])],
        readings.VRAM_BEYOND: [(worker(), [(at, 0.0) for at in times])],
        readings.THROTTLED: [(worker(), counter(0.5, times))],
    }


def test_minutes_in_which_a_worker_goes_beyond_its_limit_tell_nothing_of_its_demand():
    found = read(story_of_a_bypass())
    assert found.peak[C, 0] == pytest.approx([30.0, np.nan, np.nan], nan_ok=True)
    assert found.total[C, 0] == pytest.approx([30.0, np.nan, np.nan], nan_ok=True)
    # At its limit it was held back; beyond it, nothing held it.
    assert found.clipped[C, 0].tolist() == [True, False, False]
    # Its memory is within its limit, so what that tells still counts.
    assert found.peak[V, 0].tolist() == [3 * GIB] * 3
    assert found.clipped[V, 0].all()
    assert found.last_seen.tolist() == [START + 180]


def test_memory_beyond_its_limit_tells_nothing_of_demand_and_no_other_worker_is_silenced():
    told = dict(story_of_a_bypass())
    del told[readings.COMPUTE_BEYOND]
    told[readings.VRAM_PEAK] = [
        (worker(), [(30, 3 * GIB), (90, 15 * GIB), (150, 15 * GIB)]),
        (worker("a-1"), [(30, 2 * GIB), (90, 2 * GIB), (150, 2 * GIB)]),
    ]
    told[readings.VRAM_BEYOND] = [(worker(), [(30, 0.0), (90, 11.5 * GIB), (150, 11.5 * GIB)])]
    found = read(told)
    assert found.peak[V, 0].tolist() == [3 * GIB, 2 * GIB, 2 * GIB]
    assert found.peak[C, 0] == pytest.approx([30 + 300 / 360, 80.0, 80.0], rel=0.01)


def test_a_limiters_short_overshoot_is_left_out_and_the_rest_counts():
    told = dict(story_of_a_bypass())
    told[readings.COMPUTE_BEYOND] = [(worker(), counter(0.004, every(15, 0, 180)))]
    told[readings.COMPUTE] = [(worker(), counter(0.104, every(15, 0, 180)))]
    found = read(told)
    assert found.peak[C, 0] == pytest.approx([30.0] * 3)
    assert found.clipped[C, 0].all()


def test_ooms_are_summed_over_sources_and_workers_and_survive_gaps_and_restarts():
    told: Told = {
        readings.COMPUTE: [(worker("a-0"), counter(0.1, every(15, -15, 600)))],
        readings.OOMS: [
            (worker("a-0", source="exit"), [(0, 3.0), (45, 5.0), (400, 6.0), (415, 1.0)]),
            (worker("a-0", source="denial"), [(0, 0.0), (30, 1.0)]),
            (worker("a-1", source="exit"), [(0, 0.0), (30, 1.0)]),
        ],
    }
    usage = read(told, bins=7)
    assert usage.ooms[0].tolist() == [4, 0, 0, 0, 0, 0, 2]


def test_an_oom_series_born_after_its_worker_counts_and_one_that_came_with_it_does_not():
    told: Told = {
        readings.COMPUTE: [
            (worker("a-0"), counter(0.1, every(15, 0, 180))),
            (worker("a-1"), counter(0.1, every(15, 75, 180))),
        ],
        readings.OOMS: [
            (worker("a-0", source="exit"), [(75, 2.0), (90, 2.0)]),
            (worker("a-1", source="exit"), [(75, 7.0), (90, 7.0)]),
        ],
    }
    assert read(told).ooms[0].tolist() == [0, 2, 0]


def test_two_scrapes_of_one_agent_count_once():
    told: Told = {
        readings.COMPUTE: [({**worker(), "job": job}, counter(0.5, every(15, 0, 60))) for job in ("x", "y")],
        readings.OOMS: [({**worker(source="exit"), "job": job}, [(0, 0.0), (30, 1.0)]) for job in ("x", "y")],
    }
    usage = read(told, bins=1)
    assert usage.total[C, 0] == pytest.approx([150])
    assert usage.workers[0].tolist() == [1]
    assert usage.ooms[0].tolist() == [1]


def test_a_series_seen_only_before_the_window_tells_when_it_was_last_seen():
    usage = read({readings.COMPUTE: [(worker(), counter(0.5, every(15, -60, -30)))]})
    assert usage.last_seen.tolist() == [START - 30]
    assert np.isnan(usage.peak).all()
    assert usage.workers[0].tolist() == [0, 0, 0]


def test_a_window_of_no_bins_still_tells_who_was_seen():
    told: Told = {
        readings.COMPUTE: [(worker(), counter(0.5, every(15, -60, 0)))],
        readings.VRAM_PEAK: [(worker(), [(-15, 1.0)])],
        readings.OOMS: [(worker(source="exit"), [(-15, 1.0)])],
    }
    usage = read(told, bins=0)
    assert usage.peak.shape == (2, 1, 0)
    assert usage.last_seen.tolist() == [START]


@pytest.mark.parametrize(("alive_until", "is_needed"), [(60, True), (-15, False)])
def test_the_fallback_is_needed_for_the_living_only(alive_until: float, is_needed: bool):
    window = Window(START, START + 60, 60)
    points = {
        readings.COMPUTE: every(15, -120, alive_until),
        readings.VRAM_PEAK: [],
        readings.TFLOPS_CEILING: [],
        readings.VRAM_CEILING: [],
    }
    binned = {
        reading: reduced(
            reading,
            samples_of([(identity_of(worker()), START + np.array(t), np.zeros(len(t)))] if t else []),
            window,
            120,
        )
        for reading, t in points.items()
    }
    assert readings.lacks_peak(binned) == is_needed


def test_samples_after_the_window_only_complete_its_last_bin():
    usage = read({readings.COMPUTE: [(worker(), [(0, 0.0), (50, 25.0), (65, 32.5)])]}, bins=1)
    assert usage.peak[C, 0] == pytest.approx([150])
    assert usage.last_seen.tolist() == [START + 50]


jitters = st.lists(st.floats(-6, 6), min_size=45, max_size=45)
shares = st.lists(st.floats(0, 1), min_size=12, max_size=12)


@given(jitters, shares, st.none() | st.integers(2, 42))
def test_jitter_of_the_scrape_and_a_restart_keep_the_integral(jitter, shares, restart):
    """The counter is that of a worker whose use changes each minute; every scrape is late or early by up to 6 s."""
    edges = np.arange(-60.0, 661.0, 60.0)
    integral = np.concatenate(([0.0], np.cumsum(np.array(shares) * 60)))
    times = np.array([15.0 * i - 30 + jitter[i] for i in range(45)])
    values = 1e4 + np.interp(times, edges, integral)
    if restart is not None:
        values[restart:] -= values[restart - 1]
    usage = read({readings.COMPUTE: [(worker(), list(zip(times, values, strict=True)))]}, bins=10)
    expected = np.interp([0.0, 600.0], edges, integral)
    # A scrape interval at either edge of the window and of each use is interpolated.
    assert np.nansum(usage.peak[C, 0]) / CAPACITY * 60 == pytest.approx(expected[1] - expected[0], abs=2 * 11)
    assert not np.isnan(usage.peak[C, 0]).any()


@given(jitters, st.floats(0, 1))
def test_steady_use_is_found_exactly_however_the_scrapes_fall(jitter, share):
    times = [15.0 * i - 30 + jitter[i] for i in range(45)]
    usage = read({readings.COMPUTE: [(worker(), counter(share, times))]}, bins=10)
    assert usage.peak[C, 0] == pytest.approx(CAPACITY * share, rel=1e-5, abs=1e-3)


@given(st.integers(2, 40), st.integers(9, 19))
def test_every_long_gap_is_unknown_wherever_it_falls(first, missing):
    times = [15.0 * i for i in range(60) if not first <= i < first + missing]
    usage = read({readings.COMPUTE: [(worker(), counter(0.5, times))]}, bins=15)
    left, right = 15.0 * (first - 1), 15.0 * (first + missing)
    for index, value in enumerate(usage.peak[C, 0]):
        is_touched = 60 * index < right and 60 * (index + 1) > left
        assert math.isnan(value) == is_touched


@given(st.integers(1, 9), st.integers(1, 9))
def test_reading_in_parts_is_reading_at_once(first, second):
    told: Told = {
        readings.COMPUTE: [(worker(), counter(lambda t: (t % 100) / 100, every(15, -120, 1500)))],
        readings.VRAM_PEAK: [(worker(), [(t, t * 2.0**20) for t in every(15, 15, 700)])],
        readings.OOMS: [(worker(source="exit"), [(t, t // 200) for t in every(15, 0, 900)])],
    }
    parts = [read(told, first), read(told, second, start=60.0 * first)]
    whole = read(told, first + second)
    together = joined(whole.window, parts)
    for name in ("peak", "total", "ceiling", "clipped", "ooms", "workers", "last_seen"):
        np.testing.assert_allclose(getattr(together, name), getattr(whole, name), rtol=1e-5, err_msg=name)


def test_joined_parts_keep_workloads_apart_that_others_have_not_seen():
    a = read({readings.COMPUTE: [(worker(workload="a"), counter(0.5, every(15, 0, 60)))]}, 1)
    b = read({readings.COMPUTE: [(worker(workload="b"), counter(0.1, every(15, 60, 120)))]}, 1, start=60)
    both = joined(Window(START, START + 120, 60), [a, b])
    assert both.keys == (WorkloadKey("ns", "a"), WorkloadKey("ns", "b"))
    np.testing.assert_allclose(both.peak[C], [[150, np.nan], [np.nan, 30]], rtol=1e-5)


@given(st.integers(0, 10**9), st.integers(1, 20_000), st.sampled_from([1.0, 15.0, 60.0, 300.0, 7.5]))
def test_parts_of_a_window_are_whole_bins_without_a_hole(start, count, step):
    window = Window(float(start), start + count * step, step)
    parts = parts_of(window, 86_400.0)
    assert (parts[0].start, parts[-1].end) == (window.start, window.end)
    assert all(left.end == right.start for left, right in pairwise(parts))
    assert sum(part.bins for part in parts) == window.bins
    assert all(0 < part.end - part.start <= 86_400 + step for part in parts)


def test_a_hundred_thousand_series_are_told_apart():
    step = np.arange(4) * 15.0
    count = 100_000
    window = Window(START, START + 60, 60)
    samples = samples_of(
        (identity_of(worker(f"p-{i}", workload=f"w-{i // 10}")), START + 7 + step, i + step * (i % 10) / 10)
        for i in range(count)
    )
    capacity = samples_of([(identity_of(DEVICE), np.array([START]), np.array([CAPACITY]))])
    told = {readings.COMPUTE: samples, readings.TFLOPS_CAPACITY: capacity}
    usage = usage_of(window, {r: reduced(r, s, window, 120) for r, s in told.items()})
    assert usage.peak.shape == (2, count // 10, 1)
    assert usage.peak[C, :, 0] == pytest.approx(0.9 * CAPACITY, rel=1e-4)
    assert usage.total[C, :, 0] == pytest.approx(4.5 * CAPACITY, rel=1e-4)
