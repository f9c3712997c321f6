"""What holds replicas, and figures that somebody else set, as columns; row = workload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from autoscaler.model.decision import Field
from autoscaler.model.defaults import MINUTE
from autoscaler.model.usage import Bools, Floats
from autoscaler.model.workload import Workload

STUCK_SECONDS: Final = 15 * MINUTE
"""From then on a pod that is still pending, or a rollout that makes no new pod, is stuck.

Longer than a new GPU node takes to come, with its driver and a large image (about 10 minutes), and than Kubernetes'
own deadline for a rollout (10 minutes). What is stuck no longer keeps replicas that nobody needs; a pod that nobody can
place is no reason to ask for another one.
"""
NEVER: Final = -np.inf


@dataclass(frozen=True, slots=True, eq=False)
class Holding:
    """`starting`: pods are pending, and may still start; `stuck`: they are, for too long; `rolling`: a rollout goes on.

    (W,) each, as `unscalable`: nobody can set the owner's replicas. `rests_until` (W, 5): until when a figure that
    somebody else set rests, -inf none does. `floor` (W, 2): least replicas for disruption budgets and for the gang.
    """

    starting: Bools
    stuck: Bools
    rolling: Bools
    unscalable: Bools
    rests_until: Floats
    floor: Floats


def to_holding(workloads: Sequence[Workload], now: float) -> Holding:
    """Return what holds each workload at this moment."""
    pending = [_pending(workload, now) for workload in workloads]
    rests_until = np.full((len(workloads), len(Field)), NEVER)
    for row, workload in enumerate(workloads):
        for one in workload.taken:
            rests_until[row, one.field] = one.rests_until
    return Holding(
        starting=np.array([young for young, _ in pending], dtype=np.bool_),
        stuck=np.array([old for _, old in pending], dtype=np.bool_),
        rolling=np.array(
            [one.rollout_in_progress and not now - one.rollout_since >= STUCK_SECONDS for one in workloads],
            dtype=np.bool_,
        ),
        unscalable=np.array([bool(workload.unscalable) for workload in workloads], dtype=np.bool_),
        rests_until=rests_until,
        floor=np.array([(one.floor.by_budget, one.floor.by_gang) for one in workloads], dtype=float).reshape(-1, 2),
    )


def _pending(workload: Workload, now: float) -> tuple[bool, bool]:
    """Return whether a pod is pending that may still start (or whose age nobody tells), and whether only others are."""
    ages = [now - worker.born_at for worker in workload.workers if worker.pending]
    young = any(not age >= STUCK_SECONDS for age in ages)
    return young, bool(ages) and not young
