"""The desired quotas on disk: written before they take effect, readable after a kill at any byte.

A file is one line of header (format and SHA-256 of the rest) and the document as JSON. It is replaced as a whole
(temporary file, fsync, rename, fsync of the directory), and the document before it is kept as a second good copy. What
is in force is not kept here: that is asked of the backend, which alone knows it. Neighbours: `loop` saves and loads.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from autoscaler.contract.quota import QuotaDocument

CURRENT_NAME: Final = "quotas.json"
PREVIOUS_NAME: Final = "quotas.previous.json"
_MAGIC: Final = b"tf-agent-quotas/1 sha256="


class StoreError(Exception):
    """The state directory cannot be used: who runs the node must act."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was found: the document (None: nothing usable), and a line for each file that was moved aside."""

    document: QuotaDocument | None
    problems: tuple[str, ...] = ()


class QuotaStore:
    """The quota document of one node in one directory, which belongs to one agent."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._current = directory / CURRENT_NAME
        self._previous = directory / PREVIOUS_NAME
        self.document: QuotaDocument | None = None
        """The document that was loaded or saved last."""

    def load(self) -> Loaded:
        """Return the newest good copy; a damaged file is moved aside, never used and never deleted.

        Raises:
            StoreError: the directory can be neither made nor read.
        """
        problems: list[str] = []
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            for path in (self._current, self._previous):
                document = self._read(path, problems)
                if document is not None:
                    self.document = document
                    return Loaded(document, tuple(problems))
        except OSError as error:
            raise StoreError(f"state directory {self._directory}: {error.strerror or error}") from error
        return Loaded(None, tuple(problems))

    def save(self, document: QuotaDocument) -> None:
        """Make the document the stored one; on return it lasts, on an error the one before it does.

        Raises:
            StoreError: the disk refused.
        """
        try:
            self._keep_previous()
            _replace(self._current, _encode(document))
        except OSError as error:
            raise StoreError(f"{self._current}: {error.strerror or error}") from error
        self.document = document

    def _keep_previous(self) -> None:
        try:
            content = self._current.read_bytes()
        except FileNotFoundError:
            return
        if not isinstance(_decode(content), str):
            _replace(self._previous, content)

    def _read(self, path: Path, problems: list[str]) -> QuotaDocument | None:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        found = _decode(content)
        if isinstance(found, QuotaDocument):
            return found
        aside = self._aside(path)
        path.rename(aside)
        _sync_directory(self._directory)
        problems.append(f"{path} cannot be used ({found}); moved to {aside.name}")
        return None

    def _aside(self, path: Path) -> Path:
        number = 1
        while (candidate := self._directory / f"{path.name}.damaged.{number}").exists():
            number += 1
        return candidate


def _encode(document: QuotaDocument) -> bytes:
    body = msgspec.json.encode(document)
    return _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _decode(content: bytes) -> QuotaDocument | str:
    header, _, body = content.partition(b"\n")
    if not header.startswith(_MAGIC):
        return f"{len(content)} bytes without the header"
    if header.removeprefix(_MAGIC) != hashlib.sha256(body).hexdigest().encode():
        return f"checksum of {len(body)} bytes differs"
    try:
        return msgspec.json.decode(body, type=QuotaDocument)
    except msgspec.DecodeError as error:
        return f"written by another version: {error}"


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
