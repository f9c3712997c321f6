"""Where a cgroup lies in the host's tree, from its path as this process is told it.

In a container the kernel tells paths relative to the container's own cgroup, `/../../kubepods-….slice/…`, without the
names above (cgroup_namespaces(7)). Kubernetes gives the host's own namespace to privileged containers only, so what is
above is looked for in the host's tree, once. Neighbours: `cgroups` takes the paths apart.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

UP: Final = "../"


class HostTree:
    """The host's cgroup v2 tree as it is mounted at `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._above: dict[int, Path] = {}

    def path_of(self, told: str) -> str:
        """Return the path below the root of what is told relative to this process's cgroup, "" where it is not found.

        What is told from the root of the tree is returned as it is.
        """
        rest = told.lstrip("/")
        if not rest.startswith(UP):
            return told
        below = rest
        while below.startswith(UP):
            below = below.removeprefix(UP)
        steps = (len(rest) - len(below)) // len(UP)
        above = self._above.get(steps)
        if above is None:
            above = self._searched(below)
            if above is None:
                return ""
            # So many steps up lead from here to the same place, whatever is below it.
            self._above[steps] = above
        found = above / below
        return f"/{found.relative_to(self._root)}" if found.is_dir() else ""

    def _searched(self, below: str) -> Path | None:
        """Return the folder in which a container's path is; its pod's UID and its own ID are in the path, so one is."""
        folders = (Path(folder) for folder, _, _ in os.walk(self._root))
        return next((folder for folder in folders if (folder / below).is_dir()), None)
