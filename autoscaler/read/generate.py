"""The TensorFusionWorkload that is created for those who ask for one that is missing; pure."""

from __future__ import annotations

from typing import Any

from autoscaler.contract.keys import FIELD_MANAGER
from autoscaler.model.profile import API_VERSION
from autoscaler.model.quantity import format_amount
from autoscaler.model.resolve import BUILT_IN_ISOLATION
from autoscaler.model.resources import SPECS
from autoscaler.model.steps import CreateObject
from autoscaler.model.workload import Workload
from autoscaler.read.configure import MANAGED_BY


def new_workload(workload: Workload) -> CreateObject | None:
    """Return the creation of a workload's object; None when it exists or is only to be joined.

    One ownerReference per owner, so that it is collected when the last one goes. Its spec says what the workers are;
    what is scaled, and how, stays with the annotations and the profile.
    """
    config = workload.config
    if workload.exists or not config.generate_workload:
        return None
    sides = {
        side: {
            spec.key: format_amount(spec.resource, getattr(workload.original[spec.resource], attribute))
            for spec in SPECS
        }
        for side, attribute in (("requests", "request"), ("limits", "limit"))
    }
    spec: dict[str, Any] = {
        "replicas": workload.replicas if config.replicas is None else config.replicas,
        "resources": sides,
        "qos": config.qos.value,
        "gpuCount": config.gpu_count,
    }
    named = (("poolName", config.pool), ("gpuModel", config.gpu_model), ("isLocalGPU", config.is_local_gpu))
    spec |= {key: value for key, value in named if value}
    if config.isolation != BUILT_IN_ISOLATION:
        spec["isolation"] = config.isolation
    metadata: dict[str, Any] = {
        "name": workload.key.name,
        "namespace": workload.key.namespace,
        "labels": {MANAGED_BY: FIELD_MANAGER},
    }
    if workload.owners:
        metadata["ownerReferences"] = [
            {"apiVersion": owner.api_version, "kind": owner.kind, "name": owner.name, "uid": owner.uid}
            for owner in workload.owners
        ]
    return CreateObject({"apiVersion": API_VERSION, "kind": workload.ref.kind, "metadata": metadata, "spec": spec})
