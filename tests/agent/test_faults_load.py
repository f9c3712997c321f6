"""Faults and load together: five hundred workers, real small disks, a driver whose calls fail, a tenant at work."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from agent.enforce.tfshm_layout import LAST_UPDATE, SIZE, open_state, slots_of
from autoscaler.contract.quota import QuotaStatus, Refusal
from tests.agent.faulty import GPU, Asked, Node, actuator_of, document

MANY = 500


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield


class Pulse(threading.Thread):
    """Watches the refills of a few files from outside, and keeps the longest time without one."""

    def __init__(self, paths: list[Path]) -> None:
        super().__init__(daemon=True)
        self.paths, self.longest, self.beats = paths, 0.0, 0
        self.ready, self.done = threading.Event(), threading.Event()

    def run(self) -> None:
        files = [open_state(path) for path in self.paths]
        slots = [slots_of(file)[GPU.lower()] for file in files]
        self.ready.set()
        seen = [(slot.f64(LAST_UPDATE), time.monotonic()) for slot in slots]
        while not self.done.wait(0.01):
            at = time.monotonic()
            for place, slot in enumerate(slots):
                stamp = slot.f64(LAST_UPDATE)
                self.longest = max(self.longest, at - seen[place][1])
                if stamp != seen[place][0]:
                    seen[place] = (stamp, at)
                    self.beats += 1


def test_the_heart_beats_on_while_five_hundred_workers_are_given_new_limits(tmp_path: Path) -> None:
    names = tuple(f"w{number}" for number in range(MANY))
    node = Node(tmp_path, names)
    agent = node.start()
    node.tick(agent)
    pulse = Pulse([node.file(name) for name in (names[0], names[MANY // 2], names[-1])])
    pulse.start()
    for generation in range(1, 5):
        limit = 0.12 + 0.01 * (generation % 3)
        asked = document(generation, *(Asked(name, 0.1, limit, 10.0 + generation) for name in names))
        assert isinstance(agent.put(asked, node.at), QuotaStatus)
        node.check()
        node.tick(agent)
    pulse.done.set()
    pulse.join()
    agent.close()
    assert pulse.beats > 3
    assert pulse.longest < 1.0
    assert all(one.devices[0].applied for one in agent.state().workers)


VANDAL = """
import os, random, sys, time
from agent.enforce.tfshm_layout import IS_ACTIVE, MEM_LIMIT, REFILL_RATE, TOKENS, UP_LIMIT, open_state, slots_of
slots = [slots_of(open_state(path))["gpu-0"] for path in map(__import__("pathlib").Path, sys.argv[1:])]
print("at work", flush=True)
end = time.monotonic() + 30
while time.monotonic() < end and os.getppid() != 1:
    for slot in slots:
        slot.put_u64(MEM_LIMIT, 79 << 30)
        slot.put_u32(UP_LIMIT, 100)
        slot.put_f64(TOKENS, 1e18)
        slot.put_f64(REFILL_RATE, 1e18)
        slot.put_u32(IS_ACTIVE, 0)
    time.sleep(0.002)
