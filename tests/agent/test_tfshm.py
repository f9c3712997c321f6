"""TensorFusion's limiter: the layout against a C program, and the loop against a C worker that takes tokens for real."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from agent.enforce import tfshm_layout as layout
from agent.enforce.actuator import BOTH, Part, Surroundings
from agent.enforce.heartbeat import STRANGER_SECONDS
from agent.enforce.mapped import LayoutError
from agent.enforce.steer import BURST_SECONDS
from agent.enforce.tfshm import IDLE_TURNS, REFILL_SECONDS, TfshmActuator
from agent.enforce.tfshm_layout import Slot, create_state, open_state, slots_of
from agent.model.samples import Worker
from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import DeviceQuota, Observed
from tests.agent.compiled import compiled

GPU = "GPU-a"
CAPACITY = 100.0
GIB = 2**30
PROGRAM = Path(__file__).with_name("tfshm_worker.c")


def worker(name: str = "a", *devices: str) -> Worker:
    return Worker(f"uid-{name}", "chat", f"pod-{name}", "main", "load", devices=devices or (GPU,))


def quota(tflops: float, vram_bytes: int = 8 * GIB) -> DeviceQuota:
    return DeviceQuota(GPU, 0.0, tflops, 0, vram_bytes)


@dataclass
class Node:
    """What surrounds the actuator, steered by the test: use by pod UID, and both clocks where they must stand still."""

    root: Path
    uses: dict[str, Observed]
    at: float = 1000.0

    def actuator(self, *, real_time: bool = False, **changes: object) -> TfshmActuator:
        around = Surroundings(
            live_use=lambda one, _uuid: self.uses.get(one.pod_uid, Observed()),
            tflops_of={GPU: CAPACITY}.get,
            index_of={GPU: 3}.get,
            state_dir=self.root / "state",
            tfshm_root=self.root / "shm",
        )
        around = replace(around, **changes)  # type: ignore[arg-type]
        clocks = () if real_time else (lambda: self.at, lambda: self.at)
        made = TfshmActuator(around, *clocks)
        made.probe()
        return made

    def folder(self, one: Worker) -> Path:
        folder = self.root / "shm" / one.namespace / one.pod
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def file(self, one: Worker) -> Path:
        return self.folder(one) / "shm"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    (tmp_path / "shm").mkdir()
    return Node(tmp_path, {})


@pytest.fixture
def made() -> Iterator[Callable[[TfshmActuator], TfshmActuator]]:
    """Close every actuator at the end: its heart beats in a thread."""
    actuators: list[TfshmActuator] = []

    def keep(one: TfshmActuator) -> TfshmActuator:
        actuators.append(one)
        return one

    yield keep
    for one in actuators:
        one.close()


Keep = Callable[[TfshmActuator], TfshmActuator]


def test_every_offset_is_the_one_a_c_compiler_gives() -> None:
    program = compiled(PROGRAM)
    printed = subprocess.run([program, "layout"], check=True, capture_output=True, text=True).stdout
    expected = dict(line.rsplit(" ", 1) for line in printed.splitlines())
    inside = layout.DEVICES
    for name, offset in expected.items():
        of_slot = name.startswith("slot ")
        ours = getattr(layout, name.removeprefix("slot "))
        assert ours + (inside if of_slot else 0) == int(offset), name
        if of_slot:
            viewed = getattr(layout.LiveSlot, name.removeprefix("slot ").lower())
            assert viewed.offset == ours, name
    assert len(expected) == 17
    assert ctypes.sizeof(layout.LiveSlot) == layout.DEVICE_STRIDE


def test_a_file_is_made_where_the_limiters_folder_waits_and_carries_the_limits(node: Node, made: Keep) -> None:
    one = worker()
    node.folder(one)
    actuator = made(node.actuator())

    applied = actuator.apply(one, quota(30.0, 4 * GIB), BOTH)

    assert (applied.effect, applied.reason) == (Effect.NEXT_ALLOC, "")
    assert applied.observed == Observed(tflops_limit=30.0, vram_limit_bytes=4 * GIB)
    assert actuator.in_force() == {("uid-a", "main", GPU): 4 * GIB}
    with open_state(node.file(one)) as file:
        slot = Slot(file, 3)
        assert (slot.uuid, slot.u32(layout.UP_LIMIT), slot.u64(layout.MEM_LIMIT)) == (GPU, 30, 4 * GIB)
        assert file.u64(layout.HEARTBEAT).value == 1000
        del slot


def test_a_device_that_comes_later_gets_a_slot_in_the_same_file(node: Node, made: Keep) -> None:
    node.folder(worker())
    actuator = made(node.actuator(tflops_of=lambda _uuid: CAPACITY, index_of={GPU: 3, "GPU-b": 1}.get))
    actuator.apply(worker(), quota(30.0), BOTH)
    actuator.apply(worker(), DeviceQuota("GPU-b", 0.0, 40.0, 0, 2 * GIB), BOTH)
    with open_state(node.file(worker())) as file:
        assert file.u32(layout.DEVICE_COUNT).value == 2
        assert {uuid: slot.u32(layout.UP_LIMIT) for uuid, slot in slots_of(file).items()} == {"gpu-a": 30, "gpu-b": 40}


def test_without_a_limiter_the_worker_is_out_of_reach_and_the_reason_names_the_folder(node: Node, made: Keep) -> None:
    found = made(node.actuator()).reach(worker(), GPU)
    assert (found.compute, found.vram) == (Effect.UNSUPPORTED, Effect.UNSUPPORTED)
    assert str(node.root / "shm" / "chat" / "pod-a") in found.reason


def test_a_node_without_limiters_says_so(node: Node) -> None:
    (node.root / "shm").rmdir()
    found = TfshmActuator(
        Surroundings(lambda _w, _u: Observed(), {}.get, {}.get, node.root / "state", tfshm_root=node.root / "shm")
    ).probe()
    assert found.vram is Effect.UNSUPPORTED
    assert "no limiter is installed" in found.reason


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(b"\0" * 100), "100 bytes, must be a regular file of 35504"),
        (lambda path: path.write_bytes(b"\0" * layout.SIZE), "version 1, only version 2"),
        (lambda path: path.write_bytes(b"\7" + b"\0" * (layout.SIZE - 1)), "version 8, only version 2"),
        (lambda path: path.symlink_to("/etc/passwd"), "ymbolic links"),
    ],
)
def test_a_file_of_another_layout_is_left_as_it_is(
    node: Node, made: Keep, spoil: Callable[[Path], None], reason: str
) -> None:
    path = node.file(worker())
    spoil(path)
    before = path.read_bytes()

    applied = made(node.actuator()).apply(worker(), quota(30.0), BOTH)

    assert applied.effect is Effect.UNSUPPORTED
    assert reason in applied.reason
    assert path.read_bytes() == before


def test_a_pods_name_that_is_a_path_reaches_no_file(node: Node, made: Keep) -> None:
    (node.root / "shm" / "x").mkdir()
    found = made(node.actuator()).reach(Worker("u", "..", "x", "main", "load"), GPU)
    assert "is no pod's name" in found.reason


def test_a_file_whose_heartbeat_moves_is_somebody_elses_and_never_written(node: Node, made: Keep) -> None:
    path = node.file(worker())
    create_state(path, {3: GPU}, node.at)
    actuator = made(node.actuator())
    assert "watched" in actuator.reach(worker(), GPU).reason
    for _ in range(5):
        node.at += 1.0
        with open_state(path) as file:
            file.u64(layout.HEARTBEAT).value = int(node.at)
        found = actuator.reach(worker(), GPU)
    assert "somebody else" in found.reason
    with open_state(path) as file:
        assert Slot(file, 3).u32(layout.UP_LIMIT) == 100


def test_a_heartbeat_that_stands_still_is_taken_over(node: Node, made: Keep) -> None:
    create_state(node.file(worker()), {3: GPU}, node.at)
    actuator = made(node.actuator())
    actuator.reach(worker(), GPU)
    node.at += STRANGER_SECONDS + 0.1
    assert actuator.reach(worker(), GPU).compute is Effect.IMMEDIATE


def test_a_restarted_agent_takes_its_own_files_up_at_once_with_what_is_in_force(node: Node, made: Keep) -> None:
    node.folder(worker())
    first = node.actuator()
    first.apply(worker(), quota(30.0, 4 * GIB), BOTH)
    first.keep()
    first.close()

    second = made(node.actuator())

    assert second.reach(worker(), GPU).compute is Effect.IMMEDIATE
    assert second.in_force() == {("uid-a", "main", GPU): 4 * GIB}


def test_a_limit_below_what_is_in_use_is_refused_unless_it_is_forced(node: Node, made: Keep) -> None:
    node.folder(worker())
    node.uses["uid-a"] = Observed(vram_used_bytes=6 * GIB)
    actuator = made(node.actuator())
    actuator.apply(worker(), quota(30.0, 8 * GIB), BOTH)

    refused = actuator.apply(worker(), quota(30.0, 4 * GIB), BOTH)
    assert "VRAMInUse" in refused.reason
    assert refused.observed.vram_limit_bytes == 8 * GIB
    actuator.close()

    forced = made(node.actuator(shrink_below_use=True)).apply(worker(), quota(30.0, 4 * GIB), BOTH)
    assert forced.observed.vram_limit_bytes == 4 * GIB


def test_who_took_more_than_the_limit_that_stands_keeps_no_other_from_being_set(node: Node, made: Keep) -> None:
    node.folder(worker())
    actuator = made(node.actuator())
    actuator.apply(worker(), quota(30.0, 8 * GIB), BOTH)
    node.uses["uid-a"] = Observed(vram_used_bytes=12 * GIB)
    for tflops, gib in ((20.0, 8), (20.0, 10)):
        applied = actuator.apply(worker(), quota(tflops, gib * GIB), BOTH)
        assert (applied.reason, applied.observed.vram_limit_bytes) == ("", gib * GIB)


def test_a_device_of_unknown_model_gets_no_compute_limit_and_says_why(node: Node, made: Keep) -> None:
    node.folder(worker())
    actuator = made(node.actuator(tflops_of=lambda _uuid: None))
    applied = actuator.apply(worker(), quota(30.0), frozenset({Part.COMPUTE}))
    assert "UnknownModel" in applied.reason
    assert applied.observed.tflops_limit is None


def test_only_the_parts_asked_for_are_written(node: Node, made: Keep) -> None:
    node.folder(worker())
    actuator = made(node.actuator())
    actuator.apply(worker(), quota(30.0, 4 * GIB), frozenset({Part.VRAM}))
    with open_state(node.file(worker())) as file:
        assert slots_of(file)[GPU.lower()].u32(layout.UP_LIMIT) == 100


def test_a_limit_of_the_whole_device_never_reads_as_unlimited(node: Node, made: Keep) -> None:
    # At 100 the limiter looks away for a minute.
    node.folder(worker())
    actuator = made(node.actuator())
    actuator.apply(worker(), quota(CAPACITY), BOTH)
    actuator.keep()
    with open_state(node.file(worker())) as file:
        slot = Slot(file, 3)
        assert slot.u32(layout.UP_LIMIT) == 99
        assert slot.f64(layout.TOKENS) >= 100_000
        del slot


def test_what_a_tenant_rewrites_is_put_right_within_a_tick_and_counted(node: Node, made: Keep) -> None:
    node.folder(worker())
    actuator = made(node.actuator())
    actuator.apply(worker(), quota(30.0, 4 * GIB), BOTH)
    with open_state(node.file(worker())) as file:
        slot = Slot(file, 3)
        slot.put_u32(layout.UP_LIMIT, 100)
        slot.put_u64(layout.MEM_LIMIT, 80 * GIB)
        del slot

    actuator.turn(node.at)

    assert actuator.restored() == 2
    assert actuator.observe(worker(), GPU) == Observed(tflops_limit=30.0, vram_limit_bytes=4 * GIB)


def test_a_file_that_a_tenant_cuts_off_or_replaces_stops_nothing(node: Node, made: Keep) -> None:
    for name in ("a", "b"):
        node.folder(worker(name))
    actuator = made(node.actuator())
    for name in ("a", "b"):
        actuator.apply(worker(name), quota(30.0, 4 * GIB), BOTH)
    os.truncate(node.file(worker("a")), 0)

    actuator.keep()
    actuator.turn(node.at)

    assert "0 bytes" in actuator.reach(worker("a"), GPU).reason
    assert set(actuator.in_force()) == {("uid-b", "main", GPU)}


def test_a_file_that_is_cut_while_it_is_opened_is_refused_like_any_other_of_that_size(node: Node) -> None:
    path = node.file(worker())
    create_state(path, {3: GPU}, node.at)
    cutting = "import os, sys\nwhile True:\n  os.truncate(sys.argv[1], 0); os.truncate(sys.argv[1], 35504)"
    vandal = subprocess.Popen([sys.executable, "-c", cutting, str(path)])
    said: set[str] = set()
    deadline = time.monotonic() + 30.0
    try:
        while not any("while it was opened" in one for one in said):
            assert time.monotonic() < deadline, said
            try:
                open_state(path).close()
            except LayoutError as error:
                said.add(str(error))
    finally:
        vandal.kill()
        vandal.wait()


def test_the_limiter_is_told_what_its_worker_holds(node: Node, made: Keep) -> None:
    node.folder(worker())
    node.uses["uid-a"] = Observed(vram_used_bytes=3 * GIB)
    actuator = made(node.actuator())
    actuator.apply(worker(), quota(30.0), BOTH)
    actuator.turn(node.at)
    with open_state(node.file(worker())) as file:
        assert Slot(file, 3).u64(layout.POD_MEMORY_USED) == 3 * GIB


def test_a_worker_that_asks_for_less_than_its_limit_is_not_held_back(node: Node, made: Keep) -> None:
    one = worker()
    node.folder(one)
    actuator = made(node.actuator())
    assert actuator.throttled() == {}
    actuator.apply(one, quota(30.0), BOTH)
    assert actuator.throttled() == {("uid-a", "main", GPU): None}
    for second in range(1, 5):
        node.at, node.uses["uid-a"] = 1000.0 + second, Observed(tflops_used=3.0)
        actuator.keep()
        actuator.turn(node.at)
    assert actuator.throttled() == {("uid-a", "main", GPU): False}


def test_between_two_beats_for_all_only_those_who_take_tokens_are_refilled(node: Node, made: Keep) -> None:
    names = ("a", "b")
    for name in names:
        node.folder(worker(name))
    actuator = made(node.actuator())
    for name in names:
        actuator.apply(worker(name), quota(30.0), BOTH)
    # The test is the heart here.
    actuator._stop.set()
    assert actuator._keeper is not None
    actuator._keeper.join()

    def refilled(*, idle: bool) -> set[str]:
        node.at += REFILL_SECONDS
        actuator.keep(idle=idle)
        found = set()
        for name in names:
            with open_state(node.file(worker(name))) as file:
                slot = Slot(file, 3)
                if slot.f64(layout.LAST_UPDATE) == node.at:
                    found.add(name)
                if name == "b":
                    slot.put_f64(layout.TOKENS, slot.f64(layout.TOKENS) - 1.0)
                del slot
        return found

    while len(refilled(idle=False)) == 2:
        pass
    assert [refilled(idle=idle) for idle in (False, True, False)] == [{"b"}, {"a", "b"}, {"b"}]
    actuator.apply(worker("a"), quota(20.0), BOTH)
    assert refilled(idle=False) == {"a", "b"}
    # Whoever begins to work has what its bucket holds until the next look at it.
    assert IDLE_TURNS * REFILL_SECONDS < BURST_SECONDS


def test_a_second_container_of_a_pod_is_told_whom_the_file_serves(node: Node, made: Keep) -> None:
    node.folder(worker())
    actuator = made(node.actuator())
    actuator.reach(worker(), GPU)
    assert "serves container 'main'" in actuator.reach(replace(worker(), container="side"), GPU).reason


def test_a_released_worker_keeps_its_limits_and_loses_its_heartbeat(node: Node, made: Keep) -> None:
    node.folder(worker())
    actuator = made(node.actuator())
    actuator.apply(worker(), quota(30.0, 4 * GIB), BOTH)
    actuator.release(("uid-a", "main", GPU))
    node.at += 10.0
    actuator.keep()
    assert actuator.in_force() == {}
    with open_state(node.file(worker())) as file:
        assert file.u64(layout.HEARTBEAT).value == 1000
        assert Slot(file, 3).u64(layout.MEM_LIMIT) == 4 * GIB


def test_a_place_that_another_device_has_is_named(node: Node, made: Keep) -> None:
    create_state(node.file(worker()), {3: "GPU-other"}, 0.0)
    assert "no slot for GPU-a" in made(node.actuator()).reach(worker(), GPU).reason
    with pytest.raises(LayoutError):
        open_state(Path("/dev/null"))


class Gpu:
    """A device whose workers' busy time is counted by the workers themselves; utilization as the driver would say it."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._counts: dict[str, mmap.mmap] = {}
        self._seen: dict[str, tuple[float, float]] = {}

    def start(self, one: Worker, kernel_us: int, cost: float) -> subprocess.Popen[bytes]:
        busy = self._node.root / f"busy-{one.pod_uid}"
        busy.write_bytes(bytes(8))
        with busy.open("r+b") as file:
            self._counts[one.pod_uid] = mmap.mmap(file.fileno(), 8)
        words = ["run", str(self._node.file(one)), "3", str(kernel_us), str(cost), str(busy)]
        return subprocess.Popen([str(compiled(PROGRAM)), *words])

    def busy(self, one: Worker) -> float:
        """Return the seconds the device was busy for a worker."""
        return ctypes.c_uint64.from_buffer_copy(self._counts[one.pod_uid]).value / 1e6

    def meter(self) -> None:
        """Say what each worker used of the device since the last call."""
        for uid in self._counts:
            one = Worker(uid, "", "", "", "")
            at, busy = time.monotonic(), self.busy(one)
            before_at, before = self._seen.get(uid, (at, busy))
            self._seen[uid] = (at, busy)
            ratio = min((busy - before) / (at - before_at), 1.0) if at > before_at else 0.0
            self._node.uses[uid] = Observed(tflops_used=round(ratio, 2) * CAPACITY)


