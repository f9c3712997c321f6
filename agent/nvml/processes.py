"""Who is on a device, by NVML's process lists, and what CUDA MPS hides of it.

The lists cost the driver a lock for milliseconds, so they are read less often than utilization; the one of graphics
processes is the dearest and mostly empty, so it is read twice a minute, or when somebody computes whom the others
do not name. MPS runs its clients' kernels in one server process, and drivers may count all of them as the server's:
then a client's utilization is not known, which is not idle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Final

from agent.model.samples import ProcessUse
from agent.nvml.calls import Asked, Calls, UnansweredError

GRAPHICS_SECONDS: Final = 30.0
MPS_SERVER: Final = "nvidia-cuda-mps-server"
MPS_HIDES: Final = "MPS: the driver counts the clients' compute as their server's, so no client's is known"

_NOBODY: Final[frozenset[int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Listed:
    """The processes of a device by pid with their VRAM in bytes, None where the driver can't tell.

    `clients` are MPS's, `servers` theirs; `shown` tells whether the driver ever gave a client a sample of its own.
    `active` are the pids that were computing then. `graphics` only draw, and were read at `graphics_at`; `names` are
    those of all but the `nameless`, which the driver did not tell.
    """

    vram_by_pid: Mapping[int, int | None]
    active: frozenset[int]
    clients: frozenset[int] = _NOBODY
    servers: frozenset[int] = _NOBODY
    shown: bool = False
    graphics: Mapping[int, int | None] | None = None
    graphics_at: float = 0.0
    names: Mapping[int, str] | None = None
    nameless: frozenset[int] = _NOBODY


def list_processes(
    calls: Calls, device: Asked, now: float, active: frozenset[int], before: Listed | None
) -> Listed | None:
    """Return the processes of a device, None where it can't list them; `active` are those that compute now."""
    read = _computing(calls, device)
    if read is None:
        return None
    computing, clients = read
    graphics, graphics_at = _graphics(calls, device, now, before, active - computing.keys())
    names = _names(calls, device, computing, (before.names if before is not None else None) or {})
    servers = frozenset(pid for pid, name in names.items() if name.rpartition("/")[2] == MPS_SERVER)
    of_mps = frozenset(clients) - servers
    shown = bool(of_mps & active) or (before is not None and before.shown and bool(of_mps))
    nameless = frozenset(computing.keys() - names.keys())
    return Listed(
        _joined(graphics or {}, computing), active, of_mps, servers, shown, graphics, graphics_at, names, nameless
    )  # fmt: skip


def list_memory(calls: Calls, device: Asked, before: Listed) -> Listed | None:
    """Return the processes with the memory they hold by now, None where they can't be listed.

    Only the lists of those that compute are read, and who they are is left for the next full look.
    """
    read = _computing(calls, device)
    return None if read is None else replace(before, vram_by_pid=_joined(before.graphics or {}, read[0]))


def _computing(calls: Calls, device: Asked) -> tuple[Mapping[int, int | None], Mapping[int, int | None]] | None:
    """Return who computes, with the VRAM each one holds, and those of them who are MPS's clients; None: not listed."""
    known = calls.ask(device, "nvmlDeviceGetComputeRunningProcesses_v3")
    if known is None:
        return None
    try:
        clients = calls.insist(device, "nvmlDeviceGetMPSComputeRunningProcesses_v3") or {}
    except UnansweredError:
        return None
    return _joined(known, clients), clients


def uses_of(
    ratios: Mapping[int, float] | None, listed: Listed | None, *, is_idle: bool
) -> tuple[tuple[ProcessUse, ...], str]:
    """Join use and memory by process, and say what MPS hides; `is_idle`: the device itself did nothing.

    One that a known list leaves out holds no memory (it has just ended). A server's compute is its only client's.
    """
    known: Mapping[int, int | None] = listed.vram_by_pid if listed is not None else {}
    hidden = _NOBODY
    if listed and ratios is not None and listed.clients and not listed.shown and not is_idle:
        if listed.servers:
            ratios, hidden = _told_apart(ratios, listed)
        elif listed.nameless:
            hidden = listed.clients  # One of those may be the server.
    pids = sorted({*known, *(ratios or ())})
    compute = [None if ratios is None or pid in hidden else ratios.get(pid, 0.0) for pid in pids]
    vram = map(known.get, pids, repeat(0)) if listed is not None else repeat(None)
    return tuple(map(ProcessUse, pids, compute, vram)), MPS_HIDES if hidden else ""


def _told_apart(ratios: Mapping[int, float], listed: Listed) -> tuple[Mapping[int, float], frozenset[int]]:
    """Return the ratios, with a lone server's given to its only client, and the clients of which nothing is known."""
    if len(listed.clients) > 1 or len(listed.servers) > 1:
        return ratios, listed.clients
    (client,), (server,) = listed.clients, listed.servers
    moved = {pid: ratio for pid, ratio in ratios.items() if pid != server}
    return ({**moved, client: ratios[server]} if server in ratios else moved), _NOBODY


def _joined(first: Mapping[int, int | None], second: Mapping[int, int | None]) -> dict[int, int | None]:
    """Return the processes of two lists; of one that is in both, the second's memory where it is known."""
    return {**first, **{pid: used for pid, used in second.items() if used is not None or pid not in first}}


def _graphics(
    calls: Calls, device: Asked, now: float, before: Listed | None, unlisted: frozenset[int]
) -> tuple[Mapping[int, int | None] | None, float]:
    """Return the graphics processes, as they were or read anew, and when they were read.

    `unlisted` compute, and are in no other list: they are looked for at once.
    """
    is_due = before is None or not 0.0 <= now - before.graphics_at < GRAPHICS_SECONDS
    if before is not None and not is_due and not unlisted - (before.graphics or {}).keys():
        return before.graphics, before.graphics_at
    return calls.ask(device, "nvmlDeviceGetGraphicsRunningProcesses_v3"), now


def _names(calls: Calls, device: Asked, pids: Iterable[int], known: Mapping[int, str]) -> dict[int, str]:
    """Return the names of these processes, "" of one that has ended; each is asked for until the driver tells it."""
    names = {
        pid: known[pid] if pid in known else calls.tell(device, "nvmlSystemGetProcessName", pid, idle="")
        for pid in pids
    }
    return {pid: name for pid, name in names.items() if name is not None}
