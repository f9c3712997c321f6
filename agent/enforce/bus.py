"""What the kernel does to whoever touches a mapped page that was cut off, and how the agent lives through it.

Whoever may write a shared file may also cut it short. A load or store behind the new end is then answered with SIGBUS,
which ends a process; no look at the size beforehand closes that gap, and regular files can't be sealed. So the signal
is caught: the page that is gone is replaced by an empty one of our own, the instruction is done again on it, and the
mapping is known to be cut. Any other SIGBUS goes to whoever handled it before.

The handler runs on the thread that made the access, which holds the interpreter's lock inside one plain copy of ctypes
or mmap, so that Python may be entered there. Linux on 64 bits only; elsewhere nothing is caught.
"""

from __future__ import annotations

import ctypes
import mmap
import signal
import sys
import threading
import weakref
from typing import Final

_ADDRESS: Final = 16
"""Offset of `si_addr` in `siginfo_t`."""
_SA_SIGINFO: Final = 4
_MAP_FIXED: Final = 0x10
_FAILED: Final = ctypes.c_void_p(-1).value
_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class _Action(ctypes.Structure):
    """C's `struct sigaction`."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


class CutGuard:
    """Catches the signal of this process for the mappings that were handed to it."""

    def __init__(self) -> None:
        self._mappings: dict[int, tuple[int, weakref.ref[mmap.mmap]]] = {}
        self._cut: set[int] = set()
        self._lock = threading.Lock()
        self._before = _Action()
        # Both live as long as the process: the kernel knows their addresses.
        self._handler = _Handler(self._replace_page)
        self._libc: ctypes.PyDLL | None = None

    def watch(self, memory: mmap.mmap) -> int:
        """Guard a mapping until it is closed; return the address it is known by."""
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        with self._lock:
            self._install()
            self._cut.discard(start)
            # A copy is swapped in: the handler may run at any moment.
            alive = {at: one for at, one in self._mappings.items() if one[1]() is not None and at != start}
            self._mappings = alive | {start: (start + len(memory), weakref.ref(memory))}
        return start

    def forget(self, start: int) -> None:
        """Leave a mapping unguarded."""
        with self._lock:
            self._mappings = {at: one for at, one in self._mappings.items() if at != start}
            self._cut.discard(start)

    def is_cut(self, start: int) -> bool:
        """Tell whether a part of the mapping is no longer the file's."""
        return start in self._cut

    def _install(self) -> None:
        if self._libc is not None or sys.platform != "linux" or ctypes.sizeof(ctypes.c_void_p) != 8:
            return
        # PyDLL keeps the interpreter's lock: in the handler nobody else may run meanwhile.
        libc = self._libc = ctypes.PyDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
        action = _Action(ctypes.cast(self._handler, ctypes.c_void_p), flags=_SA_SIGINFO)
        libc.sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(self._before))

    def _replace_page(self, _number: int, info: int, _context: int) -> None:
        assert self._libc is not None
        address = ctypes.c_uint64.from_address(info + _ADDRESS).value
        for start, (end, _) in self._mappings.items():
            if start <= address < end:
                page = address - address % mmap.PAGESIZE
                flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
                made = self._libc.mmap(page, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
                if made != _FAILED:
                    self._cut.add(start)
                    return
        self._libc.sigaction(signal.SIGBUS, ctypes.byref(self._before), None)


CUTS: Final = CutGuard()
"""The process's only one: a signal has one handler."""