def mean_uses(gpu: Gpu, workers: tuple[Worker, ...], seconds: float) -> list[float]:
    at, before = time.monotonic(), [gpu.busy(one) for one in workers]
    threading.Event().wait(seconds)
    elapsed = time.monotonic() - at
    return [(gpu.busy(one) - start) / elapsed for one, start in zip(workers, before, strict=True)]


def test_a_running_workers_use_follows_its_limit_and_its_neighbour_is_left_alone(node: Node, made: Keep) -> None:
    one, other = worker("a"), worker("b")
    for each in (one, other):
        node.folder(each)
    actuator = made(node.actuator(real_time=True))
    actuator.apply(one, quota(30.0), BOTH)
    actuator.apply(other, quota(20.0), BOTH)
    gpu = Gpu(node)
    processes = [gpu.start(one, 2000, 3.0), gpu.start(other, 5000, 0.7)]
    stop = threading.Event()
    held: list[bool | None] = []

    def tick() -> None:
        while not stop.wait(0.5):
            gpu.meter()
            actuator.turn(0.0)
            held.append(actuator.throttled()["uid-a", "main", GPU])

    ticking = threading.Thread(target=tick)
    ticking.start()
    try:
        for target in (30.0, 60.0, 30.0):
            actuator.apply(one, quota(target), BOTH)
            wanted = pytest.approx([target / 100, 0.20], abs=0.05)
            # Within seconds on a machine of its own (and never far above: see test_steer); one that is busy takes longer.
            deadline = time.monotonic() + 60.0
            while (uses := mean_uses(gpu, (one, other), 2.0)) != wanted or not any(held[-4:]):
                assert time.monotonic() < deadline, (target, uses, held[-4:])
    finally:
        stop.set()
        ticking.join()
        for process in processes:
            process.kill()
            process.wait()
