"""Makes tests/captures/standin.jsonl: a node that never was, as the recorder saw it through the NVML stand-in.

python -m tests.agent.standin_capture
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from pathlib import Path

import pynvml

from agent.nvml.source import NvmlSource
from agent.record.capture import FORMAT, Header, Recorder, write_capture
from tests.agent.nvml_standin import FIRST_INSTANCE, GIB, Device, Error, Instance, NvmlStandIn, Process, Sample, State

FILE = Path(__file__).parents[1] / "captures" / "standin.jsonl"
NOTE = "synthetic: made with the tests' stand-in for NVML by tests/agent/standin_capture.py; no real GPU was seen"
T0 = 1_700_000_000.0
TICKS = 40
A, B = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9", "11111111-2222-3333-4444-555555555555"
LATE_TICKS = (17, 18)
"""The driver publishes nothing in these, though the device is busy."""
LOST_TICKS = range(25, 30)
"""The second GPU is off the bus in these."""


def percent(pid: int, tick: int) -> int:
    """What each process does: a server with its engine, a job in bursts, and something of the host's."""
    engine, job = (50, 60, 40, 55)[tick % 4], 25 if tick % 10 < 3 else 0
    return {41: 5, 42: engine, 51: job, 90: 10}.get(pid, 0)


def cgroup(pod_uid: str, container: str) -> str:
    slice_name = f"kubepods-burstable-pod{pod_uid.replace('-', '_')}.slice"
    return f"0::/kubepods.slice/kubepods-burstable.slice/{slice_name}/cri-containerd-{container * 64}.scope\n"


CGROUPS = {
    41: cgroup(A, "a"),
    42: cgroup(A, "a"),
    51: cgroup(B, "b"),
    61: cgroup(B, "b"),
    90: "0::/system.slice/x.service\n",
}


def state(tick: int) -> State:
    at_us = round((T0 + tick) * 1e6)
    load = {pid: percent(pid, tick) for pid in (41, 42, 51, 90)}
    samples = [Sample(0, pid, at_us, used) for pid, used in load.items() if used and tick not in LATE_TICKS]
    if tick == 7:
        samples += [
            Sample(0, 42, at_us + 90_000_000, 50),
            Sample(0, 42, at_us - 9_000_000, 99),
            Sample(0, 41, at_us, 400),
        ]
    busy = min(100, sum(load.values()))
    hopper = Device("GPU-c", "NVIDIA H100 80GB HBM3", 80 * GIB, mig=True, gpm=True, cores=132 * 128, capability=9)
    instance = Instance("MIG-c", 2, 7, 16, 1, 10 * GIB, 2 * GIB, busy_us=300_000 * tick, clock_us=1_000_000 * tick)
    return State(
        devices=(
            Device("GPU-a", "NVIDIA A100-SXM4-80GB", 80 * GIB, 21 * GIB, busy),
            Device("GPU-b", "NVIDIA L4", 24 * GIB, GIB, 0),
            hopper,
        ),
        processes=(
            Process(0, 41, 2 * GIB),
            Process(0, 42, 12 * GIB),
            Process(0, 51, (4 + tick % 3) * GIB),
            Process(0, 90, GIB),
            Process(FIRST_INSTANCE, 61, 2 * GIB),
        ),
        samples=tuple(samples),
        errors=(Error("nvmlDeviceGetMemoryInfo_v2", pynvml.NVML_ERROR_GPU_IS_LOST, 1),) if tick in LOST_TICKS else (),
        instances=(instance,),
        whole_buffer=tick == 7,
    )


def make(to: Path) -> None:
    """Write the capture; the stand-in must be the loaded library."""
    with tempfile.TemporaryDirectory() as work:
        standin, proc = NvmlStandIn(Path(work)), Path(work) / "proc"
        os.environ["NVML_STANDIN_STATE"] = str(standin.state_file)
        for pid, text in CGROUPS.items():
            (proc / str(pid)).mkdir(parents=True)
            (proc / str(pid) / "cgroup").write_text(text)
        source = NvmlSource()
        recorder = Recorder(source, proc)
        ticks = []
        for tick in range(TICKS):
            standin.write(state(tick))
            ticks.append(recorder.take(T0 + tick))
        with to.open("wb") as file:
            write_capture(file, Header(FORMAT, NOTE), ticks)
        source.close()


def load_standin(directory: Path) -> None:
    pynvml.nvmlLib = ctypes.CDLL(str(NvmlStandIn(directory).shared_object))
    pynvml._nvmlGetFunctionPointer_cache.clear()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        load_standin(Path(folder))
        make(FILE)
