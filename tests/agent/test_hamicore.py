"""HAMi-core's region: the layout against a C compiler, and a region as a C program of the library's habits makes it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.enforce import hamicore as layout
from agent.enforce.actuator import BOTH, Part, Surroundings
from agent.enforce.hamicore import FROZEN, RUNNING, HamicoreActuator
from agent.enforce.mapped import MappedFile
from agent.model.samples import Worker
from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import DeviceQuota, Observed
from tests.agent.compiled import compiled

PROGRAM = Path(__file__).with_name("hamicore_region.c")
GPU, GIB, CAPACITY = "GPU-a", 2**30, 100.0
ONE = Worker("uid-a", "chat", "a", "main", "load")
KEY = ("uid-a", "main", GPU)


def quota(tflops: float = 30.0, vram_bytes: int = 8 * GIB) -> DeviceQuota:
    return DeviceQuota(GPU, 0.0, tflops, 0, vram_bytes)


@pytest.fixture
def region(tmp_path: Path) -> Path:
    """Make a region for the worker, with a second device before its own."""
    folder = tmp_path / "containers" / "uid-a_main"
    folder.mkdir(parents=True)
    path = folder / "9c1d.cache"
    subprocess.run([compiled(PROGRAM), "make", path, "GPU-other", GPU], check=True)
    return path


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., HamicoreActuator]]:
    made: list[HamicoreActuator] = []

    def actuator(**changes: object) -> HamicoreActuator:
        around = Surroundings(
            live_use=lambda _worker, _uuid: Observed(),
            tflops_of={GPU: CAPACITY}.get,
            index_of=lambda _uuid: 0,
            state_dir=tmp_path / "state",
            hamicore_root=tmp_path / "containers",
        )
        made.append(HamicoreActuator(replace(around, **changes)))  # type: ignore[arg-type]
        return made[-1]

    yield actuator
    for one in made:
        one.close()


Make = Callable[..., HamicoreActuator]


def number(path: Path, offset: int) -> int:
    with MappedFile(path, layout.SIZE) as file:
        return file.u64(offset).value


def test_every_offset_is_the_one_a_c_compiler_gives() -> None:
    printed = subprocess.run([compiled(PROGRAM), "layout"], check=True, capture_output=True, text=True).stdout
    expected = {name: int(offset) for name, offset in (line.split() for line in printed.splitlines())}
    assert {name: getattr(layout, name) for name in expected} == expected
    assert len(expected) == 12


def test_the_vram_limit_is_live_and_the_sm_limit_for_the_next_process(make: Make, region: Path) -> None:
    actuator = make()
    applied = actuator.apply(ONE, quota(), BOTH)
    assert (applied.effect, applied.reason) == (Effect.NEXT_PROCESS, "")
    assert applied.observed == Observed(vram_limit_bytes=8 * GIB)
    assert number(region, layout.LIMIT + 8) == 8 * GIB
    assert number(region, layout.SM_LIMIT + 8) == 30
    assert number(region, layout.LIMIT) == 0
    assert actuator.in_force() == {KEY: 8 * GIB}


def test_vram_alone_arrives_with_the_next_allocation(make: Make, region: Path) -> None:
    applied = make().apply(ONE, quota(), frozenset({Part.VRAM}))
    assert applied.in_force
    assert number(region, layout.SM_LIMIT + 8) == 100


def test_a_library_that_reads_its_sm_limit_again_has_it_at_once(make: Make, region: Path) -> None:
    actuator = make(options={"hamicore.sm_reload": "true"})
    applied = actuator.apply(ONE, quota(12.5), BOTH)
    assert applied.effect is Effect.IMMEDIATE
    assert applied.observed.tflops_limit == 13.0


def test_what_an_earlier_agent_left_in_force_is_known(make: Make, region: Path) -> None:
    make().apply(ONE, quota(), BOTH)
    second = make()
    assert second.reach(ONE, GPU).vram is Effect.NEXT_ALLOC
    assert second.in_force() == {KEY: 8 * GIB}


def test_a_limit_below_what_is_in_use_is_refused_unless_it_is_forced(make: Make, region: Path) -> None:
    busy = {"live_use": lambda _worker, _uuid: Observed(vram_used_bytes=9 * GIB)}
    assert "VRAMInUse" in make(**busy).apply(ONE, quota(), BOTH).reason
    assert number(region, layout.LIMIT + 8) == 0
    assert make(**busy, shrink_below_use=True).apply(ONE, quota(), BOTH).reason == ""


def test_who_took_more_than_the_limit_that_stands_keeps_it_from_nothing_but_shrinking(make: Make, region: Path) -> None:
    make().apply(ONE, quota(), BOTH)
    greedy = make(live_use=lambda _worker, _uuid: Observed(vram_used_bytes=20 * GIB))
    assert greedy.apply(ONE, quota(20.0), BOTH).reason == ""
    assert greedy.apply(ONE, quota(20.0, 10 * GIB), BOTH).reason == ""
    assert number(region, layout.LIMIT + 8) == 10 * GIB
    assert "VRAMInUse" in greedy.apply(ONE, quota(20.0, 9 * GIB), BOTH).reason


def test_a_model_of_unknown_tflops_gets_no_sm_limit(make: Make, region: Path) -> None:
    assert "UnknownModel" in make(tflops_of=lambda _uuid: None).apply(ONE, quota(), BOTH).reason
    assert number(region, layout.SM_LIMIT + 8) == 100


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [(layout.MAGIC_FLAG, 0, "no region yet"), (layout.MAJOR, 2, "version 2.2"), (layout.MINOR, 1, "version 1.1")],
)
def test_a_region_of_another_version_is_not_written_to(
    make: Make, region: Path, offset: int, value: int, reason: str
) -> None:
    with MappedFile(region, layout.SIZE) as file:
        file.u32(offset).value = value
    before = region.read_bytes()
    assert reason in make().apply(ONE, quota(), BOTH).reason
    assert region.read_bytes() == before


def test_a_region_of_another_size_or_device_and_no_region_at_all_are_told_apart(make: Make, region: Path) -> None:
    assert "no device GPU-z" in make().reach(ONE, "GPU-z").reason
    os.truncate(region, 4096)
    assert "4096 bytes" in make().reach(ONE, GPU).reason
    region.unlink()
    assert "no region in" in make().reach(ONE, GPU).reason


def test_what_a_tenant_rewrites_is_put_right_and_a_replaced_region_is_looked_at_afresh(
    make: Make, region: Path
) -> None:
    actuator = make()
    actuator.apply(ONE, quota(), BOTH)
    with MappedFile(region, layout.SIZE) as file:
        file.u64(layout.LIMIT + 8).value = 80 * GIB
        file.u64(layout.SM_LIMIT + 8).value = 100
    actuator.turn(0.0)
    assert actuator.restored() == 2
    assert number(region, layout.LIMIT + 8) == 8 * GIB
    os.truncate(region, 0)
    actuator.turn(1.0)
    assert actuator.in_force() == {}


def test_a_frozen_worker_waits_in_every_call_until_it_is_let_go(make: Make, region: Path) -> None:
    actuator = make()
    assert actuator.freeze(ONE, frozen=True) == "its region is not known"
    actuator.reach(ONE, GPU)
    statuses = []
    for frozen in (True, False):
        assert actuator.freeze(ONE, frozen=frozen) == ""
        with MappedFile(region, layout.SIZE) as file:
            statuses.append(file.i32(layout.PROCS + layout.PROC_STATUS).value)
            assert file.i32(layout.PROCS + layout.PROC_STRIDE + layout.PROC_STATUS).value == 0
    assert statuses == [FROZEN, RUNNING]


def test_a_node_without_the_library_says_so(make: Make) -> None:
    assert "not installed" in make().probe().reason
