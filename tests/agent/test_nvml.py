"""NVML through the real nvidia-ml-py and a C library with NVML's ABI, steered live."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable

import pynvml
import pytest
import structlog

from agent.nvml import NvmlSource
from agent.samples import ProcessUse, SourceError
from tests.agent.nvml_standin import GIB, NOT_AVAILABLE, Device, Error, NvmlStandIn, Process, Sample, State

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
        monkeypatch.setenv("NVML_STANDIN_STATE", str(standin.state_file))
        monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(standin.shared_object)))
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        return standin

    return place


@pytest.fixture
def standin(load):
    return load()


@pytest.fixture
def source():
    source = NvmlSource(list_processes_every_ticks=3, reprobe_every_ticks=2)
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


def test_a_busy_device_without_new_samples_holds_the_last_value_for_two_ticks(standin, source):
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


PROGRAM = """
import json, time
from agent.nvml import NvmlSource
from agent.samples import SourceError
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
