"""The node's sentence with devices that fail: one stops nothing but itself, all of them stop nothing in force."""

import pytest

from agent.enforce.live import LastUse
from agent.enforce.simulated import SimulatedBackend
from agent.enforce.transition import Enforcer
from agent.export.exporter import Exporter
from agent.gpus import load_gpu_table
from agent.loop import Agent, Parts
from agent.model.samples import DeviceSample, NodeSample, ProcessUse, SourceError, Worker
from agent.quotas.store import QuotaStore
from autoscaler.contract.keys import QoS
from autoscaler.contract.quota import DeviceQuota, QuotaDocument, QuotaStatus, WorkerQuota

GIB = 1 << 30
A100 = "NVIDIA A100-SXM4-80GB"


class Script:
    """A source and directory that show what the test put there."""

    def __init__(self) -> None:
        self.devices: tuple[DeviceSample, ...] = (gpu(0, ("a", 0.25, 2 * GIB)), gpu(1, ("b", 0.5, 3 * GIB)))
        self.broken = ""

    def sample(self, now: float) -> NodeSample:
        if self.broken:
            raise SourceError(self.broken)
        return NodeSample(now, self.devices, "test")

    def close(self) -> None:
        pass

    def worker_of(self, pid: int) -> Worker:
        return worker(chr(pid))

    def workers(self) -> tuple[Worker, ...]:
        return worker("a"), worker("b")


def worker(name: str) -> Worker:
    return Worker(f"uid-{name}", "ns", name, "main", name, born=DeviceQuota("", 10.0, 50.0, GIB, 8 * GIB))


def gpu(index: int, *uses: tuple[str, float, int], reason: str = "") -> DeviceSample:
    processes = tuple(ProcessUse(ord(name), ratio, vram) for name, ratio, vram in uses)
    used = sum(vram for _, _, vram in uses)
    busy = sum(ratio for _, ratio, _ in uses)
    healthy = not reason
    return DeviceSample(
        index, f"GPU-{index}", A100, 0.0, 80 * GIB, used, busy, 1.0, processes, healthy, reason
    )  # fmt: skip


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def agent(tmp_path, script) -> Agent:
    live_use, gpus = LastUse(), load_gpu_table()
    enforcer = Enforcer(SimulatedBackend(live_use, tmp_path / "limits"))
    exporter = Exporter(gpus, render_every_seconds=0)
    return Agent("n1", Parts(script, script, enforcer, live_use, QuotaStore(tmp_path), exporter, gpus))


def states(status: QuotaStatus):
    return {worker.pod: worker.devices[0] for worker in status.workers}


def document(*limits: tuple[str, int, float], generation: int = 1) -> QuotaDocument:
    return QuotaDocument(
        1,
        generation,
        "n1",
        tuple(
            WorkerQuota(
                f"uid-{name}", "ns", name, name, QoS.LOW, (DeviceQuota(f"GPU-{gpu}", 1.0, tflops, GIB, 8 * GIB),)
            )
            for name, gpu, tflops in limits
        ),
    )


def test_a_lost_device_keeps_its_limits_and_the_other_takes_new_ones(agent, script):
    agent.tick(0)
    script.devices = (gpu(0, reason="GPU is lost"), gpu(1, ("b", 0.5, 3 * GIB)))
    agent.tick(1)
    found = states(agent.put(document(("a", 0, 20.0), ("b", 1, 30.0)), 2))
    assert found["b"].applied
    assert found["b"].observed.tflops_limit == 30
    assert not found["a"].applied
    assert found["a"].reason.startswith("DeviceUnavailable: GPU-0")
    assert found["a"].observed.tflops_limit == 50
    script.devices = (gpu(0, ("a", 0.25, 2 * GIB)), gpu(1, ("b", 0.5, 3 * GIB)))
    agent.tick(3)
    assert states(agent.state())["a"].observed.tflops_limit == 20


def test_the_series_of_a_lost_device_stop_and_those_of_the_other_go_on(agent, script):
    agent.tick(0)
    script.devices = (gpu(0, reason="GPU is lost"), gpu(1, ("b", 0.5, 3 * GIB)))
    agent.tick(1)
    used = [
        line
        for line in agent.exposition(openmetrics=False).decode().splitlines()
        if line.startswith("tensor_fusion_worker_vram_used")
    ]
    assert len(used) == 1
    assert 'pod="b"' in used[0]


def test_an_unusable_driver_changes_nothing_that_is_in_force(agent, script):
    agent.tick(0)
    before = agent.state()
    script.broken = "driver unloaded"
    with pytest.raises(SourceError, match="driver unloaded"):
        agent.tick(1)
    assert agent.state() == before
    assert states(agent.put(document(("a", 0, 33.0)), 2))["a"].observed.tflops_limit == 33


def test_use_is_shown_in_tflops_of_the_device(agent):
    agent.tick(0)
    assert states(agent.state())["a"].observed.tflops_used == pytest.approx(312 * 0.25)


