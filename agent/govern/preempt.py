"""Who is stopped for a moment where nothing else holds it back, so that a higher level has its guarantee; pure.

The last resort, off by default: only workers of low and medium whose compute no backend limits while they run, only
while they are above their request, only for somebody of a higher level on the same device who works below its
guarantee while the device is full. A stop is short, and followed by a rest at least as long: probes of a frozen
container fail, and the kubelet kills what fails them for long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agent.govern.divide import FIRST_IN_LINE
from agent.govern.pool import Share
from agent.model.samples import WorkerKey
from autoscaler.contract.keys import QoS

FULL_RATIO: Final = 0.95
SHORT_RATIO: Final = 0.9
AT_WORK_RATIO: Final = 0.01
STOP_SECONDS: Final = 3.0
REST_SECONDS: Final = 6.0
PREEMPTED: Final = frozenset({QoS.LOW, QoS.MEDIUM})
_RANK: Final = {qos: rank for rank, qos in enumerate(FIRST_IN_LINE)}


@dataclass(frozen=True, slots=True)
class Use:
    """One worker on one device in this tick: TFLOPs used, and whether a backend limits its compute while it runs."""

    tflops_used: float | None
    is_limited: bool


@dataclass(frozen=True, slots=True)
class Stop:
    """Since when a worker is stopped, or (`until` set) until when it rests from being stopped; seconds."""

    since: float
    until: float | None = None

    @property
    def is_on(self) -> bool:
        """Whether it is stopped now."""
        return self.until is None


def preempt(
    before: Mapping[tuple[str, str], Stop],
    shares: Sequence[Share],
    uses: Mapping[WorkerKey, Use],
    busy: Mapping[str, tuple[float, float]],
    now: float,
) -> dict[tuple[str, str], Stop]:
    """Return who is stopped or rests, by worker; `busy` has each device's utilization (0..1) and capacity in TFLOPs.

    At most one worker a device is stopped at a time: the lowest level first, then the furthest above its request.
    """
    after = {name: kept for name, stop in before.items() if (kept := _aged(stop, now)) is not None}
    by_device: dict[str, list[Share]] = {}
    for share in shares:
        by_device.setdefault(share.quota.uuid, []).append(share)
    for uuid, crew in by_device.items():
        ratio, capacity = busy.get(uuid, (0.0, 0.0))
        stopped = any((stop := after.get(one.worker.id)) is not None and stop.is_on for one in crew)
        if stopped or ratio < FULL_RATIO:
            continue
        victim = _victim(crew, uses, capacity, after)
        if victim is not None:
            after[victim.worker.id] = Stop(now)
    return after


def _aged(stop: Stop, now: float) -> Stop | None:
    # A clock that was set back ends both, or they would last until it is where it was.
    if stop.until is None:
        return stop if 0.0 <= now - stop.since < STOP_SECONDS else Stop(stop.since, now + REST_SECONDS)
    return stop if stop.until - REST_SECONDS <= now < stop.until else None


def _victim(
    crew: Sequence[Share], uses: Mapping[WorkerKey, Use], capacity: float, resting: Mapping[tuple[str, str], Stop]
) -> Share | None:
    short = [_RANK[one.worker.qos] for one in crew if _is_short(one, uses, capacity)]
    if not short:
        return None
    candidates = [
        (_RANK[one.worker.qos], above, one.worker.id, one)
        for one in crew
        if (above := _above(one, uses)) > 0.0
        and one.worker.qos in PREEMPTED
        and _RANK[one.worker.qos] > min(short)
        and one.worker.id not in resting
    ]
    return max(candidates, key=lambda found: found[:3])[3] if candidates else None


def _is_short(share: Share, uses: Mapping[WorkerKey, Use], capacity: float) -> bool:
    """Tell whether a worker is at work below its guarantee."""
    use = uses.get((*share.worker.id, share.quota.uuid))
    if use is None or use.tflops_used is None:
        return False
    return AT_WORK_RATIO * capacity < use.tflops_used < SHORT_RATIO * share.quota.tflops_request


def _above(share: Share, uses: Mapping[WorkerKey, Use]) -> float:
    """Return by how many TFLOPs a worker that nothing limits is above its request."""
    use = uses.get((*share.worker.id, share.quota.uuid))
    if use is None or use.tflops_used is None or use.is_limited:
        return 0.0
    return use.tflops_used - share.quota.tflops_request
