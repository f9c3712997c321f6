"""A workload's whole history in place of what little was learnt of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from autoscaler.model.fleet import Fleet
from autoscaler.model.usage import Usage
from autoscaler.recommend.learn import learn
from autoscaler.recommend.memory import COLUMNS, UNTIL, Learnt, new_memory

FROM_USE: Final = tuple(COLUMNS)[: tuple(COLUMNS).index("reporting") + 1]
"""The columns that are learnt from use alone; the others were held against the figures in force, and stay."""


def relearn(memory: Learnt, usages: Sequence[Usage], alone: Fleet) -> bool:
    """Learn a workload anew from its whole history, up to the memory's last bin; `alone` is the fleet of it only.

    Histograms of the whole fleet are aged to one moment, so nothing is taken from a history that ends elsewhere.
    Returns whether it was taken. A forecast's recent past is not: it goes on from what was seen live.
    """
    fresh = new_memory()
    fresh.align(alone.keys, alone.uids)
    for usage in usages:
        learn(fresh, usage, alone)
    identities = list(zip(memory.keys, memory.uids, strict=True))
    identity = (alone.keys[0], alone.uids[0])
    if identity not in identities or fresh.marks.get(UNTIL) != memory.marks.get(UNTIL):
        return False
    row = identities.index(identity)
    for name in FROM_USE:
        memory.arrays[name][row] = fresh.arrays[name][0]
    return True
