"""What every node is to hold, from all workloads; pure.

In a large fleet few workloads move between two passes: those that are the same objects as before keep the quotas that
were made for them then. Neighbours: `plan` compares the result with what nodes have, `send` carries that out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autoscaler.apply.difference import Told
from autoscaler.apply.fit import Held
from autoscaler.apply.plan import kept_quotas, quotas_of
from autoscaler.contract.quota import WorkerQuota
from autoscaler.model.allowed import overlay_of
from autoscaler.model.decision import Decision
from autoscaler.model.snapshot import NodeState
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import ObjectRef, Worker, Workload


@dataclass(frozen=True, slots=True)
class Settled:
    """The nodes and quotas of a workload's workers, in their order.

    `follows`: all have a quota, and from the workload alone, not from what its nodes say.
    """

    workload: Workload
    nodes: tuple[str, ...]
    quotas: tuple[WorkerQuota | Held, ...]
    follows: bool


@dataclass(frozen=True, slots=True)
class Kept:
    """What one pass leaves to the next, so that it looks only at what moved: by workload, and by node."""

    settled: Mapping[WorkloadKey, Settled] = field(default_factory=dict)
    told: Mapping[str, Told] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Batch:
    """One pass's decisions and the world they were made in.

    `workloads` are all that are known: one without a decision keeps what its workers' annotations say. `keep` are
    those that can't be judged (broken configuration): nodes keep what they were told about them. `kept` is what the
    pass before left; without it all is looked at.
    """

    workloads: tuple[Workload, ...]
    decisions: Mapping[WorkloadKey, Decision]
    nodes: Mapping[str, NodeState]
    epoch: int
    keep: frozenset[WorkloadKey] = frozenset()
    kept: Kept = field(default_factory=Kept)


@dataclass(frozen=True, slots=True)
class Desired:
    """The quotas of every node, workers that have no place on any, and what the next pass may use again."""

    nodes: Mapping[str, list[WorkerQuota]]
    unplaced: tuple[Held, ...]
    settled: Mapping[WorkloadKey, Settled]


def desired(batch: Batch, unwritten: Mapping[WorkloadKey, frozenset[ObjectRef]]) -> Desired:
    """Return what every node is to hold; `unwritten` workers keep what their annotations say."""
    nodes = {node: list(kept_quotas(state, batch.keep)) for node, state in batch.nodes.items()}
    unplaced: list[Held] = []
    settled: dict[WorkloadKey, Settled] = {}
    for workload in batch.workloads:
        made, decided = batch.kept.settled.get(workload.key), workload.key in batch.decisions
        if decided or made is None or made.workload is not workload:
            made = _made(workload, batch, unwritten.get(workload.key, frozenset()))
        if made.follows and not decided:
            settled[workload.key] = made
        # Ten times as many workers as workloads: what settled is not looked into.
        for worker, node, quota in zip(workload.workers, made.nodes, made.quotas, strict=True):
            place = nodes.get(node)
            if place is None:
                unplaced.append(_nowhere(worker))
            elif made.follows or not isinstance(quota, Held):
                place.append(quota)  # type: ignore[arg-type]  # none is Held where all follow
            else:
                unplaced.append(quota)
    return Desired(nodes, tuple(unplaced), settled)


def _made(workload: Workload, batch: Batch, unwritten: frozenset[ObjectRef]) -> Settled:
    overlay = overlay_of(batch.decisions.get(workload.key))
    quotas: list[WorkerQuota | Held] = []
    for worker in workload.workers:
        amounts = worker.current if unwritten and worker.ref in unwritten else overlay.over(worker.current)
        state = batch.nodes.get(worker.node) or NodeState(worker.node)
        quotas.append(quotas_of(workload, worker, amounts, state))
    follows = all(worker.devices for worker in workload.workers) and not any(isinstance(one, Held) for one in quotas)
    return Settled(workload, tuple(worker.node for worker in workload.workers), tuple(quotas), follows)


def _nowhere(worker: Worker) -> Held:
    reason = f"no agent on node {worker.node}" if worker.node else "not on a node yet"
    return Held(worker.ref.uid, "", f"DevicesUnknown: {reason}")
