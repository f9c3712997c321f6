"""A lock that one thread gets as soon as it is let go, however often the others take it again.

Python's locks are not fair: who lets go and takes again at once, as a loop over hundreds of workers does, leaves a
thread that has to wake up first waiting until the loop ends. On a busy machine that was more than a second.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType


class Turnstile:
    """A context for many, not to be entered again by who is in it; `first` is for the one that must not wait."""

    def __init__(self) -> None:
        self._gate, self._lock = threading.Lock(), threading.Lock()

    def __enter__(self) -> None:
        # Shut while the one waits: whoever comes now comes after it.
        with self._gate:
            pass
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    @contextmanager
    def first(self) -> Iterator[None]:
        """Enter as the next, behind nobody but who is in already."""
        with self._gate, self._lock:
            yield