def test_an_entry_without_container_finds_the_pods_worker(agent):
    agent.tick(0)
    (found,) = (worker for worker in agent.put(document(("a", 0, 33.0)), 1).workers if worker.pod == "a")
    assert (found.container, found.devices[0].observed.tflops_limit) == ("main", 33)


def test_a_worker_that_the_next_document_leaves_out_falls_back_to_its_born_amounts(agent):
    agent.tick(0)
    agent.put(document(("a", 0, 33.0), ("b", 1, 33.0)), 1)
    found = states(agent.put(document(("b", 1, 33.0), generation=2), 2))
    assert (found["a"].observed.tflops_limit, found["b"].observed.tflops_limit) == (50, 33)


def test_contact_overruns_and_attempts_are_counted(agent):
    agent.tick(0)
    agent.contacted(5)
    agent.overran()
    agent.tick(10)
    text = agent.exposition(openmetrics=False).decode()
    assert 'tensor_fusion_agent_tick_overrun_total{node="n1"} 1.0' in text
    assert 'tensor_fusion_agent_last_controller_contact_seconds{node="n1"} 5.0' in text
    assert (
        'tensor_fusion_agent_apply_total{backend="simulated",effect="immediate",node="n1",result="applied"} 2.0' in text
    )


def test_going_around_a_limit_is_shown_and_the_quota_counts_as_applied_all_the_same(agent, script):
    script.devices = (gpu(0, ("a", 0.75, 2 * GIB), ("b", 0.1, GIB)),)
    agent.tick(0.0)
    agent.put(document(("a", 0, 50.0)), 0.0)
    for second in range(1, 20):
        agent.tick(float(second))
    found, other = (states(agent.state())[name] for name in "ab")
    assert found.applied
    assert found.reason.startswith("LimitBypassed: ")
    assert (other.applied, other.reason) == (True, "")
    body = agent.exposition(openmetrics=False).decode()
    values = [line.rsplit(" ", 1)[1] for line in body.splitlines() if line.startswith("tensor_fusion_worker_limit_by")]
    assert sorted(values) == ["0.0", "1.0"]


@pytest.mark.parametrize(("forced", "limit_gib"), [(False, 2), (True, 1)])
def test_a_limit_below_what_is_in_use_stops_at_the_use_unless_it_is_forced(tmp_path, script, forced, limit_gib):
    live_use, gpus = LastUse(), load_gpu_table()
    backend = SimulatedBackend(live_use, tmp_path / "limits", shrink_below_use=forced)
    parts = Parts(
        *(script, script, Enforcer(backend), live_use, QuotaStore(tmp_path), Exporter(gpus, 0), gpus),
        shrink_below_use=forced,
    )
    agent = Agent("n1", parts)
    agent.tick(0.0)
    entry = WorkerQuota("uid-a", "ns", "a", "a", QoS.LOW, (DeviceQuota("GPU-0", 1.0, 50.0, GIB, GIB),))
    agent.put(QuotaDocument(1, 1, "n1", (entry,)), 1.0)
    agent.tick(2.0)
    found = states(agent.state())["a"]
    assert found.observed.vram_used_bytes == 2 * GIB
    assert found.observed.vram_limit_bytes == limit_gib * GIB
    assert found.applied == forced
    assert ("VRAMInUse" in found.reason) != forced


def test_seconds_in_which_a_backend_held_a_worker_back_are_counted(tmp_path, script):
    live_use, gpus = LastUse(), load_gpu_table()
    enforcer = Enforcer(SimulatedBackend(live_use, tmp_path / "limits"))
    held = {("uid-a", "main", "GPU-0"): True, ("uid-b", "main", "GPU-1"): None}
    exporter, store = Exporter(gpus, render_every_seconds=0), QuotaStore(tmp_path)
    agent = Agent("n1", Parts(script, script, enforcer, live_use, store, exporter, gpus, throttled=lambda: held))
    for second in range(4):
        agent.tick(float(second))
    body = agent.exposition(openmetrics=False).decode()
    lines = [line for line in body.splitlines() if line.startswith("tensor_fusion_worker_throttled_seconds_total{")]
    assert [line.rsplit(" ", 1)[1] for line in lines] == ["3.0"]
    assert 'pod="a"' in lines[0]


class Tampered(SimulatedBackend):
    """Had to put three limits right."""

    def restored(self) -> int:
        return 3


def test_limits_that_were_put_right_are_told_to_prometheus(tmp_path, script):
    live_use, gpus = LastUse(), load_gpu_table()
    parts = Parts(script, script, Enforcer(Tampered(live_use)), live_use, QuotaStore(tmp_path), Exporter(gpus, 0), gpus)
    agent = Agent("n1", parts)
    for second in range(2):
        agent.tick(float(second))
    (line,) = [
        line
        for line in agent.exposition(openmetrics=False).decode().splitlines()
        if "restored" in line and line[0] != "#"
    ]
    assert line.startswith("tensor_fusion_agent_apply_total{")
    assert line.endswith(" 3.0")
