"""The heart gets its turn however often the others take the lock again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from agent.enforce.turnstile import Turnstile


class Greedy(threading.Thread):
    """Takes the lock, holds it, lets go, and takes it again at once; counts."""

    def __init__(self, lock: Turnstile) -> None:
        super().__init__(daemon=True)
        self.lock, self.turns, self.inside, self.overlaps = lock, 0, 0, 0
        self.stop = threading.Event()

    def goes_on(self, turns: int) -> None:
        """Wait until it has had so many turns more."""
        wanted, deadline = self.turns + turns, time.monotonic() + 30.0
        while self.turns < wanted:
            assert time.monotonic() < deadline
            self.stop.wait(0.001)

    def run(self) -> None:
        while not self.stop.is_set():
            with self.lock:
                self.turns += 1
                self.inside += 1
                for _ in range(3000):
                    pass  # Busy, as who writes limits is: it does not sleep between two of them.
                self.overlaps += self.inside != 1
                self.inside -= 1


@pytest.fixture
def greedy() -> Iterator[Greedy]:
    made = Greedy(Turnstile())
    made.start()
    yield made
    made.stop.set()
    made.join()


def test_the_first_waits_for_who_is_in_and_for_nobody_who_comes_after(greedy: Greedy) -> None:
    for _ in range(100):
        before = greedy.turns
        with greedy.lock.first():
            passed = greedy.turns - before
        # Who was on the way in when it was asked may have got in yet.
        assert passed <= 2
        greedy.goes_on(3)


def test_nobody_is_in_beside_another(greedy: Greedy) -> None:
    for _ in range(30):
        with greedy.lock.first():
            greedy.overlaps += greedy.inside != 0
        with greedy.lock:
            greedy.overlaps += greedy.inside != 0
        greedy.goes_on(1)
    assert greedy.overlaps == 0


def test_who_fails_inside_lets_go(greedy: Greedy) -> None:
    for enter in (greedy.lock.first, lambda: greedy.lock):
        with pytest.raises(ZeroDivisionError), enter():
            _ = 1 // 0
    greedy.goes_on(3)
