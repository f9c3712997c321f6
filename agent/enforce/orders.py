"""The actuators by part, the best first; the registry makes them, settings may shorten and reorder them."""

from __future__ import annotations

from typing import Final

COMPUTE_ORDER: Final = ("tfshm", "hamicore", "mps")
VRAM_ORDER: Final = ("dmem", "tfshm", "hamicore", "mps")
