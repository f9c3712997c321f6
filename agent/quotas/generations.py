"""Which generation of the document each worker has reached: the newest one that was ever in force as asked. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from agent.govern.pool import Layout
from agent.model.applied import Applied
from agent.model.samples import WorkerKey
from autoscaler.contract.quota import QuotaDocument


class Generations:
    """One node's; forgets who left the document."""

    def __init__(self) -> None:
        self._source: tuple[QuotaDocument, Layout] | None = None
        self._reached: dict[WorkerKey, int] = {}
        self._behind: list[WorkerKey] = []

    def note(self, document: QuotaDocument | None, layout: Layout, applied: Mapping[WorkerKey, Applied]) -> None:
        """Take what is in force; only those who are behind are looked at, as a tick changes nothing for the others."""
        if document is None:
            return
        if self._source is None or self._source[0] is not document or self._source[1] is not layout:
            named = {entry.pod_uid for entry in document.quotas}
            self._behind = [key for key in layout.places if key[0] in named]
            self._reached = {key: self._reached[key] for key in self._behind if key in self._reached}
            self._source = document, layout
        if self._behind:
            arrived = {key: document.generation for key in self._behind if applied[key].in_force}
            self._reached |= arrived
            self._behind = [key for key in self._behind if key not in arrived]

    def reached(self) -> Mapping[WorkerKey, int]:
        """Return the generation by worker and device, no entry before the first."""
        return dict(self._reached)
