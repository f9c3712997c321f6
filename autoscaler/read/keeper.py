"""Carrying out what workloads need before anything is decided: creation, owners on record, takeovers, notices.

One failure stops nobody else. What the cluster refuses is said once, and tried again only after a while.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import structlog

from autoscaler.errors import ClusterError, ConflictError
from autoscaler.model.reasons import News
from autoscaler.model.snapshot import Snapshot
from autoscaler.model.steps import ClusterWrite, Emit
from autoscaler.model.workload import Discovered, Notice, Workload
from autoscaler.ports import Cluster
from autoscaler.read.creations import creations
from autoscaler.read.upkeep import ownership, refused_text, takeover

log = structlog.get_logger(__name__)
REFUSED_SECONDS: Final = 3600.0
"""What was refused is tried again after this: somebody may have granted the right."""


class Keeper:
    """Remembers what it told, and what was refused."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str, str]] = set()
        self._refused: dict[str, float] = {}

    async def keep(self, cluster: Cluster, snapshot: Snapshot) -> bool:
        """Carry out what is due; return whether the cluster is another one now. Raises nothing but cancellation."""
        found, now, changed = snapshot.discovered, snapshot.now, False
        for key, creation in creations(found):
            changed |= await _write(cluster, creation, str(key), "not_created")
        for workload in found.workloads:
            changed |= await self._owners(cluster, workload, now)
            changed |= await self._take_over(cluster, workload, now)
        await self._tell(cluster, found)
        return changed

    async def _owners(self, cluster: Cluster, workload: Workload, now: float) -> bool:
        own = ownership(workload)
        if own is None or self._refused.get(own.ref.uid, 0.0) > now:
            return False
        try:
            await cluster.write(own)
        except ConflictError:
            return False  # it changed meanwhile: the next pass looks again
        except ClusterError as error:
            self._refused[own.ref.uid] = now + REFUSED_SECONDS
            log.warning("owners_not_recorded", workload=str(workload.key), error=str(error))
            text = refused_text(own, str(error))
            await self._tell_once(
                cluster, [Notice(one, News.OWNER_NOT_RECORDED, text) for one in (own.ref, *own.owners)]
            )
            return False
        return True

    async def _take_over(self, cluster: Cluster, workload: Workload, now: float) -> bool:
        """Take over what was found; the first write that fails ends it, and the next pass finds the rest again."""
        changed = False
        for write in takeover(workload, now):
            if not await _write(cluster, write, str(workload.key), "not_taken_over"):
                break
            changed = True
        return changed

    async def _tell(self, cluster: Cluster, found: Discovered) -> None:
        for problem in found.problems:
            key = ("", problem.path, str(problem))
            if key not in self._told:
                self._told.add(key)
                log.warning("left_out", problem=str(problem))
        await self._tell_once(cluster, found.notices)

    async def _tell_once(self, cluster: Cluster, notices: Iterable[Notice]) -> None:
        for notice in notices:
            key = notice.ref.uid or notice.ref.name, notice.reason, notice.message
            if key not in self._told:
                self._told.add(key)
                emit = Emit(notice.ref, notice.reason, notice.message, warning=True)
                await _write(cluster, emit, f"{notice.ref.kind} {notice.ref.namespace}/{notice.ref.name}", "not_told")


async def _write(cluster: Cluster, write: ClusterWrite, whose: str, failure: str) -> bool:
    try:
        await cluster.write(write)
    except ClusterError as error:
        log.warning(failure, object=whose, what=type(write).__name__, error=str(error))
        return False
    return True
