"""What is in force: amounts and replicas as they stand now, and which of them somebody else has set; pure.

Workers that were written to here say what is in force. One that was born since still carries its template's figures: it
is *unapplied*, and says nothing. Where all were born since, the workload's own status remembers, for as long as the
user's figures are those that it was decided beside. A figure that is neither what was written nor what a worker was
born with was set by somebody else. Neighbours: `workers` reads a pod, `keeper` takes over what is found here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

from autoscaler.contract import keys
from autoscaler.model.config import Configuration, Mode
from autoscaler.model.decision import AMOUNT_FIELDS, Field
from autoscaler.model.orders import figures_of
from autoscaler.model.quantity import parse_amount
from autoscaler.model.resources import SPECS, Amount, Amounts, Resource, Side
from autoscaler.model.schedule import does_something
from autoscaler.model.takeover import Found, TakenOver, holds
from autoscaler.model.workload import EMPTY, Manifest, Worker

KEY_OF: Final[Mapping[Field, str]] = dict(
    zip(AMOUNT_FIELDS, (keys.TFLOPS_REQUEST, keys.TFLOPS_LIMIT, keys.VRAM_REQUEST, keys.VRAM_LIMIT), strict=True)
)
NAME_OF: Final[Mapping[Field, str]] = {
    **{field: key.removeprefix(keys.PREFIX) for field, key in KEY_OF.items()},
    Field.REPLICAS: "replicas",
}
"""Names of the figures in what is noted on objects."""
_FIELD_OF: Final = {name: field for field, name in NAME_OF.items()}
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


def figure_of(amounts: Amounts, field: Field) -> float:
    """Return one of the four amounts."""
    assert field.resource is not None
    amount = amounts[field.resource]
    return amount.request if field.side is Side.REQUEST else amount.limit


def with_figures(amounts: Amounts, figures: Mapping[Any, float]) -> Amounts:
    """Return the amounts with some figures replaced; the other of a pair yields, so that request <= limit."""
    pairs = []
    for resource in Resource:
        request, limit = (figures.get(Field(2 * resource + side)) for side in (0, 1))
        held = amounts[resource]
        low, high = held.request if request is None else request, held.limit if limit is None else limit
        if low > high:
            low, high = (high, high) if request is None else (low, low)
        pairs.append(Amount(low, high))
    return Amounts(*pairs)


def written(worker: Worker) -> Mapping[str, str]:
    """Return what was last written to a worker here, by name of the figure; empty for a newborn one."""
    return _noted(worker.annotations.get(keys.AUTOSCALING_APPLIED, ""))


def noted_count(workload: Manifest | None) -> int | None:
    """Return the replicas that were last set here, as its object remembers them; None: none were."""
    annotations = ((workload or EMPTY).get("metadata") or EMPTY).get("annotations") or EMPTY
    text = _noted(annotations.get(keys.AUTOSCALING_APPLIED, "")).get(NAME_OF[Field.REPLICAS], "")
    return int(text) if text.isascii() and text.isdecimal() else None


def is_on(config: Configuration, field: Field) -> bool:
    """Tell whether the layer of a figure is applied."""
    if field is Field.REPLICAS:
        return config.replicas_policy.mode is Mode.ON
    policy = config.requests if field.side is Side.REQUEST else config.limits
    return policy.mode is Mode.ON and field.resource in policy.targets


def is_moved(config: Configuration, field: Field) -> bool:
    """Tell whether this controller moves a figure at all: by its layer, a rule by the clock, or an external scaler."""
    if is_on(config, field) or (config.external is not None and config.external.enable):
        return True
    return any(field in dict(figures_of(rule)) for rule in config.cron_rules if does_something(rule))


def in_force(workers: Sequence[Worker], config: Configuration, original: Amounts, status: Manifest) -> Amounts:
    """Return the amounts in force: the largest of the workers that were written to, else what the status remembers.

    Where nothing is remembered, or the user's figures (`original`) have changed since, the largest of all workers.
    """
    if workers and all(worker.current is workers[0].current for worker in workers) and _is_written(workers[0]):
        return workers[0].current
    told = [worker for worker in workers if not _is_newborn(worker)]
    held = list({id(worker.current): worker.current for worker in workers}.values())
    figures = {field: _in_force(told, field) for field in AMOUNT_FIELDS}
    untold = [field for field, figure in figures.items() if figure is None]
    remembered = _remembered(config, original, status) if untold else {}
    for field in untold:
        born = {figure_of(amounts, field) for amounts in held}
        own = figure_of(original, field)
        if field in remembered and born <= {own}:
            figures[field] = remembered[field]
        else:
            figures[field] = max(born, default=own)
    return with_figures(original, {field: figure for field, figure in figures.items() if figure is not None})


def found_amounts(workers: Sequence[Worker], before: Mapping[str, Worker], config: Configuration) -> tuple[Found, ...]:
    """Return the amounts that somebody else has set on a worker; `before`: workers of the pass before, by UID.

    Of several values for one figure the largest counts.
    """
    found: dict[Field, Found] = {}
    fields = [field for field in AMOUNT_FIELDS if is_moved(config, field)]
    for worker in workers if fields else ():
        known_as = before.get(worker.ref.uid)
        if known_as is None and keys.AUTOSCALING_APPLIED not in worker.annotations:
            continue
        for field, was, value in _foreign(worker, known_as, fields):
            seen, where = frozenset({(worker.ref.uid, worker.ref.resource_version)}), f"Pod {worker.ref.name}"
            known = found.get(field)
            if known is None or value > known.value:
                found[field] = Found(field, was, value, where, seen | (known.seen if known else frozenset()))
    return tuple(found[field] for field in sorted(found))


def on_record(workload: Manifest | None) -> Mapping[Field, TakenOver]:
    """Return the figures that are on record in a workload's object as set by somebody else."""
    annotations = ((workload or EMPTY).get("metadata") or EMPTY).get("annotations") or EMPTY
    return _records(annotations.get(keys.AUTOSCALING_ADOPTED, ""))


