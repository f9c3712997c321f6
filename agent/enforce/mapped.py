"""A file shared with a tenant's processes, mapped into memory; every write is one aligned store.

The tenant may change the file, its size or its name at any time: what is opened is checked, links are not followed,
and whoever reads believes nothing. Values are ctypes views, as a copy of bytes could be torn. Neighbour: `bus` catches
the access to a part that was cut off.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from agent.enforce.bus import CUTS

_View = TypeVar("_View", bound=ctypes.Structure)


class LayoutError(Exception):
    """The file is not what it must be; nothing was written. The message says what was found and what was expected."""


class MappedFile:
    """One file of exactly `size` bytes, mapped from its start as far as it is looked at.

    Raises:
        LayoutError: it is no regular file of that size.
        OSError: it can't be opened, or the disk has no room for all of it.
    """

    def __init__(self, path: Path, size: int, mapped_bytes: int | None = None) -> None:
        """Take the file's size, and how much of it to map (all): hundreds of files count in the agent's memory."""
        self.path, self._name, self._size = path, str(path), size
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_size != size:
                raise LayoutError(f"{path} has {found.st_size} bytes, must be a regular file of {size}")
            self.inode = found.st_ino
            # A hole in the file would be filled by the first access, which a full disk answers with SIGBUS.
            os.posix_fallocate(descriptor, 0, size)
            self._memory = _mapped(path, descriptor, mapped_bytes or size)
        finally:
            os.close(descriptor)
        self._start = CUTS.watch(self._memory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def u32(self, offset: int) -> ctypes.c_uint32:
        """Return the unsigned 32-bit number at an offset, as a view."""
        return ctypes.c_uint32.from_buffer(self._memory, offset)

    def i32(self, offset: int) -> ctypes.c_int32:
        """Return the signed 32-bit number at an offset, as a view."""
        return ctypes.c_int32.from_buffer(self._memory, offset)

    def u64(self, offset: int) -> ctypes.c_uint64:
        """Return the unsigned 64-bit number at an offset, as a view."""
        return ctypes.c_uint64.from_buffer(self._memory, offset)

    def f64(self, offset: int) -> ctypes.c_double:
        """Return the double at an offset, as a view."""
        return ctypes.c_double.from_buffer(self._memory, offset)

    def view(self, kind: type[_View], offset: int) -> _View:
        """Return the fields of a structure at an offset; each is loaded and stored as a number of its own."""
        return kind.from_buffer(self._memory, offset)

    def window(self, offset: int, length: int) -> ctypes.Array[ctypes.c_char]:
        """Return bytes at an offset, as a view; its `raw` is a copy of them."""
        return (ctypes.c_char * length).from_buffer(self._memory, offset)

    def text(self, offset: int, length: int) -> str:
        """Return the bytes up to the first NUL as text; what is no ASCII is replaced."""
        return self._memory[offset : offset + length].split(b"\0", 1)[0].decode("ascii", "replace")

    def raw(self, offset: int, length: int) -> bytes:
        """Return a copy of the bytes."""
        return self._memory[offset : offset + length]

    def put_raw(self, offset: int, content: bytes) -> None:
        """Write bytes, not at once: only what nobody may be reading in parts."""
        self._memory[offset : offset + len(content)] = content

    def put_text(self, offset: int, length: int, text: str) -> None:
        """Write text and fill up with NUL; only before anybody else reads the file."""
        self._memory[offset : offset + length] = text.encode("ascii")[: length - 1].ljust(length, b"\0")

    @property
    def is_cut(self) -> bool:
        """Whether a part of it was touched that is the file's no longer; costs no look at the file system."""
        return CUTS.is_cut(self._start)

    def is_current(self) -> bool:
        """Tell whether the path still names this file, and the file is whole and always was."""
        if self.is_cut:
            return False
        try:
            found = os.lstat(self._name)
        except OSError:
            return False
        return (found.st_ino, found.st_size) == (self.inode, self._size)

    def close(self) -> None:
        """Unmap; views that were handed out must be gone, or the memory goes with the last of them."""
        try:
            self._memory.close()
        except BufferError:  # a view is still held somewhere: the mapping ends with it
            return
        CUTS.forget(self._start)


def _mapped(path: Path, descriptor: int, size: int) -> mmap.mmap:
    try:
        return mmap.mmap(descriptor, size)
    except ValueError:
        raise LayoutError(f"{path} was cut while it was opened") from None


def is_name(text: str) -> bool:
    """Tell whether a tenant's text is one element of a path, and no way out of it."""
    return bool(text) and "/" not in text and text not in {".", ".."}
