"""Whose heartbeat a shared file carries: ours, nobody's, or somebody else's, whom we leave it to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from agent.enforce.book import BookError, read_book, write_book

_log = structlog.get_logger(__name__)
STRANGER_SECONDS: Final = 2.5
"""A heartbeat older than this beats no more; one that moves while we write nothing is somebody else's."""
STEP_SECONDS: Final = 1.0
"""A clock that moves by more than this against the monotonic one was set."""
OWNED_NAME: Final = "tfshm.json"


@dataclass(frozen=True, slots=True)
class _Beat:
    """A heartbeat as it was first seen."""

    value: int
    at: float


class Ownership:
    """Remembers, over a restart of the agent too, which files it kept; `clock` is monotonic, `wall` the epoch's."""

    def __init__(self, state_dir: Path, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._state_dir, self._clock, self._wall = state_dir, clock, wall
        self._owned: frozenset[str] = frozenset()
        self._saved: frozenset[str] = frozenset()
        self._complaint = ""
        self._beats: dict[Path, _Beat] = {}
        self._ahead_seconds, self._trusted_at = wall() - clock(), float("-inf")

    def load(self) -> None:
        """Take up what an earlier run owned."""
        try:
            self._owned = self._saved = frozenset(read_book(self._state_dir / OWNED_NAME, list[str]) or ())
        except BookError as error:
            self._owned = self._saved = frozenset()
            _log.warning("owned_files_unreadable", error=str(error), then="each heartbeat is watched before it is kept")

    def stranger(self, path: Path, beat: int) -> str:
        """Return why a file with this heartbeat must be left to somebody else, or looked at again; "" when it is ours.

        A file of an earlier run is ours at once: its limiter may not be left without a heartbeat.
        """
        if str(path) in self._owned or self._is_silent(beat):
            self._beats.pop(path, None)
            return ""
        first = self._beats.setdefault(path, _Beat(beat, self._clock()))
        if beat != first.value:
            self._beats[path] = _Beat(beat, self._clock())
            return f"{path} is kept by somebody else: its heartbeat moves without this agent"
        if self._clock() - first.at > STRANGER_SECONDS:
            del self._beats[path]
            return ""
        return f"{path} has a fresh heartbeat; it is watched for {STRANGER_SECONDS:g} s whether it moves"

    def _is_silent(self, beat: int) -> bool:
        """Return whether a heartbeat is too old to beat; just after the clock was set, nothing is known by its age."""
        wall, at = self._wall(), self._clock()
        if abs(wall - at - self._ahead_seconds) > STEP_SECONDS:
            self._ahead_seconds, self._trusted_at = wall - at, at + STRANGER_SECONDS
        return wall - beat > STRANGER_SECONDS and at >= self._trusted_at

    def own(self, path: Path, *, owned: bool) -> None:
        """Note that a file is kept here, or is no more; `save` makes it last."""
        self._owned = self._owned | {str(path)} if owned else self._owned - {str(path)}

    def save(self) -> None:
        """Write down what changed since, once for hundreds of files; a disk that refuses is asked again next time."""
        if self._owned == self._saved:
            return
        try:
            write_book(self._state_dir / OWNED_NAME, sorted(self._owned))
        except OSError as error:
            if str(error) != self._complaint:
                _log.warning("owned_files_not_saved", error=str(error), then="it is tried at every tick")
            self._complaint = str(error)
            return
        self._saved, self._complaint = self._owned, ""
