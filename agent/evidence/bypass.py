"""Use above a limit that should hold: a tenant may have gone around the limiter. Shown, and no reason to grant more.

A worker counts as bypassing when it stays above its effective limit, by more than enforcement is coarse, for ten
seconds. Fairness to those who obey: a limit that was just lowered needs a moment to act, and memory that was held when
the limit went below it may be kept, only not added to. Pure. Neighbours: `loop` feeds it, `states` and `series` show
what it found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from agent.model.applied import Applied
from agent.model.samples import WorkerKey
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
        self._watches: dict[WorkerKey, tuple[_Watch | None, _Watch | None]] = {}
        self._above: set[WorkerKey] = set()
        self._now = 0.0

    def tick(
        self, now: float, applied: Mapping[WorkerKey, Applied], capacity: Mapping[str, tuple[float | None, float]]
    ) -> None:
        """Take what is in force and in use (`now` in seconds); `capacity`: TFLOPs and bytes by device UUID."""
        self._now, before = now, self._watches
        self._watches, self._above = {}, set()
        for key, one in applied.items():
            size = capacity.get(key[2])
            if size is None or one.effect not in EFFECTIVE_NOW:
                continue
            seen, (compute, vram) = one.observed, before.get(key, _NEW)
            compute = _watched(compute, now, COMPUTE, (seen.tflops_limit, seen.tflops_used, size[0]))
            vram = _watched(vram, now, VRAM, (seen.vram_limit_bytes, seen.vram_used_bytes, size[1]))
            if compute is None and vram is None:
                continue
            self._watches[key] = (compute, vram)
            if any(one is not None and one.above_since is not None for one in (compute, vram)):
                self._above.add(key)

    def found(self) -> Mapping[WorkerKey, bool]:
        """Return whether each worker that is watched bypasses a limit."""
        return dict.fromkeys(self._watches, False) | dict.fromkeys(self.reasons(), True)

    def reasons(self) -> Mapping[WorkerKey, str]:
        """Return what to say of each worker that bypasses a limit, with the figures."""
        said = {key: tuple(self._said(key)) for key in sorted(self._above)}
        return {key: "LimitBypassed: " + "; ".join(parts) for key, parts in said.items() if parts}

    def _said(self, key: WorkerKey) -> Iterator[str]:
        for kind, one in zip((COMPUTE, VRAM), self._watches[key], strict=True):
            if one is not None and one.above_since is not None and self._now - one.above_since >= BYPASS_SECONDS:
                seconds = self._now - one.above_since
                limit = f"above the effective limit of {one.limit:.12g} for {seconds:.0f} s"
                yield f"{one.used:.12g} {kind.unit} in use, {limit}"


_NEW: Final = (None, None)


def _watched(
    before: _Watch | None, now: float, kind: Kind, figures: tuple[float | None, float | None, float | None]
) -> _Watch | None:
    """Return the watch after a tick, None where it can't be judged; `figures` are limit, use and the device's size."""
    limit, used, size = figures
    if limit is None or used is None or size is None:
        return None
    one = before or _Watch(max(limit, used) if kind.is_kept else limit, limit)
    one.limit, one.used = limit, used
    if limit >= one.allowed:
        one.allowed, one.until = limit, None
        if used <= limit:
            one.above_since = None
            return one
    else:
        _lower(one, now, kind)
    is_above = used > one.allowed + max(LIMIT_SLACK_RATIO * limit, kind.device_slack_ratio * size)
    one.above_since = (one.above_since if one.above_since is not None else now) if is_above else None
    return one


def _lower(one: _Watch, now: float, kind: Kind) -> None:
    """Bring what is allowed down towards a lower limit, when that had its time to act."""
    if one.until is None:
        one.until, one.highest = now + SETTLING_SECONDS, one.limit
        return
    one.highest = max(one.highest, one.limit)
    if now >= one.until:
        one.allowed = max(one.highest, min(one.used, one.allowed)) if kind.is_kept else one.highest
        one.until = None
