"""Who could tell the pods of this node, and which device each was given; asked once each, for `tf-agent probe`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from agent.kubeapi import ApiError, KubeApi
from agent.kubelet.pods import EventKind, watch_pods
from agent.kubelet.resources import list_allocations
from agent.kubelet.sockets import POD_RESOURCES, PODS, KubeletError, why_absent
from agent.pods.allocated import devices_of
from agent.pods.file import PodFile
from agent.pods.known import Places
from agent.pods.watch import PODS as API_PODS

PATIENCE_SECONDS: Final = 3.0
FILE: Final = "file"
KUBELET: Final = "kubelet"
API_SERVER: Final = "API server"
DOCUMENT: Final = "quota document"
DEVICES: Final = "kubelet's devices"


@dataclass(frozen=True, slots=True)
class Told:
    """Whether somebody tells, whether that is what the agent goes by, and what was told, or why nothing."""

    tells: bool
    used: bool
    reason: str


def probe_pods(places: Places) -> Mapping[str, Told]:
    """Return who tells the pods, in order of trust, then who tells their devices."""
    return asyncio.run(_asked(places))


async def _asked(places: Places) -> dict[str, Told]:
    found = {FILE: _file(places), KUBELET: await _kubelet(places.kubelet), API_SERVER: await _api(places)}
    # One of these is gone by, and where a file is named no other; what the document names is known beside it.
    others = () if places.file is not None else (KUBELET, API_SERVER)
    first = next((name for name in (FILE, *others) if found[name].tells), None)
    found = {name: replace(told, used=name == first) for name, told in found.items()}
    found[DOCUMENT] = Told(tells=True, used=True, reason="workers that the controller names are known in any case")
    found[DEVICES] = await _devices(places.kubelet)
    return found


def _no(reason: str) -> Told:
    return Told(tells=False, used=False, reason=reason)


def _yes(reason: str) -> Told:
    return Told(tells=True, used=True, reason=reason)


def _file(places: Places) -> Told:
    if places.file is None:
        return _no("none is named (TF_AGENT_PODS_FILE)")
    file = PodFile(places.file, places.node)
    pods = file.pods()
    told = "; ".join(file.problems)
    return _no(told) if pods is None else _yes("; ".join(filter(None, (f"{len(pods)} worker pods", told))))


async def _kubelet(folder: Path | None) -> Told:
    if folder is None:
        return _no("it is not to be asked (TF_AGENT_ASK_KUBELET)")
    if why := why_absent(folder / PODS):
        return _no(f"{why}; a kubelet serves it from Kubernetes 1.37 on")
    count = 0
    try:
        async with asyncio.timeout(PATIENCE_SECONDS), aclosing(watch_pods(folder / PODS)) as events:
            async for event in events:
                if event.kind is EventKind.SYNCED:
                    break
                count += 1
    except KubeletError as error:
        return _no(str(error))
    except TimeoutError:
        return _no(f"{folder / PODS}: not all pods were told within {PATIENCE_SECONDS:g} s")
    return _yes(f"{count} pods")


async def _api(places: Places) -> Told:
    if places.api is None:
        return _no("none is known, or it is not to be asked (TF_AGENT_API_URL, TF_AGENT_FOLLOW_PODS)")
    try:
        return await _listed(places.api, places.node)
    except ApiError as error:
        return _no(str(error))
    finally:
        await places.api.close()


async def _listed(api: KubeApi, node: str) -> Told:
    found = await api.get(API_PODS, {"fieldSelector": f"spec.nodeName={node}", "resourceVersion": "0"})
    return _yes(f"{len(found.get('items') or ())} pods on node {node}")


async def _devices(folder: Path | None) -> Told:
    if folder is None:
        return _no("it is not to be asked (TF_AGENT_ASK_KUBELET)")
    if why := why_absent(folder / POD_RESOURCES):
        return _no(why)
    try:
        allocations = await list_allocations(folder / POD_RESOURCES, PATIENCE_SECONDS)
    except KubeletError as error:
        return _no(str(error))
    devices, ignored = devices_of((replace(one, claimed=()) for one in allocations), {})
    claimed = sum(bool(one.claimed) for one in allocations)
    return _yes(f"{len(devices)} containers with GPUs, {claimed} with claimed devices; {ignored} ids name no GPU")
