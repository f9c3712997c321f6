"""Memory limits through the real nvidia-ml-py: a C library that keeps the kernel's books in a folder of cgroups."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pynvml
import pytest

from agent.enforce.actuator import Part, Surroundings
from agent.enforce.dmem import REPAIR_SECONDS, DmemActuator
from agent.model.limits import LimitError
from agent.model.samples import Worker
from agent.nvml.limits import NvmlMemoryLimits
from agent.pods.cgroups import container_cgroup
from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import DeviceQuota, Observed
from tests.agent.nvml_standin import GIB, Device, Error, NvmlStandIn, State

GPU = "GPU-a"
VRAM = frozenset({Part.VRAM})
NO_PERMISSION, FUNCTION_NOT_FOUND = 4, 13


def worker(name: str) -> Worker:
    return Worker(f"uid-{name}", "chat", name, "main", "load")


def quota(request: int, limit: int) -> DeviceQuota:
    return DeviceQuota(GPU, 0.0, 0.0, request * GIB, limit * GIB)


@dataclass
class Tree:
    """A cgroup tree with dmem's files: /kubepods, a slice per pod, a scope per container."""

    root: Path

    def leaf(self, name: str) -> Path:
        return self.root / "kubepods" / f"pod-{name}" / "container"

    def grow(self, name: str) -> Path:
        leaf = self.leaf(name)
        leaf.mkdir(parents=True)
        for folder in (leaf, leaf.parent, leaf.parent.parent):
            (folder / "dmem.max").touch()
        return leaf

    def books(self, folder: Path) -> tuple[int, int]:
        soft, hard, _ = (folder / f"books.{GPU}").read_text().split()
        return int(soft) // GIB, int(hard) // GIB

    def use(self, folder: Path, used: int) -> None:
        path = folder / f"books.{GPU}"
        soft, hard, _ = path.read_text().split() if path.exists() else ("0", str(2**64 - 1), "0")
        path.write_text(f"{soft} {hard} {used * GIB}\n")


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NvmlStandIn:
    made = NvmlStandIn(tmp_path)
    made.write(State(devices=(Device(GPU, total_bytes=24 * GIB),)))
    made.take_place(monkeypatch)
    return made


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    root = tmp_path / "cgroup"
    root.mkdir()
    (root / "cgroup.controllers").write_text("cpu memory dmem\n")
    return Tree(root)


@pytest.fixture
def make(tmp_path: Path, tree: Tree, standin: NvmlStandIn) -> Callable[..., DmemActuator]:
    def made(**changes: object) -> DmemActuator:
        around = Surroundings(
            live_use=lambda _worker, _uuid: Observed(),
            tflops_of=lambda _uuid: None,
            index_of=lambda _uuid: None,
            state_dir=tmp_path / "state",
            cgroup_of=lambda one: f"/kubepods/pod-{one.pod}/container",
            memory_limits=NvmlMemoryLimits(),
            cgroup_root=tree.root,
        )
        actuator = DmemActuator(replace(around, **changes))  # type: ignore[arg-type]
        actuator.probed = actuator.probe()  # type: ignore[attr-defined]
        return actuator

    return made


Make = Callable[..., DmemActuator]


def test_request_becomes_soft_and_limit_hard_on_the_containers_leaf(make: Make, tree: Tree) -> None:
    leaf = tree.grow("a")
    applied = make().apply(worker("a"), quota(4, 8), VRAM)
    assert (applied.effect, applied.reason) == (Effect.NEXT_ALLOC, "")
    assert applied.observed == Observed(vram_limit_bytes=8 * GIB)
    assert tree.books(leaf) == (4, 8)
    assert tree.books(leaf.parent)[0] == 4


def test_a_limit_below_what_the_kernel_counts_is_refused_unless_it_is_forced(make: Make, tree: Tree) -> None:
    leaf = tree.grow("a")
    tree.use(leaf, 6)
    refused = make().apply(worker("a"), quota(2, 4), VRAM)
    assert refused.reason.startswith("VRAMInUse")
    assert tree.books(leaf)[0] == 0
    assert make(shrink_below_use=True).apply(worker("a"), quota(2, 4), VRAM).reason == ""
    assert tree.books(leaf) == (2, 4)


def test_who_holds_more_than_the_limit_that_stands_keeps_it_from_nothing_but_shrinking(make: Make, tree: Tree) -> None:
    leaf = tree.grow("a")
    actuator = make()
    actuator.apply(worker("a"), quota(4, 8), VRAM)
    tree.use(leaf, 12)
    assert actuator.apply(worker("a"), quota(5, 10), VRAM).reason == ""
    assert tree.books(leaf) == (5, 10)
    assert actuator.apply(worker("a"), quota(5, 9), VRAM).reason.startswith("VRAMInUse")


