"""The GPUs of the cluster and what others than the fleet's workloads hold of them; pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autoscaler.contract.quota import DeviceInfo

Pair = tuple[float, float]
"""TFLOPs and bytes."""


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU: what it is, where it stands, and whether a new worker may be put there (`is_usable`)."""

    info: DeviceInfo
    node: str
    pool: str = ""
    is_usable: bool = True


@dataclass(frozen=True, slots=True)
class Inventory:
    """All known devices, each once.

    `foreign`: by UUID, requests of those on a device that are no workload's of the fleet. `is_whole`: every node that
    has GPUs is among them, so that what does not fit here fits nowhere.
    """

    devices: tuple[Device, ...]
    foreign: Mapping[str, Pair] = field(default_factory=dict)
    is_whole: bool = False
