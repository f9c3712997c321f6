"""What a document changes, worker by worker, for the audit log: who, what, from, to. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from autoscaler.contract.quota import DeviceQuota, QuotaDocument, WorkerQuota


@dataclass(frozen=True, slots=True)
class Change:
    """One worker on one device; "" for what it did not have, or has no more."""

    worker: str
    device: str
    before: str
    after: str


def changes(before: QuotaDocument | None, after: QuotaDocument) -> Iterator[Change]:
    """Yield what differs between two documents, in order of the workers."""
    old, new = _entries(before), _entries(after)
    for key in sorted(old.keys() | new.keys()):
        was, now = old.get(key), new.get(key)
        worker, _ = new.get(key) or old[key]
        if was is None or now is None or was[1] != now[1]:
            name = f"{worker.namespace}/{worker.pod}" + (f"/{worker.container}" if worker.container else "")
            yield Change(name, key[2], _text(was), _text(now))


_Entry = tuple[WorkerQuota, DeviceQuota]


def _entries(document: QuotaDocument | None) -> dict[tuple[str, str, str], _Entry]:
    if document is None:
        return {}
    return {
        (worker.pod_uid, worker.container, quota.uuid): (worker, quota)
        for worker in document.quotas
        for quota in worker.devices
    }


def _text(entry: _Entry | None) -> str:
    if entry is None:
        return ""
    quota = entry[1]
    vram = f"{quota.vram_request_bytes}/{quota.vram_limit_bytes}"
    return f"tflops {quota.tflops_request:g}/{quota.tflops_limit:g}, vram bytes {vram}"
