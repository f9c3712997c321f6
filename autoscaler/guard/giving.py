"""Who gives when a device is short: lower service levels, of what they hold above their need, for higher ones.

A worker never loses to one of its own or of a lower level, so critical never gives; the lowest level comes first, in it
the largest surplus. Need is the estimate's lower bound, and of VRAM at least what is in use with head-room; the owner's
minAllowed yields. Only a request that we set may be taken below what it is: its own layer is on, nobody paused it or
said hands off, its evidence is fresh and enough, it was not raised within its cool-down, and no harmful shrink of it is
being mended. A worker whose request is not ours gives nothing here: what it holds above its request is room that the
node takes back by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from autoscaler.guard.bounds import PAIRS, at_most, rounded_up
from autoscaler.guard.case import Case
from autoscaler.guard.evidence import is_early, is_stale
from autoscaler.guard.pools import Edges, Rules, critical
from autoscaler.guard.rollback import may_not_shrink
from autoscaler.model import defaults
from autoscaler.model.decision import Field
from autoscaler.model.knobs import ON
from autoscaler.model.resources import SPECS, Resource
from autoscaler.model.usage import Bools, Floats, Ints

INCOMPRESSIBLE: Final = frozenset({Resource.VRAM})


@dataclass(frozen=True, slots=True, eq=False)
class Givers:
    """What may be given of one resource: `figure` (W,) is each request, `spare` (W,) what it may still lose.

    `members`: by device, who is on it with how many workers; `places`: by workload, the other way round. `free`: what
    has more on each device (D,) when a request shrinks.
    """

    resource: Resource
    rank: Ints
    figure: Floats
    spare: Floats
    members: dict[int, tuple[Ints, Ints]]
    places: dict[int, tuple[Ints, Ints]]
    free: tuple[Floats, ...]

    def potential(self, device: int, rank: int) -> float:
        """Return how much a device could get for a level."""
        if not rank:
            return 0.0
        rows, workers = self.members[device]
        return float((self.spare[rows] * workers)[self.rank[rows] < rank].sum())

    def give(self, device: int, rank: int, missing: float) -> None:
        """Take what is missing on a device from lower levels; all their devices have more free then."""
        rows, workers = self.members[device]
        for place in np.lexsort((rows, -self.spare[rows] * workers, self.rank[rows])):
            row, count = int(rows[place]), float(workers[place])
            if missing <= 0 or self.rank[row] >= rank:
                return
            least = self.figure[row] - self.spare[row]
            left = max(least, at_most(self.figure[row] - missing / count, self.resource))
            given = self.figure[row] - left
            if given <= 0:
                continue
            self.figure[row], self.spare[row] = left, left - least
            missing -= given * count
            devices, counts = self.places[row]
            for free in self.free:
                free[devices] += given * counts


def givers_of(case: Case, edges: Edges, devices: Bools, rules: Rules) -> Givers:
    """Return who could give on these devices (D,)."""
    resource = rules.resource
    request = PAIRS[resource][0]
    figure = case.figure[:, request].copy()
    least = _need(case, request, resource)
    with np.errstate(invalid="ignore"):
        spare = np.where(_may_give(case, request) & (figure > least), figure - least, 0.0)
    members = edges.members(np.flatnonzero(devices))
    able = {int(row) for rows, _ in members.values() for row in rows[spare[rows] > 0]}
    return Givers(resource, case.fleet.knobs.rank, figure, spare, members, edges.of(sorted(able)), rules.yielding)


def _need(case: Case, request: Field, resource: Resource) -> Floats:
    """Return the least each workload does with, as it would be published (W,); NaN where that is not known."""
    need = np.maximum(case.wanted.lower[:, request], SPECS[resource].floor)
    if resource in INCOMPRESSIBLE:
        need = np.maximum(need, (1 + defaults.VRAM_HEADROOM_RATIO) * case.fleet.live[:, resource])
    return rounded_up(need, resource)


def _may_give(case: Case, request: Field) -> Bools:
    fleet, flags, now = case.fleet, case.fleet.flags, case.fleet.now
    hands_off = flags.paused_down | flags.invalid | flags.dedicated | flags.unsupported
    warm = now - case.memory["raised_at"][:, request] < fleet.knobs.down_cool_down[:, request]
    mending = may_not_shrink(case.memory, now)[:, request]
    grows = case.figure[:, request] > fleet.current[:, request]
    unknown = is_stale(case) | is_early(case)
    on = fleet.knobs.mode[:, request] == ON
    return np.asarray(on & ~(hands_off | warm | mending | grows | unknown | critical(case)), dtype=np.bool_)
