"""Which container the kubelet gave which device: PodResourcesLister v1, one question."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

SERVICE: Final = "v1.PodResourcesLister"
ANSWER_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class ClaimedDevice:
    """A device of dynamic resource allocation: its driver's, pool's and own name say which of the cluster's it is."""

    driver: str
    pool: str
    device: str


@dataclass(frozen=True, slots=True)
class Allocation:
    """What one container was given: device plugins' ids as they wrote them, and devices of claims.

    The kubelet names the pod, not its UID.
    """

    namespace: str
    pod: str
    container: str
    device_ids: tuple[str, ...] = ()
    claimed: tuple[ClaimedDevice, ...] = ()


async def list_allocations(socket: Path, seconds: float = ANSWER_SECONDS) -> tuple[Allocation, ...]:
    """Return what each container of this node was given; containers without a device are left out.

    Raises:
        KubeletError: it can't be asked, or not be read.
    """
    from agent.kubelet import calls, messages

    method = calls.Method(f"/{SERVICE}/List", messages.ListPodResourcesRequest, messages.ListPodResourcesResponse)
    answer = await calls.ask(socket, method, seconds)
    found = (
        Allocation(
            pod.namespace,
            pod.name,
            container.name,
            tuple(name for devices in container.devices for name in devices.device_ids),
            tuple(
                ClaimedDevice(claimed.driver_name, claimed.pool_name, claimed.device_name)
                for dynamic in container.dynamic_resources
                for claimed in dynamic.claim_resources
            ),
        )
        for pod in answer.pod_resources
        for container in pod.containers
    )
    return tuple(one for one in found if one.device_ids or one.claimed)
