"""One documented order of precedence: annotation, then WorkloadProfile, then pool or cluster default, then built-in.

VRAM that neither annotation nor profile requests is estimated from the size of the model, where annotations tell it.

`resolve` returns a Configuration or raises ConfigError with everything that is wrong; it never falls back to a default
because a value was bad.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from autoscaler.contract import keys
from autoscaler.contract.keys import QoS
from autoscaler.errors import ConfigError, Problem
from autoscaler.model import policies
from autoscaler.model.annotations import (
    ALLOWED,
    GPU_LIBRARY_CONTAINER,
    Annotations,
    container_problems,
    parse_annotations,
    typo_warnings,
)
from autoscaler.model.autoscaling import AutoScalingConfig
from autoscaler.model.config import Configuration, LimitsPolicy, Pause, ReplicasPolicy, RequestsPolicy
from autoscaler.model.policies import NONE, Pair
from autoscaler.model.problems import ABSENT, is_name
from autoscaler.model.profile import WorkloadProfileSpec
from autoscaler.model.quantity import format_amount, round_amount
from autoscaler.model.resources import SPECS, Amount, Amounts, Resource, ResourceSpec

T = TypeVar("T")

COUNTED_APART: Final = "but the owner's replicas are"
"""How a warning goes about two counts that differ."""
REQUEST_KEYS: Final = (keys.TFLOPS_REQUEST, keys.VRAM_REQUEST)
LIMIT_KEYS: Final = (keys.TFLOPS_LIMIT, keys.VRAM_LIMIT)
BUILT_IN_ISOLATION: Final = "soft"
_MODEL: Final = ("model_params", "model_precision", "model_context", "model_users")
_JOINED: Final[dict[str, None]] = dict.fromkeys(
    ("tflops_request", "tflops_limit", "vram_request", "vram_limit", "qos", "replicas", *_MODEL)
)
"""A pod that joins another workload decides none of these."""
_TOGETHER: Final = (
    (keys.MODEL_PARAMS, keys.MODEL_PRECISION),
    (keys.MODEL_PRECISION, keys.MODEL_PARAMS),
    (keys.MODEL_CONTEXT, keys.MODEL_USERS),
    (keys.MODEL_USERS, keys.MODEL_CONTEXT),
    (keys.MODEL_CONTEXT, keys.MODEL_PARAMS),
)
"""A key of the model's size, and the one that it says nothing without."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the pool or the cluster decides for those who did not; amounts are indexed by Resource."""

    requests: Pair = NONE
    limits: Pair = NONE
    qos: QoS | None = None
    pool: str = ""
    is_local_gpu: bool | None = None


@dataclass(frozen=True, slots=True)
class Owner:
    """The object that owns the pods; `containers` are those of its pod template, None where they are not known."""

    replicas: int | None = None
    containers: tuple[str, ...] | None = None


def resolve(
    annotations: Mapping[str, object],
    labels: Mapping[str, str],
    profile: WorkloadProfileSpec | None,
    defaults: Defaults,
    owner: Owner,
) -> Configuration:
    """Return what a workload's owner wants.

    `profile` is the spec that the annotations name, None if it was not found; with `generate-workload: 'false'` it is
    the spec of the TensorFusionWorkload that is joined. `annotations` and `labels` are those of the pod template.

    Raises:
        ConfigError: with every problem found, not only the first.
    """
    parsed = parse_annotations(annotations)
    own, label_problems = _with_workload_label(parsed.values, labels)
    problems = [
        *parsed.problems,
        *label_problems,
        *_reference_problems(own, profile),
        *_model_problems(annotations),
        *container_problems(own.inject_containers, owner.containers),
    ]
    warnings = [*parsed.warnings, *typo_warnings(labels)]
    if own.generate_workload is False:
        warnings += _ignored_by_joining(annotations)
        own = replace(own, **_JOINED)
    spec = profile or WorkloadProfileSpec()
    waits = own.generate_workload is False and profile is None
    unread = frozenset(problem.path for problem in parsed.problems)
    amounts = _amounts(_Figures(own, spec, defaults, unread, waits), problems)
    config = replace(
        _configuration(own, spec, defaults, amounts),
        replicas=_first(own.replicas, spec.replicas, owner.replicas),
        inject_containers=_injected(own, owner),
        warnings=(*warnings, *_warnings(own, spec, owner)),
    )
    if config.no_standalone_worker and not config.is_local_gpu:
        allowed = f"'true' only with {keys.IS_LOCAL_GPU}: 'true'"
        problems.append(Problem(keys.NO_STANDALONE_WORKER_MODE, "true", allowed))
    if problems:
        raise ConfigError(problems)
    return config


