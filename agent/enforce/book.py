"""What an actuator remembers over a restart of the agent, in a file that says itself whether it is whole.

One line of header (format and SHA-256 of the rest) and JSON, replaced as a whole. It outlives a kill at any byte; it
need not outlive the machine, as what it is about (cgroups, shared memory) does not either.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final, TypeVar

import msgspec

LARGEST_BYTES: Final = 16 << 20
"""More is no book: thousands of workers fit into one of them."""
_MAGIC: Final = b"tf-agent-book/1 sha256="
_T = TypeVar("_T")


class BookError(Exception):
    """The file cannot be used, and was moved aside; the text says why and where to."""


def read_book(path: Path, kind: type[_T]) -> _T | None:
    """Return what was written, None where nothing was.

    Raises:
        BookError: the file is damaged, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BookError(f"{path}: {error.strerror or error}") from error
    header, _, body = content.partition(b"\n")
    if header != _header(body) or len(content) > LARGEST_BYTES:
        raise BookError(f"{path}: {min(len(content), LARGEST_BYTES)} bytes are not what was written; {_aside(path)}")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise BookError(f"{path}: written by another version: {error}; {_aside(path)}") from error


def write_book(path: Path, content: object) -> None:
    """Write a book in the place of the one before.

    Raises:
        OSError: the disk refused; the one before stands.
    """
    body = msgspec.json.encode(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(_header(body) + b"\n" + body)
    temporary.replace(path)


def _header(body: bytes) -> bytes:
    return _MAGIC + hashlib.sha256(body).hexdigest().encode()


def _aside(path: Path) -> str:
    """Keep a damaged file for whoever wants to know; one of each is enough."""
    target = path.with_name(f"{path.name}.damaged")
    try:
        path.replace(target)
    except OSError as error:
        return f"it stays there: {error.strerror or error}"
    return f"moved to {target.name}"
