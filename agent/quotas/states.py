"""What the node says of itself: the answers of the quota and device API, from the last tick's figures; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.govern.pool import Share
from agent.gpus import GpuTable
from agent.model.applied import Applied
from agent.model.samples import Attribution, DeviceSample, NodeSample, Worker, WorkerId, WorkerKey
from agent.quotas.check import Capacity
from autoscaler.contract.quota import DeviceInfo, DeviceStatus, WorkerStatus

_NO_QUOTA = "NoQuota: neither a document nor an annotation gives this worker amounts"


def worker_states(
    shares: Sequence[Share],
    applied: Mapping[WorkerKey, Applied],
    attribution: Attribution,
    unasked: Mapping[WorkerKey, Applied],
    bypasses: Mapping[WorkerKey, str],
) -> tuple[WorkerStatus, ...]:
    """Return all workers with a share or a use, in the order of their identities; `unasked` are those without a share.

    A quota that its worker bypasses is in force all the same; that it is bypassed is said where nothing else is.
    """
    workers: dict[WorkerId, Worker] = {}
    devices: dict[WorkerId, list[DeviceStatus]] = {}
    for share in shares:
        name, uuid = share.worker.id, share.quota.uuid
        result = applied[(*name, uuid)]
        reason = result.reason or share.reason
        in_force = result.in_force and not reason
        said = reason or bypasses.get((*name, uuid), "")
        state = DeviceStatus(uuid, in_force, result.effect, result.observed, share.quota, said)
        workers[name] = share.worker
        devices.setdefault(name, []).append(state)
    for use in attribution.uses:
        name = use.worker.id
        if (*name, use.uuid) not in applied:
            seen = unasked[*name, use.uuid]
            state = DeviceStatus(use.uuid, False, seen.effect, seen.observed, None, _NO_QUOTA)
            workers.setdefault(name, use.worker)
            devices.setdefault(name, []).append(state)
    return tuple(
        WorkerStatus(one.pod_uid, one.namespace, one.pod, one.workload, tuple(devices[name]), one.container, one.qos)
        for name, one in sorted(workers.items(), key=lambda item: item[0])
    )


def capacities(devices: Mapping[str, DeviceSample], gpus: GpuTable) -> dict[str, Capacity]:
    """Return what documents may ask of each device, by UUID, from what it showed last."""
    found = {}
    for uuid, device in devices.items():
        row = gpus.lookup(device.model)
        found[uuid] = Capacity(device.vram_total_bytes or None, row.tflops * device.mig_fraction if row else None)
    return found


def device_infos(sample: NodeSample, gpus: GpuTable) -> tuple[DeviceInfo, ...]:
    """Return every device of a sample with what is known of it."""
    return tuple(
        DeviceInfo(
            uuid=device.uuid,
            model=device.model,
            vram_total_bytes=device.vram_total_bytes,
            tflops=row.tflops * device.mig_fraction if (row := gpus.lookup(device.model)) else None,
            vram_used_bytes=device.vram_used_bytes,
            healthy=device.healthy,
            reason=device.reason or device.note,
        )
        for device in sample.devices
    )
