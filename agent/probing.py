"""What each way to enforce could do on this node, what it takes from the host, and what of that is not here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.enforce.actuator import Surroundings
from agent.enforce.backend import Capabilities
from agent.enforce.freeze import Freezer
from agent.enforce.needs import NEEDS, Holder, lacking, told
from agent.enforce.registry import candidates
from agent.holder import read_holder
from autoscaler.contract.keys import Effect


@dataclass(frozen=True, slots=True)
class Found:
    """One row of `tf-agent probe`: when a limit becomes effective, why not, what is needed, what of it is missing."""

    compute: Effect
    vram: Effect
    reason: str
    needs: tuple[str, ...]
    lacks: tuple[str, ...]


def probe_all(around: Surroundings) -> Mapping[str, Found]:
    """Return what everything that could enforce finds here, by name, and the freezer, which has a switch of its own."""
    places = places_of(around)
    programs = [program for needs in NEEDS.values() for program in needs.programs]
    holder = read_holder(places.values(), programs)
    probed = {name: one.probe() for name, one in candidates(around).items()}
    probed["freeze"] = Freezer(around.cgroup_root, around.state_dir, lambda _name: "").probe()
    return {name: _found(name, capabilities, places, holder) for name, capabilities in probed.items()}


def places_of(around: Surroundings) -> Mapping[str, Path]:
    """Return the host's folders that actuators write to, by the name of their setting."""
    return {
        "cgroup_root": around.cgroup_root,
        "tfshm_root": around.tfshm_root,
        "hamicore_root": around.hamicore_root,
        "mps_root": around.mps_root,
    }


def _found(name: str, capabilities: Capabilities, places: Mapping[str, Path], holder: Holder) -> Found:
    needs = NEEDS[name]
    lacks = lacking(needs, places, holder)
    return Found(capabilities.compute, capabilities.vram, capabilities.reason, told(needs, places), lacks)
