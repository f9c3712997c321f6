"""Steers the C stand-in for NVIDIA's management library: compile once, then write states that it reads live.

standin = NvmlStandIn(tmp_path)
standin.write(State(devices=(Device(uuid="GPU-1"),), processes=(Process(0, pid=41, steady_percent=80),)))
subprocess.run([...], env=os.environ | standin.environment())
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pynvml

if TYPE_CHECKING:
    import pytest

SOURCE = Path(__file__).with_name("nvml_standin.c")
STATE_VARIABLE = "NVML_STANDIN_STATE"
NOT_AVAILABLE = -1
GIB = 1024**3


@dataclass(frozen=True)
class Device:
    uuid: str
    name: str = "NVIDIA L4"
    total_bytes: int = 24 * GIB
    used_bytes: int = 0
    percent: int = 0
    """What the device says of itself, 0..100."""

    mig: bool = False
    gpm: bool = False
    cores: int = 0
    """CUDA cores of the whole GPU; 0: not told."""
    capability: int = 7
    """Major CUDA capability; MIG begins with 8."""


@dataclass(frozen=True)
class Instance:
    """A MIG instance; processes are on device 32 for the first, 33 for the next. GPM counts `busy_us` of `clock_us`."""

    uuid: str
    parent: int = 0
    gi: int = 1
    sms: int = 14
    slices: int = 1
    total_bytes: int = 10 * GIB
    used_bytes: int = 0
    busy_us: int = 0
    clock_us: int = 0


FIRST_INSTANCE = 32


@dataclass(frozen=True)
class Process:
    """A process on a device. `steady_percent` makes the driver sample it at the end of each `period_us` of the clock."""

    device: int
    pid: int
    vram_bytes: int = 0
    steady_percent: int = 0
    period_us: int = 200_000
    kind: str = "process"
    """`client` of MPS and `graphics` stand in lists of their own."""
    name: str = ""


@dataclass(frozen=True)
class Sample:
    """One row of the driver's buffer; one without a pid is of the whole device."""

    device: int
    pid: int | None
    at_us: int
    percent: int


@dataclass(frozen=True)
class Error:
    """A function of the library fails with NVML's own code, on one device or (-1) on all."""

    function: str
    code: int
    device: int = -1


@dataclass(frozen=True)
class State:
    devices: tuple[Device, ...] = ()
    processes: tuple[Process, ...] = ()
    samples: tuple[Sample, ...] = ()
    errors: tuple[Error, ...] = ()
    instances: tuple[Instance, ...] = ()
    driver_version: str = "575.57.08"
    zero_rows: bool = False
    """An idle device answers SUCCESS with no rows instead of NOT_FOUND."""

    whole_buffer: bool = False
    """The driver ignores the time that samples were asked from."""


class NvmlStandIn:
    """The library and its state file in one directory; `without` leaves symbols out, as an older driver does."""

    def __init__(self, directory: Path, without: tuple[str, ...] = ()) -> None:
        self.lib_dir = _compiled(without)
        self.shared_object = self.lib_dir / "libnvidia-ml.so.1"
        self.state_file = Path(directory) / "nvml.state"
        self.write(State())

    def environment(self) -> dict[str, str]:
        """Variables under which a program finds the stand-in as NVIDIA's library."""
        return {"LD_LIBRARY_PATH": str(self.lib_dir), STATE_VARIABLE: str(self.state_file)}

    def take_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Be what nvidia-ml-py has loaded, in this process and for this test."""
        monkeypatch.setenv(STATE_VARIABLE, str(self.state_file))
        monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(self.shared_object)))
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})

    def write(self, state: State) -> None:
        """Replace the state at once; the library reads it with its next call."""
        draft = self.state_file.with_suffix(".draft")
        draft.write_text("\n".join(_lines(state)) + "\n", encoding="utf-8")
        # An inode of its own each time, so that two writes within one clock tick are told apart.
        draft.replace(self.state_file)


def _lines(state: State) -> list[str]:
    lines = [f"driver {state.driver_version}"]
    for index, d in enumerate(state.devices):
        lines.append(f"device {index} {d.total_bytes} {d.used_bytes} {d.percent} {d.uuid} {d.name}")
        lines.append(f"silicon {index} {d.mig:d} {d.gpm:d} {d.cores} {d.capability}")
    for index, i in enumerate(state.instances, start=FIRST_INSTANCE):
        amounts = f"{i.sms} {i.slices} {i.total_bytes} {i.used_bytes} {i.busy_us} {i.clock_us}"
        lines.append(f"mig {index} {i.parent} {i.gi} 0 {amounts} {i.uuid}")
    for p in state.processes:
        lines.append(f"{p.kind} {p.device} {p.pid} {p.vram_bytes}")
        if p.name:
            lines.append(f"name {p.pid} {p.name}")
        if p.steady_percent:
            lines.append(f"steady {p.device} {p.pid} {p.period_us} {p.steady_percent}")
    for s in state.samples:
        lines.append(
            f"mean {s.device} {s.at_us} {s.percent}"
            if s.pid is None
            else f"sample {s.device} {s.pid} {s.at_us} {s.percent}"
        )
    lines += [f"error {e.function} {e.device} {e.code}" for e in state.errors]
    lines += [f"quirk {name}" for name in ("zero_rows", "whole_buffer") if getattr(state, name)]
    return lines


def _compiled(without: tuple[str, ...]) -> Path:
    """Return the directory of the library, compiled for this source and these missing symbols if it is not there yet."""
    version_script = "{ local: " + " ".join(f"{symbol};" for symbol in without) + " };" if without else ""
    key = hashlib.sha256(SOURCE.read_bytes() + version_script.encode()).hexdigest()[:16]
    directory = Path(tempfile.gettempdir()) / f"nvml-standin-{os.getuid()}" / key
    if not (directory / "libnvidia-ml.so.1").exists():
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as work:
            built = Path(work) / "built.so"
            command = ["gcc", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wl,-soname,libnvidia-ml.so.1"]
            if version_script:
                (Path(work) / "hidden.map").write_text(version_script, encoding="utf-8")
                command.append(f"-Wl,--version-script={work}/hidden.map")
            subprocess.run([*command, "-o", str(built), str(SOURCE)], check=True, capture_output=True, timeout=300)
            built.replace(directory / "libnvidia-ml.so.1")
    return directory
