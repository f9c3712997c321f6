"""What workloads need before anything is decided about them, as writes; pure.

Figures that somebody else set are taken over, a generated object's owners are put on record, the object's count mirrors
its owner's. Each list of writes is in the order in which a crash between two of them harms nothing: the record first,
the worker on which the change was found last, the event after all. Neighbours: `keeper` carries it out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from autoscaler.contract import keys
from autoscaler.model.decision import AMOUNT_FIELDS, Field
from autoscaler.model.quantity import format_amount
from autoscaler.model.reasons import News
from autoscaler.model.resources import Amounts
from autoscaler.model.steps import Annotate, ClusterWrite, Emit, Own, Scale
from autoscaler.model.takeover import Found, TakenOver, taken_over
from autoscaler.model.workload import ObjectRef, Worker, Workload
from autoscaler.read.standing import (
    KEY_OF,
    NAME_OF,
    figure_of,
    is_moved,
    own_figures,
    render_noted,
    render_record,
    with_figures,
    written,
)


def takeover(workload: Workload, now: float) -> tuple[ClusterWrite, ...]:
    """Return the writes that make what somebody else set the user's own, on all workers alike, and tell of it once."""
    if not workload.found or not workload.exists:
        return ()
    told = [one for one in workload.found if _is_told(workload, one)]
    taken = {one.field: one for one in workload.taken}
    for one in told:
        taken[one.field] = taken_over(one, _base(workload, one.field), taken.get(one.field), now)
    is_new = tuple(taken.values()) != workload.taken
    record = [Annotate(workload.ref, {keys.AUTOSCALING_ADOPTED: render_record(taken.values())})] if is_new else []
    return (*record, *_spread(workload, taken), *_mirrored(workload), *_events(workload, told))


def ownership(workload: Workload) -> Own | None:
    """Return the owners to put on record in a generated object: who shares it, and nobody else.

    None when nothing is to be changed. An object that was made for owners of whom none shares it any more is theirs:
    it goes with them, so that whoever comes under the same name begins anew.
    """
    known, now = workload.references, workload.owners
    if known is None or not now:
        return None
    uids = [one.uid for one in known]
    if {one.uid for one in now} == set(uids) or (known and not any(one.uid in uids for one in now)):
        return None
    kept = [one for one in known if one.uid in {owner.uid for owner in now}]
    return Own(workload.ref, (*kept, *(one for one in now if one.uid not in uids)))


def refused_text(own: Own, error: str) -> str:
    """Return what the owners of an object are told that may not be put on record."""
    names = ", ".join(f"{one.kind} {one.name}" for one in own.owners)
    return (
        f"{own.ref.kind} {own.ref.name} could not be put under all its owners ({names}): {error}. It is used all the "
        "same, but deleted with the owners on record. Where the cluster enforces permissions on ownerReferences, "
        f"grant delete on {own.ref.kind.lower()}s"
    )


def _is_told(workload: Workload, found: Found) -> bool:
    """Tell whether a change is the user's word against a layer of ours; a count that nobody moves here is none."""
    return is_moved(workload.config, found.field) and not (
        found.field is Field.REPLICAS and (workload.managed_elsewhere or workload.unscalable)
    )


def _base(workload: Workload, field: Field) -> float:
    return math.nan if field is Field.REPLICAS else figure_of(workload.config.amounts, field)


def _spread(workload: Workload, taken: Mapping[Field, TakenOver]) -> Iterator[Annotate]:
    """Bring all workers to the figures that were found on one: they hold the same, always."""
    found: dict[Field, float] = {one.field: one.value for one in workload.found if one.field is not Field.REPLICAS}
    if not found:
        return
    where = {uid for one in workload.found for uid, _ in one.seen}
    wanted = with_figures(workload.current, found)
    original = render_noted(_texts(own_figures(workload.config.amounts, taken.values())))
    for worker in sorted(workload.workers, key=lambda one: one.ref.uid in where):
        yield _brought(worker, wanted, found, original)


def _brought(worker: Worker, wanted: Amounts, found: Mapping[Field, float], original: str) -> Annotate:
    """Return what brings a worker to these figures, and the other of a pair where it has to follow."""
    moved = [
        field
        for field in AMOUNT_FIELDS
        if field in found or (_partner(field) in found and _breaks(worker, wanted, field))
    ]
    texts = {NAME_OF[field]: text for field, text in zip(AMOUNT_FIELDS, _texts(wanted).values(), strict=True)}
    ours = {NAME_OF[field]: texts[NAME_OF[field]] for field in moved}
    changes: dict[str, str | None] = {KEY_OF[field]: texts[NAME_OF[field]] for field in moved}
    changes[keys.AUTOSCALING_APPLIED] = render_noted({**written(worker), **ours})
    changes[keys.AUTOSCALING_ORIGINAL] = original
    return Annotate(worker.ref, changes, was=worker.annotations)


def _partner(field: Field) -> Field:
    return Field(field ^ 1)


def _breaks(worker: Worker, wanted: Amounts, field: Field) -> bool:
    """Tell whether a figure that nobody set would leave the order of its pair behind."""
    held, beside = figure_of(worker.current, field), figure_of(wanted, _partner(field))
    return held > beside if field % 2 == 0 else held < beside


def _texts(amounts: Amounts) -> dict[str, str]:
    texts = {}
    for field in AMOUNT_FIELDS:
        assert field.resource is not None
        texts[NAME_OF[field]] = format_amount(field.resource, figure_of(amounts, field))
    return texts


def _mirrored(workload: Workload) -> Iterator[Scale | Annotate]:
    """Bring the count that was not moved to the one that was; of a user's own object only where replicas are scaled."""
    count = next((one for one in workload.found if one.field is Field.REPLICAS), None)
    if count is None or (workload.references is None and not is_moved(workload.config, Field.REPLICAS)):
        return
    own, _ = workload.counts
    target = workload.scale_target if own == count.value else workload.ref
    if target is not None:
        yield Scale(target, round(count.value))
        applied = render_noted({NAME_OF[Field.REPLICAS]: str(round(count.value))})
        yield Annotate(workload.ref, {keys.AUTOSCALING_APPLIED: applied})


def _events(workload: Workload, told: list[Found]) -> Iterator[Emit]:
    for one in told:
        moved = f"{_subject(one.field)} {_amount(one.field, one.before)} → {_amount(one.field, one.value)}"
        text = f"{moved}: somebody else set it on {one.where}; it counts as the user's own from now on"
        for ref in _refs(workload):
            yield Emit(ref, News.FIGURE_ADOPTED, text)


def _refs(workload: Workload) -> tuple[ObjectRef, ...]:
    return (workload.ref, *workload.owners)


def _subject(field: Field) -> str:
    return NAME_OF[field].replace("-", " ")


def _amount(field: Field, value: float) -> str:
    return f"{value:g}" if field.resource is None else format_amount(field.resource, value)
