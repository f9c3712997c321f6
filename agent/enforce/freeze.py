"""The cgroup v2 freezer: stops every process of a container at once, and lets it go on where it was.

Memory and locks stay held, kernels that run finish. What was frozen is written down first, so that an agent that is
killed leaves nobody frozen: the next one thaws them all.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from agent.enforce.backend import Capabilities
from agent.enforce.book import BookError, read_book, write_book
from autoscaler.contract.keys import Effect

_log = structlog.get_logger(__name__)
FREEZE_FILE: Final = "cgroup.freeze"
BOOK_NAME: Final = "frozen.json"
_PODS: Final = "kubepods"
"""In the path of every pod's cgroup, whoever made the tree."""
_GONE: Final = (errno.ENOENT, errno.ENODEV)
VERSION_2_FILE: Final = "cgroup.controllers"
"""In every folder of a cgroup v2 tree, in none of version 1."""


class Freezer:
    """Freezes and thaws containers by worker (pod UID, container); `cgroup_of` gives the path below the root, or ""."""

    def __init__(self, root: Path, state_dir: Path, cgroup_of: Callable[[tuple[str, str]], str]) -> None:
        self._root, self._book, self._cgroup_of = root, state_dir / BOOK_NAME, cgroup_of
        self._frozen: dict[tuple[str, str], str] = {}
        self._to_thaw: set[str] = set()
        self._written: list[str] = []
        self._lock = threading.Lock()

    def probe(self) -> Capabilities:
        """Return whether containers could be stopped here: `immediate` is a stop, no share."""
        if not (self._root / VERSION_2_FILE).is_file():
            return Capabilities(Effect.UNSUPPORTED, Effect.UNSUPPORTED, f"{self._root} is no tree of cgroup v2")
        return Capabilities(Effect.IMMEDIATE, Effect.UNSUPPORTED, "stops for seconds, and only with --freeze")

    def recover(self) -> None:
        """Thaw what an earlier run left frozen; where nobody knows what that was, whatever is frozen of any pod."""
        try:
            self._written = read_book(self._book, list[str]) or []
            self._to_thaw = set(self._written)
        except BookError as error:
            self._to_thaw |= self._found_frozen()
            _log.error("frozen_book_damaged", error=str(error), then="all pods are let go", found=sorted(self._to_thaw))
        self._thaw()
        self._written_down()

    def set(self, wanted: frozenset[tuple[str, str]]) -> None:
        """Have exactly these workers frozen; what can't be frozen is told and left running. From any thread."""
        with self._lock:
            self._set(wanted)

    def _set(self, wanted: frozenset[tuple[str, str]]) -> None:
        self._to_thaw |= {self._frozen.pop(name) for name in self._frozen.keys() - wanted}
        self._thaw()
        for name in wanted - self._frozen.keys():
            cgroup = self._cgroup_of(name)
            if not cgroup:
                _log.warning("not_frozen", worker=name, reason="its cgroup is not known")
                continue
            self._frozen[name] = cgroup
            self._to_thaw.discard(cgroup)
            # What is not written down might stay frozen for good.
            if self._written_down() and self._write(cgroup, "1"):
                _log.info("frozen", worker=name, cgroup=cgroup)
            else:
                # It may have stopped all the same, as where the kernel was slow to say so.
                self._to_thaw.add(self._frozen.pop(name))
        self._written_down()

    @property
    def frozen(self) -> frozenset[tuple[str, str]]:
        """Who is frozen now."""
        return frozenset(self._frozen)

    def _thaw(self) -> None:
        """Let go whoever is to be; what can't be stays written down, and is tried again at every turn."""
        self._to_thaw = {cgroup for cgroup in self._to_thaw if not self._write(cgroup, "0")}

    def _found_frozen(self) -> frozenset[str]:
        """Return the containers of pods that are frozen now, whoever did it."""
        found = set()
        for path in self._root.rglob(FREEZE_FILE):
            try:
                if _PODS in str(path) and path.read_text().strip() == "1":
                    found.add(f"/{path.parent.relative_to(self._root)}")
            except OSError as error:
                _log.warning("freezer_failed", cgroup=str(path.parent), value="?", error=str(error))
        return frozenset(found)

    def _write(self, cgroup: str, value: str) -> bool:
        """Tell a container's freezer; return whether that is done, as a thaw is where the container is gone."""
        try:
            (self._root / cgroup.lstrip("/") / FREEZE_FILE).write_text(value)
        except OSError as error:
            if error.errno in _GONE:
                return value == "0"
            _log.warning("freezer_failed", cgroup=cgroup, value=value, error=str(error))
            return False
        return True

    def _written_down(self) -> bool:
        """Write down who is frozen, where that is not what was written last; return whether the disk took it."""
        content = sorted({*self._frozen.values(), *self._to_thaw})
        if content == self._written:
            return True
        try:
            write_book(self._book, content)
        except OSError as error:
            _log.warning("frozen_book_not_written", error=str(error), then="nobody is frozen anew")
            return False
        self._written = content
        return True
