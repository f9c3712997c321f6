"""Which pod and container a process is in, from the text of its /proc/<pid>/cgroup. Pure.

Takes cgroup v1 and v2, the systemd and cgroupfs drivers, containerd, CRI-O, Docker and podman names, static pods (a
32-digit config hash for a UID), and paths below other cgroups or relative to the reader's. The kernel writes these
paths, so unlike a process's environment they can't be made up by a tenant above its own container.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_HEX: Final = "[0-9a-f]"
_UID: Final = rf"{_HEX}{{8}}(?:[-_]{_HEX}{{4}}){{3}}[-_]{_HEX}{{12}}|{_HEX}{{32}}"
_POD: Final = re.compile(rf"(?:.*-)?pod({_UID})(?:\.slice)?")
_CONTAINER: Final = re.compile(rf"(?:(?:cri-containerd|crio|docker|libpod)-)?({_HEX}{{64}})(?:\.scope)?")


@dataclass(frozen=True, slots=True)
class ContainerRef:
    """A place in the tree: the pod's UID with dashes, and the container's ID, empty when the path ends at the pod."""

    pod_uid: str
    container_id: str


def containers_of(cgroup_text: str) -> tuple[ContainerRef, ...]:
    """Return the pods that a process is in, outermost first; empty when it is in none.

    More than one only where a cluster runs inside a pod of another; then the caller takes the first that it knows.
    """
    refs: dict[str, ContainerRef] = {}
    for line in cgroup_text.splitlines():
        for ref in _refs(line.split(":", 2)[-1]):
            # With cgroup v1 some controllers know the pod only; the first container named for it counts.
            if ref.pod_uid not in refs or not refs[ref.pod_uid].container_id:
                refs[ref.pod_uid] = ref
    return tuple(refs.values())


def container_cgroup(cgroup_text: str) -> str:
    """Return the path of a process's container in the unified tree (cgroup v2), "" outside of one.

    A process may sit deeper, in a cgroup that the container made for itself: the container's own is returned.
    """
    for line in cgroup_text.splitlines():
        hierarchy, _, path = line.partition("::")
        if hierarchy != "0":
            continue
        elements = path.split("/")
        places = [place for place, element in enumerate(elements) if _CONTAINER.fullmatch(element)]
        if places and any(_POD.fullmatch(element) for element in elements[: places[0]]):
            return "/".join(elements[: places[0] + 1])
    return ""


def _refs(path: str) -> list[ContainerRef]:
    refs: list[ContainerRef] = []
    # containerd with a driver mismatch writes <slice>:cri-containerd:<id> as one element of the path.
    for element in re.split("[/:]", path):
        if pod := _POD.fullmatch(element):
            refs.append(ContainerRef(pod[1].replace("_", "-"), ""))
        elif refs and not refs[-1].container_id and (container := _CONTAINER.fullmatch(element)):
            refs[-1] = ContainerRef(refs[-1].pod_uid, container[1])
    return refs
