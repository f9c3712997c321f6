"""A real card against nvidia-smi; skipped where there is no driver. `pytest -m gpu tests/agent/test_gpu.py`.

A process of our own loads the device through CUDA's driver library, so that no framework is needed: it holds a known
amount of memory and keeps the device busy by filling it. The capture of the last test is kept where
TF_AGENT_GPU_CAPTURE names a file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import pytest

from agent.nvml.source import NvmlSource
from agent.record.capture import FORMAT, Header, Recorder, load_capture, write_capture
from agent.record.replayed import ReplayedSource

MIB = 1 << 20
HELD_BYTES = 1024 * MIB
TOLERANCE_BYTES = 64 * MIB
TOLERANCE_RATIO = 0.10
"""Both tools look at moments of their own; nvidia-smi in whole percent."""

LOAD = f"""
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
def ok(code):
    if code: sys.exit(f"CUDA error {{code}}")
device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
ok(cuda.cuInit(0)); ok(cuda.cuDeviceGet(ctypes.byref(device), 0))
ok(cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device))
ok(cuda.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t({HELD_BYTES})))
print("holding", flush=True)
while True:
    for _ in range(64):
        ok(cuda.cuMemsetD8Async(memory, 1, ctypes.c_size_t({HELD_BYTES}), None))
    ok(cuda.cuCtxSynchronize())
"""


def smi(*query: str) -> list[list[str]]:
    done = subprocess.run(
        ["nvidia-smi", *query, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=True, timeout=60
    )
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]


def _missing() -> str:
    if shutil.which("nvidia-smi") is None:
        return "nvidia-smi is not here: no NVIDIA driver"
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=60)
    return "" if listed.returncode == 0 and "GPU" in listed.stdout else "nvidia-smi finds no GPU"


WHY_NOT = _missing()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]


@pytest.fixture(scope="module")
def busy() -> Iterator[int]:
    """The pid of a process that holds memory and computes."""
    process = subprocess.Popen([sys.executable, "-c", LOAD], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "holding\n":
            pytest.skip(f"CUDA's driver library gives no context here (exit code {process.wait(60)})")
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def source() -> Iterator[NvmlSource]:
    source = NvmlSource(list_seconds=0.05)
    yield source
    source.close()


def seconds(source: NvmlSource, count: int):
    """Return samples a second apart."""
    taken = []
    for _ in range(count):
        due = time.monotonic() + 1.0
        taken.append(source.sample(time.time()))
        time.sleep(max(0.0, due - time.monotonic()))  # what is measured is real time
    return taken


def test_devices_and_their_memory_are_those_of_nvidia_smi(busy, source):
    said = {row[0]: row[1:] for row in smi("--query-gpu=uuid,name,memory.total,memory.used,mig.mode.current")}
    for device in source.sample(time.time()).devices:
        if device.uuid.startswith("MIG-"):
            continue
        name, total, used, _ = said[device.uuid]
        assert (device.model, device.vram_total_bytes // MIB) == (name, int(total))
        assert device.vram_used_bytes == pytest.approx(int(used) * MIB, abs=TOLERANCE_BYTES)


def test_a_process_holds_the_memory_that_nvidia_smi_says(busy, source):
    samples = seconds(source, 2)
    rows = smi("--query-compute-apps=gpu_uuid,pid,used_memory")
    of_pid = {(row[0], int(row[1])): row[2] for row in rows}
    ours = [(d.uuid, p) for d in samples[-1].devices for p in d.processes if (d.uuid, p.pid) in of_pid]
    if not any(p.pid == busy for _, p in ours):
        pytest.skip("neither tool sees host pids here: the pid namespace is not the host's")
    for uuid, process in ours:
        said = of_pid[uuid, process.pid]
        if said.isdecimal():
            assert process.vram_bytes == pytest.approx(int(said) * MIB, abs=TOLERANCE_BYTES)


def test_a_busy_device_is_as_busy_as_nvidia_smi_says_and_so_is_its_process(busy, source):
    source.sample(time.time())
    ours, theirs, own = [], [], []
    for sample in seconds(source, 8):
        device = sample.devices[0]
        if device.compute_ratio is None:
            pytest.skip(device.note or "this device tells no utilization")
        theirs.append(int(smi("--query-gpu=utilization.gpu", "--id=0")[0][0]) / 100)
        ours.append(device.compute_ratio)
        own += [p.compute_ratio for p in device.processes if p.pid == busy and p.compute_ratio is not None]
    assert fmean(ours[2:]) == pytest.approx(fmean(theirs[2:]), abs=TOLERANCE_RATIO)
    assert fmean(ours[2:]) > 0.5
    if own:
        assert fmean(own[2:]) == pytest.approx(fmean(ours[2:]), abs=TOLERANCE_RATIO)


def test_no_call_of_a_tick_fails_and_none_takes_long(busy, source):
    seconds(source, 3)
    stats = source.stats()
    failed = {name for name, code in stats.errors if code not in {"not_supported", "function_not_found"}}
    assert failed == set()
    for name, durations in stats.calls.items():
        if name != "nvmlInit":
            assert durations.total_seconds / sum(durations.counts) < 0.1, name


def test_what_was_recorded_here_plays_again(busy, source, tmp_path):
    path = Path(os.environ.get("TF_AGENT_GPU_CAPTURE") or tmp_path / "real.jsonl")
    recorder = Recorder(source, Path("/proc"))
    with path.open("wb") as file:
        ticks = []
        for _ in range(10):
            ticks.append(recorder.take(time.time()))
            time.sleep(1.0)  # what is recorded is real time
        write_capture(file, Header(FORMAT, "a real card, loaded by tests/agent/test_gpu.py"), ticks)
    replayed = ReplayedSource(load_capture(path)[1])
    assert [one.uuid for one in replayed.sample(0.0).devices] == [one.uuid for one in ticks[0].sample.devices]
