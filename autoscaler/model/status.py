"""Status of the custom resources: what the controller reports, and what TensorFusion's operator keeps there.

Read leniently and written by us: unknown fields of a stored status are nobody's mistake.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from autoscaler.model.autoscaling import CronScalingRule
from autoscaler.model.fields import CountOrZero, Spec, Text
from autoscaler.model.layers import Resources

_REASON = r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"
_BY_TYPE: dict[str, Any] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
Time = Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})]
Generation = Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})]


class Status(Spec, extra="ignore", populate_by_name=True):
    """Base of everything in a status."""


class Condition(Status):
    """One condition in the usual Kubernetes form."""

    type: Annotated[str, Field(max_length=253)] = Field(description="What it is about, such as ConfigValid.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: Annotated[str, Field(max_length=253, pattern=_REASON)] = Field(description="Why, as one CamelCase word.")
    message: Annotated[str, Field(max_length=32768)] = Field(description="Why, as a sentence with the numbers.")
    last_transition_time: Time = Field(description="When the status last changed.")
    observed_generation: Generation | None = Field(None, description="Generation of the spec it speaks of.")


Conditions = Annotated[tuple[Condition, ...], Field(strict=False, max_length=32, json_schema_extra=_BY_TYPE)]


class GangStatus(Status):
    """Gang scheduling as TensorFusion's operator reports it."""

    enabled: bool | None = Field(None, description="Whether the workers start together.")
    phase: Text | None = Field(None, description="Phase of the gang.")
    min_members: CountOrZero | None = Field(None, description="Workers that must start together.")
    desired_members: CountOrZero | None = Field(None, description="Workers wanted.")
    required_members: CountOrZero | None = Field(None, description="Workers required.")
    message: Text | None = Field(None, description="Why it waits.")


class Totals(Status):
    """Sums over the workloads of a profile, ready to read."""

    tflops: Text | None = Field(None, description="FP16 TFLOPs requested, such as 40→31.")
    vram: Text | None = Field(None, description="VRAM requested, such as 64Gi→48Gi.")
    replicas: Text | None = Field(None, description="Workers, such as 6→7.")


class ProfileSummary(Status):
    """What the profile's workloads have and should have."""

    auto: Text | None = Field(None, description="Layers that are on: req, lim, rep.")
    display: Totals | None = Field(None, description="Sums for the columns, current→recommended.")
    current: Resources | None = Field(None, description="Sum of the current amounts.")
    recommended: Resources | None = Field(None, description="Sum of the recommended amounts.")
    gpus_saved: Text | None = Field(None, description="GPUs that the recommendations free.")


class WorkloadProfileStatus(Status):
    """A profile as the controller sees it."""

    observed_generation: Generation | None = Field(None, description="Generation of the spec last acted on.")
    workloads: CountOrZero | None = Field(None, description="Workloads that use the profile.")
    conditions: Conditions | None = Field(None, description="Conditions, by type.")
    summary: ProfileSummary | None = Field(None, description="Sums over the workloads.")


class ResourceRecommendation(Status):
    """One resource: what was estimated for request and limit, and why it is what it is."""

    target: Text | None = Field(None, description="Request to apply, after every guard.")
    lower_bound: Text | None = Field(None, description="Below this the request is too small.")
    upper_bound: Text | None = Field(None, description="Above this the request is wasteful.")
    uncapped_target: Text | None = Field(None, description="Request without bounds and capacity.")
    limit_target: Text | None = Field(None, description="Limit to apply, after every guard.")
    uncapped_limit_target: Text | None = Field(None, description="Limit without bounds and capacity.")
    usage: Text | None = Field(None, description="Use last seen on the busiest worker.")
    reason: Text | None = Field(None, description="Why, as one CamelCase word.")
    message: Annotated[str, Field(max_length=4096)] | None = Field(None, description="Why, with the numbers.")


