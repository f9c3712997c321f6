"""The driver's arrays, read as a whole: any number of rows, and whatever the driver says instead."""

from __future__ import annotations

import pynvml
import pytest

from agent.nvml.arrays import Arrays
from tests.agent.nvml_standin import GIB, NOT_AVAILABLE, Device, Error, NvmlStandIn, Process, State

NAMES = {
    "process": "nvmlDeviceGetComputeRunningProcesses_v3",
    "client": "nvmlDeviceGetMPSComputeRunningProcesses_v3",
    "graphics": "nvmlDeviceGetGraphicsRunningProcesses_v3",
}
SAMPLES = "nvmlDeviceGetProcessUtilization"
ONE = (Device("GPU-a"),)


@pytest.fixture
def load(tmp_path, monkeypatch):
    def place(*without):
        standin = NvmlStandIn(tmp_path, without)
        standin.take_place(monkeypatch)
        standin.write(State(ONE))
        pynvml.nvmlInit()
        return standin

    return place


@pytest.fixture
def standin(load):
    return load()


@pytest.fixture
def calls(standin):
    return Arrays().calls


def handle():
    return pynvml.nvmlDeviceGetHandleByIndex(0)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("count", [0, 1, 64, 65, 700, 3])
def test_every_process_of_a_list_is_read_however_many_there_are(standin, calls, kind, count):
    memory = {pid: pid * GIB for pid in range(100, 100 + count)}
    standin.write(State(ONE, tuple(Process(0, pid, size, kind=kind) for pid, size in memory.items())))
    assert calls[NAMES[kind]](handle()) == memory
    assert {name: len(calls[NAMES[name]](handle())) for name in NAMES} == dict.fromkeys(NAMES, 0) | {kind: count}


@pytest.mark.parametrize("count", [1, 64, 65, 700, 3])
def test_every_sample_since_a_time_is_read_as_pynvml_reads_it(standin, calls, count):
    processes = tuple(Process(0, pid, 0, 1 + pid % 99, period_us=10**12) for pid in range(count))
    standin.write(State(ONE, processes))
    expected = [(row.pid, row.timeStamp, row.smUtil) for row in pynvml.nvmlDeviceGetProcessUtilization(handle(), 1)]
    assert list(calls[SAMPLES](handle(), 1)) == expected
    assert len(expected) == count


def test_memory_that_the_driver_cannot_tell_is_none(standin, calls):
    standin.write(State(ONE, (Process(0, 41, NOT_AVAILABLE), Process(0, 42, GIB))))
    assert calls[NAMES["process"]](handle()) == {41: None, 42: GIB}


def test_rows_of_a_longer_list_before_are_not_read_again(standin, calls):
    for pids in (range(200), range(500, 502)):
        standin.write(State(ONE, tuple(Process(0, pid, GIB) for pid in pids)))
        assert list(calls[NAMES["process"]](handle())) == list(pids)


@pytest.mark.parametrize("code", [3, 6, 7, 15, 999])
def test_what_the_driver_says_instead_is_raised_also_that_no_room_is_ever_enough(standin, calls, code):
    names = (*NAMES.values(), SAMPLES)
    standin.write(State(ONE, errors=tuple(Error(name, code) for name in names)))
    for name in names:
        with pytest.raises(pynvml.NVMLError) as raised:
            calls[name](handle(), *(1,) * (name == SAMPLES))
        assert raised.value.value == code


def test_a_driver_without_the_function_and_a_library_that_is_not_there_are_told_apart(load, monkeypatch):
    load(SAMPLES)
    call = Arrays().calls[SAMPLES]
    with pytest.raises(pynvml.NVMLError_FunctionNotFound):
        call(handle(), 1)
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        call(None, 1)
