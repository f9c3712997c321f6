"""All that the core needs of the world: Clock, History, Cluster (with its Secrets), Enforcement, Scalers, Leadership.

Each has a real implementation in a gateway and an in-memory or on-disk one beside it, so that everything runs without
a cluster, a Prometheus or a GPU.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from autoscaler.contract.quota import QuotaDocument, QuotaStatus
from autoscaler.model.external import Answer, Failure, Question
from autoscaler.model.snapshot import NodeState
from autoscaler.model.steps import ClusterWrite
from autoscaler.model.usage import Usage, Window, WorkloadKey
from autoscaler.model.workload import ClusterView


class Clock(Protocol):
    """Time as the shell sees it."""

    def now(self) -> float:
        """Return seconds since the epoch."""
        ...


class History(Protocol):
    """Measured use, from Prometheus or memory."""

    def parts(self, window: Window) -> tuple[Window, ...]:
        """Cut a window so that reading it part by part never holds more than one part in memory."""
        ...

    async def read(self, window: Window) -> Usage:
        """Return the fleet's use in a window; stateless, so any window can be read at any time.

        Raises:
            HistoryError: the history can't be read now.

        """
        ...

    def only(self, key: WorkloadKey) -> History:
        """Return the same history narrowed to one workload, others may be in it; closed with this one."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


class Cluster(Protocol):
    """Kubernetes objects, from an API server or a folder of manifests."""

    async def read(self) -> ClusterView:
        """Return all objects that matter to us.

        Raises:
            ClusterError: the cluster can't be read now (never an empty view instead).

        """
        ...

    async def write(self, write: ClusterWrite) -> None:
        """Carry out one write; a write that changes nothing costs nothing.

        Raises:
            ConflictError: the object was changed or replaced meanwhile.
            InvalidError: the cluster can't hold what was written; the same again would be refused again.
            ClusterError: it could not be written.

        """
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


class Secrets(Protocol):
    """Secrets of the cluster, one at a time and only when one is needed; whoever is a Cluster is this, too."""

    async def secret(self, namespace: str, name: str) -> Mapping[str, str]:
        """Return a Secret's values by key, as text.

        Raises:
            ClusterError: it is not there, may not be read, or is no text.

        """
        ...


class Scalers(Protocol):
    """The users' own scalers."""

    async def ask(self, questions: Sequence[Question]) -> Sequence[Answer | Failure]:
        """Return what came of each question, in their order, within the longest of their time-outs."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


class Enforcement(Protocol):
    """The node agents."""

    async def read(self, nodes: tuple[str, ...]) -> Mapping[str, NodeState]:
        """Ask the agents of these nodes, all at once; one that is away has its error in its NodeState."""
        ...

    async def push(self, document: QuotaDocument) -> QuotaStatus:
        """Put a document into force on its node and return what the node acknowledged.

        Raises:
            RefusedError: the agent changed nothing and says why.
            NodeError: the agent is away.

        """
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


class Leadership(Protocol):
    """Which one of several controllers acts."""

    async def lead(
        self, work: Callable[[int], Awaitable[None]], stop: asyncio.Event, saw: Callable[[str, str], None]
    ) -> None:
        """Stand by until this process leads, then run `work` with the number of the leader's term; give it back after.

        Standing by ends with `stop`; work ends by itself. `saw` is told after each look: who leads, else what is wrong.

        Raises:
            LeadershipLostError: the lead was lost; work was cancelled and has ended.

        """
        ...

    async def confirm(self) -> None:
        """Return when this process leads for sure; waits while it is not known.

        Raises:
            LeadershipLostError: it does not.

        """
        ...

    async def close(self) -> None:
        """Release connections."""
        ...
