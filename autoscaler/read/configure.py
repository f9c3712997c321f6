"""What a workload's members want together: one configuration, or everything that is wrong with it; pure.

A user-made TensorFusionWorkload rules: what its spec sets, its sharers may only repeat. Otherwise the oldest sharer
that doesn't merely join speaks for all, and those that differ are named. Neighbours: `membership` finds the sharers,
`discovery` keeps what was settled for as long as nothing here changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from autoscaler.contract import keys
from autoscaler.contract.keys import DOMAIN, FIELD_MANAGER, PREFIX
from autoscaler.errors import ConfigError, Problem
from autoscaler.model.config import Configuration
from autoscaler.model.profile import parse_spec
from autoscaler.model.quantity import parse_amount
from autoscaler.model.resolve import Defaults, Owner, resolve
from autoscaler.model.resources import Resource
from autoscaler.model.workload import EMPTY, Manifest
from autoscaler.read.membership import Group, Sharer

SPEC_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    keys.TFLOPS_REQUEST: ("resources", "requests", "tflops"),
    keys.TFLOPS_LIMIT: ("resources", "limits", "tflops"),
    keys.VRAM_REQUEST: ("resources", "requests", "vram"),
    keys.VRAM_LIMIT: ("resources", "limits", "vram"),
    keys.QOS: ("qos",),
    keys.GPU_COUNT: ("gpuCount",),
    keys.GPU_MODEL: ("gpuModel",),
    keys.GPU_POOL: ("poolName",),
}
"""Annotations that describe the shared workers, and where a spec says the same."""

AMOUNT_RESOURCE: Final[Mapping[str, Resource]] = {
    keys.TFLOPS_REQUEST: Resource.COMPUTE,
    keys.TFLOPS_LIMIT: Resource.COMPUTE,
    keys.VRAM_REQUEST: Resource.VRAM,
    keys.VRAM_LIMIT: Resource.VRAM,
}
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
"""Label of what this controller made."""

# Of the pod, not of the workload: where the client runs and what brought it here.
_OF_THE_CLIENT: Final = frozenset({keys.WORKLOAD_PROFILE, keys.GENERATE_WORKLOAD, keys.REPLICAS})


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything that a configuration depends on; equal inputs give an equal configuration."""

    annotations: Mapping[str, str]
    labels: Mapping[str, str]
    spec: Manifest | None
    owner: Owner
    defaults: Defaults
    source: str
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Resolution:
    """What came of the inputs: a configuration, or None and the problems. Both, when sharers disagree."""

    inputs: Inputs
    config: Configuration | None
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]


def inputs_of(group: Group, profiles: Mapping[tuple[str, str], Manifest], defaults: Defaults) -> Inputs:
    """Return what a group's configuration depends on; `profiles` by namespace and name."""
    sharers = _speakers(group)
    workload = group.workload
    spec = None if workload is None else workload.get("spec") or {}
    if not sharers:
        return _of_the_object(group, spec, defaults)
    asking = [sharer for sharer in sharers if not sharer.joins]
    first = (asking or sharers)[0]
    annotations = first.annotations
    if workload is not None and spec and not first.joins and not is_generated(workload):
        problems = [problem for sharer in asking for problem in _against_spec(sharer, workload)]
        annotations = _without_ruled(annotations, spec)
    else:
        spec = spec if first.joins else _profile_spec(first, profiles)
        problems = [problem for sharer in asking[1:] for problem in _against_first(sharer, first)]
    problems += [replace(problem, source=str(sharer)) for sharer in sharers for problem in sharer.problems]
    return Inputs(
        {**_steering(workload), **annotations},
        first.labels,
        spec,
        Owner(replicas=first.replicas if len(asking) == 1 else None, containers=first.containers),
        defaults,
        str(first),
        tuple(problems),
        tuple(_misplaced(sharers)),
    )


def settle(inputs: Inputs) -> Resolution:
    """Return the configuration of these inputs, or all that is wrong."""
    problems: tuple[Problem, ...] = ()
    config: Configuration | None = None
    try:
        spec = None if inputs.spec is None else parse_spec(inputs.spec)
        config = resolve(inputs.annotations, inputs.labels, spec, inputs.defaults, inputs.owner)
    except ConfigError as error:
        problems = tuple(replace(problem, source=problem.source or inputs.source) for problem in error.problems)
    warnings = (*inputs.warnings, *(config.warnings if config is not None else ()))
    return Resolution(inputs, config, (*problems, *inputs.problems), warnings)