"""


def test_tenants_that_rewrite_their_files_all_the_time_are_put_right_and_told_on_among_five_hundred(
    tmp_path: Path,
) -> None:
    names = tuple(f"w{number}" for number in range(MANY))
    node = Node(tmp_path, names)
    agent = node.start()
    node.tick(agent)
    asked = document(1, *(Asked(name, 0.1, 0.15, 10.0) for name in names))
    assert isinstance(agent.put(asked, node.at), QuotaStatus)
    honest, before = node.limits(), actuator_of(agent).restored()
    culprits = names[:3]
    watched = (names[0], names[MANY // 2], names[-1])
    command = [sys.executable, "-c", VANDAL, *(str(node.file(name)) for name in culprits)]
    pulse = Pulse([node.file(name) for name in watched])
    pulse.start()
    assert pulse.ready.wait(30)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as vandal:
        assert vandal.stdout is not None
        assert vandal.stdout.readline().strip() == "at work"
        counted = []
        with structlog.testing.capture_logs() as told:
            for _ in range(6):
                node.tick(agent)
                counted.append(actuator_of(agent).restored())
        pulse.done.set()
        pulse.join()
        vandal.kill()
    assert pulse.longest < 1.0
    # At each tick something was found and put right, and it is said whose.
    assert before < counted[0]
    assert sorted(set(counted)) == counted
    paths = {str(entry["path"]) for entry in told if entry["event"] == "limits_restored"}
    assert paths == {str(node.file(name)) for name in culprits}
    node.tick(agent)
    node.check()
    assert node.limits() == honest
    assert all(one.devices[0].applied for one in agent.state().workers)
    agent.close()


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    disk = tmp_path / "tiny"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True)  # noqa: PLW1510
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None or os.geteuid() != 0, reason="needs the right to mount a tmpfs")
def test_a_disk_that_is_really_full_costs_a_refusal_and_nothing_that_is_in_force(tiny: Path) -> None:
    names = ("a", "b", "c")
    node = Node(tiny, names)
    agent = node.start()
    node.tick(agent)
    assert isinstance(agent.put(document(1, Asked("a", 20, 55), Asked("b", 5, 25)), node.at), QuotaStatus)
    before = node.limits()
    fill = tiny / "fill"
    with fill.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    assert shutil.disk_usage(tiny).free == 0
    # A limiter's file that is all hole, as upstream makes it: touching it now would end the process.
    node.file("c").unlink()
    node.file("c").touch()
    os.truncate(node.file("c"), SIZE)
    refused = agent.put(document(2, Asked("a", 10, 20), Asked("b", 20, 40), Asked("c", 5, 20)), node.at)
    assert isinstance(refused, Refusal)
    assert refused.error == "NotStored"
    for _ in range(8):
        node.tick(agent)
        actuator_of(agent).keep()
    assert node.limits() == before
    fill.unlink()
    answer = agent.put(document(2, Asked("a", 10, 20), Asked("b", 20, 40)), node.at)
    assert isinstance(answer, QuotaStatus)
    node.check()
    agent.close()


def test_a_tenant_that_cuts_its_file_at_any_moment_does_not_end_the_agent(tmp_path: Path) -> None:
    """In a process of its own: without the guard it ends by SIGBUS."""
    program = textwrap.dedent("""
        import os, subprocess, sys, time
        from pathlib import Path
        import structlog
        from tests.agent.faulty import Asked, GIB, Node, actuator_of, document

        structlog.configure(processors=[lambda *_: (_ for _ in ()).throw(structlog.DropEvent)])
        node = Node(Path(sys.argv[1]), ("a", "b"))
        agent = node.start()
        node.tick(agent)
        agent.put(document(1, Asked("a", 20, 40), Asked("b", 5, 25)), node.at)
        path = node.file("a")
        tenant = "import os, sys, time\\nend = time.monotonic() + 2.0\\nwhile time.monotonic() < end:\\n"
        tenant += "  os.truncate(sys.argv[1], 0); os.truncate(sys.argv[1], 35504)"
        vandal = subprocess.Popen([sys.executable, "-c", tenant, str(path)])
        turns = 0
        while vandal.poll() is None:
            actuator_of(agent).keep()
            node.tick(agent)
            turns += 1
            assert actuator_of(agent).in_force()[("uid-b", "main", "GPU-0")] == 25 * GIB
        assert actuator_of(agent)._keeper.is_alive()
        print("turns", turns)
    """)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > 3


def test_whatever_a_tenant_writes_at_random_its_neighbour_and_the_device_are_held(tmp_path: Path) -> None:
    node = Node(tmp_path, ("a", "b"))
    agent = node.start()
    node.tick(agent)
    assert isinstance(agent.put(document(1, Asked("a", 20, 40), Asked("b", 5, 25)), node.at), QuotaStatus)
    dice = random.Random(7)
    for turn in range(150):
        kind = dice.randrange(4)
        path = node.file("a")
        if kind == 0:
            path.write_bytes(dice.randbytes(dice.choice((0, 100, SIZE, SIZE + 8))))
        elif kind == 1 and path.exists():
            with path.open("r+b") as file:
                file.seek(dice.randrange(2300))
                file.write(dice.randbytes(dice.randrange(1, 200)))
        elif kind == 2:
            path.unlink(missing_ok=True)
        actuator_of(agent).keep()
        node.tick(agent)
        states = {one.pod: one.devices[0] for one in agent.state().workers}
        assert node.limits()["b"] == 25 * 2**30, turn
        assert states["b"].applied
        # What is called applied is what the file holds.
        assert not states["a"].applied or node.limits()["a"] == 40 * 2**30, turn
    agent.close()
