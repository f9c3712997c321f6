"""Which worker has which device, as the kubelet tells: ids, twins, claims, restarts, and what it goes before."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
from grpclib.const import Status

from agent.attribute import attribute
from agent.govern.pool import lay_out
from agent.kubelet.fake import FakeKubelet
from agent.kubelet.resources import Allocation
from agent.kubelet.sockets import POD_RESOURCES
from agent.model.samples import DeviceSample, NodeSample, Worker
from agent.pods import allocated as allocating
from agent.pods.allocated import AllocatedDevices, Answer, device_uuid, devices_of
from agent.pods.directory import PodDirectory, QuotaPods
from agent.pods.placed import PlacedPods
from agent.pods.spec import KnownPod
from agent.pods.table import Listing, PodTable
from autoscaler.contract import keys
from autoscaler.contract.keys import QoS
from autoscaler.contract.quota import DeviceQuota, QuotaDocument, WorkerQuota
from tests.agent.kubelets import GPU_A, GPU_B, MIG, NODE, given, kubelet_in, pod, running, until


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocating, "EVERY_SECONDS", 0.05)
    monkeypatch.setattr(allocating, "LEAST_SECONDS", 0.01)
    monkeypatch.setattr(allocating, "LONGEST_PAUSE_SECONDS", 0.05)


class Pods:
    """A source whose pods a test changes."""

    def __init__(self, *pods: Mapping[str, Any]) -> None:
        self._table = PodTable(NODE)
        self.become(*pods)

    def become(self, *pods: Mapping[str, Any]) -> None:
        listing = Listing()
        for one in pods:
            listing.take(one)
        self._table.replace(listing)

    def pods(self) -> Mapping[str, KnownPod] | None:
        return self._table.pods()


def devices(source: PlacedPods) -> dict[tuple[str, str], tuple[str, ...]]:
    workers = [worker for found in (source.pods() or {}).values() for worker in found.workers]
    return {(worker.pod_uid, worker.container): worker.devices for worker in workers}


def answered(*allocations: Allocation, asked: int = 0, number: int = 1) -> AllocatedDevices:
    """Return one that asks nobody and has this answer."""
    found = AllocatedDevices(Path("nowhere"))
    found.asked = asked
    found._answer = Answer(number, devices_of(allocations, {})[0])
    return found


@pytest.mark.parametrize(
    ("device_id", "uuid"),
    [
        (GPU_A, GPU_A),
        (f"{GPU_A}::0", GPU_A),
        (f"{GPU_A}::12", GPU_A),
        (MIG, MIG),
        (f"{MIG}::3", MIG),
        (f"{GPU_A}-3", None),  # HAMi's: which device is taken is decided elsewhere
        ("nvidia0/vgpu1", None),
        ("nvidia0", None),
        ("GPU-", None),
        ("", None),
        (f"{GPU_A}::", None),
    ],
)
def test_ids_of_devices_and_their_replicas_name_a_device_and_others_none(device_id: str, uuid: str | None) -> None:
    assert device_uuid(device_id) == uuid


def test_replicas_of_one_device_are_one_device_and_other_ids_are_counted() -> None:
    found, ignored = devices_of([given("web", f"{GPU_A}::1", f"{GPU_A}::2", GPU_B, "eth0")], {})
    assert (found, ignored) == ({("chat", "web", "main"): (GPU_A, GPU_B)}, 1)


def test_of_two_pods_of_one_name_neither_is_given_anything() -> None:
    found, _ = devices_of([given("web", GPU_A), given("web", GPU_B), given("other", GPU_B)], {})
    assert found == {("chat", "other", "main"): (GPU_B,)}


def test_each_container_has_the_devices_that_the_kubelet_gave_it() -> None:
    two = pod("web", containers=("main", "side"))
    source = PlacedPods(Pods(two), answered(given("web", GPU_A), given("web", GPU_B, container="side")))
    assert devices(source) == {("uid-web", "main"): (GPU_A,), ("uid-web", "side"): (GPU_B,)}


def test_what_the_kubelet_says_goes_before_the_note_that_a_pod_bears() -> None:
    claims_b = pod("web", **{keys.GPU_IDS: GPU_B})
    assert devices(PlacedPods(Pods(claims_b), answered())) == {("uid-web", "main"): (GPU_B,)}
    assert devices(PlacedPods(Pods(claims_b), answered(given("web", GPU_A)))) == {("uid-web", "main"): (GPU_A,)}


def test_a_container_of_which_the_kubelet_names_no_gpu_keeps_its_note() -> None:
    noted = pod("web", **{keys.GPU_IDS: GPU_B})
    allocations = given("web", "eth0"), given("other", GPU_A)
    assert devices(PlacedPods(Pods(noted), answered(*allocations))) == {("uid-web", "main"): (GPU_B,)}


def test_a_pod_that_came_after_the_question_waits_for_the_next_answer() -> None:
    """A StatefulSet's pod has the name of the one before it, whose devices an old answer tells."""
    source = PlacedPods(Pods(pod("web-0", uid="new")), answered(given("web-0", GPU_A), asked=1, number=1))
    assert devices(source) == {("new", "main"): ()}
    source._allocated._answer = Answer(2, {("chat", "web-0", "main"): (GPU_B,)})
    assert devices(source) == {("new", "main"): (GPU_B,)}


