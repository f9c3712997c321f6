"""The Enforcement port with a clock on it: how long each node's agent takes to answer a quota document."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import Histogram

from autoscaler.contract.quota import QuotaDocument, QuotaStatus
from autoscaler.model.snapshot import NodeState
from autoscaler.ports import Enforcement


class TimedEnforcement:
    """The agents, each push observed in `seconds`, refused ones and those that nobody answered included."""

    def __init__(self, enforcement: Enforcement, seconds: Histogram) -> None:
        self._enforcement, self._seconds = enforcement, seconds

    async def read(self, nodes: tuple[str, ...]) -> Mapping[str, NodeState]:
        """As the agents'."""
        return await self._enforcement.read(nodes)

    async def push(self, document: QuotaDocument) -> QuotaStatus:
        """As the agents', timed.

        Raises:
            RefusedError: the agent changed nothing and says why.
            NodeError: the agent is away.

        """
        with self._seconds.time():
            return await self._enforcement.push(document)

    async def close(self) -> None:
        """As the agents'."""
        await self._enforcement.close()
