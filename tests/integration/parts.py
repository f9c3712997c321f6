"""The programs as processes: started, paused, killed, and their logs to show when a test fails."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parents[2]
SOUND = {"TERM": "dumb", "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
DEADLINE_SECONDS = 60.0
"""A machine that is busy with something else fails no test; one that does not answer in a minute does."""

Result = TypeVar("Result")


def until(said: str, condition: Callable[[], Result | None], seconds: float = DEADLINE_SECONDS) -> Result:
    """Return the condition's first true result; fail when there is none in time."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if result := condition():
                return result
        assert time.monotonic() < end, f"within {seconds:g} s never: {said}"
        time.sleep(0.1)


def get_json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)


@dataclass
class Program:
    """A command that is started again and again, always with the same arguments, into one log."""

    name: str
    arguments: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert not self.runs, f"{self.name} runs already"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self.arguments],
                cwd=ROOT,
                env=os.environ | SOUND | self.environment,
                stdout=log,
                stderr=log,
            )

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def signal(self, sign: signal.Signals) -> None:
        assert self._process is not None
        assert self.runs, f"{self.name} has ended with {self._process.returncode}:\n{self.tail()}"
        self._process.send_signal(sign)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.signal(signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        assert self._process is not None
        return self._process.wait(DEADLINE_SECONDS)

    def end(self) -> None:
        """End it whatever state it is in."""
        if self.runs:
            self.kill()

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of a structured log."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def tail(self, characters: int = 3000) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else "(nothing)"
        return f"--- the end of {self.name}'s log ---\n{text[-characters:]}"
