"""What the commands print: devices, backends and quotas as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from rich.table import Table

from agent.pods.probing import Told
from agent.probing import Found
from autoscaler.contract.quota import DeviceInfo, DeviceStatus, QuotaStatus

_GIB: Final = 1 << 30
_UNKNOWN: Final = "?"
_YES_NO: Final = ("no", "yes")


def probe_tables(
    devices: Sequence[DeviceInfo], backends: Mapping[str, Found], pods: Mapping[str, Told]
) -> tuple[Table, ...]:
    """Return the tables of `tf-agent probe`."""
    found = Table("DEVICE", "MODEL", "TFLOPS", "VRAM", "HEALTH", box=None)
    for device in devices:
        health = ("ok; " + device.reason).removesuffix("; ") if device.healthy else device.reason
        found.add_row(device.uuid, device.model, _tflops(device.tflops), _gib(device.vram_total_bytes), health)
    able = Table("BACKEND", "COMPUTE", "VRAM", "REASON", "NEEDS", "NOT HERE", box=None)
    for name, one in backends.items():
        able.add_row(name, one.compute.value, one.vram.value, one.reason, ", ".join(one.needs), ", ".join(one.lacks))
    known = Table("PODS FROM", "TELLS", "USED", "REASON", box=None)
    for name, told in pods.items():
        known.add_row(name, _YES_NO[told.tells], _YES_NO[told.used], told.reason)
    return (*((found,) if devices else ()), able, *((known,) if pods else ()))


def quota_table(status: QuotaStatus) -> Table:
    """Return the table of `tf-agent quotas`: request/limit as asked, limit in force, use."""
    table = Table(
        *("WORKER", "DEVICE", "TFLOPS", "IN FORCE", "USED", "VRAM", "IN FORCE", "USED", "APPLIED", "REASON"),
        title=f"{status.node}: epoch {status.epoch}, generation {status.generation}",
        box=None,
    )
    for worker in status.workers:
        for device in worker.devices:
            applied = "yes" if device.applied else "no"
            cells = (*_amounts(device), f"{applied} ({device.effect.value})", device.reason)
            name = "/".join(filter(None, (worker.namespace, worker.pod, worker.container)))
            table.add_row(name, device.uuid, *cells)
    return table


def _amounts(device: DeviceStatus) -> tuple[str, ...]:
    asked, seen = device.desired, device.observed
    return (
        f"{_tflops(asked.tflops_request)}/{_tflops(asked.tflops_limit)}" if asked else "-",
        _tflops(seen.tflops_limit),
        _tflops(seen.tflops_used),
        f"{_gib(asked.vram_request_bytes)}/{_gib(asked.vram_limit_bytes)}" if asked else "-",
        _gib(seen.vram_limit_bytes),
        _gib(seen.vram_used_bytes),
    )


def _tflops(amount: float | None) -> str:
    return _UNKNOWN if amount is None else f"{amount:.1f}"


def _gib(amount_bytes: int | None) -> str:
    return _UNKNOWN if amount_bytes is None else f"{amount_bytes / _GIB:.2f}Gi"
