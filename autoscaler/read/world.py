"""Cluster and agents to a Snapshot: who runs where, with what, as of now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from autoscaler.errors import Problem
from autoscaler.model.resource_quota import ResourceQuota, read_quota, tighter
from autoscaler.model.snapshot import Snapshot
from autoscaler.model.workload import ClusterView, Discovered
from autoscaler.ports import Cluster, Enforcement
from autoscaler.read.capacity import read_inventory
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
    quotas, problems = _quotas_of(view)
    discovered = discover(view, nodes, previous)
    if problems:
        discovered = replace(discovered, problems=(*discovered.problems, *problems))
    inventory = read_inventory(view, nodes, discovered.workloads)
    return Snapshot(now, discovered, nodes, quotas, lost=view.lost, inventory=inventory)


def _nodes_of(view: ClusterView) -> set[str]:
    """Return the nodes that pods were scheduled to."""
    return {node for pod in view.pods if (node := (pod.get("spec") or {}).get("nodeName"))}


def _quotas_of(view: ClusterView) -> tuple[Mapping[str, ResourceQuota], tuple[Problem, ...]]:
    """Return each namespace's quota, the tighter figures of several, and what is wrong with them."""
    quotas: dict[str, ResourceQuota] = {}
    problems: list[Problem] = []
    for manifest in view.quotas:
        quota, wrong = read_quota(manifest)
        namespace = manifest["metadata"].get("namespace", "")
        quotas[namespace] = tighter(quotas[namespace], quota) if namespace in quotas else quota
        problems += wrong
    return quotas, tuple(problems)
