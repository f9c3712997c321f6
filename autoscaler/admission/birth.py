"""The size that a pod is born with: what its workload's status says is in force; pure.

Only figures that the controller decided on and put into force on running siblings, only of layers that are on; the
first patch is the controller's own (`apply.plan.annotate`), so the user's figure is kept the same way. Everything here
follows from the pod and the objects around it: asked twice, it gives the same answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from autoscaler.admission.pods import Surroundings, is_worker, resolution_of
from autoscaler.apply.plan import ANNOTATION, annotate
from autoscaler.contract import keys
from autoscaler.model.allowed import HANDS_OFF, Overlay
from autoscaler.model.config import Configuration
from autoscaler.model.decision import AMOUNT_FIELDS, Field
from autoscaler.model.fleet import UNSCALABLE_ISOLATION
from autoscaler.model.orders import figures_of
from autoscaler.model.quantity import format_amount, parse_amount, round_amount
from autoscaler.model.reasons import Verdict
from autoscaler.model.resources import SPECS, Amounts, Side
from autoscaler.model.workload import Manifest, Worker
from autoscaler.read.standing import figure_of, is_on, on_record, own_figures, still_held
from autoscaler.read.workers import amount_problems, make_worker
from autoscaler.report.conditions import LAYERS, ConditionType, Reason

UNDECIDED: Final = HANDS_OFF | {
    *(Verdict.RECOMMEND_ONLY, Verdict.LOW_CONFIDENCE, Verdict.INITIAL_DELAY),
    *(Reason.NO_DATA, Reason.WRITE_FAILED),
}
"""Reasons of a layer's condition under which what the siblings have is not known to be the controller's decision."""

_SIDE_NAMES: Final = {Side.REQUEST: "requests", Side.LIMIT: "limits"}
_SETS: Final = frozenset(ANNOTATION.values())


@dataclass(frozen=True, slots=True)
class _Decided:
    """A workload's status, read leniently: what it does not say is absent; and the user's own figures as of now."""

    status: Mapping[str, Any]
    original: Amounts

    @property
    def autoscaling(self) -> Mapping[str, Any]:
        return _mapping(self.status.get("autoscaling"))

    @property
    def is_in_force(self) -> bool:
        """Whether anything was ever changed here."""
        return isinstance(self.autoscaling.get("lastScaleTime"), str)

    def condition(self, kind: ConditionType) -> tuple[str, str]:
        """Return status and reason of a condition."""
        conditions = self.status.get("conditions")
        for one in conditions if isinstance(conditions, list) else ():
            if _mapping(one).get("type") == kind:
                return str(one.get("status")), str(one.get("reason"))
        return "Unknown", Reason.NO_DATA

    def amount(self, name: str, field: Field) -> float | None:
        """Return a figure (TFLOPs, bytes) of one of the status' resource lists, None if it says none."""
        assert field.resource is not None
        assert field.side is not None
        sides = _mapping(self.autoscaling.get(name))
        text = _mapping(sides.get(_SIDE_NAMES[field.side])).get(SPECS[field.resource].key)
        try:
            return parse_amount(field.resource, text)
        except ValueError:
            return None


def birth_annotations(pod: Manifest, around: Surroundings, now: float) -> dict[str, str]:
    """Return the annotations that give a pod its size; none where its own stands. `now`: seconds since the epoch."""
    workload = around.workload
    if workload is None or around.place is None or not around.complete or _is_client(pod, around):
        return {}
    resolution = resolution_of(pod, around)
    config = resolution.config
    if config is None or resolution.problems or config.dedicated_gpu or config.isolation in UNSCALABLE_ISOLATION:
        return {}
    worker = make_worker(pod, (), "", config.amounts)
    original = own_figures(config.amounts, still_held(on_record(workload), config.amounts))
    decided = _Decided(_mapping(workload.get("status")), original)
    if amount_problems(worker) or not decided.is_in_force:
        return {}
    write = annotate(worker, _overlay(config, decided, worker, now), original)
    if write is None:
        return {}
    set_now = {key: text for key, text in write.annotations.items() if text is not None}
    return {**set_now, keys.AUTOSCALING_BORN: _origin(around.place.key.name, decided, set_now)}


def _is_client(pod: Manifest, around: Surroundings) -> bool:
    """Tell whether others do the pod's work on the GPU: those have the workload's figures, not this one."""
    return around.has_workers and not is_worker(pod)


def _overlay(config: Configuration, decided: _Decided, worker: Worker, now: float) -> Overlay:
    figures = {field: _figure(field, config, decided, worker.current) for field in AMOUNT_FIELDS}
    pause = config.pause
    active = pause.until is None or now < pause.until
    for field, value in figures.items():
        held = figure_of(worker.current, field)
        if active and value is not None and ((pause.up and value > held) or (pause.down and value < held)):
            figures[field] = None
    request, limit, vram_request, vram_limit = (figures[field] for field in AMOUNT_FIELDS)
    return Overlay((request, limit), (vram_request, vram_limit))


def _figure(field: Field, config: Configuration, decided: _Decided, own: Amounts) -> float | None:
    """Return what a figure is to be, None where it is not ours to set."""
    value, held = decided.amount("current", field), figure_of(own, field)
    if value is None or not _is_decided(field, config, decided) or not _is_of_this_template(field, decided):
        return None
    # A status shows three digits; a figure that reads the same is the same.
    return held if _published(field, held) == value else value


def _is_decided(field: Field, config: Configuration, decided: _Decided) -> bool:
    """Tell whether the figure that is in force is a decision: of its layer, or of a rule by the clock."""
    layer = next(kind for kind, fields in LAYERS.items() if field in fields)
    _, reason = decided.condition(layer)
    if reason in HANDS_OFF:
        return False
    active = decided.autoscaling.get("activeCronRule")
    rule = next((rule for rule in config.cron_rules if rule.name == active), None)
    if rule is not None and field in dict(figures_of(rule)):
        return True
    provided = decided.condition(ConditionType.RECOMMENDATION_PROVIDED)
    return is_on(config, field) and reason not in UNDECIDED and provided == ("True", Reason.READY)


def _is_of_this_template(field: Field, decided: _Decided) -> bool:
    """Tell whether the user's own figure is still the one that the decision was made beside.

    A user who has written another since means it: the decision knows nothing of what it is for.
    """
    return decided.amount("original", field) == _published(field, figure_of(decided.original, field))


def _published(field: Field, value: float) -> float:
    """Return a figure as a status shows it."""
    assert field.resource is not None
    return parse_amount(field.resource, format_amount(field.resource, round_amount(field.resource, value)))


def _origin(workload: str, decided: _Decided, annotations: Mapping[str, str]) -> str:
    figures = {key.removeprefix(keys.PREFIX): text for key, text in annotations.items() if key in _SETS}
    generation, at = decided.status.get("observedGeneration"), decided.autoscaling["lastScaleTime"]
    told = {"workload": workload, "generation": generation, "decided": at, **figures}
    return json.dumps(told, separators=(",", ":"))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
