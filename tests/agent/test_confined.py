"""The freezer as the chart runs it: user 0 without a capability, in a cgroup namespace of its own, on real cgroups."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOUNTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
UID = "6a1b2c3d-0000-4000-8000-00000000000"

CONFINED = """
import sys
from pathlib import Path
import structlog
from agent.pods.cgroups import container_cgroup
from agent.enforce.freeze import Freezer
from agent.pods.hosttree import HostTree

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
root, state, pid = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
told = container_cgroup(Path("/proc", pid, "cgroup").read_text())
status = Path("/proc/self/status").read_text()
print(told, [line.split()[1] for line in status.splitlines() if line.startswith("CapEff")][0])
freezer = Freezer(root, state, lambda name: HostTree(root).path_of(told))
freezer.set(frozenset({("pod", "main")}))
print(HostTree(root).path_of(told), len(freezer.frozen))
input()
freezer.set(frozenset())
"""


def unified() -> Path | None:
    """Return where cgroup v2 is mounted so that groups can be made in it."""
    for mount in MOUNTS:
        if (mount / "cgroup.procs").is_file() and os.access(mount, os.W_OK):
            probe = mount / f"test-{secrets.token_hex(4)}"
            try:
                probe.mkdir()
            except OSError:
                continue
            probe.rmdir()
            return mount
    return None


needs_cgroups = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv") or not shutil.which("unshare") or unified() is None,
    reason="needs root, cgroup v2 to make groups in, unshare and setpriv",
)


@dataclass(frozen=True)
class Node:
    root: Path
    agent: Path
    worker: Path


@pytest.fixture
def node() -> Iterator[Node]:
    mount = unified()
    assert mount is not None
    # A root above, as in a cluster that runs in a container.
    top = mount / f"test-{secrets.token_hex(4)}"
    pods = top / "kubepods.slice"
    slices = (("kubepods-besteffort", 1), ("kubepods-burstable", 2))
    agent, worker = (
        pods / f"{kind}.slice" / f"{kind}-pod{UID.replace('-', '_')}{number}.slice" / f"cri-containerd-{str(number) * 64}.scope"
        for kind, number in slices
    )  # fmt: skip
    for folder in (agent, worker):
        folder.mkdir(parents=True)
    yield Node(mount, agent, worker)
    for folder in sorted((one for one in top.rglob("*") if one.is_dir()), reverse=True):
        folder.rmdir()
    top.rmdir()


def until(path: Path, line: str) -> None:
    end = time.monotonic() + 10
    while line not in path.read_text().splitlines():
        assert time.monotonic() < end, path.read_text()
        time.sleep(0.02)


@needs_cgroups
def test_user_0_without_capabilities_freezes_and_thaws_from_a_cgroup_namespace_of_its_own(
    node: Node, tmp_path: Path
) -> None:
    events = node.worker / "cgroup.events"
    worker = subprocess.Popen(["sleep", "600"])
    (node.worker / "cgroup.procs").write_text(str(worker.pid))
    bare = ["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    command = [*bare, sys.executable, "-c", CONFINED, str(node.root), str(tmp_path), str(worker.pid)]
    enter = f'echo $$ > {node.agent}/cgroup.procs && exec unshare --cgroup "$@"'
    agent = subprocess.Popen(
        ["sh", "-c", enter, "sh", *command], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert agent.stdin is not None
        assert agent.stdout is not None
        told, capabilities = agent.stdout.readline().split()
        assert told.startswith("/../"), "the kernel tells paths relative to the agent's own"
        assert int(capabilities, 16) == 0
        assert agent.stdout.readline().split() == [f"/{node.worker.relative_to(node.root)}", "1"]
        until(events, "frozen 1")
        agent.stdin.write("\n")
        agent.stdin.flush()
        until(events, "frozen 0")
        assert agent.wait(10) == 0
    finally:
        for process in (agent, worker):
            process.kill()
            process.wait(10)