def test_a_pod_that_waited_is_given_what_the_next_answer_says_though_it_says_the_same() -> None:
    asked = answered(given("web-0", GPU_A), asked=1, number=1)
    source = PlacedPods(Pods(pod("web-0", uid="new")), asked)
    assert devices(source) == {("new", "main"): ()}
    assert asked._answer is not None
    asked._answer = Answer(2, asked._answer.devices)
    assert devices(source) == {("new", "main"): (GPU_A,)}


def test_a_static_pod_stays_one_pod_under_both_of_its_uids() -> None:
    source = PlacedPods(Pods(pod("web", **{"kubernetes.io/config.hash": "f" * 32})), answered(given("web", GPU_A)))
    found = source.pods() or {}
    assert set(found) == {"uid-web", "f" * 32}
    assert found["uid-web"] is found["f" * 32]
    assert found["uid-web"].workers[0].devices == (GPU_A,)


def test_the_same_answer_again_is_the_same_object() -> None:
    asked = answered(given("web", GPU_A))
    source = PlacedPods(Pods(pod("web")), asked)
    before = source.pods()
    asked._answer = Answer(2, dict(asked._answer.devices if asked._answer else {}))
    assert source.pods() is before
    asked._answer = Answer(3, {("chat", "web", "main"): (GPU_B,)})
    assert source.pods() is not before


def test_workers_that_only_a_document_names_have_the_kubelets_devices_too() -> None:
    quota = WorkerQuota("uid-web", "chat", "web", "web", QoS.HIGH, (DeviceQuota(GPU_B, 1.0, 2.0, 1, 2),), "main")
    document = QuotaDocument(1, 1, NODE, (quota,))
    source = PlacedPods(QuotaPods(lambda: document), answered(given("web", GPU_A)))
    assert devices(source) == {("uid-web", "main"): (GPU_A,)}


def sample(*uuids: str) -> NodeSample:
    return NodeSample(1.0, tuple(DeviceSample(i, uuid, "H100", 1.0, 80 << 30, 0, 0.0) for i, uuid in enumerate(uuids)))


class Known:
    def __init__(self, workers: tuple[Worker, ...]) -> None:
        self._workers = workers

    def workers(self) -> tuple[Worker, ...]:
        return self._workers

    def worker_of(self, pid: int) -> Worker | None:
        return None


def placed_workers(*allocations: Allocation) -> tuple[Worker, ...]:
    source = PlacedPods(Pods(pod("web")), answered(*allocations))
    return PodDirectory(Path("/nowhere"), [source]).workers()


def test_an_idle_worker_shows_as_zero_and_has_its_limit_before_its_first_process() -> None:
    workers = placed_workers(given("web", f"{GPU_A}::4"))
    placed = {(*worker.id, uuid) for worker in workers for uuid in worker.devices}
    found = attribute(sample(GPU_A, GPU_B), Known(workers), None, placed)
    assert [(use.uuid, use.compute_ratio, use.vram_bytes) for use in found.uses] == [(GPU_A, 0.0, 0)]
    (place,) = lay_out(None, workers, found).places.values()
    assert (place[1].uuid, place[1].vram_limit_bytes) == (GPU_A, 8 << 30)


def test_the_document_goes_before_the_kubelet() -> None:
    workers = placed_workers(given("web", GPU_A))
    quota = WorkerQuota("uid-web", "chat", "web", "web", QoS.HIGH, (DeviceQuota(GPU_B, 1.0, 2.0, 1, 2),), "main")
    found = attribute(sample(GPU_A, GPU_B), Known(workers), None, {("uid-web", "main", GPU_B)})
    layout = lay_out(QuotaDocument(1, 1, NODE, (quota,)), workers, found)
    assert set(layout.places) == {("uid-web", "main", GPU_B)}


