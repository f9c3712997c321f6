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
DEADLINE_SECONDS = 300.0
"""Five times what a slow machine needs: a machine that is busy with something else fails no test."""
ANSWER_SECONDS = 60.0

Result = TypeVar("Result")


def until(
    said: str,
    condition: Callable[[], Result | None],
    seconds: float = DEADLINE_SECONDS,
    check: Callable[[], None] = lambda: None,
) -> Result:
    """Return the condition's first true result; fail when there is none in time, or as soon as `check` does."""
    end = time.monotonic() + seconds
    while True:
        check()
        trouble = ""
        try:
            if result := condition():
                return result
        except OSError as error:  # who is asked may be away for a while
            trouble = f" ({type(error).__name__}: {error})"
        assert time.monotonic() < end, f"within {seconds:g} s never: {said}{trouble}"
        time.sleep(0.1)


def get_json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as response:
        return json.load(response)


@dataclass
class Program:
    """A command that is started again and again, always with the same arguments, into one log."""

    name: str
    arguments: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None
    _killed: bool = False

    def start(self) -> None:
        assert not self.runs, f"{self.name} runs already"
        self._killed = False
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self.arguments],
                cwd=ROOT,
                env=os.environ | SOUND | self.environment,
                stdout=log,
                stderr=log,
            )

    def check(self) -> None:
        """Fail when it was started, and ended by itself with an error."""
        code = self._process.poll() if self._process is not None and not self._killed else None
        assert not code, f"{self.name} has ended with {code}:\n{self.tail()}"

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
        self._killed = True
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
