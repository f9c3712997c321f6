"""What can enforce quotas here, by name, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from agent.enforce.actuator import Actuator, Part, Surroundings
from agent.enforce.backend import Backend
from agent.enforce.chosen import ChosenBackend
from agent.enforce.dmem import DmemActuator
from agent.enforce.hamicore import HamicoreActuator
from agent.enforce.mps import MpsActuator
from agent.enforce.observe import ObserveBackend
from agent.enforce.orders import COMPUTE_ORDER, VRAM_ORDER
from agent.enforce.tfshm import TfshmActuator

ACTUATORS: Final[Mapping[str, Callable[[Surroundings], Actuator]]] = {
    "dmem": DmemActuator,
    "tfshm": TfshmActuator,
    "hamicore": HamicoreActuator,
    "mps": MpsActuator,
}
"""Name to maker."""


def chosen_backend(
    around: Surroundings, compute: Sequence[str] = COMPUTE_ORDER, vram: Sequence[str] = VRAM_ORDER
) -> ChosenBackend:
    """Return the backend of these actuators, the best first; one that serves both parts is made once."""
    made = {name: ACTUATORS[name](around) for name in dict.fromkeys((*compute, *vram))}
    order = {Part.COMPUTE: [made[name] for name in compute], Part.VRAM: [made[name] for name in vram]}
    return ChosenBackend(order, around.live_use)


def candidates(around: Surroundings) -> Mapping[str, Backend | Actuator]:
    """Return everything that could enforce on this node, to be probed, by name."""
    return {"observe": ObserveBackend(around.live_use), **{name: make(around) for name, make in ACTUATORS.items()}}