class Display(Status):
    """Ready strings for the columns; they cannot compute."""

    qos: Text | None = Field(None, description="QoS in force.")
    auto: Text | None = Field(None, description="Layers that are on: req, lim, rep.")
    tflops: Text | None = Field(None, description="TFLOPs as request/limit, current→recommended.")
    vram: Text | None = Field(None, description="VRAM as request/limit, current→recommended.")
    replicas: Text | None = Field(None, description="Workers, current→recommended.")
    status: Annotated[str, Field(max_length=15)] | None = Field(None, description="Status in at most 15 characters.")
    bounds: Text | None = Field(None, description="Bounds in force.")
    usage: Text | None = Field(None, description="Use last seen.")
    message: Annotated[str, Field(max_length=4096)] | None = Field(None, description="Why, with the numbers.")


class Replicas(Status):
    """The number of workers: what was estimated, and why."""

    target: CountOrZero | None = Field(None, description="Workers to have, after every guard.")
    uncapped_target: CountOrZero | None = Field(None, description="Workers without bounds and capacity.")
    reason: Text | None = Field(None, description="Why, as one CamelCase word.")
    message: Annotated[str, Field(max_length=4096)] | None = Field(None, description="Why, with the numbers.")


class AutoscalingStatus(Status):
    """The latest decision about a workload, so that a reader can recompute it."""

    tflops: ResourceRecommendation | None = Field(None, description="The decision about compute.")
    vram: ResourceRecommendation | None = Field(None, description="The decision about VRAM.")
    replicas: Replicas | None = Field(None, description="The decision about the number of workers.")
    current: Resources | None = Field(None, description="Amounts in force.")
    original: Resources | None = Field(None, description="The user's own amounts, beside which they were decided.")
    display: Display | None = Field(None, description="Ready strings for the columns.")
    selector: Text | None = Field(None, description="Label selector of the workers.")
    applied: Text | None = Field(None, description="Workers that acknowledged, of all, such as 2/2.")
    effect: Text | None = Field(None, description="When a change reaches running workers.")
    samples: Generation | None = Field(None, description="Samples behind the recommendation.")
    span: Text | None = Field(None, description="Time that the samples span, such as 6d4h.")
    last_evaluation_time: Time | None = Field(None, description="When the decision was last made.")
    last_scale_time: Time | None = Field(None, description="When anything was last changed.")
    last_change: Annotated[str, Field(max_length=4096)] | None = Field(
        None, description="What was last changed and why, with the numbers of that moment."
    )
    last_blocked: Text | None = Field(
        None, description="What last kept a layer from growing, by condition, as an event told it."
    )
    active_cron_rule: Text | None = Field(None, description="Name of the rule in force.")
    next_cron_transition: Time | None = Field(None, description="When a rule next begins or ends.")


class TensorFusionWorkloadStatus(Status):
    """A workload as the controller and TensorFusion's operator see it."""

    phase: Text | None = Field(None, description="Phase, kept by the operator that starts the workers.")
    observed_generation: Generation | None = Field(None, description="Generation of the spec last acted on.")
    conditions: Conditions | None = Field(None, description="Conditions, by type.")
    worker_count: CountOrZero | None = Field(None, description="Workers that exist.")
    ready_workers: CountOrZero | None = Field(None, description="Workers that are ready.")
    pod_template_hash: Text | None = Field(None, description="Hash of the worker template, kept by the operator.")
    recommendation: Resources | None = Field(None, description="Amounts recommended per worker and device.")
    recommended_replicas: CountOrZero | None = Field(None, description="Number of workers recommended.")
    applied_recommended_replicas: CountOrZero | None = Field(
        None, description="Workers that have the recommended amounts."
    )
    active_cron_scaling_rule: CronScalingRule | None = Field(None, description="The rule in force.")
    gang: GangStatus | None = Field(None, description="Gang scheduling, kept by the operator.")
    selector: Text | None = Field(None, description="Label selector of the workers, for the scale subresource.")
    autoscaling: AutoscalingStatus | None = Field(None, description="The latest decision.")
