"""How often something may happen: so many at once, then so many a second. Pure; the clock is the caller's."""

from __future__ import annotations


class Pace:
    """A token bucket of `burst` tokens, refilled by `per_second`."""

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second, self._burst = per_second, burst
        self._tokens, self._at = burst, float("-inf")

    def wait_seconds(self, at: float) -> float:
        """Take one token at `at` (seconds); without one, return how long to wait, and take none."""
        if self._at != float("-inf"):
            self._tokens = min(self._burst, self._tokens + max(at - self._at, 0.0) * self._per_second)
        self._at = at
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self._per_second
