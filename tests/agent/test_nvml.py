"""NVML through the real nvidia-ml-py and a C library with NVML's ABI, steered live."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest
import structlog

from agent.model.samples import ProcessUse, SourceError
from agent.nvml.source import NvmlSource
from tests.agent.nvml_standin import (
    FIRST_INSTANCE,
    GIB,
    NOT_AVAILABLE,
    Device,
    Error,
    Instance,
    NvmlStandIn,
    Process,
    Sample,
    State,
)

ROOT = Path(__file__).parents[2]
T0 = 1_700_000_000.0
GPU_IS_LOST, NOT_SUPPORTED, UNKNOWN, UNINITIALIZED, DRIVER_NOT_LOADED = 15, 3, 999, 1, 9
TWO = (Device("GPU-a", "NVIDIA L4", 24 * GIB, 4 * GIB, 50), Device("GPU-b", "NVIDIA A40", 48 * GIB, 0, 0))


def us(seconds: float) -> int:
    return round(seconds * 1e6)


@pytest.fixture
def load(tmp_path, monkeypatch) -> Callable[..., NvmlStandIn]:
    """Put a stand-in in the place of the loaded library, for this test."""

    def place(*without: str) -> NvmlStandIn:
        standin = NvmlStandIn(tmp_path, without)
        standin.take_place(monkeypatch)
        return standin

    return place


@pytest.fixture
def standin(load):
    return load()


@pytest.fixture
def source():
    source = NvmlSource(list_seconds=3.0, reprobe_seconds=2.0)
    yield source
    source.close()


def compute(sample, index=0):
    return {p.pid: p.compute_ratio for p in sample.devices[index].processes}


def test_devices_are_read_with_their_memory_use_and_driver(standin, source):
    standin.write(State(TWO, driver_version="580.1"))
    sample = source.sample(T0)
    first, second = sample.devices
    assert sample.driver_version == "580.1"
    assert (first.uuid, first.model, first.vram_total_bytes, first.vram_used_bytes) == (
        "GPU-a",
        "NVIDIA L4",
        24 * GIB,
        4 * GIB,
    )
    assert (first.compute_ratio, second.compute_ratio) == (0.5, 0.0)
    assert (first.healthy, first.processes_known, first.sampled_at) == (True, True, T0)


def test_a_process_has_the_ratio_and_memory_that_the_driver_gave(standin, source):
    processes = (Process(0, 41, 3 * GIB), Process(0, 42, GIB))
    standin.write(State(TWO, processes, (Sample(0, 41, us(T0 - 0.2), 40),)))
    assert source.sample(T0).devices[0].processes == (ProcessUse(41, 0.4, 3 * GIB), ProcessUse(42, 0.0, GIB))


def test_the_first_tick_does_not_ask_for_the_drivers_whole_buffer(standin, source):
    standin.write(State(TWO, samples=(Sample(0, 41, us(T0 - 9), 90),)))
    assert compute(source.sample(T0)) == {}


@pytest.mark.parametrize("zero_rows", [False, True])
def test_no_new_sample_on_an_idle_device_is_zero_and_no_error(standin, source, zero_rows):
    idle = (Device("GPU-a"),)
    standin.write(State(idle, (Process(0, 41),), (Sample(0, 41, us(T0), 80),), zero_rows=zero_rows))
    assert compute(source.sample(T0)) == {41: 0.8}
    assert compute(source.sample(T0 + 1)) == {41: 0.0}
    assert source.stats().errors == {}


def test_a_busy_device_without_new_samples_holds_the_last_value_for_two_seconds(standin, source):
    standin.write(State(TWO, (Process(0, 41),), (Sample(0, 41, us(T0), 80),)))
    ticks = [source.sample(T0 + second) for second in range(4)]
    assert [compute(tick)[41] for tick in ticks] == [0.8, 0.8, 0.8, 0.0]
    assert [tick.devices[0].sampled_at for tick in ticks] == [T0, T0, T0, T0 + 3]


def test_samples_that_cannot_be_true_are_dropped_and_counted(standin, source):
    bad = (Sample(0, 41, us(T0 - 5), 70), Sample(0, 42, us(T0 + 60), 70), Sample(0, 43, us(T0), 101))
    standin.write(State((Device("GPU-a"),), samples=(*bad, Sample(0, 44, us(T0), 30)), whole_buffer=True))
    assert compute(source.sample(T0)) == {44: 0.3}
    assert source.stats().dropped == {"stale": 1, "future": 1, "over_100_percent": 1}


def test_a_clock_set_back_does_not_hide_the_samples_that_follow(standin, source):
    standin.write(State((Device("GPU-a"),), samples=(Sample(0, 41, us(T0), 80),)))
    source.sample(T0)
    standin.write(State((Device("GPU-a"),), samples=(Sample(0, 41, us(T0 - 3595), 60),)))
    assert compute(source.sample(T0 - 3600)) == {}
    assert compute(source.sample(T0 - 3594)) == {41: 0.6}


def test_memory_that_the_driver_cannot_tell_is_none(standin, source):
    standin.write(State(TWO, (Process(0, 41, NOT_AVAILABLE),)))
    assert source.sample(T0).devices[0].processes[0].vram_bytes is None


def test_a_lost_gpu_is_unhealthy_alone_and_comes_back(standin, source):
    standin.write(State(TWO))
    source.sample(T0)
    standin.write(State(TWO, errors=(Error("nvmlDeviceGetUtilizationRates", GPU_IS_LOST, 0),)))
    lost, other = source.sample(T0 + 1).devices
    assert (lost.healthy, lost.uuid, lost.vram_used_bytes, lost.compute_ratio) == (False, "GPU-a", None, None)
    assert "gpu_is_lost" in lost.reason
    assert other.healthy
    standin.write(State(TWO))
    assert [source.sample(T0 + second).devices[0].healthy for second in (2, 3)] == [False, True]
    assert source.stats().errors["nvmlDeviceGetUtilizationRates", "gpu_is_lost"] == 1


def test_a_gpu_that_cannot_be_opened_does_not_stop_the_others(standin, source):
    standin.write(State(TWO, errors=(Error("nvmlDeviceGetHandleByIndex_v2", UNKNOWN, 0),)))
    broken, other = source.sample(T0).devices
    assert not broken.healthy
    assert "cannot be identified" in broken.reason
    assert other.uuid == "GPU-b"


@pytest.mark.parametrize("code", [UNINITIALIZED, DRIVER_NOT_LOADED])
def test_a_driver_that_was_reloaded_is_taken_up_again(standin, source, code):
    standin.write(State(TWO))
    source.sample(T0)
    standin.write(State(TWO, errors=(Error("nvmlDeviceGetMemoryInfo_v2", code),)))
    with pytest.raises(SourceError):
        source.sample(T0 + 1)
    standin.write(State(TWO))
    assert [device.healthy for device in source.sample(T0 + 2).devices] == [True, True]


def test_a_library_shut_down_behind_our_back_is_opened_within_the_same_tick(standin, source):
    standin.write(State(TWO))
    source.sample(T0)
    pynvml.nvmlShutdown()
    assert source.sample(T0 + 1).devices[0].healthy


def test_a_driver_that_does_not_start_is_a_source_error_each_time(standin, source):
    standin.write(State(TWO, errors=(Error("nvmlInitWithFlags", DRIVER_NOT_LOADED),)))
    for second in range(2):
        with pytest.raises(SourceError):
            source.sample(T0 + second)
    assert source.stats().errors["nvmlInit", "driver_not_loaded"] == 2


def test_figures_whose_symbol_is_missing_are_none_and_the_rest_stays(load, source):
    standin = load(
        "nvmlDeviceGetProcessUtilization", "nvmlDeviceGetSamples", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetMPSComputeRunningProcesses_v3",
    )  # fmt: skip
    standin.write(State(TWO, (Process(0, 41, GIB),)))
    device = [source.sample(T0 + second) for second in range(2)][1].devices[0]
    assert device.healthy
    assert device.compute_ratio is None
    assert device.vram_used_bytes == 4 * GIB
    assert device.processes == (ProcessUse(41, None, GIB),)
    assert source.stats().errors["nvmlDeviceGetProcessUtilization", "function_not_found"] == 2  # once a device


def test_without_a_process_list_no_absence_means_idle(load, source):
    standin = load("nvmlDeviceGetComputeRunningProcesses_v3")
    standin.write(State(TWO, samples=(Sample(0, 41, us(T0), 40),)))
    device = source.sample(T0).devices[0]
    assert not device.processes_known
    assert device.processes == (ProcessUse(41, 0.4, None),)


def test_process_lists_are_read_rarely_but_at_once_when_the_active_processes_change(standin, source):
    def lists() -> int:
        durations = source.stats().calls["nvmlDeviceGetComputeRunningProcesses_v3"]
        return sum(durations.counts)

    standin.write(State(TWO[:1], (Process(0, 41, GIB),)))
    counts = []
    for second in range(4):
        source.sample(T0 + second)
        counts.append(lists())
    assert counts == [1, 1, 1, 2]
    standin.write(State(TWO[:1], (Process(0, 41, GIB), Process(0, 42, GIB)), (Sample(0, 42, us(T0 + 4), 10),)))
    assert source.sample(T0 + 4).devices[0].processes[1] == ProcessUse(42, 0.1, GIB)
    assert lists() == 3


def test_processes_that_come_and_go_many_times_a_second_bring_no_more_than_a_list_a_second(standin, source):
    for half in range(20):
        busy = (Sample(0, 41, us(T0 + half / 2), 20),) if half % 3 else ()
        standin.write(State((Device("GPU-a"),), (Process(0, 41, GIB),), busy))
        source.sample(T0 + half / 2)
    assert 5 <= sum(source.stats().calls["nvmlDeviceGetComputeRunningProcesses_v3"].counts) <= 10


def test_memory_that_grows_is_told_apart_at_once(standin, source):
    standin.write(State((Device("GPU-a", total_bytes=24 * GIB, used_bytes=GIB),), (Process(0, 41, GIB),)))
    source.sample(T0)
    standin.write(State((Device("GPU-a", total_bytes=24 * GIB, used_bytes=2 * GIB),), (Process(0, 41, 2 * GIB),)))
    assert source.sample(T0 + 0.5).devices[0].processes == (ProcessUse(41, 0.0, 2 * GIB),)


def test_the_second_of_two_devices_with_one_uuid_is_unhealthy_with_the_reason(standin, source):
    standin.write(State((TWO[0], TWO[0])))
    with structlog.testing.capture_logs() as logs:
        first, twin = [source.sample(T0 + second) for second in range(3)][-1].devices
    assert [entry["event"] for entry in logs] == ["device_uuid_twice"]
    assert first.healthy
    assert (twin.healthy, twin.index) == (False, 1)
    assert "GPU-a" in twin.reason


def test_the_device_ratio_is_the_mean_since_the_last_tick_where_the_driver_keeps_it(standin, source):
    means = tuple(Sample(0, None, us(T0 + 0.2 * n), percent) for n, percent in enumerate((90, 100, 0, 20, 0)))
    standin.write(State(TWO, samples=means))
    source.sample(T0)
    assert source.sample(T0 + 1).devices[0].compute_ratio == pytest.approx(0.3)


def test_a_device_was_busy_at_least_as_long_as_its_busiest_process(standin, source):
    standin.write(State((Device("GPU-a", percent=0),), samples=(Sample(0, 41, us(T0), 80),)))
    assert source.sample(T0).devices[0].compute_ratio == 0.8


def test_a_failing_call_is_none_this_tick_and_counted_by_code(standin, source):
    standin.write(State(TWO, errors=(Error("nvmlDeviceGetUtilizationRates", UNKNOWN, 0),)))
    assert source.sample(T0).devices[0].compute_ratio is None
    assert source.stats().errors == {("nvmlDeviceGetUtilizationRates", "unknown"): 1}
    standin.write(State(TWO))
    assert source.sample(T0 + 1).devices[0].compute_ratio == 0.5


def test_a_process_that_only_draws_is_listed_rarely_and_its_memory_counts(standin, source):
    drawing = Process(0, 50, GIB, kind="graphics")
    for second in range(30):
        busy = (Sample(0, 50, us(T0 + second), 20),)
        standin.write(State(TWO[:1], (Process(0, 41, 2 * GIB), drawing), busy))
        assert ProcessUse(50, 0.2, GIB) in source.sample(T0 + second).devices[0].processes
    lists = {name: sum(durations.counts) for name, durations in source.stats().calls.items()}
    assert lists["nvmlDeviceGetComputeRunningProcesses_v3"] == 10
    assert lists["nvmlDeviceGetGraphicsRunningProcesses_v3"] == 1


def test_who_computes_without_being_listed_is_looked_for_among_those_that_draw(standin, source):
    standin.write(State(TWO[:1], (Process(0, 41, GIB),)))
    source.sample(T0)
    drawing = (Process(0, 50, GIB, kind="graphics"),)
    standin.write(State(TWO[:1], drawing, (Sample(0, 50, us(T0 + 1), 30),)))
    assert source.sample(T0 + 1).devices[0].processes == (ProcessUse(50, 0.3, GIB),)


SERVER = Process(0, 40, 0, name="/usr/bin/nvidia-cuda-mps-server")
BUSY = (Device("GPU-a", percent=60),)


def clients(*pids: int) -> tuple[Process, ...]:
    return tuple(Process(0, pid, GIB, kind="client") for pid in pids)


def test_compute_of_mps_clients_is_unknown_where_the_driver_gives_it_to_their_server(standin, source):
    standin.write(State(BUSY, (SERVER, *clients(41, 42)), (Sample(0, 40, us(T0), 60),)))
    with structlog.testing.capture_logs() as logs:
        device, again = (source.sample(T0 + second).devices[0] for second in range(2))
    assert device.processes == (ProcessUse(40, 0.6, 0), ProcessUse(41, None, GIB), ProcessUse(42, None, GIB))
    assert "MPS" in device.note
    assert again.processes[1:] == device.processes[1:]
    assert [entry["event"] for entry in logs] == ["device_tells_less"]


def test_a_server_of_one_mps_client_works_for_that_client(standin, source):
    standin.write(State(BUSY, (SERVER, *clients(41)), (Sample(0, 40, us(T0), 60),)))
    device = source.sample(T0).devices[0]
    assert device.processes == (ProcessUse(40, 0.0, 0), ProcessUse(41, 0.6, GIB))
    assert device.note == ""


def test_mps_clients_that_the_driver_tells_apart_are_idle_when_absent(standin, source):
    standin.write(State(BUSY, (SERVER, *clients(41, 42)), (Sample(0, 41, us(T0), 60),)))
    assert compute(source.sample(T0)) == {40: 0.0, 41: 0.6, 42: 0.0}
    standin.write(State(BUSY, (SERVER, *clients(41, 42)), (Sample(0, 40, us(T0 + 1), 10),)))
    assert compute(source.sample(T0 + 1)) == {40: 0.1, 41: 0.0, 42: 0.0}


def test_mps_clients_of_a_device_at_rest_are_idle(standin, source):
    standin.write(State((Device("GPU-a"),), (SERVER, *clients(41, 42))))
    assert compute(source.sample(T0)) == {40: 0.0, 41: 0.0, 42: 0.0}


HOPPER = Device("GPU-a", "NVIDIA H100 80GB HBM3", 80 * GIB, mig=True, gpm=True, cores=132 * 128, capability=9)
SMALL = Instance("MIG-a", gi=7, sms=16, total_bytes=10 * GIB, used_bytes=GIB)
LARGE = Instance("MIG-b", gi=2, sms=60, slices=3, total_bytes=40 * GIB)


def test_a_gpu_in_mig_mode_is_sampled_as_its_instances(standin, source):
    on_small = Process(FIRST_INSTANCE, 41, GIB)
    standin.write(State((HOPPER, TWO[1]), (on_small,), instances=(SMALL, LARGE)))
    small, large, whole = source.sample(T0).devices
    assert (small.uuid, small.model, small.vram_total_bytes, small.vram_used_bytes) == (
        "MIG-a",
        HOPPER.name,
        10 * GIB,
        GIB,
    )
    assert (small.mig_fraction, large.mig_fraction) == pytest.approx((16 / 132, 60 / 132))
    assert (small.processes, large.processes) == ((ProcessUse(41, None, GIB),), ())
    assert (whole.uuid, whole.mig_fraction) == ("GPU-b", 1.0)


def test_gpm_tells_what_an_instance_did_between_two_ticks(standin, source):
    for second, busy_us in enumerate((0, 250_000, 1_250_000)):
        busy = Instance("MIG-a", sms=16, busy_us=busy_us, clock_us=second * 1_000_000)
        standin.write(State((HOPPER,), instances=(busy,)))
        ratio = source.sample(T0 + second).devices[0].compute_ratio
        assert ratio == (None, 0.25, 1.0)[second]


def test_gpm_gives_its_last_figure_to_a_tick_that_comes_too_soon_and_leaks_no_samples(standin, source):
    ratios = []
    for tick in range(200):
        busy = Instance("MIG-a", sms=16, busy_us=tick * 40_000, clock_us=tick * 80_000)
        standin.write(State((HOPPER,), instances=(busy,)))
        ratios.append(source.sample(T0 + tick * 0.08).devices[0].compute_ratio)
    assert set(ratios[2:]) == {0.5}
    assert source.stats().errors == {}


def test_an_instance_whose_utilization_nobody_tells_says_why(standin, source):
    ampere = Device("GPU-a", "NVIDIA A100-SXM4-80GB", 80 * GIB, mig=True, cores=108 * 64, capability=8)
    standin.write(State((ampere,), instances=(Instance("MIG-a", sms=14),)))
    device = source.sample(T0).devices[0]
    assert (device.healthy, device.compute_ratio) == (True, None)
    assert "GPM" in device.note
    assert device.mig_fraction == pytest.approx(14 / 108)


def test_compute_instances_that_share_a_gpu_instance_are_not_told_apart(standin, source):
    pair = (Instance("MIG-a", gi=3, clock_us=1), Instance("MIG-b", gi=3, clock_us=1))
    standin.write(State((HOPPER,), instances=pair))
    for device in source.sample(T0).devices:
        assert device.compute_ratio is None
        assert "2 compute instances" in device.note


def test_instances_that_are_made_and_removed_are_found_at_the_next_look(standin, source):
    standin.write(State((HOPPER,)))
    (empty,) = source.sample(T0).devices
    assert (empty.uuid, empty.healthy) == ("GPU-a", False)
    standin.write(State((HOPPER,), instances=(SMALL, LARGE)))
    seen = [source.sample(T0 + second).devices for second in range(1, 4)]
    assert [device.uuid for device in seen[-1]] == ["MIG-a", "MIG-b"]
    standin.write(State((Device("GPU-a", "NVIDIA H100 80GB HBM3", 80 * GIB, capability=9),)))
    seen = [source.sample(T0 + second).devices for second in range(4, 7)]
    assert [(device.uuid, device.healthy) for device in seen[-1]] == [("GPU-a", True)]


def test_a_lost_gpu_takes_its_instances_along_and_the_others_go_on(standin, source):
    both = State((HOPPER, TWO[1]), instances=(SMALL, LARGE))
    standin.write(both)
    source.sample(T0)
    lost = (Error("nvmlDeviceGetMigMode", GPU_IS_LOST, 0), Error("nvmlDeviceGetMemoryInfo_v2", GPU_IS_LOST, 32))
    standin.write(State(both.devices, instances=both.instances, errors=lost))
    seen = [[(d.uuid, d.healthy) for d in source.sample(T0 + second).devices] for second in (1, 2)]
    assert seen[0] == [("MIG-a", False), ("MIG-b", True), ("GPU-b", True)]
    assert seen[1] == [("MIG-a", False), ("MIG-b", False), ("GPU-b", True)]
    standin.write(both)
    assert all(device.healthy for device in [source.sample(T0 + second) for second in (3, 4, 5)][-1].devices)


PROGRAM = """
import json, time
from agent.nvml.source import NvmlSource
from agent.model.samples import SourceError
try:
    source = NvmlSource()
    device = source.sample(time.time()).devices[0]
    print(json.dumps([device.uuid, [[p.pid, p.compute_ratio, p.vram_bytes] for p in device.processes]]))
except SourceError as error:
    print(json.dumps(str(error)))
"""


def run_program(environment: dict[str, str]):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | environment, capture_output=True, timeout=300, check=True
    )
    return json.loads(done.stdout)


def test_another_process_loads_the_stand_in_as_the_library_and_sees_a_steady_process(tmp_path):
    standin = NvmlStandIn(tmp_path)
    standin.write(State(TWO, (Process(0, 41, GIB, steady_percent=70),)))
    assert run_program(standin.environment()) == ["GPU-a", [[41, 0.7, GIB]]]


def test_without_any_library_the_source_says_so(tmp_path):
    assert "NVML" in run_program({"LD_LIBRARY_PATH": str(tmp_path)})


def test_no_room_but_nvml_imports_pynvml():
    importers = {
        path.relative_to(ROOT).parent.as_posix()
        for path in (ROOT / "agent").rglob("*.py")
        if re.search(r"^\s*(import|from) pynvml", path.read_text(), re.MULTILINE)
    }
    assert importers == {"agent/nvml"}
