"""The API resources this controller touches, and their paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from autoscaler.contract.keys import DOMAIN


@dataclass(frozen=True, slots=True)
class ApiResource:
    """One kind: `field` is where it stands in a ClusterView, empty when it is only written.

    `optional`: an API server that does not know the kind has none of it.
    """

    api_version: str
    kind: str
    plural: str
    field: str = ""
    namespaced: bool = True
    optional: bool = False

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Return the path of one object, of a namespace's objects, or of all."""
        root = f"/api/{self.api_version}" if "/" not in self.api_version else f"/apis/{self.api_version}"
        parts = [root]
        if namespace and self.namespaced:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        parts += [quote(part, safe="") for part in (name, subresource) if part]
        return "/".join(parts)


_OURS: Final = f"{DOMAIN}/v1"
RESOURCES: Final = (
    ApiResource(_OURS, "WorkloadProfile", "workloadprofiles", "profiles"),
    ApiResource(_OURS, "TensorFusionWorkload", "tensorfusionworkloads", "workloads"),
    ApiResource("v1", "Pod", "pods", "pods"),
    ApiResource("apps/v1", "Deployment", "deployments", "owners"),
    ApiResource("apps/v1", "StatefulSet", "statefulsets", "owners"),
    ApiResource("apps/v1", "ReplicaSet", "replicasets", "owners"),
    ApiResource("batch/v1", "Job", "jobs", "owners"),
    ApiResource("batch/v1", "CronJob", "cronjobs", "owners"),
    ApiResource("v1", "Node", "nodes", "nodes", namespaced=False),
    ApiResource(_OURS, "GPUResourceQuota", "gpuresourcequotas", "quotas", optional=True),
    ApiResource("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers", "scalers"),
    ApiResource("keda.sh/v1alpha1", "ScaledObject", "scaledobjects", "scalers", optional=True),
    ApiResource("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets", "budgets"),
    ApiResource(_OURS, "GPU", "gpus", "gpus", namespaced=False, optional=True),
)
SECRET: Final = ApiResource("v1", "Secret", "secrets")
"""Read by name where a workload's external scaler names one, never listed."""
EVENTS: Final = ApiResource("events.k8s.io/v1", "Event", "events")
BY_KIND: Final = {resource.kind: resource for resource in RESOURCES}