def _of_the_object(group: Group, spec: Manifest | None, defaults: Defaults) -> Inputs:
    """Nobody shares it: the workload stands for itself, with its own annotations."""
    metadata = (group.workload or EMPTY).get("metadata") or EMPTY
    source = f"TensorFusionWorkload {metadata.get('namespace', '')}/{metadata.get('name', '')}"
    annotations = metadata.get("annotations") or EMPTY
    return Inputs(annotations, EMPTY, spec, Owner(), defaults, source)


def _speakers(group: Group) -> list[Sharer]:
    """Return who decides, the oldest first; worker pods only where nobody else does."""
    asking = [sharer for sharer in group.sharers.values() if not sharer.is_worker]
    return sorted(asking or group.sharers.values(), key=_seniority)


def is_generated(workload: Manifest) -> bool:
    """Tell whether a TensorFusionWorkload was made for its sharers, by this controller or by another operator."""
    metadata = workload["metadata"]
    return bool(metadata.get("ownerReferences")) or (metadata.get("labels") or EMPTY).get(MANAGED_BY) == FIELD_MANAGER


def _profile_spec(sharer: Sharer, profiles: Mapping[tuple[str, str], Manifest]) -> Manifest | None:
    """Return the spec of the profile that a sharer names; None when it names none, or one that is missing."""
    profile = profiles.get((sharer.ref.namespace, sharer.annotations.get(keys.WORKLOAD_PROFILE, "")))
    return None if profile is None else profile.get("spec") or {}


def _steering(workload: Manifest | None) -> Mapping[str, str]:
    """Return what an operator says on the workload itself: to pause, to revert."""
    written = ((workload or EMPTY).get("metadata") or EMPTY).get("annotations") or EMPTY
    return {key: written[key] for key in (keys.AUTOSCALING_PAUSED, keys.AUTOSCALING_REVERT) if key in written}


def _seniority(sharer: Sharer) -> tuple[str, str, str]:
    return str(sharer.manifest["metadata"].get("creationTimestamp", "")), sharer.ref.kind, sharer.ref.name


def _without_ruled(annotations: Mapping[str, str], spec: Manifest) -> Mapping[str, str]:
    return {
        key: value
        for key, value in annotations.items()
        if key not in _OF_THE_CLIENT and (key not in SPEC_FIELDS or _in_spec(spec, key) is None)
    }


def _against_spec(sharer: Sharer, workload: Manifest) -> Iterator[Problem]:
    if sharer.is_worker:
        # It was made from the spec as it was then.
        return
    for key in SPEC_FIELDS:
        own, ruling = sharer.annotations.get(key), _in_spec(workload["spec"], key)
        if own is not None and ruling is not None and not _same(key, own, ruling):
            allowed = f"{ruling}, as TensorFusionWorkload {workload['metadata']['name']} says, or no annotation"
            yield Problem(key, own, allowed, str(sharer))


def _against_first(sharer: Sharer, first: Sharer) -> Iterator[Problem]:
    for key in SPEC_FIELDS:
        own, ruling = sharer.annotations.get(key), first.annotations.get(key)
        if own is not None and not _same(key, own, ruling):
            allowed = f"{ruling or 'no annotation'}, as {first} says, which shares the workload, or no annotation"
            yield Problem(key, own, allowed, str(sharer))


def _in_spec(spec: Manifest, key: str) -> Any:
    value: Any = spec
    for part in SPEC_FIELDS[key]:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _same(key: str, one: object, other: object) -> bool:
    resource = AMOUNT_RESOURCE.get(key)
    if resource is None or other is None:
        return str(one) == str(other)
    try:
        return parse_amount(resource, one) == parse_amount(resource, other)
    except ValueError:
        # One of them is no amount: differing text is named here, the bad value where it is read.
        return str(one) == str(other)


def _misplaced(sharers: Sequence[Sharer]) -> Iterator[str]:
    for sharer in sharers:
        written = sharer.manifest["metadata"].get("annotations") or EMPTY if sharer.is_owner else EMPTY
        found = sorted(key for key in written if key.startswith(PREFIX))
        if found:
            yield f"{sharer}: {', '.join(found)} changes nothing here: {DOMAIN} annotations belong on the pod template"
