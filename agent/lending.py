"""What the node remembers to lend well: who worked when, and what everyone saved up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.activity import Activity
from agent.enforce.backend import Applied
from agent.govern import Layout, Share, id_of
from agent.report import WorkerKey
from agent.samples import Attribution
from agent.timeshare import Credit, Metered, accrue, share_time
from autoscaler.contract.keys import EFFECTIVE_NOW


class Lending:
    """One node's. Credits are counted over the time between two samples, so a document in between counts nothing."""

    def __init__(self) -> None:
        self._activity = Activity()
        self._credits: dict[WorkerKey, Credit] = {}
        self._at: float | None = None
        self._working: tuple[float, Layout, Mapping[WorkerKey, int]] | None = None

    def working_bytes(self, layout: Layout, attribution: Attribution) -> Mapping[WorkerKey, int]:
        """Return the VRAM that each worker may need for its work now; the same sample is not taken twice."""
        if self._working is None or self._working[0] != attribution.at or self._working[1] is not layout:
            self._working = attribution.at, layout, self._activity.working_bytes(layout, attribution)
        return self._working[2]

    def share_time(
        self,
        shares: Sequence[Share],
        attribution: Attribution,
        applied: Mapping[WorkerKey, Applied],
        tflops: Mapping[str, float],
    ) -> tuple[Share, ...]:
        """Return the shares with the compute limits that stand together; `applied` says what was in force until now.

        Only limits that reach running workers are moved: to the others a moment's lending would come hours late.
        """
        ratios = {(use.worker.pod_uid, use.worker.container, use.uuid): use.compute_ratio for use in attribution.uses}
        seconds = 0.0 if self._at is None else max(attribution.at - self._at, 0.0)
        self._at = attribution.at
        metered: dict[WorkerKey, Metered] = {}
        kept: dict[WorkerKey, Credit] = {}
        for share in shares:
            key = (*id_of(share.worker), share.quota.uuid)
            before, capacity, ratio = applied.get(key), tflops.get(share.quota.uuid), ratios.get(key)
            if before is None or before.effect not in EFFECTIVE_NOW or capacity is None:
                continue
            used = ratio * capacity if ratio is not None else None
            metered[key] = Metered(used, before.observed.tflops_limit)
            credit = accrue(self._credits.get(key), share, used, seconds)
            if credit is not None:
                kept[key] = credit
        self._credits = kept
        return share_time(shares, metered, kept, tflops)

    def credits(self) -> Mapping[WorkerKey, float]:
        """Return what each worker has saved up to burst, in TFLOP-seconds."""
        return {key: credit.tflop_seconds for key, credit in self._credits.items()}
