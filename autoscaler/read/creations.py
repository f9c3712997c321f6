"""Which TensorFusionWorkloads are missing: of those who can be scaled, and of those whose configuration is wrong; pure.

A configuration that was never good gets its object, too: that is where its owner looks for what is wrong. It holds no
amounts; those stand in the owner's annotations, once they are corrected.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from autoscaler.contract import keys
from autoscaler.contract.keys import FIELD_MANAGER
from autoscaler.model.problems import is_name
from autoscaler.model.profile import API_VERSION
from autoscaler.model.steps import CreateObject
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import BrokenWorkload, Discovered
from autoscaler.read.configure import MANAGED_BY, Inputs
from autoscaler.read.discovery import Remembered
from autoscaler.read.generate import new_workload


def creations(discovered: Discovered) -> Iterator[tuple[WorkloadKey, CreateObject]]:
    """Yield what has to be created, and for whom."""
    for workload in discovered.workloads:
        creation = new_workload(workload)
        if creation is not None:
            yield workload.key, creation
    resolutions = discovered.resolutions if isinstance(discovered, Remembered) else {}
    for broken in discovered.broken:
        resolution = resolutions.get(broken.key)
        creation = None if resolution is None else _told(broken, resolution.inputs)
        if creation is not None:
            yield broken.key, creation


def _told(broken: BrokenWorkload, inputs: Inputs) -> CreateObject | None:
    """Return the object that tells what is wrong; None where one exists, is only joined, or can't have that name."""
    joins = inputs.annotations.get(keys.GENERATE_WORKLOAD) == "false"
    if broken.exists or joins or not is_name(broken.key.name):
        return None
    metadata: dict[str, Any] = {**broken.key._asdict(), "labels": {MANAGED_BY: FIELD_MANAGER}}
    owners = [owner for owner in broken.owners if owner.kind != "Pod"]
    if owners:
        metadata["ownerReferences"] = [
            {"apiVersion": owner.api_version, "kind": owner.kind, "name": owner.name, "uid": owner.uid}
            for owner in owners
        ]
    spec = {} if inputs.owner.replicas is None else {"replicas": inputs.owner.replicas}
    return CreateObject({"apiVersion": API_VERSION, "kind": broken.ref.kind, "metadata": metadata, "spec": spec})
