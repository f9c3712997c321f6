"""CUDA MPS through a stand-in of its control program on PATH: what it is told, and what is claimed of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent.enforce.actuator import BOTH, Part, Surroundings
from agent.enforce.mps import PROGRAM, MpsActuator
from agent.model.samples import Worker
from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import DeviceQuota, Observed

GPU, GIB = "GPU-a", 2**30
ONE = Worker("uid-a", "chat", "a", "main", "load")

STAND_IN = """#!/bin/sh
# Answers like the control daemon of the second protocol; keeps its state in the pipe folder.
set -eu
cd "$CUDA_MPS_PIPE_DIRECTORY"
while read -r word rest; do
    echo "$word $rest" >> told
    case "$word" in
    get_server_list) cat servers ;;
    get_default_active_thread_percentage) cat percentage ;;
    set_default_active_thread_percentage) [ -e deaf ] || echo "$rest.0" > percentage ;;
    set_active_thread_percentage | set_device_pinned_mem_limit | set_default_device_pinned_mem_limit) ;;
    *) echo "unknown command $word" >&2; exit 1 ;;
    esac
done
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-in on PATH and a daemon's folder in place for the worker, with two servers running."""
    program = tmp_path / "bin" / PROGRAM
    program.parent.mkdir()
    program.write_text(STAND_IN)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    made = tmp_path / "mps" / "uid-a_main"
    made.mkdir(parents=True)
    (made / "control").touch()
    (made / "servers").write_text("4711\n4712\n")
    (made / "percentage").write_text("100.0\n")
    return made


@pytest.fixture
def make(tmp_path: Path, folder: Path) -> Callable[..., MpsActuator]:
    def actuator(**changes: object) -> MpsActuator:
        around = Surroundings(
            live_use=lambda _worker, _uuid: Observed(),
            tflops_of={GPU: 100.0}.get,
            index_of={GPU: 1}.get,
            state_dir=tmp_path / "state",
            mps_root=tmp_path / "mps",
        )
        return MpsActuator(replace(around, **changes))  # type: ignore[arg-type]

    return actuator


Make = Callable[..., MpsActuator]


def quota(tflops: float = 25.5, vram_bytes: int = 8 * GIB + 5) -> DeviceQuota:
    return DeviceQuota(GPU, 0.0, tflops, 0, vram_bytes)


def test_limits_are_set_for_servers_to_come_and_for_the_clients_to_come_of_running_ones(
    make: Make, folder: Path
) -> None:
    applied = make().apply(ONE, quota(), BOTH)
    assert applied.reason == ""
    told = [line.strip() for line in (folder / "told").read_text().splitlines()]
    assert [line for line in told if line.startswith("set")] == [
        "set_default_active_thread_percentage 26",
        "set_active_thread_percentage 4711 26",
        "set_active_thread_percentage 4712 26",
        "set_default_device_pinned_mem_limit 1 8192M",
        "set_device_pinned_mem_limit 4711 1 8192M",
        "set_device_pinned_mem_limit 4712 1 8192M",
    ]


def test_nothing_is_claimed_for_the_process_that_runs(make: Make) -> None:
    actuator = make()
    applied = actuator.apply(ONE, quota(), BOTH)
    assert (applied.effect, applied.in_force, applied.observed) == (Effect.NEXT_PROCESS, False, Observed())
    assert actuator.in_force() == {}


def test_a_daemon_that_keeps_another_percentage_is_told_on(make: Make, folder: Path) -> None:
    (folder / "deaf").touch()
    applied = make().apply(ONE, quota(), frozenset({Part.COMPUTE}))
    assert applied.reason == "NotTaken: asked for 26 %, the daemon says '100.0'"


def test_a_worker_without_a_daemon_of_its_own_is_out_of_reach(make: Make, folder: Path) -> None:
    (folder / "control").unlink()
    assert f"no daemon in {folder}" in make().reach(ONE, GPU).reason
    assert "no container's name" in make().reach(Worker("..", "chat", "a", "/x", "load"), GPU).reason


def test_a_refusal_is_told_with_the_programs_own_words(make: Make, folder: Path) -> None:
    (folder / "percentage").unlink()
    found = make().reach(ONE, GPU)
    assert found.compute is Effect.UNSUPPORTED
    assert "get_default_active_thread_percentage" in found.reason


def test_a_daemon_that_does_not_answer_is_left_alone_for_a_minute_or_until_it_is_started_anew(
    make: Make, folder: Path
) -> None:
    actuator, now = make(), [0.0]
    actuator._clock = lambda: now[0]
    (folder / "percentage").unlink()

    def asked() -> int:
        return (folder / "told").read_text().count("get_default")

    counts = []
    for seconds in (0.0, 1.0, 59.0, 61.0, 62.0):
        now[0] = seconds
        assert "refused" in actuator.reach(ONE, GPU).reason
        counts.append(asked())
    assert counts == [1, 1, 1, 2, 2]
    (folder / "percentage").write_text("100.0\n")
    (folder / "control").unlink()
    (folder / "control").touch()
    assert actuator.reach(ONE, GPU).compute is Effect.NEXT_PROCESS


def test_a_node_without_mps_says_so(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert make().probe().compute is Effect.NEXT_PROCESS
    assert "no worker has a daemon" in make(mps_root=tmp_path / "none").probe().reason
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "not installed" in make().probe().reason


def test_a_model_of_unknown_tflops_and_a_device_of_unknown_index_are_left_out(make: Make) -> None:
    assert "UnknownModel" in make(tflops_of=lambda _uuid: None).apply(ONE, quota(), frozenset({Part.COMPUTE})).reason
    assert "index" in make(index_of=lambda _uuid: None).reach(ONE, GPU).reason
