"""What a reader sees while the demo runs: a live table on a terminal, plain lines in a pipe."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable
from typing import Final, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from autoscaler.demo.run import START, Minute
from autoscaler.demo.summary import DemoResult, Totals
from autoscaler.model.decision import Decision, Field
from autoscaler.model.resources import GIB
from autoscaler.report import columns
from autoscaler.report.message import sentence

KIND: Final = "TensorFusionWorkload"
SHOWN_DECISIONS: Final = 8
REFRESH_SECONDS: Final = 0.25
HOUR: Final = 3600


class View(Protocol):
    """Shows a run; a context around it."""

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(self, *_: object) -> None:
        """End, and leave the terminal as it was."""
        ...

    def minute(self, minute: Minute) -> Awaitable[None]:
        """Show one simulated minute."""
        ...


class PlainLines:
    """A line per decision that changes something, and one an hour; no control characters."""

    def __init__(self, console: Console, duration_seconds: float) -> None:
        self._console = console
        self._duration_seconds = duration_seconds
        self._changes = 0
        self._begun = False

    def __enter__(self) -> Self:
        """Say what comes."""
        self._print(f"simulating {self._duration_seconds / HOUR:g} h; time, workload, what changed and why")
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    async def minute(self, minute: Minute) -> None:
        """Print the minute's decisions, and at first and each hour what is reserved."""
        for decision in minute.changes():
            self._changes += 1
            self._print(f"{clock(minute.at_seconds)}  {told(decision)}")
        if minute.at_seconds % HOUR == 0 or not self._begun:
            self._begun = True
            share = minute.at_seconds / self._duration_seconds
            self._print(f"{clock(minute.at_seconds)}  -- {share:.0%} done, {reserved(minute)}, {self._changes} changes")
        if minute.at_seconds >= self._duration_seconds:
            self._print("")
            columns.table(await _rows(minute), KIND, self._console.file)
            self._print("")

    def _print(self, line: str) -> None:
        self._console.file.write(line + "\n")
        self._console.file.flush()


class LiveTable:
    """The table of `kubectl get tfw`, the latest decisions, and how far the run is."""

    def __init__(self, console: Console, duration_seconds: float) -> None:
        self._latest: deque[str] = deque(maxlen=SHOWN_DECISIONS)
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), console=console
        )
        self._task = self._progress.add_task("starting", total=duration_seconds)
        self._live = Live(self._progress, console=console, auto_refresh=False)
        self._drawn_at = 0.0

    def __enter__(self) -> Self:
        """Take the terminal."""
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the terminal back, with the last table on it."""
        self._live.stop()

    async def minute(self, minute: Minute) -> None:
        """Note the minute, and draw when it is time to."""
        self._latest.extend(f"{clock(minute.at_seconds)}  {told(decision)}" for decision in minute.changes())
        text = f"{clock(minute.at_seconds)} simulated, {reserved(minute)}"
        self._progress.update(self._task, completed=minute.at_seconds, description=text)
        ended = self._progress.finished
        if not ended and time.monotonic() - self._drawn_at < REFRESH_SECONDS:
            return
        decisions = (Text(line, no_wrap=True, overflow="ellipsis") for line in self._latest)
        group = Group(columns.rendered(await _rows(minute), KIND), Text(), *decisions, Text(), self._progress)
        self._live.update(group, refresh=True)
        self._drawn_at = time.monotonic()


class Silence:
    """Shows nothing."""

    def __enter__(self) -> Self:
        """Begin nothing."""
        return self

    def __exit__(self, *_: object) -> None:
        """End nothing."""

    async def minute(self, minute: Minute) -> None:
        """Let it pass."""


async def _rows(minute: Minute) -> list[columns.Row]:
    return columns.rows(await minute.workloads(), KIND, START + minute.at_seconds)


def clock(at_seconds: float) -> str:
    """Return a simulated moment as HH:MM, with the day from the second one on."""
    days, rest = divmod(int(at_seconds), 24 * HOUR)
    text = f"{rest // HOUR:02d}:{rest % HOUR // 60:02d}"
    return f"day {days + 1} {text}" if days else text


def told(decision: Decision) -> str:
    """Return what a decision changes, and why."""
    return f"{decision.key.name}: " + "; ".join(sentence(one) for one in decision.fields if one.changed)


def reserved(minute: Minute) -> str:
    """Return what all workers' requests add up to."""
    figure = minute.passed.allowed.figure
    tflops, vram = (float(figure[:, field] @ figure[:, Field.REPLICAS]) for field in REQUESTS)
    return f"{tflops:.0f} TFLOPs and {vram / GIB:.0f} GiB reserved"


REQUESTS: Final = (Field.COMPUTE_REQUEST, Field.VRAM_REQUEST)


def print_result(console: Console, result: DemoResult) -> None:
    """Print the summary against static allocation, and the surge."""
    console.print(_comparison(result))
    console.print()
    for line in _sentences(result):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _comparison(result: DemoResult) -> Table:
    made = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="bold")
    made.add_column("")
    for title in ("STATIC", "AUTOSCALED", "DIFFERENCE"):
        made.add_column(title, justify="right")
    for name, before, after in _lines(result.static, result.autoscaled):
        difference = f"{after / before - 1:+.1%}" if before else ""
        made.add_row(name, f"{before:.1f}", f"{after:.1f}", difference)
    return made


def _lines(static: Totals, scaled: Totals) -> tuple[tuple[str, float, float], ...]:
    return (
        ("compute reserved, TFLOP·h", static.reserved_tflops_hours, scaled.reserved_tflops_hours),
        ("compute used, TFLOP·h", static.used_tflops_hours, scaled.used_tflops_hours),
        ("VRAM reserved, GiB·h", static.reserved_vram_gib_hours, scaled.reserved_vram_gib_hours),
        ("compute demand not served, %", 100 * static.unserved_ratio, 100 * scaled.unserved_ratio),
        ("throttled, worker hours", static.throttled_hours, scaled.throttled_hours),
        ("down after out-of-memory, worker hours", static.down_hours, scaled.down_hours),
        ("out-of-memory deaths", static.ooms, scaled.ooms),
    )


def _sentences(result: DemoResult) -> tuple[str, ...]:
    changes = sum(result.changes.values())
    return (
        "static: the owners' figures held all the time, for the same demand from the same seed",
        f"{changes} changes, {result.changes_per_workload_day:.1f} per workload and day",
        result.surge.sentence(),
    )
