"""Keys under the prefix that TensorFusion's own components use: none of them is a typo of ours."""

from __future__ import annotations

from typing import Final

UPSTREAM_KEYS: Final = frozenset(
    {
        "auto-scale-target-resource",
        "cluster",
        "component",
        "compute-percent-limit",
        "compute-percent-request",
        "container-gpu-count",
        "container-gpus",
        "dedicated-worker",
        "disable-features",
        "do-not-disrupt",
        "effective-hard-sm-percent",
        "embedded-worker",
        "enabled-replicas",
        "eviction-protection",
        "gang-desired-members",
        "gang-enabled",
        "gang-group-key",
        "gang-min-members",
        "gang-required-members",
        "gang-timeout",
        "gpu-indices",
        "gpu-released",
        "host-port",
        "hourly-pricing",
        "index",
        "is-default-pool",
        "managed-by",
        "partition",
        "partition-id",
        "partition-uuids",
        "pending-owned-workload",
        "pod-counter-key",
        "pod-template-hash",
        "port-name",
        "port-number",
        "selected-workload",
        "sidecar-worker",
        "tf-pod-count",
        "used-by",
        "vendor",
        "worker-name",
        "worker-pod-template",
        "workload-mode",
    }
)
"""Names without the prefix."""
