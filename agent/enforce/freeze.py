"""The cgroup v2 freezer: stops every process of a container at once, and lets it go on where it was.

Memory and locks stay held, kernels that run finish. What was frozen is written down first, so that an agent that is
killed leaves nobody frozen: the next one thaws them all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from agent.enforce.backend import Capabilities
from autoscaler.contract.keys import Effect

_log = structlog.get_logger(__name__)
FREEZE_FILE: Final = "cgroup.freeze"
BOOK_NAME: Final = "frozen.json"
VERSION_2_FILE: Final = "cgroup.controllers"
"""In every folder of a cgroup v2 tree, in none of version 1."""


class Freezer:
    """Freezes and thaws containers by worker (pod UID, container); `cgroup_of` gives the path below the root, or ""."""

    def __init__(self, root: Path, state_dir: Path, cgroup_of: Callable[[tuple[str, str]], str]) -> None:
        self._root, self._book, self._cgroup_of = root, state_dir / BOOK_NAME, cgroup_of
        self._frozen: dict[tuple[str, str], str] = {}
        self._written = b""

    def probe(self) -> Capabilities:
        """Return whether containers could be stopped here: `immediate` is a stop, no share."""
        if not (self._root / VERSION_2_FILE).is_file():
            return Capabilities(Effect.UNSUPPORTED, Effect.UNSUPPORTED, f"{self._root} is no tree of cgroup v2")
        return Capabilities(Effect.IMMEDIATE, Effect.UNSUPPORTED, "stops for seconds, and only with --freeze")

    def recover(self) -> None:
        """Thaw what an earlier run left frozen."""
        try:
            left = msgspec.json.decode(self._book.read_bytes(), type=list[str])
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            _log.error("frozen_book_unreadable", path=str(self._book), error=str(error), then="look for frozen pods")
            return
        for cgroup in left:
            self._write(cgroup, "0")
        self._written_down()

    def set(self, wanted: frozenset[tuple[str, str]]) -> None:
        """Have exactly these workers frozen; what can't be frozen is told and left running."""
        for name in self._frozen.keys() - wanted:
            self._write(self._frozen.pop(name), "0")
        for name in wanted - self._frozen.keys():
            cgroup = self._cgroup_of(name)
            if not cgroup:
                _log.warning("not_frozen", worker=name, reason="its cgroup is not known")
                continue
            self._frozen[name] = cgroup
            # What is not written down might stay frozen for good.
            if self._written_down() and self._write(cgroup, "1"):
                _log.info("frozen", worker=name, cgroup=cgroup)
            else:
                del self._frozen[name]
        self._written_down()

    @property
    def frozen(self) -> frozenset[tuple[str, str]]:
        """Who is frozen now."""
        return frozenset(self._frozen)

    def _write(self, cgroup: str, value: str) -> bool:
        try:
            (self._root / cgroup.lstrip("/") / FREEZE_FILE).write_text(value)
        except FileNotFoundError:
            return False  # The container is gone, and its freezer with it.
        except OSError as error:
            _log.warning("freezer_failed", cgroup=cgroup, value=value, error=str(error))
            return False
        return True

    def _written_down(self) -> bool:
        """Write down who is frozen, where that is not what was written last; return whether the disk took it."""
        content = msgspec.json.encode(sorted(self._frozen.values()))
        if content == self._written:
            return True
        try:
            self._book.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._book.with_suffix(".tmp")
            temporary.write_bytes(content)
            temporary.replace(self._book)
        except OSError as error:
            _log.warning("frozen_book_not_written", error=str(error), then="nobody is frozen anew")
            return False
        self._written = content
        return True
