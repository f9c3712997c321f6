"""What this process may do on its host: user, capabilities, process ids, folders, programs; read once, for `probe`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from agent.enforce.needs import Holder

INITIAL_PID_NAMESPACE: Final = 0xEFFFFFFC
"""The number of the host's own pid namespace, the same on every Linux (PROC_PID_INIT_INO, include/linux/proc_ns.h)."""
CAPABILITY_BITS: Final = {"SYS_ADMIN": 21}
"""The bits of those capabilities that anything here asks for (include/uapi/linux/capability.h)."""


def read_holder(places: Iterable[Path], programs: Iterable[str], proc: Path = Path("/proc")) -> Holder:
    """Return what this process has; what /proc does not tell counts as not held."""
    return Holder(
        user=os.geteuid(),
        capabilities=_capabilities(proc),
        host_pids=_sees_host(proc),
        writable=frozenset(place for place in places if os.access(place, os.W_OK | os.X_OK)),
        programs=frozenset(program for program in programs if shutil.which(program)),
    )


def _capabilities(proc: Path) -> frozenset[str]:
    try:
        lines = (proc / "self" / "status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    effective = next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)
    return frozenset(name for name, bit in CAPABILITY_BITS.items() if effective >> bit & 1)


def _sees_host(proc: Path) -> bool:
    try:
        return (proc / "self" / "ns" / "pid").stat().st_ino == INITIAL_PID_NAMESPACE
    except OSError:
        return False
