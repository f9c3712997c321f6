"""What the node remembers to lend well: who worked when, and what everyone saved up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from agent.govern.activity import Activity
from agent.govern.pool import Layout, Share
from agent.govern.pressure import Pressure
from agent.govern.timeshare import Credit, Metered, accrue, share_time
from agent.model.applied import Applied
from agent.model.samples import Attribution, WorkerKey
from autoscaler.contract.keys import EFFECTIVE_NOW

MOST_SECONDS: Final = 60.0
"""The longest time that one sample speaks for."""


class Lending:
    """One node's. Credits are counted over the time between two samples, so a document in between counts nothing."""

    def __init__(self) -> None:
        self._activity = Activity()
        self._credits: dict[WorkerKey, Credit] = {}
        self._pressure = Pressure()
        self._at: float | None = None
        self._working: tuple[float, Layout, Mapping[WorkerKey, int]] | None = None

    def working_bytes(
        self, layout: Layout, attribution: Attribution, totals: Mapping[str, int]
    ) -> Mapping[WorkerKey, int]:
        """Return the VRAM that each worker may need for its work now; `totals` is what each device has, in bytes.

        The same sample is not taken twice.
        """
        if self._working is None or self._working[0] != attribution.at or self._working[1] is not layout:
            self._working = attribution.at, layout, self._activity.working_bytes(layout, attribution, totals)
        return self._working[2]

    def share_time(
        self,
        layout: Layout,
        shares: Sequence[Share],
        attribution: Attribution,
        applied: Mapping[WorkerKey, Applied],
        tflops: Mapping[str, float],
    ) -> tuple[Share, ...]:
        """Return the layout's shares with the compute limits that stand together; `applied` was in force until now.

        Only limits that reach running workers are moved: to the others a moment's lending would come hours late. They
        take their part, and the rest is divided.
        """
        seconds = 0.0 if self._at is None else attribution.at - self._at
        # A clock that was set tells nothing about what was used meanwhile.
        seconds = seconds if 0.0 <= seconds <= MOST_SECONDS else 0.0
        self._at = attribution.at
        metered = _metered(layout, attribution, applied, tflops)
        before, self._credits = self._credits, {}
        credit_of: list[Credit | None] = []
        for key, share, one in zip(layout.places, shares, metered, strict=True):
            credit = accrue(before.get(key), share, one.tflops_used, seconds) if one and one.is_movable else None
            credit_of.append(credit)
            if credit is not None:
                self._credits[key] = credit
        pressed = self._pressure.metered(attribution.at, layout, metered, tflops)
        after, rooms = share_time(shares, pressed, credit_of, tflops)
        self._pressure.note(rooms)
        return after

    def credits(self) -> Mapping[WorkerKey, float]:
        """Return what each worker has saved up to burst, in TFLOP-seconds."""
        return {key: credit.tflop_seconds for key, credit in self._credits.items()}


def _metered(
    layout: Layout, attribution: Attribution, applied: Mapping[WorkerKey, Applied], tflops: Mapping[str, float]
) -> list[Metered | None]:
    """Return what was used at each place, and the limit that was in force; None where either can't be told."""
    uses, metered = attribution.by_key, list[Metered | None]()
    for key in layout.places:
        before, capacity, use = applied.get(key), tflops.get(key[2]), uses.get(key)
        if before is None or capacity is None:
            metered.append(None)
            continue
        used = None if use is None or use.compute_ratio is None else use.compute_ratio * capacity
        metered.append(Metered(used, before.observed.tflops_limit, before.effect in EFFECTIVE_NOW))
    return metered
