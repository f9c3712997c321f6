"""The command behind `tf-autoscaler demo`: chooses a view, ends cleanly when interrupted, says what was not kept."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Final

import structlog
from rich.console import Console

from autoscaler.demo.run import DemoOptions, check, demo
from autoscaler.demo.summary import DemoResult
from autoscaler.demo.view import LiveTable, PlainLines, Silence, View, print_result

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_demo(duration_seconds: float, seed: int, output: str, keep: Path | None, console: Console) -> int:
    """Run the demo and print it; `output` is `table` or `json` (nothing else on standard output then).

    Returns 0 when it showed what it promises, else 1.

    Raises:
        ConfigError: an option can't be used.
        NodeError: an agent did not start, or went away.

    """
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("warning"),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )
    options = DemoOptions(duration_seconds, seed, keep)
    check(options)
    with _view(output, console, duration_seconds) as view:
        try:
            result = asyncio.run(_interruptible(options, view))
        except asyncio.CancelledError:
            result = None
    if result is None:
        sys.stderr.write("interrupted: all agents have ended\n")
        return 1
    return _conclude(result, output, console)


def _view(output: str, console: Console, duration_seconds: float) -> View:
    if output == "json":
        errors = Console(stderr=True)
        return LiveTable(errors, duration_seconds) if errors.is_terminal else Silence()
    return LiveTable(console, duration_seconds) if console.is_terminal else PlainLines(console, duration_seconds)


async def _interruptible(options: DemoOptions, view: View) -> DemoResult:
    """Run until the end or a signal; either way all agents are ended."""
    task = asyncio.current_task()
    assert task is not None
    for sign in ENDING:
        asyncio.get_running_loop().add_signal_handler(sign, task.cancel)
    return await demo(options, view.minute)


def _conclude(result: DemoResult, output: str, console: Console) -> int:
    broken = tuple(result.broken_promises())
    if output == "json":
        console.file.write(json.dumps(result.as_data(), indent=2, ensure_ascii=False) + "\n")
    else:
        print_result(console, result)
    for sentence in broken:
        sys.stderr.write(f"not shown: {sentence}\n")
    return 1 if broken else 0
