"""Files of a folder that several processes use: what changed, whole replacement, and one writer at a time."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from autoscaler.errors import ClusterError

LOCK_NAME = ".lock"
LOCK_WAIT_SECONDS = 10.0
"""A writer holds the lock for milliseconds; one that holds it this long is stuck."""

_POLL_SECONDS = 0.005


class Stamp(NamedTuple):
    """What differs when a file has other content: a replaced file has another inode, an edited one another time."""

    inode: int
    size: int
    mtime_ns: int


def stamp_of(status: os.stat_result) -> Stamp:
    """Return the stamp of a file's status."""
    return Stamp(status.st_ino, status.st_size, status.st_mtime_ns)


def scan(folder: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, Stamp]]:
    """Yield the files below a folder with their stamps; hidden ones are skipped.

    Raises:
        OSError: the folder can't be listed.

    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from scan(Path(entry.path), suffixes)
            elif entry.name.endswith(suffixes):
                # A file deleted since the listing is simply not there.
                with suppress(FileNotFoundError):
                    yield entry.path, stamp_of(entry.stat())


def replace(path: Path, text: str) -> Stamp:
    """Put a new file in place of an old one in one step: readers see the one or the other, also after a kill.

    Raises:
        OSError: the disk refused; the old file stays.

    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            stamp = stamp_of(os.fstat(file.fileno()))
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return stamp


@asynccontextmanager
async def locked(folder: Path, wait_seconds: float = LOCK_WAIT_SECONDS) -> AsyncIterator[None]:
    """Hold the folder's lock, which a killed process gives back by dying.

    Raises:
        ClusterError: the folder can't be written to, or another process doesn't let go.

    """
    try:
        handle = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ClusterError(f"{folder} can't be written to: {error.strerror}") from error
    try:
        await _acquire(handle, folder, wait_seconds)
        yield
    finally:
        os.close(handle)


async def _acquire(handle: int, folder: Path, wait_seconds: float) -> None:
    try:
        async with asyncio.timeout(wait_seconds):
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    await asyncio.sleep(_POLL_SECONDS)
                else:
                    return
    except TimeoutError:
        raise ClusterError(f"{folder} is locked by another process for {wait_seconds:g} s") from None
