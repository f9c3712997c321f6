"""Demand from recorded use. Where use was clipped the demand is unknown, and estimated as the product does.

A clipped bin stands for 1.15 times what was used, a bin with an out-of-memory kill for 1.2 times the VRAM limit that
was in force. Both are lower bounds, and counted as censored.
"""

from __future__ import annotations

import numpy as np

from autoscaler.model.resources import Resource
from autoscaler.model.usage import Usage, Window
from autoscaler.ports import History
from autoscaler.read.series import joined
from autoscaler.recommend.learn import CLIPPED_GAIN, OOM_GAIN
from autoscaler.replay.demand import Demand, Progress


async def read_recorded(history: History, window: Window, namespace: str, progress: Progress) -> tuple[Demand, ...]:
    """Return the demand of every workload (of a namespace, unless it is empty) that was seen in a window.

    Raises:
        HistoryError: the history can't be read.

    """
    parts, usages = history.parts(window), []
    for done, part in enumerate(parts):
        usages.append(await history.read(part))
        progress(done + 1, len(parts))
    return demands_of(joined(window, usages), namespace)


def demands_of(usage: Usage, namespace: str = "") -> tuple[Demand, ...]:
    """Return the demand behind recorded use, from the first to the last bin in which a workload was seen."""
    rows = [row for row, key in enumerate(usage.keys) if namespace in {"", key.namespace}]
    found = (_demand(usage, row) for row in rows)
    return tuple(demand for demand in found if demand is not None)


def _demand(usage: Usage, row: int) -> Demand | None:
    used = usage.peak[:, row].astype(np.float64)
    seen = np.flatnonzero(~np.isnan(used).all(axis=0))
    if len(seen) < 2:
        return None
    lived = slice(seen[0], seen[-1] + 1)
    compute, vram = used[:, lived]
    ceiling = usage.ceiling[Resource.VRAM, row, lived].astype(np.float64)
    clipped = usage.clipped[Resource.COMPUTE, row, lived] & ~np.isnan(compute)
    killed = usage.ooms[row, lived] > 0
    vram = np.where(killed, OOM_GAIN * np.fmax(vram, ceiling), vram)
    workers = np.nan_to_num(usage.workers[row, lived].astype(np.float64))
    return Demand(
        key=usage.keys[row],
        start=usage.window.start + float(seen[0]) * usage.window.step,
        step=usage.window.step,
        compute=np.where(clipped, CLIPPED_GAIN * compute, compute),
        vram=None if np.isnan(vram).all() else vram,
        workers=np.maximum(workers, 1.0),
        censored=np.stack([clipped, killed & ~np.isnan(vram)]),
    )
