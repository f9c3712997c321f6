"""The status of a WorkloadProfile: a roll-up over the workloads that use it; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoscaler.errors import Problem
from autoscaler.model.decision import Decision, Field, field_of
from autoscaler.model.resources import SPECS, Resource, Side
from autoscaler.model.workload import Manifest, Workload
from autoscaler.report.conditions import ConditionType, config_valid, listed
from autoscaler.report.display import DECIDERS, NOTHING, arrow, layers_on, recommended_amounts, short_amount
from autoscaler.report.message import amount_text

Totals = dict[Field, float]


@dataclass(frozen=True, slots=True)
class Member:
    """A workload of the profile as it is after the pass, and what was decided about it (None: nothing yet).

    `device`: TFLOPs and bytes of the smallest device it runs on, inf unknown.
    """

    workload: Workload
    decision: Decision | None = None
    device: tuple[float, float] = (math.inf, math.inf)


def profile_status(
    profile: Manifest, members: Sequence[Member], problems: Sequence[Problem], now: float
) -> dict[str, Any]:
    """Return the whole status; sums are amounts x devices x workers. `now` dates changed conditions."""
    metadata = profile.get("metadata") or {}
    generation = int(metadata.get("generation") or 0)
    told = {ConditionType.CONFIG_VALID: config_valid(problems)}
    layers = {layer for one in members for layer in layers_on(one.workload.config).split(",")} - {NOTHING}
    current, recommended = _total(members, recommended=False), _total(members, recommended=True)
    return {
        "observedGeneration": generation,
        "workloads": len(members),
        "conditions": listed(told, profile.get("status") or {}, generation, now),
        "summary": {
            "auto": ",".join(name for name in DECIDERS if name in layers) or NOTHING,
            "display": {**_display(current, recommended), "replicas": _display_replicas(current, recommended)},
            "current": _resources(current),
            "recommended": _resources(recommended),
            **_saved(members),
        },
    }


def _saved(members: Sequence[Member]) -> dict[str, str]:
    """Return the GPUs that the recommended requests free, to a tenth; a worker takes the larger of its two shares.

    Workloads whose devices are not known are left out; where none is known there is nothing to tell.
    """
    known = [one for one in members if any(map(math.isfinite, one.device))]
    if not known:
        return {}
    saved = sum(_gpus(one, recommended=False) - _gpus(one, recommended=True) for one in known)
    return {"gpusSaved": f"{round(saved, 1) + 0.0:g}"}


def _gpus(member: Member, *, recommended: bool) -> float:
    """Return the GPUs whose capacity the workload's requests take."""
    figures, replicas = _figures(member, recommended=recommended)
    shares = [
        figures[field_of(resource, Side.REQUEST)] / size for resource, size in zip(Resource, member.device, strict=True)
    ]
    return replicas * member.workload.config.gpu_count * max(shares)


def _figures(member: Member, *, recommended: bool) -> tuple[Totals, float]:
    """Return a workload's amounts and workers, those in force or those recommended."""
    workload, decision = member.workload, member.decision
    figures = recommended_amounts(workload.current, decision if recommended else None)
    wanted = decision[Field.REPLICAS].wanted if decision is not None and recommended else math.nan
    return figures, workload.replicas if math.isnan(wanted) else round(wanted)


def _total(members: Sequence[Member], *, recommended: bool) -> Totals:
    totals = dict.fromkeys(Field, 0.0)
    for member in members:
        figures, replicas = _figures(member, recommended=recommended)
        totals[Field.REPLICAS] += replicas
        for field, figure in figures.items():
            totals[field] += figure * replicas * member.workload.config.gpu_count
    return totals


def _display(current: Totals, recommended: Totals) -> dict[str, str]:
    """Return the sums of the requests: what the profile's workloads reserve."""
    texts = {}
    for resource in Resource:
        field = field_of(resource, Side.REQUEST)
        texts[SPECS[resource].key] = arrow(
            short_amount(resource, current[field]), short_amount(resource, recommended[field])
        )
    return texts


def _display_replicas(current: Totals, recommended: Totals) -> str:
    return arrow(f"{current[Field.REPLICAS]:g}", f"{recommended[Field.REPLICAS]:g}")


def _resources(totals: Mapping[Field, float]) -> dict[str, Any]:
    return {
        name: {
            SPECS[resource].key: amount_text(resource, totals[field_of(resource, side)])
            for resource in Resource
            if totals[field_of(resource, side)] > 0
        }
        for name, side in (("requests", Side.REQUEST), ("limits", Side.LIMIT))
    }
