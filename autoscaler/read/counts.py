"""How many replicas a workload has, and through whom they are moved; pure.

Two objects carry a count: the owner (its pods), and the TensorFusionWorkload (its workers). Where the owner's pods are
the workers, the owner's count is the one that is there, and the object's mirrors it. Where somebody else runs the
workers, the object's is. They are kept equal, so a difference means that somebody moved one of them: that one is
followed, unless the `replicas` annotation says that clients and workers are counted apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from autoscaler.model.config import Configuration
from autoscaler.model.decision import Field
from autoscaler.model.takeover import Found
from autoscaler.model.workload import EMPTY, ObjectRef, Workload
from autoscaler.read.configure import is_generated
from autoscaler.read.membership import Group, Sharer
from autoscaler.read.owners import is_scalable
from autoscaler.read.standing import noted_count


@dataclass(frozen=True, slots=True)
class Count:
    """The replicas in force; `target` is the owner through which they are moved, `unscalable` says why nobody can.

    `counts`: what the object and its only owner say, None: nothing.
    """

    replicas: int
    target: ObjectRef | None = None
    unscalable: str = ""
    found: Found | None = None
    counts: tuple[int | None, int | None] = (None, None)


def owners_of(group: Group) -> list[Sharer]:
    """Return the owners that share the workload."""
    return [sharer for sharer in group.sharers.values() if sharer.is_owner and not sharer.joins]


def count_of(group: Group, config: Configuration, known: Workload | None, workers: int) -> Count:
    """Return the count in force; `known` is the same object's workload in the pass before."""
    owners, own = owners_of(group), _own(group)
    if len(owners) != 1:
        return Count(_otherwise(own, group, config, workers))
    (owner,) = owners
    if not is_scalable(owner.manifest):
        theirs = None if group.remote else owner.replicas
        reason = "" if group.remote else _why_not(owner)
        return Count(_otherwise(own if theirs is None else theirs, group, config, workers), unscalable=reason)
    theirs = owner.replicas
    counts = own, theirs
    if own is None or theirs is None or own == theirs:
        replicas = _otherwise(own, group, config, workers) if theirs is None else theirs
        return Count(replicas, owner.ref, counts=counts)
    before = known.counts if known is not None else (None, None)
    if (noted := noted_count(group.workload)) is not None:
        before = noted, noted
    apart = config.replicas is not None and config.replicas != theirs
    if apart and (group.remote or before in {counts, (None, None)}):
        rules = group.remote or (group.workload is not None and not is_generated(group.workload))
        return Count(own if rules else theirs, owner.ref, counts=counts)
    return _differing(group, owner, (own, theirs), before)


def _differing(group: Group, owner: Sharer, counts: tuple[int, int], before: tuple[int | None, int | None]) -> Count:
    """Follow whichever of the object's and the owner's count was moved since the pass before.

    Where nobody saw either move, a generated object follows its owner, and one that a user made rules.
    """
    own, theirs = counts
    assert group.workload is not None
    metadata = group.workload["metadata"]
    seen = frozenset({(owner.ref.uid, str(theirs)), (metadata.get("uid", ""), str(own))})
    if before[1] == theirs and before[0] is not None and before[0] != own:
        where = f"TensorFusionWorkload {metadata['name']}"
        # Workers that somebody else starts follow their object by themselves; the clients' count is the user's.
        found = None if group.remote else Found(Field.REPLICAS, theirs, own, where, seen)
        return Count(own, owner.ref, found=found, counts=counts)
    moved = before[1] is not None and before[1] != theirs
    if not moved and not is_generated(group.workload):
        return Count(own, owner.ref, counts=counts)
    found = Found(Field.REPLICAS, own, theirs, f"{owner.ref.kind} {owner.ref.name}", seen)
    return Count(theirs, owner.ref, found=found, counts=counts)


def _own(group: Group) -> int | None:
    own = ((group.workload or EMPTY).get("spec") or EMPTY).get("replicas")
    return own if isinstance(own, int) else None


def _otherwise(own: int | None, group: Group, config: Configuration, workers: int) -> int:
    """Return the object's count, else its only sharer's, else what runs."""
    if own is not None:
        return own
    counts = [sharer.replicas for sharer in group.sharers.values() if not sharer.joins and sharer.replicas is not None]
    if len(counts) == 1:
        return counts[0]
    return workers or config.replicas or 0


def _why_not(owner: Sharer) -> str:
    told = owner.manifest.get("unscalable")
    return f"{owner.ref.kind} {owner.ref.name} {told or 'has no scale subresource'}"
