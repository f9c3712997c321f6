"""Where the node agents are: the addresses of their pods by node.

A node's own name or address may not lead to its agent: names need not resolve, host ports need a plugin of the network
and pass by its policies. A pod's address is what the cluster itself routes to. Neighbour: `gateways.agents` asks once
per read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoscaler.kube.client import KubeClient
from autoscaler.kube.kinds import BY_KIND
from autoscaler.kube.listing import list_whole
from autoscaler.model.workload import Manifest


class AgentPods:
    """The agents' pods of one namespace, by label selector."""

    def __init__(self, client: KubeClient, namespace: str, selector: str) -> None:
        self._client = client
        self._namespace = namespace
        self._selector = selector

    async def __call__(self) -> Mapping[str, str]:
        """Return the agent's address by node; nodes without a running agent are absent.

        Raises:
            ClusterError: the pods can't be listed.

        """
        path = BY_KIND["Pod"].path(self._namespace)
        listed = await list_whole(self._client, path, {"labelSelector": self._selector}, _trimmed)
        return addresses_of(listed.items)


def addresses_of(pods: tuple[Manifest, ...]) -> dict[str, str]:
    """Return address by node; of two pods on a node, the one that is not being ended."""
    found: dict[str, str] = {}
    for pod in sorted(pods, key=_is_ending, reverse=True):
        status = pod.get("status") or {}
        if status.get("phase") == "Running" and status.get("podIP"):
            found[pod["spec"]["nodeName"]] = status["podIP"]
    return found


def _is_ending(pod: Manifest) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def _trimmed(item: dict[str, Any]) -> Manifest:
    status = item.get("status") or {}
    return {
        "metadata": {key: item["metadata"][key] for key in ("name", "deletionTimestamp") if key in item["metadata"]},
        "spec": {"nodeName": (item.get("spec") or {}).get("nodeName", "")},
        "status": {key: status[key] for key in ("phase", "podIP") if key in status},
    }
