"""What stands against the driver's memory limits on a node, before there is any worker to try them on.

First the kernel is looked at, then the driver is asked for the limits of some cgroup that the kernel accounts for. What
only a worker's own container can tell is left to that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from agent.model.limits import LimitError, MemoryLimits, OldDriverError

CONTROLLERS: Final = ("dmem", "misc")
"""Those that the driver accounts with, the second where the kernel has not the first."""


def kernel_lacks(root: Path) -> str:
    """Return what the kernel lacks for limits in the cgroup tree at `root`, "" where nothing."""
    listed = root / "cgroup.controllers"
    if not listed.is_file():
        return f"{listed} is not there: cgroup v2 is needed"
    if not set(CONTROLLERS) & set(listed.read_text().split()):
        return f"neither {' nor '.join(CONTROLLERS)} is among the controllers of {root}"
    return ""


def driver_lacks(limits: MemoryLimits, root: Path) -> tuple[str, bool]:
    """Return what the driver says against limits, "" where nothing, and whether that holds for every worker here.

    A driver without the function has none for anybody. One that refuses a cgroup which the kernel accounts for, on
    every device, would refuse the workers' too; where there is no such cgroup yet, it can't be asked.
    """
    accounted = _accounted(root)
    reasons: dict[str, None] = {}
    try:
        for uuid in limits.devices():
            try:
                limits.read(uuid, accounted or root)
            except OldDriverError:
                raise
            except LimitError as error:
                reasons[f"{uuid}: {error}"] = None
            else:
                return "", False
    except LimitError as error:
        return str(error), True
    if accounted is None:
        files = " or ".join(f"{name}.max" for name in CONTROLLERS)
        return f"no cgroup in {root} has {files} yet, so the driver could be asked for none", False
    return "; ".join(reasons) or "the driver knows no device", True


def _accounted(root: Path) -> Path | None:
    """Return a cgroup right below the root that a controller was handed down to."""
    files = (root.glob(f"*/{name}.max") for name in CONTROLLERS)
    return next((path.parent for found in files for path in sorted(found)), None)
