"""WorkloadProfile and TensorFusionWorkload (`tensor-fusion.ai/v1`), a superset of TensorFusion's.

`parse_profile` turns a manifest into a spec or raises ConfigError with everything that is wrong. Stored statuses are
not judged: they are the controllers' own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

from pydantic import Field, ValidationError

from autoscaler.contract.keys import DOMAIN
from autoscaler.errors import ConfigError, Problem
from autoscaler.model.autoscaling import AutoScalingConfig
from autoscaler.model.fields import (
    Conflict,
    CountOrZero,
    FreeObject,
    Isolation,
    Period,
    QoSLevel,
    Spec,
    Text,
    more_than,
)
from autoscaler.model.layers import Resources
from autoscaler.model.problems import ABSENT, field_problems, name_problems, near, shown
from autoscaler.model.rules import integer_at_most, validations
from autoscaler.model.status import TensorFusionWorkloadStatus, WorkloadProfileStatus

API_VERSION: Final = f"{DOMAIN}/v1"
MAX_GPU_COUNT: Final = 128


class GangScheduling(Spec):
    """Workers that start together or not at all."""

    min_members: CountOrZero | None = Field(None, description="Workers that must start together; 0 or at least 2.")
    timeout: Period | None = Field(None, description="How long to wait for them.")
    mode: Text | None = Field(None, description="How strictly; Strict.")

    def conflicts(self) -> Iterator[Conflict]:
        """Yield a gang of one."""
        if self.min_members == 1:
            yield "minMembers", "1", "0 (off), or at least 2"


class WorkloadProfileSpec(
    Spec, json_schema_extra=validations(integer_at_most("gangScheduling.minMembers", "replicas"))
):
    """What a workload needs; annotations of the pod template have the last word."""

    resources: Resources | None = Field(None, description="Amounts per worker and per GPU device.")
    replicas: CountOrZero | None = Field(None, description="vGPU workers; absent: as many as the owner's replicas.")
    is_local_gpu: bool | None = Field(
        None, alias="isLocalGPU", description="Run the client on the server of its GPU worker."
    )
    pool_name: Text | None = Field(None, description="GPU pool; absent: the default pool.")
    qos: QoSLevel | None = Field(None, description="Service level; absent: the pool's, else medium.")
    gpu_count: Annotated[int, Field(ge=1, le=MAX_GPU_COUNT, json_schema_extra={"format": "int32"})] | None = Field(
        None, description="GPU devices per worker; absent: 1.", json_schema_extra={"default": 1}
    )
    gpu_model: Text | None = Field(None, description="GPU model, such as A100.")
    node_affinity: FreeObject | None = Field(None, description="Node affinity of the workers, as in a pod.")
    auto_scaling_config: AutoScalingConfig | None = Field(None, description="What may be scaled and how.")
    gang_scheduling: GangScheduling | None = Field(None, description="Workers that start together.")
    isolation: Isolation | None = Field(None, description="How workers are kept apart; absent: soft.")
    vendor: Text | None = Field(None, description="GPU vendor.")
    gpu_indices: Annotated[tuple[CountOrZero, ...], Field(strict=False, max_length=MAX_GPU_COUNT)] | None = Field(
        None, description="Device indices to use."
    )
    worker_pod_template: FreeObject | None = Field(None, description="Pod template of remote workers.")
    sidecar_worker: bool | None = Field(None, description="Run the worker as a sidecar of the client.")
    partition_template_id: Text | None = Field(
        None, alias="partitionTemplateId", description="Partition template for isolation partitioned."
    )

    def conflicts(self) -> Iterator[Conflict]:
        """Yield a gang larger than the replicas."""
        members = self.gang_scheduling.min_members if self.gang_scheduling else None
        yield from more_than(("gangScheduling.minMembers", members), ("replicas", self.replicas), None)


class WorkloadProfile(Spec):
    """Defaults for workloads that name it, lower in priority than their annotations."""

    spec: WorkloadProfileSpec | None = Field(None, description="What a workload needs.")
    status: WorkloadProfileStatus | None = Field(None, description="What its workloads have.")


class TensorFusionWorkload(Spec):
    """vGPU workers that one or more owners share."""

    spec: WorkloadProfileSpec | None = Field(None, description="What the workers need.")
    status: TensorFusionWorkloadStatus | None = Field(None, description="What the workers have and should have.")


KINDS: Final[dict[str, type[Spec]]] = {
    "WorkloadProfile": WorkloadProfile,
    "TensorFusionWorkload": TensorFusionWorkload,
}


def _envelope_problems(manifest: Mapping[str, Any]) -> Iterator[Problem]:
    if manifest.get("apiVersion") != API_VERSION:
        yield Problem("apiVersion", shown(manifest.get("apiVersion", ABSENT)), API_VERSION)
    if manifest.get("kind") not in KINDS:
        yield Problem("kind", shown(manifest.get("kind", ABSENT)), f"one of {', '.join(KINDS)}")
    known = ("apiVersion", "kind", "metadata", "spec", "status")
    for field in manifest:
        if field not in known:
            guess = near(str(field), known)
            yield Problem(str(field), shown(manifest[field]), f"a known field: {guess or ', '.join(known)}")


def parse_spec(spec: object) -> WorkloadProfileSpec:
    """Return a spec from its JSON form (None is an empty one), or raise ConfigError with every problem."""
    try:
        return WorkloadProfileSpec.model_validate({} if spec is None else spec)
    except ValidationError as error:
        raise ConfigError(field_problems(WorkloadProfileSpec, error, "spec")) from None


def parse_profile(manifest: Mapping[str, Any]) -> WorkloadProfileSpec:
    """Return the spec of a WorkloadProfile or TensorFusionWorkload manifest, or raise ConfigError."""
    problems = [*_envelope_problems(manifest), *name_problems(manifest)]
    try:
        spec = parse_spec(manifest.get("spec"))
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return spec
