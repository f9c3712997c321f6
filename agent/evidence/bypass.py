"""Use above a limit that should hold: a tenant may have gone around the limiter. Shown, and no reason to grant more.

A worker counts as bypassing when it stays above its effective limit, by more than enforcement is coarse, for ten
seconds. Fairness to those who obey: a limit that was just lowered needs a moment to act, and memory that was held when
the limit went below it may be kept, only not added to.

What is beyond a limit is told from its first tick on, whoever turns out to bypass it later: demand can't be seen above
a limit that holds, so it is no evidence, and nobody who reads it has to wait for ten seconds. A limiter that lets
through in gusts is no bypass: what was left of the limit just before pays for them. Pure. Neighbours: `loop` feeds it,
`states` and `series` show what it found, `totals` adds up what was beyond.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from agent.model.applied import Applied
from agent.model.beyond import Beyond
from agent.model.samples import WorkerKey

BYPASS_SECONDS: Final = 10.0
SETTLING_SECONDS: Final = 10.0
"""For so long after a limit was lowered the highest one of this time is what use is measured by."""
LIMIT_SLACK_RATIO: Final = 0.05
GUST_SECONDS: Final = 3.0
"""So much of what was left of a compute limit may be used just after, beside the limit itself."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What is limited: its unit, how coarsely (share of the device) it is held, and whether it is kept once taken.

    `gust_seconds`: for how long what is left of a limit may be used later; what is kept is never left over.
    """

    unit: str
    device_slack_ratio: float
    is_kept: bool
    gust_seconds: float


COMPUTE: Final = Kind("TFLOPs", 0.05, is_kept=False, gust_seconds=GUST_SECONDS)
VRAM: Final = Kind("bytes", 0.01, is_kept=True, gust_seconds=0.0)


@dataclass(slots=True)
class _Watch:
    """One limit of one worker: `allowed` is what use is measured by, until then at least; `highest` the next one.

    `spare` is what was left of the limit lately, in the limit's unit times seconds; `beyond` what nothing allowed.
    """

    allowed: float
    highest: float
    until: float | None = None
    above_since: float | None = None
    limit: float = 0.0
    used: float = 0.0
    spare: float = 0.0
    beyond: float = 0.0


class Bypass:
    """Watches every limit that holds a running worker, tick by tick: what is observed of limits is no other."""

    def __init__(self) -> None:
        self._watches: dict[WorkerKey, tuple[_Watch | None, _Watch | None]] = {}
        self._above: set[WorkerKey] = set()
        self._beyond: dict[WorkerKey, Beyond] = {}
        self._now = 0.0

    def tick(
        self, now: float, applied: Mapping[WorkerKey, Applied], capacity: Mapping[str, tuple[float | None, float]]
    ) -> None:
        """Take what is in force and in use (`now` in seconds); `capacity`: TFLOPs and bytes by device UUID."""
        when, before = (now, max(0.0, now - self._now)), self._watches
        self._now, self._watches, self._above, self._beyond = now, {}, set(), {}
        for key, one in applied.items():
            size = capacity.get(key[2])
            if size is None:
                continue
            seen, known = one.observed, before.get(key, _NEW)
            compute = _watched(known[0], when, COMPUTE, (seen.tflops_limit, seen.tflops_used, size[0]))
            vram = _watched(known[1], when, VRAM, (seen.vram_limit_bytes, seen.vram_used_bytes, size[1]))
            if compute is None and vram is None:
                continue
            self._watches[key] = known if compute is known[0] and vram is known[1] else (compute, vram)
            if _is_above(compute) or _is_above(vram):
                self._above.add(key)
                self._beyond[key] = _beyond(compute, vram, size[0])

    def beyond(self) -> Mapping[WorkerKey, Beyond]:
        """Return what is used beyond a limit now, no entry where nothing is."""
        return self._beyond

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
    before: _Watch | None,
    when: tuple[float, float],
    kind: Kind,
    figures: tuple[float | None, float | None, float | None],
) -> _Watch | None:
    """Return the watch after a tick, None where it can't be judged.

    `when`: now, and the seconds since the last tick; `figures`: limit, use and the device's size.
    """
    limit, used, size = figures
    if limit is None or used is None or size is None:
        return None
    if before is not None and used <= limit == before.allowed:
        # So it is with most workers most of the time.
        before.until = before.above_since = None
        _spare(before, limit - used, when[1], kind)
        return before
    now, elapsed = when
    # Nobody gets memory by being there first: a limit below what is in use is not put into force.
    one, elapsed = (before, elapsed) if before is not None else (_Watch(limit, limit), 0.0)
    one.limit, one.used, one.beyond = limit, used, 0.0
    if limit >= one.allowed:
        one.allowed, one.until = limit, None
    else:
        _lower(one, now, kind)
    over = used - one.allowed - max(LIMIT_SLACK_RATIO * limit, kind.device_slack_ratio * size)
    if over <= 0:
        one.above_since = None
        _spare(one, limit - used, elapsed, kind)
    else:
        one.above_since = now if one.above_since is None else one.above_since
        _pay(one, over, elapsed)
    return one


def _is_above(one: _Watch | None) -> bool:
    return one is not None and one.above_since is not None


def _spare(one: _Watch, left: float, seconds: float, kind: Kind) -> None:
    """Remember what was left of the limit, as much as may be used later."""
    most = one.allowed * kind.gust_seconds
    if left > 0 and one.spare < most:
        one.spare = min(one.spare + left * seconds, most)


def _pay(one: _Watch, over: float, seconds: float) -> None:
    """Take what was left of the limit before for what is used over it now; the rest is beyond."""
    paid = min(one.spare, over * seconds)
    one.spare -= paid
    one.beyond = max(0.0, over - paid / seconds) if seconds > 0 else over


def _beyond(compute: _Watch | None, vram: _Watch | None, tflops: float | None) -> Beyond:
    ratio = compute.beyond / tflops if compute is not None and tflops else 0.0
    return Beyond(ratio, round(vram.beyond) if vram is not None else 0)


def _lower(one: _Watch, now: float, kind: Kind) -> None:
    """Bring what is allowed down towards a lower limit, when that had its time to act."""
    if one.until is None:
        one.until, one.highest = now + SETTLING_SECONDS, one.limit
        return
    one.highest = max(one.highest, one.limit)
    if now >= one.until:
        one.allowed = max(one.highest, min(one.used, one.allowed)) if kind.is_kept else one.highest
        one.until = None