def test_a_released_worker_leaves_no_reservation_behind(make: Make, tree: Tree) -> None:
    leaf = tree.grow("a")
    actuator = make()
    actuator.apply(worker("a"), quota(4, 8), VRAM)
    actuator.release(("uid-a", "main", GPU))
    assert tree.books(leaf)[0] == 0
    assert tree.books(leaf.parent.parent)[0] == 0
    assert actuator.in_force() == {}


def test_a_reservation_whose_container_vanished_is_taken_out_of_the_books_above(make: Make, tree: Tree) -> None:
    leaf, other = tree.grow("a"), tree.grow("b")
    actuator = make()
    actuator.apply(worker("a"), quota(4, 8), VRAM)
    actuator.apply(worker("b"), quota(3, 6), VRAM)
    shutil.rmtree(leaf)
    assert tree.books(leaf.parent)[0] == 4

    actuator.turn(0.0)

    assert tree.books(leaf.parent)[0] == 0
    assert tree.books(tree.root / "kubepods")[0] == 3
    assert tree.books(other) == (3, 6)


def test_what_a_killed_agent_reserved_is_known_to_the_next_and_repaired(make: Make, tree: Tree) -> None:
    leaf = tree.grow("a")
    make().apply(worker("a"), quota(4, 8), VRAM)
    second = make()
    assert second.in_force() == {("uid-a", "main", GPU): 8 * GIB}
    shutil.rmtree(leaf.parent)
    second.turn(0.0)
    assert tree.books(tree.root / "kubepods")[0] == 0
    assert second.in_force() == {}


def test_a_kill_between_the_note_and_the_limit_leaks_nothing(make: Make, tree: Tree, standin: NvmlStandIn) -> None:
    leaf = tree.grow("a")
    actuator = make()
    actuator.reach(worker("a"), GPU)
    standin.write(
        State(devices=(Device(GPU, total_bytes=24 * GIB),), errors=(Error("nvmlDeviceSetMemoryLimits_v1", 17),))
    )
    with pytest.raises(LimitError, match="kernel refused"):
        actuator.apply(worker("a"), quota(4, 8), VRAM)
    standin.write(State(devices=(Device(GPU, total_bytes=24 * GIB),)))

    second = make()
    second.release(("uid-a", "main", GPU))

    assert tree.books(leaf)[0] == 0
    assert tree.books(tree.root / "kubepods")[0] == 0


def test_limits_that_somebody_changed_are_set_again_and_counted(make: Make, tree: Tree) -> None:
    leaf = tree.grow("a")
    actuator = make()
    actuator.apply(worker("a"), quota(4, 8), VRAM)
    NvmlMemoryLimits().write(GPU, leaf, 0, None)
    actuator.turn(0.0)
    assert tree.books(leaf) == (4, 8)
    NvmlMemoryLimits().write(GPU, leaf, 0, None)
    actuator.turn(REPAIR_SECONDS / 2)
    assert tree.books(leaf)[0] == 0
    actuator.turn(REPAIR_SECONDS + 1)
    assert actuator.restored() == 2


@pytest.mark.parametrize(
    ("function", "code", "reason"),
    [
        ("nvmlDeviceGetMemoryLimits_v1", FUNCTION_NOT_FOUND, "older than r615"),
        ("nvmlDeviceGetMemoryLimits_v1", 3, "no dmem controller"),
        ("nvmlDeviceGetMemoryLimits_v1", NO_PERMISSION, "needs root"),
    ],
)
def test_what_the_driver_cannot_do_is_said_in_words(
    make: Make, tree: Tree, standin: NvmlStandIn, function: str, code: int, reason: str
) -> None:
    tree.grow("a")
    standin.write(State(devices=(Device(GPU),), errors=(Error(function, code),)))
    found = make().reach(worker("a"), GPU)
    assert found.vram is Effect.UNSUPPORTED
    assert reason in found.reason


def test_a_limit_over_the_device_is_the_drivers_refusal(make: Make, tree: Tree) -> None:
    tree.grow("a")
    with pytest.raises(LimitError, match="soft <= hard <= device memory"):
        make().apply(worker("a"), quota(4, 80), VRAM)


def test_a_worker_of_unknown_cgroup_is_out_of_reach_until_a_process_shows_it(make: Make, tree: Tree) -> None:
    tree.grow("a")
    known = {"path": ""}
    actuator = make(cgroup_of=lambda _worker: known["path"])
    assert "not known" in actuator.reach(worker("a"), GPU).reason
    known["path"] = "/kubepods/pod-a/container"
    assert actuator.reach(worker("a"), GPU).vram is Effect.NEXT_ALLOC


@pytest.mark.parametrize(
    ("controllers", "reason"), [(None, "cgroup v2 is needed"), ("cpu memory", "neither dmem nor misc")]
)
def test_a_kernel_without_the_controller_is_out(make: Make, tree: Tree, controllers: str | None, reason: str) -> None:
    path = tree.root / "cgroup.controllers"
    path.unlink() if controllers is None else path.write_text(controllers)
    assert reason in make().probed.reason  # type: ignore[attr-defined]


