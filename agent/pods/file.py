"""The pods of this node from a JSON or YAML file, read again whenever it changed.

One broken entry is left out and reported; a file that is broken as a whole leaves the last good one in force. The file
is a list of {uid, namespace, name, labels, annotations, containers: [{name, id}], node?, workload?}.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import structlog
import yaml

from agent.pods.spec import KnownPod, PodEntry, known_pods

_log = structlog.get_logger(__name__)


class PodFile:
    """A source of pods; entries of other nodes are left out."""

    def __init__(self, path: Path, node: str = "") -> None:
        """Read on demand only; `node` empty takes every entry."""
        self._path = path
        self._node = node
        self._signature: tuple[int, int, int] | None = None
        self._pods: Mapping[str, KnownPod] | None = None
        self.problems: tuple[str, ...] = ()
        """What was wrong at the last read, in the file's order."""

    def pods(self) -> Mapping[str, KnownPod] | None:
        """Return the worker pods by UID, those of the last good file; None before there was one."""
        try:
            status = self._path.stat()
            signature = (status.st_ino, status.st_size, status.st_mtime_ns)
            if signature != self._signature:
                # Noted before it is parsed: a broken file is reported once, not each tick.
                self._signature = signature
                self._read()
        except (OSError, ValueError) as error:
            if isinstance(error, OSError):
                self._signature = None
            self._report((f"{self._path}: {error}; the last good file stays in force",))
        return self._pods

    def _read(self) -> None:
        problems: list[str] = []
        entries: list[tuple[str, PodEntry]] = []
        for number, raw in enumerate(_entries(self._path)):
            where = f"{self._path}[{number}]"
            try:
                entries.append((where, msgspec.convert(raw, PodEntry)))
            except msgspec.ValidationError as error:
                problems.append(f"{where}: {error}; this entry is left out")
        self._pods, wrong = known_pods(entries, self._node)
        self._report((*problems, *wrong))

    def _report(self, problems: tuple[str, ...]) -> None:
        if problems != self.problems:
            for problem in problems:
                _log.warning("pods_file_problem", problem=problem)
        self.problems = problems


def _entries(path: Path) -> list[Any]:
    text = path.read_bytes()
    try:
        data = msgspec.json.decode(text) if path.suffix == ".json" else yaml.safe_load(os.fsdecode(text))
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {error}") from error
    return msgspec.convert(data, list[Any])
