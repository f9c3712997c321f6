"""Workloads and their workers as the cluster has them, resolved; and the raw view they are made from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from autoscaler.errors import Problem
from autoscaler.model.config import Configuration
from autoscaler.model.resources import Amounts
from autoscaler.model.stored import Path
from autoscaler.model.takeover import Found, TakenOver
from autoscaler.model.usage import WorkloadKey

Manifest = Mapping[str, Any]
EMPTY: Manifest = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ClusterView:
    """Everything read from the cluster in one pass, as manifests; a broken one is in `problems`, the others work."""

    profiles: tuple[Manifest, ...] = ()
    workloads: tuple[Manifest, ...] = ()
    pods: tuple[Manifest, ...] = ()
    owners: tuple[Manifest, ...] = ()
    """Deployments, StatefulSets, ReplicaSets, Jobs, CronJobs, and top owners of other kinds that pods name.

    One of another kind carries its scale subresource under `scale`, where it has one.
    """
    nodes: tuple[Manifest, ...] = ()
    quotas: tuple[Manifest, ...] = ()
    """GPUResourceQuotas, where they are installed."""
    scalers: tuple[Manifest, ...] = ()
    """HorizontalPodAutoscalers and, where KEDA is installed, ScaledObjects: others that may move replicas."""
    budgets: tuple[Manifest, ...] = ()
    """PodDisruptionBudgets."""
    gpus: tuple[Manifest, ...] = ()
    """TensorFusion's GPU objects, where its operator runs."""
    lost: Mapping[str, frozenset[Path]] = field(default_factory=dict)
    """By kind: fields of a status that this cluster's definitions don't hold, as far as writes have shown."""
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """One API object."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str = ""
    resource_version: str = ""


def group_of(api_version: str) -> str:
    """Return the group of an API version, empty for the core's."""
    return api_version.rpartition("/")[0]


def ref_of(manifest: Manifest) -> ObjectRef:
    """Return the reference of an object as read."""
    metadata = manifest["metadata"]
    return ObjectRef(
        api_version=manifest["apiVersion"],
        kind=manifest["kind"],
        namespace=metadata.get("namespace", ""),
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        resource_version=metadata.get("resourceVersion", ""),
    )


@dataclass(frozen=True, slots=True)
class Worker:
    """One vGPU worker (a pod). `current` are its annotations now, `devices` the GPUs it runs on, if known."""

    ref: ObjectRef
    node: str
    current: Amounts
    ready: bool
    pending: bool = False
    container: str = ""
    devices: tuple[str, ...] = ()
    annotations: Manifest = field(default_factory=lambda: EMPTY)
    """Only the tensor-fusion.ai/ keys."""
    born_at: float = math.nan
    """When the pod was created (seconds since the epoch), NaN: nobody tells."""


@dataclass(frozen=True, slots=True)
class Floor:
    """Below how many replicas nothing scales in: for disruption budgets, and for the gang; 0: no such bound.

    `budget` names the PodDisruptionBudget that asks for it.
    """

    by_budget: int = 0
    by_gang: int = 0
    budget: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to tell the owner of an object once, as a warning event."""

    ref: ObjectRef
    reason: str
    message: str


@dataclass(frozen=True)
class Workload:
    """A TensorFusionWorkload with its resolved configuration.

    `original` is the user's own figure (owner's pod template, else the profile), `current` what its workers hold now
    (the template's when there is no worker). `problems` is not empty when the newest configuration is wrong: `config`
    is then the last good one. `exists` is False for one that must be created. `status` is the object's status as read.
    """

    key: WorkloadKey
    ref: ObjectRef
    config: Configuration
    original: Amounts
    current: Amounts
    workers: tuple[Worker, ...]
    replicas: int
    created_at: float
    generation: int = 0
    owners: tuple[ObjectRef, ...] = ()
    exists: bool = True
    rollout_in_progress: bool = False
    managed_elsewhere: str = ""
    """Name of an HPA or ScaledObject on the same target; empty when there is none."""
    status: Manifest = field(default_factory=lambda: EMPTY)
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = field(default=())
    original_replicas: int | None = None
    """Replicas before a rule by the clock moved them, as noted on the object; None: no rule did."""
    revision: int = 0
    """Fingerprint of what runs (images, GPU model, size of the model); 0: not known."""
    scale_target: ObjectRef | None = None
    """The owner through which replicas are moved; None where there is none, or several share the workers."""
    unscalable: str = ""
    """Why nobody can move the replicas here; empty where that is not so."""
    counts: tuple[int | None, int | None] = (None, None)
    """The counts that the object and its only owner carry, None: none is told."""
    rollout_since: float = math.nan
    """When a rollout last made a pod (seconds since the epoch), NaN: not known."""
    floor: Floor = field(default_factory=Floor)
    references: tuple[ObjectRef, ...] | None = None
    """Owners that are on record in a generated object, None: it is not generated, or does not exist."""
    taken: tuple[TakenOver, ...] = ()
    """Figures that somebody else set, on record as the user's own."""
    found: tuple[Found, ...] = ()
    """Figures that somebody else has set since, not on record yet."""


@dataclass(frozen=True, slots=True)
class Discovered:
    """What discovery made of a ClusterView: usable workloads, and those whose configuration was never good."""

    workloads: tuple[Workload, ...]
    broken: tuple[BrokenWorkload, ...] = ()
    profiles: tuple[Manifest, ...] = ()
    problems: tuple[Problem, ...] = ()
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, slots=True)
class BrokenWorkload:
    """A workload whose configuration can't be used and has no last good one: reported, never scaled.

    `owners` are those who asked for it: told by an event, also while there is no object that could carry a condition.
    """

    key: WorkloadKey
    ref: ObjectRef
    problems: tuple[Problem, ...]
    owners: tuple[ObjectRef, ...] = ()
    exists: bool = True
    generation: int = 0
    status: Manifest = field(default_factory=lambda: EMPTY)
