"""How containers end, as their pod tells it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Exit:
    """How a container ended: its exit code, and when, as Kubernetes writes times."""

    pod_uid: str
    container: str
    code: int
    finished_at: str

    @property
    def at(self) -> float | None:
        """When it ended, in seconds since the epoch; None for a text that is no time."""
        try:
            return datetime.fromisoformat(self.finished_at).timestamp()
        except ValueError:
            return None
