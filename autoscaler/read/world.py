"""Cluster and agents to a Snapshot: who runs where, with what, as of now."""

from __future__ import annotations

from collections.abc import Iterable

from autoscaler.model.snapshot import Snapshot
from autoscaler.model.workload import ClusterView, Discovered
from autoscaler.ports import Cluster, Enforcement
from autoscaler.read.discovery import discover


async def read_world(
    cluster: Cluster, enforcement: Enforcement, now: float, previous: Discovered | None, known_nodes: Iterable[str] = ()
) -> Snapshot:
    """Return the snapshot of this moment; `known_nodes` are asked even when no worker of ours runs there.

    Raises:
        ClusterError: the cluster can't be read; nothing may be decided.

    """
    view = await cluster.read()
    nodes = await enforcement.read(tuple(sorted({*known_nodes, *_nodes_of(view)})))
    return Snapshot(now, discover(view, nodes, previous), nodes)


def _nodes_of(view: ClusterView) -> set[str]:
    """Return the nodes that pods were scheduled to."""
    return {node for pod in view.pods if (node := (pod.get("spec") or {}).get("nodeName"))}
