"""What is to be told on its way to the cluster: many writes at a time, each object's own in order.

A status that the cluster refused as it is (an installed definition that can't hold it) is told once, and sent again
when it says another thing; the rest of the fleet does not wait for it. Neighbour: `writer` renders what is sent.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog

from autoscaler.errors import AutoscalerError, InvalidError
from autoscaler.model.steps import ClusterWrite, WriteStatus
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import Manifest, ObjectRef
from autoscaler.ports import Cluster
from autoscaler.report.compare import changed

log = structlog.get_logger(__name__)
CONCURRENT_WRITES: Final = 16
"""Enough to hide the API server's latency, few enough to stay inside its flow control."""

REFUSALS_REMEMBERED: Final = 16_384
Put = Callable[[WorkloadKey, Sequence[ClusterWrite]], Awaitable[None]]
"""Takes what is to be written about one object, in this order; waits while too much is under way."""


class Outbox:
    """The writes of one pass after the other; between passes it remembers which statuses were refused."""

    def __init__(self) -> None:
        self._refused: OrderedDict[tuple[str, ...], Manifest] = OrderedDict()

    def has_refused(self, ref: ObjectRef, status: Manifest) -> bool:
        """Tell whether the cluster refused this very status of this object, drift aside."""
        refused = self._refused.get(_name(ref))
        return refused is not None and not changed(refused, status)

    @asynccontextmanager
    async def open(self, cluster: Cluster) -> AsyncIterator[Put]:
        """Take writes, and return when all are done; a failed one is logged and stops nothing."""
        slots = asyncio.Semaphore(CONCURRENT_WRITES)

        async def send(key: WorkloadKey, writes: Sequence[ClusterWrite]) -> None:
            try:
                for write in writes:
                    await self._send(cluster, key, write)
            finally:
                slots.release()

        async with asyncio.TaskGroup() as group:

            async def put(key: WorkloadKey, writes: Sequence[ClusterWrite]) -> None:
                if writes:
                    await slots.acquire()
                    group.create_task(send(key, writes))

            yield put

    async def _send(self, cluster: Cluster, key: WorkloadKey, write: ClusterWrite) -> None:
        if isinstance(write, WriteStatus) and self.has_refused(write.ref, write.status):
            return
        what: dict[str, Any] = {"workload": str(key), "what": type(write).__name__}
        try:
            await cluster.write(write)
        except InvalidError as error:
            log.warning("refused", **what, error=str(error), then="not sent again before it says another thing")
            self._remember(write, is_refused=True)
        except AutoscalerError as error:
            log.warning("not_reported", **what, error=str(error))
        except Exception:  # whatever is wrong with one object, the others are told
            log.exception("not_reported", **what)
        else:
            self._remember(write, is_refused=False)

    def _remember(self, write: ClusterWrite, *, is_refused: bool) -> None:
        if not isinstance(write, WriteStatus):
            return
        self._refused.pop(_name(write.ref), None)
        if is_refused:
            self._refused[_name(write.ref)] = write.status
            while len(self._refused) > REFUSALS_REMEMBERED:
                self._refused.popitem(last=False)


def _name(ref: ObjectRef) -> tuple[str, ...]:
    return ref.kind, ref.namespace, ref.name, ref.uid