def _configuration(own: Annotations, spec: WorkloadProfileSpec, defaults: Defaults, amounts: Amounts) -> Configuration:
    config = spec.auto_scaling_config or AutoScalingConfig()
    qos = _first(own.qos, spec.qos, defaults.qos) or QoS.MEDIUM
    requests, limits, replicas = _layers(own, config, qos)
    return Configuration(
        amounts=amounts,
        qos=qos,
        gpu_count=_first(own.gpu_count, spec.gpu_count) or 1,
        gpu_model=_first(own.gpu_model, spec.gpu_model) or "",
        pool=_first(own.pool, spec.pool_name) or defaults.pool,
        workload=own.workload or "",
        profile=own.profile or "",
        generate_workload=own.generate_workload is not False,
        is_local_gpu=bool(_first(own.is_local_gpu, spec.is_local_gpu, defaults.is_local_gpu)),
        no_standalone_worker=bool(own.no_standalone_worker),
        isolation=_first(own.isolation, spec.isolation) or BUILT_IN_ISOLATION,
        dedicated_gpu=bool(own.dedicated_gpu),
        requests=requests,
        limits=limits,
        replicas_policy=replicas,
        cron_rules=tuple(map(policies.cron_rule, config.cron_scaling_rules or ())),
        external=policies.external_scaler(config),
        bounds=policies.bounds(config),
        initial_delay_seconds=policies.initial_delay_seconds(config),
        pause=own.pause or Pause(),
        revert=bool(own.revert),
        model_size=own.model_size,
        gang_members=(spec.gang_scheduling.min_members if spec.gang_scheduling is not None else None) or 0,
    )


def _layers(
    own: Annotations, config: AutoScalingConfig, qos: QoS
) -> tuple[RequestsPolicy, LimitsPolicy, ReplicasPolicy]:
    both = _first(own.autoscale, own.auto_resources)
    resources = config.auto_set_resources
    requests = replace(
        policies.requests_policy(config, qos),
        mode=policies.mode(_first(own.auto_requests, both), config.auto_set_requests or resources),
    )
    limits = replace(
        policies.limits_policy(config),
        mode=policies.mode(_first(own.auto_limits, both), config.auto_set_limits or resources),
    )
    if both and own.autoscale_target is not None:
        requests, limits = (
            replace(requests, targets=own.autoscale_target),
            replace(limits, targets=own.autoscale_target),
        )
    replicas = replace(
        policies.replicas_policy(config), mode=policies.mode(own.auto_replicas, config.auto_set_replicas)
    )
    return requests, limits, replicas


@dataclass(frozen=True, slots=True)
class _Figures:
    """Where amounts may come from; `unread` are annotation keys whose value is already a problem."""

    own: Annotations
    spec: WorkloadProfileSpec
    defaults: Defaults
    unread: frozenset[str]
    is_waiting: bool = False
    """Whether the workload that is joined, and would tell, is not there yet."""

    @property
    def estimated(self) -> Pair:
        """Return the requests that the size of the model stands for; nobody can tell its TFLOPs without a run."""
        vram = self.own.model_size.vram_bytes if self.own.model_size is not None else None
        if vram is None:
            return NONE
        return None, round_amount(Resource.VRAM, vram / (_first(self.own.gpu_count, self.spec.gpu_count) or 1))


def _amounts(sources: _Figures, problems: list[Problem]) -> Amounts:
    compute, vram = (_amount(sources, resource, problems) for resource in SPECS)
    return Amounts(compute, vram)


