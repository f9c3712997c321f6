"""What each way to enforce takes from its host, as data, and what of it this process lacks; the least that works.

The chart grants from the same table, and a test holds both against each other. Neighbours: `holder` looks at what this
process has, `tf-agent probe` prints both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Needs:
    """What one actuator takes beyond a folder for the agent's own state.

    `root`: user 0, as its files are root's. `capabilities` as Linux names them, without CAP_. `host_pids`: the host's
    process ids. `writes`: the setting that names the folder of the host it writes to. `driver`: what of the driver is
    brought in beyond its library, as NVIDIA_DRIVER_CAPABILITIES names it. `programs`: what it starts.
    """

    root: bool = False
    capabilities: tuple[str, ...] = ()
    host_pids: bool = False
    writes: str = ""
    driver: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Holder:
    """What a process has of all that: its user, its effective capabilities, where it may write, what it can start."""

    user: int
    capabilities: frozenset[str]
    host_pids: bool
    writable: frozenset[Path]
    programs: frozenset[str]


NEEDS: Final[Mapping[str, Needs]] = MappingProxyType(
    {
        "observe": Needs(host_pids=True),
        # The driver takes privileged requests from holders of CAP_SYS_ADMIN only, whatever the user.
        "dmem": Needs(root=True, capabilities=("SYS_ADMIN",), host_pids=True, writes="cgroup_root"),
        "tfshm": Needs(host_pids=True, writes="tfshm_root"),
        "hamicore": Needs(host_pids=True, writes="hamicore_root"),
        # Its daemons' pipes belong to who started them, which is root.
        "mps": Needs(
            root=True, host_pids=True, writes="mps_root", driver=("compute",), programs=("nvidia-cuda-mps-control",)
        ),
        "freeze": Needs(root=True, host_pids=True, writes="cgroup_root"),
    }
)
"""By the actuator's name; `observe` is what measuring takes, `freeze` is no actuator and is switched on by itself."""


def told(needs: Needs, places: Mapping[str, Path]) -> tuple[str, ...]:
    """Return what is needed in words, one for each kind; `places` are the folders by their setting's name."""
    return tuple(words for words, _ in _each(needs, places, None))


def lacking(needs: Needs, places: Mapping[str, Path], holder: Holder) -> tuple[str, ...]:
    """Return what of it the process has not, in the same words."""
    return tuple(words for words, is_held in _each(needs, places, holder) if not is_held)


def _each(needs: Needs, places: Mapping[str, Path], holder: Holder | None) -> list[tuple[str, bool]]:
    """Return each need in words, with whether it is held; nobody holds anything where there is no holder."""
    found = []
    if needs.host_pids:
        found.append(("host PIDs", holder is not None and holder.host_pids))
    if needs.root:
        found.append(("user 0", holder is not None and holder.user == 0))
    found += [(name, holder is not None and name in holder.capabilities) for name in needs.capabilities]
    if needs.writes:
        place = places[needs.writes]
        found.append((f"{place} writable", holder is not None and place in holder.writable))
    found += [(name, holder is not None and name in holder.programs) for name in needs.programs]
    return found