# --- asking


async def test_devices_are_asked_for_again_and_again_and_sooner_when_pods_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocating, "EVERY_SECONDS", 3600.0)
    pods = Pods(pod("a"))
    async with kubelet_in(tmp_path, pods=False) as kubelet:
        allocated = AllocatedDevices(tmp_path / POD_RESOURCES)
        source = PlacedPods(pods, allocated)
        async with running(allocated):
            kubelet.allocations = (given("a", GPU_A), given("b", GPU_B))
            await until(lambda: devices(source) == {("uid-a", "main"): (GPU_A,)})
            pods.become(pod("a"), pod("b"))
            await until(lambda: devices(source).get(("uid-b", "main")) == (GPU_B,))


async def test_the_kubelet_is_asked_gently_however_often_pods_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocating, "EVERY_SECONDS", 3600.0)
    async with kubelet_in(tmp_path, pods=False) as kubelet:
        allocated = AllocatedDevices(tmp_path / POD_RESOURCES)
        async with running(allocated):
            for number in range(1, 4):
                await until(lambda: len(kubelet.calls) >= number)  # noqa: B023  awaited at once
                for _ in range(1000):
                    allocated.want()
    assert len(kubelet.calls) == 3


async def test_the_last_answer_stays_while_the_kubelet_is_away_and_a_new_one_replaces_it(tmp_path: Path) -> None:
    kubelet = FakeKubelet(tmp_path)
    kubelet.allocations = (given("web", GPU_A),)
    allocated = AllocatedDevices(tmp_path / POD_RESOURCES)
    source = PlacedPods(Pods(pod("web")), allocated)
    with structlog.testing.capture_logs() as lines:
        async with running(allocated):
            await kubelet.start(pods=False)
            await until(lambda: devices(source) == {("uid-web", "main"): (GPU_A,)})
            await kubelet.stop()
            kubelet.refuses = Status.UNAVAILABLE
            await kubelet.start(pods=False)
            asked = len(kubelet.calls)
            await until(lambda: len(kubelet.calls) >= asked + 4)
            assert devices(source) == {("uid-web", "main"): (GPU_A,)}
            kubelet.refuses, kubelet.allocations = None, (given("web", GPU_B),)
            await until(lambda: devices(source) == {("uid-web", "main"): (GPU_B,)})
            await kubelet.stop()
    told = [line["error"] for line in lines if line["event"] == "kubelet_devices_unknown"]
    assert (len(told), "UNAVAILABLE" in told[-1]) == (len(set(told)), True)


async def test_without_a_socket_nothing_is_asked_and_notes_stand(tmp_path: Path) -> None:
    allocated = AllocatedDevices(tmp_path / POD_RESOURCES)
    source = PlacedPods(Pods(pod("web", **{keys.GPU_IDS: GPU_B})), allocated)
    async with running(allocated):
        assert devices(source) == {("uid-web", "main"): (GPU_B,)}
    assert (allocated.asked, allocated.answer()) == (0, None)


async def test_a_socket_that_goes_away_is_told_and_one_that_never_was_is_not(tmp_path: Path) -> None:
    never = AllocatedDevices(tmp_path / "never.sock")
    allocated = AllocatedDevices(tmp_path / POD_RESOURCES)
    with structlog.testing.capture_logs() as lines:
        async with running(never, allocated):
            async with kubelet_in(tmp_path, pods=False):
                await until(lambda: allocated.answer() is not None)
            await until(lambda: len(lines) == 2)
    assert [line["event"] for line in lines] == ["devices_followed", "kubelet_devices_unknown"]
    assert "is not there" in lines[1]["error"]


async def test_a_question_that_is_not_answered_blocks_nobody_who_asks_for_pods(tmp_path: Path) -> None:
    async with kubelet_in(tmp_path, pods=False) as kubelet:
        kubelet.hangs = True
        allocated = AllocatedDevices(tmp_path / POD_RESOURCES)
        source = PlacedPods(Pods(pod("web")), allocated)
        async with running(allocated):
            await until(lambda: bool(kubelet.calls))
            # In the thread of a tick, as in life.
            found = await asyncio.wait_for(asyncio.to_thread(devices, source), 1.0)
            assert found == {("uid-web", "main"): ()}