def _amount(sources: _Figures, resource: ResourceSpec, problems: list[Problem]) -> Amount:
    """Return request and limit of one resource, appending what is wrong with them."""
    index, profile = resource.resource, sources.spec.resources
    profile_request = policies.figures(profile.requests if profile else None)[index]
    profile_limit = policies.figures(profile.limits if profile else None)[index]
    request = _first(sources.own.requests[index], profile_request)
    limit = _first(sources.own.limits[index], profile_limit)
    if request is None and limit is None:
        request = sources.estimated[index]
    if request is None and limit is None:
        request, limit = sources.defaults.requests[index], sources.defaults.limits[index]
    request, limit = _first(request, limit), _first(limit, request)
    unread = sources.unread & {REQUEST_KEYS[index], LIMIT_KEYS[index]}
    if request is None or limit is None:
        if not unread and not sources.is_waiting:
            allowed = (
                f"a request or a limit for {resource.noun} in {resource.unit}, "
                "here, in the profile or as a default of the pool"
            )
            problems.append(Problem(REQUEST_KEYS[index], ABSENT, allowed))
        return Amount(resource.floor, resource.floor)
    if request > limit and not unread:
        own = sources.own.requests[index] is not None
        path = REQUEST_KEYS[index] if own else f"spec.resources.requests.{resource.key}"
        problems.append(
            Problem(path, format_amount(index, request), f"at most the limit ({format_amount(index, limit)})")
        )
    return Amount(request, limit)


def _with_workload_label(own: Annotations, labels: Mapping[str, str]) -> tuple[Annotations, list[Problem]]:
    """The workload's name may stand on the pod as a label instead."""
    name = labels.get(keys.WORKLOAD)
    if own.workload is not None or name is None:
        return own, []
    if not is_name(name):
        return own, [Problem(keys.WORKLOAD, name, "the name of a TensorFusionWorkload")]
    return replace(own, workload=name), []


def _reference_problems(own: Annotations, profile: WorkloadProfileSpec | None) -> Iterable[Problem]:
    if own.generate_workload is False:
        if own.workload is None:
            yield Problem(keys.GENERATE_WORKLOAD, "false", f"'false' only with {keys.WORKLOAD}")
        elif profile is None:
            yield Problem(keys.WORKLOAD, own.workload, "an existing TensorFusionWorkload; it is waited for")
    elif own.profile is not None and profile is None:
        yield Problem(
            keys.WORKLOAD_PROFILE, own.profile, "an existing WorkloadProfile in the same namespace; it is waited for"
        )


def _model_problems(annotations: Mapping[str, object]) -> Iterable[Problem]:
    missing = {other: key for key, other in _TOGETHER if key in annotations and other not in annotations}
    for key, beside in missing.items():
        yield Problem(key, ABSENT, f"{ALLOWED[key]}, beside {beside}")


def _ignored_by_joining(annotations: Mapping[str, object]) -> Iterable[str]:
    ignored = (*REQUEST_KEYS, *LIMIT_KEYS, keys.QOS, keys.REPLICAS, keys.WORKLOAD_PROFILE, keys.MODEL_PARAMS)
    for key in ignored:
        if key in annotations:
            yield f"{key} changes nothing: with {keys.GENERATE_WORKLOAD} 'false' the joined workload decides"


def _injected(own: Annotations, owner: Owner) -> tuple[str, ...]:
    if own.inject_containers is not None:
        return own.inject_containers
    return tuple(name for name in owner.containers or () if name != GPU_LIBRARY_CONTAINER)


def _warnings(own: Annotations, spec: WorkloadProfileSpec, owner: Owner) -> Iterable[str]:
    for source, replicas in ((keys.REPLICAS, own.replicas), ("replicas of the profile", spec.replicas)):
        if replicas is not None:
            if owner.replicas is not None and replicas != owner.replicas:
                yield f"{source}: {replicas} workers, {COUNTED_APART} {owner.replicas}"
            break
    if own.autoscale_target is not None and not _first(own.autoscale, own.auto_resources):
        yield f"{keys.AUTOSCALE_TARGET} changes nothing without {keys.AUTOSCALE}: 'true'"
    yield from policies.config_warnings(spec.auto_scaling_config or AutoScalingConfig())


def _first(*choices: T | None) -> T | None:
    """Return the first that is set; False and 0 are set."""
    return next((choice for choice in choices if choice is not None), None)
