"""Which workers their nodes tell another thing of than in the pass before; pure.

A node is disturbed in nearly every pass of a large fleet, its workers are not: only what their status shows counts,
neither the number of the node's document nor live use. Neighbour: `writer` renders those workers' workloads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from autoscaler.contract.quota import WorkerStatus
from autoscaler.model.snapshot import NodeState


def disturbed_workers(nodes: Mapping[str, NodeState], before: Mapping[str, NodeState]) -> set[str]:
    """Return the pod UIDs of workers that came, went, lost or found their agent, or acknowledged another thing."""
    disturbed: set[str] = set()
    for node in nodes.keys() | before.keys():
        disturbed.update(_on_node(nodes.get(node), before.get(node)))
    return disturbed


def _on_node(state: NodeState | None, before: NodeState | None) -> Iterator[str]:
    now, earlier = _workers(state), _workers(before)
    if state is None or before is None or state.error != before.error:
        yield from (worker.pod_uid for worker in (*now, *earlier))
        return
    if [worker.pod_uid for worker in now] == [worker.pod_uid for worker in earlier]:
        yield from (new.pod_uid for new, old in zip(now, earlier, strict=True) if _differs(new, old))
        return
    old_of = {(worker.pod_uid, worker.container): worker for worker in earlier}
    for new in now:
        old = old_of.pop((new.pod_uid, new.container), None)
        if old is None or _differs(new, old):
            yield new.pod_uid
    yield from (uid for uid, _ in old_of)


def _workers(state: NodeState | None) -> tuple[WorkerStatus, ...]:
    return state.quotas.workers if state is not None and state.quotas is not None else ()


def _differs(new: WorkerStatus, old: WorkerStatus) -> bool:
    if new is old or new.devices == old.devices:
        return False
    return len(new.devices) != len(old.devices) or any(
        one.applied is not other.applied
        or one.effect is not other.effect
        or one.uuid != other.uuid
        or one.desired != other.desired
        or one.reason != other.reason
        for one, other in zip(new.devices, old.devices, strict=True)
    )
