"""Kills at every step of what the kernel is told: memory limits and the freezer leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from agent.enforce.freeze import FREEZE_FILE
from agent.loop import Agent
from agent.model.samples import SourceError
from autoscaler.contract.keys import QoS
from autoscaler.contract.quota import QuotaStatus
from tests.agent.faulty import GIB, GPU, NEVER, TOTAL, Asked, Steps, document, stopping
from tests.agent.kernel import Kernel
from tests.agent.nvml_standin import Device, NvmlStandIn, State

BEFORE = document(1, Asked("a", 20, 55), Asked("b", 5, 25))
AFTER = document(2, Asked("a", 10, 20), Asked("b", 20, 40), Asked("c", 5, 20))
WITHOUT_A = document(3, Asked("b", 20, 60), Asked("c", 5, 20))
LOOK_SECONDS = 31.0
"""After so long the books are looked through again."""


@pytest.fixture(autouse=True)
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    standin = NvmlStandIn(tmp_path)
    standin.write(State((Device(GPU, total_bytes=TOTAL),)))
    standin.take_place(monkeypatch)
    with structlog.testing.capture_logs():
        yield


def begun(root: Path, *documents: object) -> tuple[Kernel, Agent]:
    node = Kernel(root, ("a", "b", "c"))
    agent = node.start()
    node.tick(agent)
    for one in documents:
        assert isinstance(agent.put(one, node.at), QuotaStatus)
    return node, agent


def restarted(node: Kernel, agent: Agent) -> Agent:
    """Start another agent on what a killed one left, and watch each step of its first tick."""
    node.check()
    node.kill(agent)
    agent = node.start()
    with stopping(Steps(node.check, NEVER)):
        node.tick(agent)
    node.tick(agent)
    node.tick(agent, LOOK_SECONDS)
    node.check()
    return agent


def nothing_is_left_over(node: Kernel) -> bool:
    """Tell whether everything that is reserved is reserved for somebody who lives."""
    return node.books(node.top)[0] == sum(node.reserved().values())


def test_after_a_kill_at_any_step_of_an_apply_nothing_is_promised_twice_and_nothing_stays_reserved(
    tmp_path: Path,
) -> None:
    for stop_at in range(1000):
        node, agent = begun(tmp_path / str(stop_at), BEFORE)
        with stopping(Steps(node.check, stop_at)) as steps:
            agent.put(AFTER, node.at)
        agent = restarted(node, agent)
        assert isinstance(agent.put(AFTER, node.at), QuotaStatus)
        assert node.limits() == {"a": 20 * GIB, "b": 40 * GIB, "c": 20 * GIB}, stop_at
        assert node.reserved() == {"a": 10 * GIB, "b": 20 * GIB, "c": 5 * GIB}
        assert nothing_is_left_over(node)
        node.kill(agent)
        if not steps.was_stopped:
            break
    assert stop_at > 40


def stays(node: Kernel) -> None:
    """Leave the folder, as where the kubelet has not yet come to it."""
    assert node.leaves["a"].is_dir()


def container_goes(node: Kernel) -> None:
    node.cut("a", pod=False)


def pod_goes(node: Kernel) -> None:
    node.cut("a", pod=True)


@pytest.mark.parametrize("ending", [stays, container_goes, pod_goes])
def test_a_kill_at_any_step_of_a_release_leaves_no_reservation_and_takes_none_from_others(
    tmp_path: Path, ending: Callable[[Kernel], None]
) -> None:
    for stop_at in range(1000):
        node, agent = begun(tmp_path / str(stop_at), AFTER)
        node.gone.add("a")
        ending(node)
        with stopping(Steps(node.check, stop_at)) as steps:
            agent.put(WITHOUT_A, node.at)
            node.tick(agent)
        agent = restarted(node, agent)
        agent.put(WITHOUT_A, node.at)
        node.tick(agent)
        reserved = node.reserved()
        assert (reserved.pop("a", 0), reserved) == (0, {"b": 20 * GIB, "c": 5 * GIB}), stop_at
        assert nothing_is_left_over(node), stop_at
        assert node.limits() == {"b": 60 * GIB, "c": 20 * GIB}
        node.kill(agent)
        if not steps.was_stopped:
            break
    assert stop_at > 20


@pytest.mark.parametrize("is_removed", [True, False])
def test_a_container_that_is_restarted_in_its_pod_leaves_no_reservation_at_any_kill(
    tmp_path: Path, is_removed: bool
) -> None:
    for stop_at in range(1000):
        node, agent = begun(tmp_path / str(stop_at), AFTER)
        first = node.leaves["a"]
        if is_removed:
            node.cut("a", pod=False)
        node.grow("a", "second")
        with stopping(Steps(node.check, stop_at)) as steps:
            for _ in range(3):
                node.tick(agent)
        agent = restarted(node, agent)
        node.tick(agent, LOOK_SECONDS)
        assert node.reserved() == {"a": 10 * GIB, "b": 20 * GIB, "c": 5 * GIB}, stop_at
        assert node.books(first)[0] == 0
        assert nothing_is_left_over(node), stop_at
        node.kill(agent)
        if not steps.was_stopped:
            break
    assert stop_at > 10


def test_a_container_that_is_restarted_in_its_pod_is_held_by_the_next_tick_of_the_same_agent(tmp_path: Path) -> None:
    node, agent = begun(tmp_path, AFTER)
    node.cut("a", pod=False)
    node.grow("a", "second")
    node.tick(agent)
    assert node.limits() == {"a": 20 * GIB, "b": 40 * GIB, "c": 20 * GIB}
    assert nothing_is_left_over(node)


NOBODY: frozenset[tuple[str, str]] = frozenset()
TURNS = (frozenset({("a", "main")}), frozenset({("b", "main"), ("c", "main")}), frozenset({("c", "main")}), NOBODY)


def frozen(node: Kernel) -> set[str]:
    return {name for name, leaf in node.leaves.items() if (leaf / FREEZE_FILE).read_text() == "1"}


def test_a_kill_at_any_step_of_freezing_and_thawing_leaves_nobody_frozen_for_the_next_agent(tmp_path: Path) -> None:
    ever = 0
    for stop_at in range(1000):
        node = Kernel(tmp_path / str(stop_at), ("a", "b", "c"))
        with stopping(Steps(lambda: None, stop_at)) as steps:
            freezer = node.freezer()
            freezer.recover()
            for wanted in TURNS:
                freezer.set(wanted)
        ever += bool(frozen(node))
        # The next one may be killed while it thaws.
        with stopping(Steps(lambda: None, stop_at % 7)):
            node.freezer().recover()
        node.freezer().recover()
        assert frozen(node) == set(), stop_at
        if not steps.was_stopped:
            break
    assert stop_at > 15
    assert ever > 5


def test_who_cannot_be_thawed_now_is_thawed_as_soon_as_it_can_by_this_agent_or_the_next(tmp_path: Path) -> None:
    for is_killed in (False, True):
        node = Kernel(tmp_path / str(is_killed), ("a",))
        freezer = node.freezer()
        freezer.set(frozenset({("a", "main")}))
        lock = node.leaves["a"] / FREEZE_FILE
        lock.rename(lock.with_name("aside"))
        lock.mkdir()
        freezer.set(NOBODY)
        if is_killed:
            freezer = node.freezer()
            freezer.recover()
        lock.rmdir()
        lock.with_name("aside").rename(lock)
        assert frozen(node) == {"a"}
        freezer.set(NOBODY)
        assert frozen(node) == set()


def test_nobody_stays_frozen_while_no_device_can_be_read(tmp_path: Path) -> None:
    crowd = document(
        1, Asked("a", 5, 20, 200.0, QoS.HIGH), Asked("b", 5, 20, 20.0, QoS.LOW), Asked("c", 5, 20, 20.0, QoS.LOW)
    )
    node = Kernel(tmp_path, ("a", "b", "c"), with_freezer=True)
    for name in node.names:
        node.file(name).parent.rmdir()  # No limiter: nothing holds a worker's compute.
    agent = node.start()
    node.tick(agent)
    assert isinstance(agent.put(crowd, node.at), QuotaStatus)
    node.uses = {"a": (0.02, GIB), "b": (0.6, GIB), "c": (0.38, GIB)}
    node.tick(agent)
    assert len(frozen(node)) == 1
    node.unreadable = True
    with pytest.raises(SourceError):
        node.tick(agent)
    assert frozen(node) == set()
