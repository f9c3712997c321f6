"""The backends this agent knows, by name, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from agent.enforce.backend import Backend, LiveUse
from agent.enforce.observe import ObserveBackend
from agent.enforce.simulated import SimulatedBackend

BACKENDS: Final[Mapping[str, Callable[[LiveUse, Path | None], Backend]]] = {
    "observe": lambda live_use, _directory: ObserveBackend(live_use),
    "simulated": SimulatedBackend,
}
"""Name to maker; the directory is the simulated workers', None where they live in this process."""
