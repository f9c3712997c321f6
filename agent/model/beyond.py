"""What a worker uses beyond a limit that reaches it: measured, and no evidence of what it needs."""

from __future__ import annotations

import msgspec


class Beyond(msgspec.Struct, frozen=True, gc=False):
    """The part of a worker's use on one device that no limit in force explains: a share of the device, and bytes."""

    compute_ratio: float
    vram_bytes: int
