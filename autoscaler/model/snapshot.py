"""The world at one moment: what a pass decides on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autoscaler.contract.quota import DeviceInfo, QuotaStatus
from autoscaler.model.external import ScalerState
from autoscaler.model.inventory import Inventory
from autoscaler.model.resource_quota import ResourceQuota
from autoscaler.model.stored import Path
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import Discovered


@dataclass(frozen=True, slots=True)
class NodeState:
    """One node as its agent tells it; `error` says why it could not be asked (the rest is then the last known)."""

    node: str
    devices: tuple[DeviceInfo, ...] = ()
    quotas: QuotaStatus | None = None
    error: str = ""

    @property
    def reachable(self) -> bool:
        """Whether the agent answered in this pass."""
        return not self.error


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Workloads, nodes, and resource quotas by namespace, read once per pass.

    `external`: what is known of the scalers of those workloads that have one of their own. `lost`: by kind, the fields
    of a status that the cluster's definitions don't hold. `inventory`: all GPUs of the cluster, None: those of `nodes`.
    """

    now: float
    discovered: Discovered
    nodes: Mapping[str, NodeState]
    quotas: Mapping[str, ResourceQuota] = field(default_factory=dict)
    external: Mapping[WorkloadKey, ScalerState] = field(default_factory=dict)
    lost: Mapping[str, frozenset[Path]] = field(default_factory=dict)
    inventory: Inventory | None = None
