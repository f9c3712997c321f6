"""Carrying plans out: intents to the cluster first, then documents to the nodes; one failure stops nobody else.

May be cancelled anywhere: every write and every document leaves a state from which planning again goes on. Neighbours:
`plan` says what and in which order, the controller calls `send` once per pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from autoscaler.apply.desired import Batch, Kept, desired
from autoscaler.apply.difference import Told, is_in_force
from autoscaler.apply.fit import Held
from autoscaler.apply.plan import documents, intents
from autoscaler.contract.quota import QuotaDocument, WorkerQuota
from autoscaler.errors import NodeError, RefusedError
from autoscaler.model.decision import Decision
from autoscaler.model.snapshot import NodeState
from autoscaler.model.steps import Annotate, ClusterWrite, Scale
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import ObjectRef, Workload
from autoscaler.ports import Cluster, Enforcement

__all__ = ["Batch", "Outcome", "send"]

CONCURRENT_WRITES: Final = 16
"""Enough to hide the API server's latency, few enough to stay inside its flow control."""

CONCURRENT_NODES: Final = 64
_ROUNDS: Final = 3
"""Shrink, then grow, then nothing left to send; a plan that is still not empty goes on in the next pass."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a batch; in a dry run `written` and `documents` are what would have been sent.

    `errors` by workload, `node_errors` by node. `nodes` are the nodes as they answered last, with `error` set where
    the agent was away or refused. `held` is what had to wait. `kept` is for the next batch.
    """

    written: Mapping[WorkloadKey, tuple[ClusterWrite, ...]]
    errors: Mapping[WorkloadKey, str]
    documents: Mapping[str, tuple[QuotaDocument, ...]]
    nodes: Mapping[str, NodeState]
    node_errors: Mapping[str, str]
    held: tuple[Held, ...]
    kept: Kept


@dataclass(frozen=True, slots=True)
class _Wrote:
    done: tuple[ClusterWrite, ...] = ()
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Sent:
    state: NodeState
    documents: tuple[QuotaDocument, ...] = ()
    held: tuple[Held, ...] = ()
    error: str = ""
    has_all: bool = False


async def send(batch: Batch, cluster: Cluster, enforcement: Enforcement, *, dry_run: bool = False) -> Outcome:
    """Write what was decided, then bring every node to it; raises nothing but cancellation.

    Where an intent could not be written, the worker's quota follows what is written now.
    """
    wrote = await _write_all(batch, cluster, dry_run=dry_run)
    unwritten = {load.key: _unwritten(load, wrote[load.key]) for load in batch.workloads if load.key in wrote}
    wanted = desired(batch, unwritten)
    sent = await _push_all(batch, enforcement, wanted.nodes, dry_run=dry_run)
    return Outcome(
        written={key: one.done for key, one in wrote.items() if one.done},
        errors={key: "; ".join(one.errors) for key, one in wrote.items() if one.errors},
        documents={node: one.documents for node, one in sent.items() if one.documents},
        nodes={**batch.nodes, **{node: one.state for node, one in sent.items()}},
        node_errors={node: one.error for node, one in sent.items() if one.error},
        held=wanted.unplaced + tuple(held for one in sent.values() for held in one.held),
        kept=Kept(
            wanted.settled, {node: told for node, one in sent.items() if (told := _told(one, wanted.nodes[node]))}
        ),
    )


async def _write_all(batch: Batch, cluster: Cluster, *, dry_run: bool) -> dict[WorkloadKey, _Wrote]:
    slots = asyncio.Semaphore(CONCURRENT_WRITES)
    wrote: dict[WorkloadKey, _Wrote] = {}

    async def write(key: WorkloadKey, writes: tuple[ClusterWrite, ...]) -> None:
        async with slots:
            wrote[key] = await _write(cluster, writes)

    async with asyncio.TaskGroup() as group:
        for workload in batch.workloads:
            decision = batch.decisions.get(workload.key)
            if decision is None:
                continue
            planned = _plan(workload, decision)
            if planned.errors or dry_run:
                wrote[workload.key] = planned
            elif planned.done:
                group.create_task(write(workload.key, planned.done))
    return wrote


def _plan(workload: Workload, decision: Decision) -> _Wrote:
    try:
        return _Wrote(done=intents(workload, decision))
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one workload, the others go on
        return _Wrote(errors=(_text(error),))


async def _write(cluster: Cluster, writes: Sequence[ClusterWrite]) -> _Wrote:
    """Carry out one workload's writes; workers fail one by one, its own stop at the first failure (order matters)."""
    done: list[ClusterWrite] = []
    errors: list[str] = []
    for write in writes:
        try:
            await cluster.write(write)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one workload, the others go on
            errors.append(_text(error))
            if isinstance(write, Scale) or (isinstance(write, Annotate) and write.ref.kind != "Pod"):
                break
        else:
            done.append(write)
    return _Wrote(tuple(done), tuple(errors))


def _unwritten(workload: Workload, outcome: _Wrote) -> frozenset[ObjectRef]:
    """Return the workers whose annotations could not be written."""
    if not outcome.errors:
        return frozenset()
    written = {write.ref for write in outcome.done if isinstance(write, Annotate)}
    return frozenset(worker.ref for worker in workload.workers) - written


async def _push_all(
    batch: Batch, enforcement: Enforcement, wanted: Mapping[str, Sequence[WorkerQuota]], *, dry_run: bool
) -> dict[str, _Sent]:
    slots = asyncio.Semaphore(CONCURRENT_NODES)
    sent: dict[str, _Sent] = {}

    async def push(node: str, first: _Sent) -> None:
        async with slots:
            sent[node] = await _push(enforcement, first, wanted[node], batch.epoch)

    async with asyncio.TaskGroup() as group:
        for node, state in batch.nodes.items():
            plan = documents(state, wanted[node], batch.epoch, batch.kept.told.get(node))
            sent[node] = _Sent(state, plan.documents, plan.held, state.error, has_all=not (plan.documents or plan.held))
            if plan.documents and not dry_run:
                group.create_task(push(node, sent[node]))
    return sent


async def _push(enforcement: Enforcement, planned: _Sent, wanted: Sequence[WorkerQuota], epoch: int) -> _Sent:
    """Send a node its documents, one at a time: each is planned on the answer to the one before, if that differs.

    So growth follows only where every shrink beside it was acknowledged, and waits (held) where not.
    """
    state, held = planned.state, planned.held
    pushed: list[QuotaDocument] = []
    queue = planned.documents
    while queue and len(pushed) < _ROUNDS:
        try:
            state = replace(state, quotas=await enforcement.push(queue[0]), error="")
        except RefusedError as error:
            text = f"refused: {error}"
        except NodeError as error:
            text = f"away: {error}"
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one node, the others go on
            text = f"failed: {_text(error)}"
        else:
            pushed.append(queue[0])
            if state.quotas is not None and not held and is_in_force(state.quotas, queue[0]):
                queue = queue[1:]
            else:
                plan = documents(state, wanted, epoch)
                queue, held = plan.documents, plan.held
            continue
        return _Sent(replace(state, error=text), tuple(pushed), held, text)
    return _Sent(state, tuple(pushed), held, has_all=not (queue or held))


def _told(sent: _Sent, wanted: Sequence[WorkerQuota]) -> Told | None:
    """Return what is known of a node that has everything, None of one that has not."""
    status = sent.state.quotas
    if not sent.has_all or status is None:
        return None
    return Told(status.epoch, status.generation, tuple(wanted), sent.state.devices)


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
