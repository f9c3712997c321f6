"""Out-of-memory deaths as a node can tell them: a container that failed just after its worker was at its VRAM limit.

CUDA's out-of-memory is an error inside the process, so nobody reports it. Near the limit means at .95 of the effective
limit or more; just after, within ten seconds. A backend that counts denials itself would say more, and count as itself;
none does: neither the kernel's files for dmem nor what the limiters share with the node hold such a count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from agent.model.exits import Exit
from agent.model.samples import WorkerKey
from autoscaler.contract.quota import Observed

NEAR_RATIO: Final = 0.95
AFTER_SECONDS: Final = 10.0
SOURCE: Final = "exit"


class Ooms:
    """Counts, tick by tick; each exit once."""

    def __init__(self) -> None:
        self._near: dict[WorkerKey, float] = {}
        self._judged: set[Exit] = set()
        self._counts: Counter[tuple[str, str, str, str]] = Counter()

    def tick(self, now: float, observed: Mapping[WorkerKey, Observed], exits: Iterable[Exit]) -> None:
        """Take who is near its limit now, then who died since; times are seconds since the epoch."""
        for key, one in observed.items():
            used, limit = one.vram_used_bytes, one.vram_limit_bytes
            if used is None or not limit:
                continue
            # Whose use or limit nobody knows has no count, not one of 0.
            self._counts.setdefault((*key, SOURCE), 0)
            if used >= NEAR_RATIO * limit:
                self._near[key] = now
        seen = set(exits)
        for ended in seen - self._judged:
            self._judge(ended)
        self._judged = seen

    def counts(self, present: Iterable[WorkerKey]) -> Mapping[tuple[str, str, str, str], int]:
        """Return the totals by worker, device and source of those who are present; others are forgotten."""
        kept = {(*key, SOURCE) for key in present}
        for name in [name for name in self._counts if name not in kept]:
            del self._counts[name]
            self._near.pop(name[:3], None)
        return dict(self._counts)

    def _judge(self, one: Exit) -> None:
        ended = one.at
        if one.code == 0 or ended is None:
            return
        for key, near in self._near.items():
            # Ends are told in whole seconds, so one may seem to come before what it followed.
            if key[:2] == (one.pod_uid, one.container) and -1.0 <= ended - near <= AFTER_SECONDS:
                self._counts[*key, SOURCE] += 1