LIMITS = "nvmlDeviceGetMemoryLimits_v1"


@pytest.mark.parametrize("grown", [True, False], ids=["pods run", "no pod yet"])
def test_a_driver_that_has_no_such_function_is_out_before_there_is_any_worker(
    make: Make, tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grown: bool
) -> None:
    old = NvmlStandIn(tmp_path, without=(LIMITS, "nvmlDeviceSetMemoryLimits_v1"))
    old.write(State(devices=(Device(GPU),)))
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(old.shared_object)))
    if grown:
        tree.grow("a")
    found = make().probed  # type: ignore[attr-defined]
    assert (found.vram, found.reason) == (Effect.UNSUPPORTED, "the driver is older than r615")


def test_limits_that_every_device_refuses_to_a_cgroup_that_is_accounted_for_are_out(
    make: Make, tree: Tree, standin: NvmlStandIn
) -> None:
    tree.grow("a")
    both = (Device(GPU), Device("GPU-b"))
    standin.write(State(devices=both, errors=(Error(LIMITS, 3),)))
    found = make().probed  # type: ignore[attr-defined]
    assert found.vram is Effect.UNSUPPORTED
    assert f"{GPU}: {tree.root}/kubepods: the kernel has no dmem controller" in found.reason
    assert "GPU-b: " in found.reason


def test_one_device_that_takes_limits_is_enough(make: Make, tree: Tree, standin: NvmlStandIn) -> None:
    tree.grow("a")
    standin.write(State(devices=(Device(GPU), Device("GPU-b")), errors=(Error(LIMITS, 3, device=0),)))
    found = make().probed  # type: ignore[attr-defined]
    assert (found.vram, found.reason) == (Effect.NEXT_ALLOC, "")


def test_where_no_cgroup_could_be_asked_for_the_answer_is_left_to_the_workers(make: Make, tree: Tree) -> None:
    found = make().probed  # type: ignore[attr-defined]
    assert found.vram is Effect.NEXT_ALLOC
    assert f"no cgroup in {tree.root} has dmem.max or misc.max yet" in found.reason
    tree.grow("a")
    assert make().probed.reason == ""  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("errors", "devices", "reason"),
    [
        ((Error("nvmlDeviceGetCount_v2", 9),), (Device(GPU),), "Driver Not Loaded"),
        ((), (), "the driver knows no device"),
        ((Error("nvmlDeviceGetUUID", 15),), (Device(GPU),), "the driver knows no device"),
    ],
    ids=["no driver loaded", "no device", "a lost device"],
)
def test_a_driver_that_names_no_device_is_out(
    make: Make,
    tree: Tree,
    standin: NvmlStandIn,
    errors: tuple[Error, ...],
    devices: tuple[Device, ...],
    reason: str,
) -> None:
    tree.grow("a")
    standin.write(State(devices=devices, errors=errors))
    found = make().probed  # type: ignore[attr-defined]
    assert found.vram is Effect.UNSUPPORTED
    assert reason in found.reason


def test_what_an_earlier_run_reserved_counts_even_where_the_driver_went_back_to_an_older_one(
    make: Make, tree: Tree, standin: NvmlStandIn
) -> None:
    tree.grow("a")
    make().apply(worker("a"), quota(4, 8), VRAM)
    standin.write(State(devices=(Device(GPU),), errors=(Error(LIMITS, FUNCTION_NOT_FOUND),)))
    later = make()
    assert later.probed.vram is Effect.UNSUPPORTED  # type: ignore[attr-defined]
    assert later.in_force() == {("uid-a", "main", GPU): 8 * GIB}


def test_a_node_without_a_driver_is_out(make: Make) -> None:
    assert "no NVIDIA driver" in make(memory_limits=None).probed.reason  # type: ignore[attr-defined]


UID = "0123abcd-0000-4000-8000-00000000000a"
HEX = "ab" * 32


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (
            f"0::/kubepods.slice/kubepods-pod{UID.replace('-', '_')}.slice/cri-containerd-{HEX}.scope",
            f"/kubepods.slice/kubepods-pod{UID.replace('-', '_')}.slice/cri-containerd-{HEX}.scope",
        ),
        (f"0::/kubepods/burstable/pod{UID}/{HEX}/init.scope", f"/kubepods/burstable/pod{UID}/{HEX}"),
        (f"12:memory:/kubepods/pod{UID}/{HEX}\n0::/", ""),
        ("0::/user.slice", ""),
    ],
)
def test_the_leaf_is_the_containers_own_cgroup_of_the_unified_tree(text: str, path: str) -> None:
    assert container_cgroup(text) == path
