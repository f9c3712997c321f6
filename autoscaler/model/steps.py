"""What a pass does to the cluster, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autoscaler.model.workload import Manifest, ObjectRef


@dataclass(frozen=True, slots=True)
class CreateObject:
    """Create an object that does not exist yet (a generated TensorFusionWorkload)."""

    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Annotate:
    """Merge annotations into an object (None removes one); refused when its UID differs.

    `was`: its tensor-fusion.ai/ annotations on which this was decided; refused when they are others by now. None: any.
    """

    ref: ObjectRef
    annotations: Mapping[str, str | None]
    was: Mapping[str, str] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class WriteStatus:
    """Set the status of a TensorFusionWorkload or WorkloadProfile, as owned by this controller."""

    ref: ObjectRef
    status: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Scale:
    """Set the replicas of an owner through its scale subresource."""

    ref: ObjectRef
    replicas: int


@dataclass(frozen=True, slots=True)
class Own:
    """Put the owners of an object on record, all of them; refused when it changed since it was read."""

    ref: ObjectRef
    owners: tuple[ObjectRef, ...]


@dataclass(frozen=True, slots=True)
class Emit:
    """Record an event on an object, after the act."""

    ref: ObjectRef
    reason: str
    message: str
    warning: bool = False


ClusterWrite = CreateObject | Annotate | WriteStatus | Scale | Own | Emit
