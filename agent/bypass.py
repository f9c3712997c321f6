"""Use above a limit that should hold: a tenant may have gone around the limiter. Shown, and no reason to grant more.

A worker counts as bypassing when it stays above its effective limit, by more than enforcement is coarse, for ten
seconds. Fairness to those who obey: a limit that was just lowered needs a moment to act, and memory that was held when
the limit went below it may be kept, only not added to. Pure. Neighbours: `loop` feeds it, `states` and `series` show
what it found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from agent.enforce.backend import Applied
from agent.report import WorkerKey
from autoscaler.contract.keys import EFFECTIVE_NOW

BYPASS_SECONDS: Final = 10.0
SETTLING_SECONDS: Final = 10.0
"""For so long after a limit was lowered the highest one of this time is what use is measured by."""
LIMIT_SLACK_RATIO: Final = 0.05


@dataclass(frozen=True, slots=True)
class Kind:
    """What is limited: its unit, how coarsely (share of the device) it is held, and whether it is kept once taken."""

    unit: str
    device_slack_ratio: float
    is_kept: bool


COMPUTE: Final = Kind("TFLOPs", 0.05, is_kept=False)
VRAM: Final = Kind("bytes", 0.01, is_kept=True)


@dataclass(slots=True)
class _Watch:
    """One limit of one worker: `allowed` is what use is measured by, until then at least; `highest` the next one."""

    allowed: float
    highest: float
    until: float | None = None
    above_since: float | None = None
    limit: float = 0.0
    used: float = 0.0


class Bypass:
    """Watches every worker whose limits are effective, tick by tick."""

    def __init__(self) -> None:
        self._watches: dict[WorkerKey, dict[Kind, _Watch]] = {}
        self._now = 0.0

    def tick(
        self, now: float, applied: Mapping[WorkerKey, Applied], capacity: Mapping[str, tuple[float | None, float]]
    ) -> None:
        """Take what is in force and in use (`now` in seconds); `capacity`: TFLOPs and bytes by device UUID."""
        self._now = now
        before, self._watches = self._watches, {}
        for key, one in applied.items():
            if one.effect not in EFFECTIVE_NOW or key[2] not in capacity:
                continue
            seen, (tflops, vram_bytes) = one.observed, capacity[key[2]]
            figures = (
                (COMPUTE, seen.tflops_limit, seen.tflops_used, tflops),
                (VRAM, seen.vram_limit_bytes, seen.vram_used_bytes, vram_bytes),
            )
            watches = before.get(key, {})
            self._watches[key] = {
                kind: _watched(watches.get(kind), now, kind, (limit, used, size))
                for kind, limit, used, size in figures
                if limit is not None and used is not None and size is not None
            }

    def found(self) -> Mapping[WorkerKey, bool]:
        """Return whether each worker that is watched bypasses a limit."""
        return {
            key: any(self._is_bypassed(one) for one in watches.values())
            for key, watches in self._watches.items()
            if watches
        }

    def reasons(self) -> Mapping[WorkerKey, str]:
        """Return what to say of each worker that bypasses a limit, with the figures."""
        said = {
            key: [self._said(kind, one) for kind, one in watches.items() if self._is_bypassed(one)]
            for key, watches in self._watches.items()
        }
        return {key: "LimitBypassed: " + "; ".join(parts) for key, parts in said.items() if parts}

    def _is_bypassed(self, one: _Watch) -> bool:
        return one.above_since is not None and self._now - one.above_since >= BYPASS_SECONDS

    def _said(self, kind: Kind, one: _Watch) -> str:
        seconds = self._now - (one.above_since if one.above_since is not None else self._now)
        return f"{one.used:.12g} {kind.unit} in use, above the effective limit of {one.limit:.12g} for {seconds:.0f} s"


def _watched(before: _Watch | None, now: float, kind: Kind, figures: tuple[float, float, float]) -> _Watch:
    """Return the watch after a tick; `figures` are limit, use and the device's size, in the kind's unit."""
    limit, used, size = figures
    one = before or _Watch(max(limit, used) if kind.is_kept else limit, limit)
    one.limit, one.used = limit, used
    if limit >= one.allowed:
        one.allowed, one.until = limit, None
    elif one.until is None:
        one.until, one.highest = now + SETTLING_SECONDS, limit
    else:
        one.highest = max(one.highest, limit)
        if now >= one.until:
            one.allowed = max(one.highest, min(used, one.allowed)) if kind.is_kept else one.highest
            one.until = None
    is_above = used > one.allowed + max(LIMIT_SLACK_RATIO * limit, kind.device_slack_ratio * size)
    one.above_since = (one.above_since if one.above_since is not None else now) if is_above else None
    return one
