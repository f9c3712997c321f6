"""Captures: what a node showed, tick by tick, in a file that can be played again on any machine.

One JSON document a line. The first says what the file is; each other one is a tick: the sample, the driver's
utilization rows behind it, and the cgroup of each process at its first sight, so that windows and attribution can be
gone through again. Neighbours: `tf-agent record` writes them, `replayed` plays them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, Final, Protocol, runtime_checkable

import msgspec

from agent.model.samples import DeviceSource, NodeSample, SourceError
from agent.utilization import UtilizationSample

FORMAT: Final = "tf-agent capture 1"

Rows = dict[str, tuple[UtilizationSample, ...]]


class CaptureError(SourceError):
    """The file is no capture, or is damaged; the text says where."""


class Header(msgspec.Struct, frozen=True):
    """The first line: the format, and whatever its maker wants its readers to know."""

    format: str
    note: str = ""


class Captured(msgspec.Struct, frozen=True):
    """A tick: `rows` by device UUID as the driver gave them, `cgroups` the text of /proc/<pid>/cgroup by new pid."""

    sample: NodeSample
    rows: Rows = {}
    cgroups: dict[int, str] = {}


@runtime_checkable
class TellsRows(Protocol):
    """A source that can tell the rows behind its last sample."""

    def rows(self) -> Mapping[str, tuple[UtilizationSample, ...]]:
        """Return them by device UUID."""
        ...


class Recorder:
    """Takes captures of a source; processes are looked up under `proc_root`, nowhere when that is None."""

    def __init__(self, source: DeviceSource, proc_root: Path | None = None) -> None:
        self._source, self._proc_root = source, proc_root
        self._known: frozenset[int] = frozenset()

    def take(self, now: float) -> Captured:
        """Return what the source shows at `now` (seconds since the epoch).

        Raises:
            SourceError: it shows nothing.
        """
        sample = self._source.sample(now)
        rows = dict(self._source.rows()) if isinstance(self._source, TellsRows) else {}
        pids = frozenset(process.pid for device in sample.devices for process in device.processes)
        cgroups = {pid: text for pid in sorted(pids - self._known) if (text := self._cgroup(pid))}
        self._known = pids
        return Captured(sample, {uuid: own for uuid, own in rows.items() if own}, cgroups)

    def _cgroup(self, pid: int) -> str:
        if self._proc_root is None:
            return ""
        try:
            return (self._proc_root / str(pid) / "cgroup").read_text(errors="replace")
        except OSError:
            return ""  # It has ended, or is not ours to see: it is recorded as nobody's.


def record(recorder: Recorder, file: BinaryIO, seconds: float, tick_seconds: float, note: str = "") -> None:
    """Write a capture of this long, a tick at a time."""
    write_capture(file, Header(FORMAT, note), ())
    end = time.monotonic() + seconds
    while True:
        due = time.monotonic() + tick_seconds
        file.write(_line(recorder.take(time.time())))  # noqa: TID251  the shell owns the clock
        file.flush()
        if due > end:
            return
        time.sleep(max(0.0, due - time.monotonic()))


def write_capture(file: BinaryIO, header: Header, ticks: Iterable[Captured]) -> None:
    """Write a header and these ticks."""
    file.write(_line(header))
    file.writelines(_line(tick) for tick in ticks)


def load_capture(path: Path) -> tuple[Header, tuple[Captured, ...]]:
    """Read a capture.

    Raises:
        CaptureError: it is none, holds no tick, or a line is damaged; the line is named.
        OSError: it cannot be read.
    """
    first, *others = path.read_bytes().splitlines() or [b""]
    try:
        header = msgspec.json.decode(first, type=Header)
    except msgspec.DecodeError as error:
        raise CaptureError(f"{path}: is no capture: {error}") from error
    if header.format != FORMAT:
        raise CaptureError(f"{path}: its format is {header.format!r}, only {FORMAT!r} can be played")
    ticks = tuple(_tick(path, number, line) for number, line in enumerate(others, start=2))
    if not ticks:
        raise CaptureError(f"{path}: it holds no tick")
    return header, ticks


def _tick(path: Path, number: int, line: bytes) -> Captured:
    try:
        return msgspec.json.decode(line, type=Captured)
    except msgspec.DecodeError as error:
        raise CaptureError(f"{path}, line {number}: {error}") from error


def _line(document: Header | Captured) -> bytes:
    return msgspec.json.encode(document) + b"\n"
