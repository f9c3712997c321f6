"""The exception tree; each branch names who must act.

AutoscalerError
├── ConfigError          the user: an annotation, profile, manifest or flag (carries every problem found)
├── ClusterError         the cluster: the API server or the manifest folder could not be read or written
│   ├── ConflictError    someone else wrote first; read again and decide again
│   └── InvalidError     what was written can't be held there; the same again changes nothing
├── LeadershipLostError  nobody: another controller leads now, or none can be chosen
├── HistoryError         Prometheus: down, slow, or its answer cannot be read
├── NodeError            a node agent: away, or it refused
│   └── RefusedError     the agent answered and changed nothing (carries its reason)
├── StateError           the checkpoint on disk cannot be used
└── FitError             the history: no forecast model can be fitted to it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class AutoscalerError(Exception):
    """Anything this project raises on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with what a user wrote.

    `path` is the annotation key or the field's path, `value` what stands there, `allowed` what may stand there.
    """

    path: str
    value: str
    allowed: str
    source: str = ""

    def __str__(self) -> str:
        where = f"{self.source}: " if self.source else ""
        found = f"{self.value!r} is not allowed" if self.value else "is missing"
        return f"{where}{self.path}: {found}; allowed: {self.allowed}"


class ConfigError(AutoscalerError):
    """The user's configuration is wrong; `problems` lists everything found, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(map(str, self.problems)))


class ClusterError(AutoscalerError):
    """The cluster could not be read or written."""


class ConflictError(ClusterError):
    """The object changed since it was read."""


class InvalidError(ClusterError):
    """What was written is refused as it is; the same again would be refused again."""


class LeadershipLostError(AutoscalerError):
    """This process leads no longer, or can't be sure that it does."""


class HistoryError(AutoscalerError):
    """Prometheus could not be read."""


class NodeError(AutoscalerError):
    """A node agent is away or failed."""


class RefusedError(NodeError):
    """A node agent refused a document and changed nothing."""


class StateError(AutoscalerError):
    """A checkpoint cannot be used."""


class FitError(AutoscalerError):
    """A forecast model cannot be fitted."""
