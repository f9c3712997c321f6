"""The UUIDs of devices that claims name (dynamic resource allocation), from the cluster's ResourceSlices.

Asked only when the kubelet names a claimed device that is not known yet, and then at most once a minute: a driver's
slices change when its node's devices do. Neighbour: `agent.kubeapi` asks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

import structlog

from agent.kubeapi import ApiError, KubeApi
from agent.kubelet.resources import ClaimedDevice

_log = structlog.get_logger(__name__)
SLICES: Final = "/apis/resource.k8s.io/v1/resourceslices"
DRIVER: Final = "gpu.nvidia.com"
UUID: Final = "uuid"
"""The attribute in which NVIDIA's driver tells a device's UUID."""
AGAIN_SECONDS: Final = 60.0


class Claims:
    """Knows claimed devices of one node."""

    def __init__(self, api: KubeApi, node: str, clock: Callable[[], float]) -> None:
        """Take `clock` in seconds from any start."""
        self._api, self._node, self._clock = api, node, clock
        self._uuids: Mapping[ClaimedDevice, str] = {}
        self._next_at = float("-inf")
        self._complaint = ""

    async def uuids(self, wanted: Collection[ClaimedDevice]) -> Mapping[ClaimedDevice, str]:
        """Return what is known; asks where a device of NVIDIA's is not."""
        unknown = any(device.driver == DRIVER and device not in self._uuids for device in wanted)
        if unknown and self._clock() >= self._next_at:
            self._next_at = self._clock() + AGAIN_SECONDS
            await self._ask()
        return self._uuids

    async def _ask(self) -> None:
        query = {"fieldSelector": f"spec.nodeName={self._node}"}
        try:
            found = await self._api.get(SLICES, query)
            self._uuids, self._complaint = uuids_in(found.get("items") or ()), ""
        except ApiError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                _log.warning("claimed_devices_unknown", error=self._complaint, then="it is tried again")


def uuids_in(slices: Iterable[Mapping[str, Any]]) -> dict[ClaimedDevice, str]:
    """Return the UUIDs of a driver's devices; of a pool only the newest generation counts."""
    specs = [one.get("spec") or {} for one in slices]
    newest: dict[tuple[str, str], int] = {}
    for spec in specs:
        newest[_pool(spec)] = max(newest.get(_pool(spec), 0), _generation(spec))
    found: dict[ClaimedDevice, str] = {}
    for spec in specs:
        driver, pool = _pool(spec)
        if driver == DRIVER and _generation(spec) == newest[driver, pool]:
            for device in spec.get("devices") or ():
                uuid = ((device.get("attributes") or {}).get(UUID) or {}).get("string")
                if uuid:
                    found[ClaimedDevice(driver, pool, str(device.get("name", "")))] = str(uuid)
    return found


def _pool(spec: Mapping[str, Any]) -> tuple[str, str]:
    return str(spec.get("driver", "")), str((spec.get("pool") or {}).get("name", ""))


def _generation(spec: Mapping[str, Any]) -> int:
    return int((spec.get("pool") or {}).get("generation") or 0)