def still_held(records: Mapping[Field, TakenOver], template: Amounts) -> tuple[TakenOver, ...]:
    """Return the records that stand: amounts whose template has not changed since, and replicas."""
    return tuple(
        one for one in records.values() if one.field is Field.REPLICAS or holds(one, figure_of(template, one.field))
    )


def own_figures(template: Amounts, taken: Iterable[TakenOver]) -> Amounts:
    """Return the user's own figures: the template's, or what was taken over since."""
    figures = {one.field: one.value for one in taken if one.field is not Field.REPLICAS}
    return with_figures(template, figures) if figures else template


def render_noted(texts: Mapping[str, str]) -> str:
    """Return amounts, by name, as they are noted on a worker."""
    return json.dumps(dict(texts), separators=(",", ":"))


def render_record(records: Iterable[TakenOver]) -> str:
    """Return records as they are noted on an object."""
    return json.dumps(
        {
            NAME_OF[one.field]: {
                **({} if math.isnan(one.base) else {"from": one.base}),
                "to": one.value,
                "at": round(one.at),
                "times": one.times,
            }
            for one in records
        },
        separators=(",", ":"),
    )


def _is_newborn(worker: Worker) -> bool:
    return keys.AUTOSCALING_APPLIED not in worker.annotations and keys.AUTOSCALING_ORIGINAL not in worker.annotations


def _is_written(worker: Worker) -> bool:
    return len(written(worker)) == len(AMOUNT_FIELDS)


def _in_force(workers: Iterable[Worker], field: Field) -> float | None:
    told = [figure_of(worker.current, field) for worker in workers if _says(worker, field)]
    return max(told, default=None)


def _says(worker: Worker, field: Field) -> bool:
    """Tell whether a worker was brought to the workload's figure; one written to by an older version says all."""
    noted = written(worker)
    return NAME_OF[field] in noted if noted else keys.AUTOSCALING_ORIGINAL in worker.annotations


def _remembered(config: Configuration, original: Amounts, status: Manifest) -> Mapping[Field, float]:
    """Return the figures that the status remembers as in force beside these figures of the user."""
    if config.pause.up and config.pause.down:
        return {}
    autoscaling = status.get("autoscaling") or EMPTY
    current, beside = (autoscaling.get(name) or EMPTY for name in ("current", "original"))
    figures = {}
    for field in AMOUNT_FIELDS:
        own, then, held = figure_of(original, field), _stored(beside, field), _stored(current, field)
        if is_on(config, field) and held is not None and then is not None and math.isclose(then, own, rel_tol=0.005):
            figures[field] = held
    return figures


def _stored(resources: Manifest, field: Field) -> float | None:
    assert field.resource is not None
    side = resources.get("requests" if field.side is Side.REQUEST else "limits") or EMPTY
    return _parsed(field.resource, side.get(SPECS[field.resource].key))


def _foreign(worker: Worker, before: Worker | None, fields: Iterable[Field]) -> Iterator[tuple[Field, float, float]]:
    """Yield those of our figures that are neither what was written nor what a worker was born with: before, now."""
    noted = written(worker)
    for field in fields:
        assert field.resource is not None
        key = KEY_OF[field]
        value = _parsed(field.resource, worker.annotations.get(key))
        if value is None:
            continue
        name = NAME_OF[field]
        if name in noted:
            was = _parsed(field.resource, noted[name])
        elif before is not None:
            was = _parsed(field.resource, before.annotations.get(key))
        else:
            continue
        if was is not None and was != value:
            yield field, was, value


@lru_cache(maxsize=16_384)
def _parsed(resource: Resource, text: str | None) -> float | None:
    if not isinstance(text, str):
        return None
    try:
        return float(parse_amount(resource, text.strip()))
    except ValueError:
        return None


@lru_cache(maxsize=16_384)
def _noted(text: str) -> Mapping[str, str]:
    """Return what an annotation of ours notes; what can't be read notes nothing."""
    found = _json(text)
    return {str(name): str(value) for name, value in found.items()} if found else _NOTHING


@lru_cache(maxsize=4_096)
def _records(text: str) -> Mapping[Field, TakenOver]:
    records = {}
    for name, entry in _json(text).items():
        field = _FIELD_OF.get(str(name))
        if field is None or not isinstance(entry, dict):
            continue
        try:
            base, value = float(entry.get("from", math.nan)), float(entry["to"])
            records[field] = TakenOver(field, base, value, float(entry["at"]), int(entry.get("times", 1)))
        except (KeyError, TypeError, ValueError):
            continue
    return records


def _json(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text) if text else None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
