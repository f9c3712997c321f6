"""The two resources, as data: everything that differs between compute and VRAM stands in this table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

MIB: Final = 2**20
GIB: Final = 2**30


class Resource(IntEnum):
    """Index of a resource on the resource axis of every fleet array."""

    COMPUTE = 0
    VRAM = 1


class Side(IntEnum):
    """Index of a side on the side axis of every fleet array."""

    REQUEST = 0
    LIMIT = 1


@dataclass(frozen=True, slots=True)
class ResourceSpec:
    """What is particular to one resource.

    `unit` is the unit of every figure (per worker and device); `floor` the smallest figure ever written;
    `noun` and `key` its name in sentences and in manifests.
    """

    resource: Resource
    key: str
    noun: str
    unit: str
    floor: float


SPECS: Final = (
    ResourceSpec(Resource.COMPUTE, "tflops", "compute", "TFLOPs", 0.1),
    ResourceSpec(Resource.VRAM, "vram", "VRAM", "bytes", 250.0 * MIB),
)


@dataclass(frozen=True, slots=True)
class Amount:
    """Request and limit of one resource, per worker and device, in the resource's unit."""

    request: float
    limit: float


@dataclass(frozen=True, slots=True)
class Amounts:
    """Request and limit of both resources, per worker and device."""

    compute: Amount
    vram: Amount

    def __getitem__(self, resource: Resource) -> Amount:
        """Return the amount of a resource."""
        return self.vram if resource is Resource.VRAM else self.compute
