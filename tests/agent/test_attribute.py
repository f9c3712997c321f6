"""Attribution: worked figures, and what must hold for any sample."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.attribute import attribute
from agent.model.samples import DeviceSample, NodeSample, ProcessUse, Worker

GIB = 1024**3
A, B = (Worker(f"uid-{name}", "team", f"pod-{name}", "main", f"work-{name}") for name in "ab")


class Directory:
    """Knows workers, and whose the given processes are."""

    def __init__(self, by_pid, workers=()):
        self.by_pid, self.known = by_pid, tuple(workers) or tuple(dict.fromkeys(by_pid.values()))

    def worker_of(self, pid):
        return self.by_pid.get(pid)

    def workers(self):
        return self.known


def device(*processes, ratio=0.9, used=10 * GIB, **more):
    return DeviceSample(0, "GPU-a", "NVIDIA L4", 100.0, 24 * GIB, used, ratio, processes=processes, **more)


def node(*devices):
    return NodeSample(100.0, devices)


def figures(attribution):
    return {use.worker.pod: (use.compute_ratio, use.vram_bytes) for use in attribution.uses}


def test_processes_of_one_worker_add_up_and_the_rest_is_unattributed():
    sample = node(
        device(
            ProcessUse(1, 0.25, GIB), ProcessUse(2, 0.25, 2 * GIB), ProcessUse(3, 0.125, GIB), ProcessUse(9, 0.2, GIB)
        )
    )
    attribution = attribute(sample, Directory({1: A, 2: A, 3: B}))
    assert figures(attribution) == {"pod-a": (0.5, 3 * GIB), "pod-b": (0.125, GIB)}
    rest = attribution.unattributed[0]
    assert rest.compute_ratio == pytest.approx(0.275)
    assert rest.vram_bytes == 6 * GIB


def test_workers_above_their_device_are_scaled_to_five_percent_over_it():
    sample = node(device(ProcessUse(1, 0.6, GIB), ProcessUse(2, 0.3, GIB), ratio=0.6))
    attribution = attribute(sample, Directory({1: A, 2: B}))
    assert figures(attribution)["pod-a"][0] == pytest.approx(0.42)
    assert figures(attribution)["pod-b"][0] == pytest.approx(0.21)
    assert attribution.unattributed[0].compute_ratio == 0


def test_a_worker_seen_before_is_idle_at_zero_and_one_never_seen_has_no_figure():
    directory = Directory({1: A}, (A, B))
    first = attribute(node(device(ProcessUse(1, 0.5, GIB))), directory)
    second = attribute(node(device(ratio=0.0, used=0)), directory, first)
    assert figures(second) == {"pod-a": (0.0, 0)}


def test_a_worker_that_left_the_directory_leaves_at_once():
    first = attribute(node(device(ProcessUse(1, 0.5, GIB))), Directory({1: A}))
    second = attribute(node(device()), Directory({}), first)
    assert second.uses == ()
    assert second.seen == frozenset()


def test_a_worker_is_remembered_on_a_device_while_that_is_lost():
    directory = Directory({1: A}, (A,))
    attribution = attribute(node(device(ProcessUse(1, 0.5, GIB))), directory)
    attribution = attribute(node(device(healthy=False, reason="lost")), directory, attribution)
    assert (attribution.uses, attribution.unattributed) == ((), ())
    assert figures(attribute(node(device()), directory, attribution)) == {"pod-a": (0.0, 0)}


@pytest.mark.parametrize("container", ["main", ""])
def test_a_worker_that_a_quota_places_on_a_device_is_idle_there(container):
    attribution = attribute(
        node(device()), Directory({}, (A,)), None, [(A.pod_uid, container, "GPU-a"), ("gone", "", "GPU-a")]
    )
    assert figures(attribution) == {"pod-a": (0.0, 0)}


def test_unknown_figures_stay_unknown():
    sample = node(device(ProcessUse(1, None, None), ProcessUse(2, 0.1, GIB), ratio=0.5))
    attribution = attribute(sample, Directory({1: A, 2: A}))
    assert figures(attribution) == {"pod-a": (None, None)}
    assert attribution.unattributed[0].compute_ratio is None
    assert attribution.unattributed[0].vram_bytes is None


def test_a_worker_alone_on_a_device_that_tells_of_no_process_has_the_devices_use():
    alone = device(ProcessUse(1, None, GIB), ProcessUse(2, None, GIB), ratio=0.5)
    attribution = attribute(node(alone), Directory({1: A, 2: A}))
    assert figures(attribution) == {"pod-a": (0.5, 2 * GIB)}
    assert attribution.unattributed[0].compute_ratio == 0


@pytest.mark.parametrize("owners", [{1: A}, {1: A, 2: B}], ids=["beside a stranger", "beside another"])
def test_workers_on_a_device_that_tells_of_no_process_are_unknown_when_they_share_it(owners):
    shared = device(ProcessUse(1, None, GIB), ProcessUse(2, None, GIB), ratio=0.5)
    attribution = attribute(node(shared), Directory(owners))
    assert {use.compute_ratio for use in attribution.uses} == {None}
    assert attribution.unattributed[0].compute_ratio is None


@pytest.mark.parametrize(("ratio", "expected"), [(0.5, None), (0.0, 0.0)])
def test_without_a_process_list_only_a_device_at_rest_proves_idleness(ratio, expected):
    sample = node(device(ratio=ratio, processes_known=False))
    attribution = attribute(sample, Directory({}, (A,)), None, [(A.pod_uid, "main", "GPU-a")])
    assert figures(attribution) == {"pod-a": (expected, None)}


ratios = st.none() | st.floats(0, 1)
sizes = st.none() | st.integers(0, 30 * GIB)
processes = st.lists(st.builds(ProcessUse, st.integers(1, 30), ratios, sizes), max_size=12, unique_by=lambda p: p.pid)


@given(processes, ratios, sizes, st.dictionaries(st.integers(1, 30), st.sampled_from([A, B])))
def test_for_any_sample_workers_fit_their_device_and_nothing_is_negative(listed, ratio, used, owners):
    attribution = attribute(node(device(*listed, ratio=ratio, used=used)), Directory(owners))
    known = [use.compute_ratio for use in attribution.uses if use.compute_ratio is not None]
    assert all(0 <= value <= 1 for value in known)
    if ratio is not None:
        assert sum(known) <= ratio * 1.05 + 1e-9
    rest = attribution.unattributed[0]
    if rest.compute_ratio is not None:
        assert 0 <= rest.compute_ratio <= ratio
        assert ratio - 1e-9 <= rest.compute_ratio + sum(known) <= ratio * 1.05 + 1e-9
    if rest.vram_bytes is not None:
        assert rest.vram_bytes == max(0, used - sum(use.vram_bytes for use in attribution.uses))
    assert {use.worker for use in attribution.uses} == {owners[p.pid] for p in listed if p.pid in owners}


@given(processes, st.randoms(use_true_random=False))
def test_the_order_of_processes_does_not_matter(listed, random):
    directory = Directory(dict.fromkeys(range(1, 15), A) | dict.fromkeys(range(15, 25), B))
    shuffled = random.sample(listed, len(listed))
    one, other = (figures(attribute(node(device(*order)), directory)) for order in (listed, shuffled))
    assert one.keys() == other.keys()
    assert all(one[pod] == pytest.approx(other[pod]) for pod in one)
