"""The ports of a leader: nothing is written, and no node is told anything, before it is sure that it still leads.

A process that was stopped for a while (paused, swapped out, a long computation) wakes up in the middle of its pass and
does not know yet that another leads. What slips through all the same is refused: by agents for its older epoch, by the
API server for the resource version. Neighbours: `Leadership` in ports, its lease in kube.
"""

from __future__ import annotations

from collections.abc import Mapping

from autoscaler.contract.quota import QuotaDocument, QuotaStatus
from autoscaler.model.snapshot import NodeState
from autoscaler.model.steps import ClusterWrite
from autoscaler.model.workload import ClusterView
from autoscaler.ports import Cluster, Enforcement, Leadership


class FencedCluster:
    """The Cluster port of a leader."""

    def __init__(self, cluster: Cluster, leadership: Leadership) -> None:
        self._cluster, self._leadership = cluster, leadership

    async def read(self) -> ClusterView:
        """As the cluster's."""
        return await self._cluster.read()

    async def write(self, write: ClusterWrite) -> None:
        """As the cluster's, while this process leads.

        Raises:
            LeadershipLostError: it does not.

        """
        await self._leadership.confirm()
        await self._cluster.write(write)

    async def close(self) -> None:
        """As the cluster's."""
        await self._cluster.close()


class FencedEnforcement:
    """The Enforcement port of a leader."""

    def __init__(self, enforcement: Enforcement, leadership: Leadership) -> None:
        self._enforcement, self._leadership = enforcement, leadership

    async def read(self, nodes: tuple[str, ...]) -> Mapping[str, NodeState]:
        """As the agents'."""
        return await self._enforcement.read(nodes)

    async def push(self, document: QuotaDocument) -> QuotaStatus:
        """As the agents', while this process leads.

        Raises:
            LeadershipLostError: it does not.

        """
        await self._leadership.confirm()
        return await self._enforcement.push(document)

    async def close(self) -> None:
        """As the agents'."""
        await self._enforcement.close()
