"""Which worker the kubelet gave which device: asked every ten seconds, and sooner when pods have changed.

The last answer stays while the kubelet is away. Neighbours: `agent.kubelet.resources` asks, `claims` knows the devices
of dynamic resource allocation, `placed` gives the devices to workers.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

import structlog

from agent.kubelet.resources import Allocation, ClaimedDevice, list_allocations
from agent.kubelet.sockets import KubeletError, why_absent
from agent.pods.claims import Claims

_log = structlog.get_logger(__name__)
EVERY_SECONDS: Final = 10.0
LEAST_SECONDS: Final = 1.0
"""Time between two questions when pods change all the time: the kubelet refuses more than a hundred a second."""
LONGEST_PAUSE_SECONDS: Final = 60.0
_HEX: Final = "[0-9a-f]"
_DEVICE: Final = re.compile(rf"((?:GPU|MIG)-{_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}})(?:::\d+)?")

ContainerName: TypeAlias = tuple[str, str, str]
"""(namespace, pod, container): the kubelet names no UIDs."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The devices' UUIDs by container, and the number of the question that they answer."""

    number: int
    devices: Mapping[ContainerName, tuple[str, ...]] = field(default_factory=dict)


def device_uuid(device_id: str) -> str | None:
    """Return the UUID that a device plugin's id names, None where it is none of a device or of a replica of one.

    NVIDIA's plugin writes `GPU-…`, `MIG-…` and `GPU-…::3`. HAMi's looks alike, `GPU-…-3`, and means nothing: which
    device it takes is decided elsewhere.
    """
    found = _DEVICE.fullmatch(device_id)
    return None if found is None else found[1]


def devices_of(
    allocations: Iterable[Allocation], claimed: Mapping[ClaimedDevice, str]
) -> tuple[Mapping[ContainerName, tuple[str, ...]], int]:
    """Return the devices' UUIDs by container, and how many ids tell none.

    A pod of which the kubelet tells twice (one of that name is ending, another one begins) has none: which is which is
    not told.
    """
    found: dict[ContainerName, tuple[str, ...]] = {}
    twice: set[tuple[str, str]] = set()
    ignored = 0
    for one in allocations:
        ids = [*one.device_ids, *(claimed.get(device, "") for device in one.claimed)]
        uuids = [uuid for uuid in map(device_uuid, ids) if uuid is not None]
        ignored += len(ids) - len(uuids)
        name = (one.namespace, one.pod, one.container)
        if name in found:
            twice.add(name[:2])
        found[name] = tuple(dict.fromkeys(uuids))
    return {name: uuids for name, uuids in found.items() if uuids and name[:2] not in twice}, ignored


class AllocatedDevices:
    """Asks the kubelet; `run` is its task, all else is called from the tick's thread."""

    def __init__(self, socket: Path, claims: Claims | None = None) -> None:
        """Take where the socket of the pod-resources API is, and who knows claimed devices, if anybody does."""
        self._socket, self._claims = socket, claims
        self._answer: Answer | None = None
        self._ignored = 0
        self._wanted = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.asked = 0
        """How many questions were begun."""

    def answer(self) -> Answer | None:
        """Return the last answer, None before the first."""
        return self._answer

    def want(self) -> None:
        """Ask sooner than in ten seconds."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wanted.set)

    async def run(self) -> None:
        """Ask until cancelled; what goes wrong is told once and tried again, ever more slowly."""
        self._loop = asyncio.get_running_loop()
        pause, complaint = EVERY_SECONDS, ""
        while True:
            problem = absent = why_absent(self._socket)
            try:
                if not absent:
                    await self._ask()
            except KubeletError as error:
                problem = str(error)
            # A node whose kubelet has no such socket is no trouble, as long as there never was one.
            if problem not in {"", complaint} and (self._answer is not None or not absent):
                _log.warning("kubelet_devices_unknown", error=problem, then="the last answer stays")
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS) if problem and problem == complaint else EVERY_SECONDS
            complaint = problem
            await self._rest(pause, may_hurry=not problem)

    async def _ask(self) -> None:
        self._wanted.clear()
        self.asked += 1
        number = self.asked
        allocations = await list_allocations(self._socket)
        claimed = {device for one in allocations for device in one.claimed}
        known = await self._claims.uuids(claimed) if self._claims is not None and claimed else {}
        devices, ignored = devices_of(allocations, known)
        if ignored != self._ignored:
            self._ignored = ignored
            _log.debug("device_ids_ignored", count=ignored)
        before = self._answer
        if before is None:
            _log.info("devices_followed", source=str(self._socket))
        # The same devices are the same object, so that who compares them is done at once.
        same = before is not None and before.devices == devices
        self._answer = Answer(number, before.devices if before is not None and same else devices)

    async def _rest(self, seconds: float, *, may_hurry: bool) -> None:
        await asyncio.sleep(min(LEAST_SECONDS, seconds))
        if not may_hurry:
            await asyncio.sleep(max(0.0, seconds - LEAST_SECONDS))
            return
        try:
            await asyncio.wait_for(self._wanted.wait(), max(0.0, seconds - LEAST_SECONDS))
        except TimeoutError:
            return
