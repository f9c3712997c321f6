"""Faults at every step of real work: kills, full disks, clocks that are set, tenants that write where they can."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from agent.enforce.heartbeat import OWNED_NAME
from agent.enforce.tfshm_layout import (
    HEARTBEAT,
    IS_ACTIVE,
    MEM_LIMIT,
    REFILL_RATE,
    SIZE,
    TOKENS,
    UNLIMITED_BYTES,
    UP_LIMIT,
    create_state,
    open_state,
    slots_of,
)
from agent.loop import Agent
from agent.model.samples import SourceError
from agent.quotas.store import CURRENT_NAME
from autoscaler.contract.keys import QoS
from autoscaler.contract.quota import QuotaStatus, Refusal
from tests.agent.faulty import GIB, GPU, NEVER, Asked, Node, Steps, actuator_of, document, no_space, stopping

BEFORE = document(1, Asked("a", 20, 55), Asked("b", 5, 25))
AFTER = document(2, Asked("a", 10, 20), Asked("b", 20, 40), Asked("c", 5, 20))


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[Any]]:
    """Keep what is logged: a step of printing it is none of the agent's."""
    with structlog.testing.capture_logs() as entries:
        yield entries


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path, ("a", "b", "c"))
    yield node
    for agent in node.started:
        agent.close()


def settled(agent: Agent) -> dict[str, tuple[bool, int | None]]:
    return {
        worker.pod: (device.applied, device.observed.vram_limit_bytes)
        for worker in agent.state().workers
        for device in worker.devices
    }


WANTED = {"a": (True, 20 * GIB), "b": (True, 40 * GIB), "c": (True, 20 * GIB)}


def test_after_a_kill_at_any_step_of_an_apply_the_next_agent_has_one_of_the_two_documents_in_force(
    tmp_path: Path,
) -> None:
    for stop_at in range(1000):
        node = Node(tmp_path / str(stop_at), ("a", "b", "c"))
        agent = node.start()
        node.tick(agent)
        assert isinstance(agent.put(BEFORE, node.at), QuotaStatus)
        with stopping(Steps(node.check, stop_at)) as steps:
            agent.put(AFTER, node.at)
        node.check()
        node.kill(agent)
        agent = node.start()
        with stopping(Steps(node.check, NEVER)):
            node.tick(agent)
            node.tick(agent)
        generation = agent.state().generation
        assert generation in {1, 2}
        if generation == 1:
            assert settled(agent)["a"] == (True, 55 * GIB)
        assert isinstance(agent.put(AFTER, node.at), QuotaStatus)
        assert settled(agent) == WANTED, stop_at
        node.kill(agent)
        if not steps.was_stopped:
            break
    assert stop_at > 20


def test_a_kill_at_any_step_of_the_first_tick_leaves_files_that_the_next_agent_takes_up(tmp_path: Path) -> None:
    for stop_at in range(1000):
        node = Node(tmp_path / str(stop_at), ("a", "b"))
        told = node.start()
        node.tick(told)
        told.put(document(1, Asked("a", 20, 40), Asked("b", 5, 25)), node.at)
        node.kill(told)
        for name in node.names:
            node.file(name).unlink()
        first = node.start()
        with stopping(Steps(node.check, stop_at)) as steps:
            node.tick(first)
        node.kill(first)
        agent = node.start()
        node.tick(agent)
        node.tick(agent)
        node.check()
        known = settled(agent)
        # A file that was made and not yet noted as ours is watched for a moment before it is kept.
        assert all(applied or "watched" in reason(agent, name) for name, (applied, _) in known.items()), stop_at
        node.kill(agent)
        if not steps.was_stopped:
            break
    assert stop_at > 15


def reason(agent: Agent, name: str) -> str:
    return next(one.devices[0].reason for one in agent.state().workers if one.pod == name)


def test_a_disk_that_is_full_from_any_write_on_refuses_the_document_or_has_it_in_force(tmp_path: Path) -> None:
    for stop_at in range(1000):
        node = Node(tmp_path / str(stop_at), ("a", "b", "c"))
        agent = node.start()
        node.tick(agent)
        agent.put(BEFORE, node.at)
        with stopping(Steps(node.check, stop_at, no_space, writes_only=True)) as steps:
            answer = agent.put(AFTER, node.at)
        node.check()
        if isinstance(answer, Refusal):
            assert answer.error == "NotStored"
            assert settled(agent)["a"] == (True, 55 * GIB)
        node.tick(agent)
        node.check()
        assert isinstance(agent.put(AFTER, node.at), QuotaStatus)
        assert settled(agent) == WANTED, stop_at
        node.kill(agent)
        if not steps.was_stopped:
            break
    assert stop_at >= 5


@pytest.mark.parametrize("name", [CURRENT_NAME, OWNED_NAME])
def test_a_state_file_that_is_torn_or_changed_at_any_byte_starts_an_agent_that_takes_documents(
    node: Node, name: str
) -> None:
    agent = node.start()
    node.tick(agent)
    agent.put(BEFORE, node.at)
    node.kill(agent)
    path = node.root / "state" / name
    whole = path.read_bytes()
    # Every place is tried where the files are read; here the agent lives with what is left.
    for place in range(0, len(whole), 29):
        for damaged in (whole[:place], whole[:place] + b"\xff" + whole[place + 1 :]):
            path.write_bytes(damaged)
            agent = node.start()
            node.tick(agent)
            node.check()
            if name == CURRENT_NAME:
                # The one document is gone with its file: limits stay in the files, and nothing is invented.
                assert node.limits()["a"] == 55 * GIB
                assert agent.state().generation == 0
            assert isinstance(agent.put(AFTER, node.at), QuotaStatus)
            node.check()
            node.kill(agent)
            for left in path.parent.iterdir():
                left.unlink()
            for one in node.names:
                put_limit(node, one, {"a": 55 * GIB, "b": 25 * GIB}.get(one, UNLIMITED_BYTES))


def put_limit(node: Node, name: str, limit: int) -> None:
    with open_state(node.file(name)) as file:
        slots_of(file)[GPU.lower()].put_u64(MEM_LIMIT, limit)
        # Long silent, so that whoever comes keeps it at once.
        file.u64(HEARTBEAT).value = 0


@pytest.mark.parametrize("jump", [3600.0, -3600.0, -3600.5, 0.0])
def test_a_clock_that_is_set_moves_no_limit_and_no_credit(node: Node, jump: float) -> None:
    crowd = document(
        1, Asked("a", 20, 60, 200.0, QoS.LOW), Asked("b", 20, 60, 200.0, QoS.MEDIUM), Asked("c", 5, 20, qos=QoS.HIGH)
    )
    agent = node.start()
    node.tick(agent)
    agent.put(crowd, node.at)
    node.uses = {"a": (0.02, 10 * GIB), "b": (0.3, 30 * GIB), "c": (0.1, 5 * GIB)}
    for _ in range(5):
        node.tick(agent)
    before, saved = node.limits(), dict(agent._lending.credits())
    node.tick(agent, jump)
    node.check()
    assert node.limits() == before
    after = agent._lending.credits()
    assert after.keys() == saved.keys() != set()
    # One tick's worth at most, in TFLOP-seconds: a jump tells nothing about what was used in it.
    assert all(abs(after[key] - saved[key]) <= 320 for key in saved)
    for _ in range(3):
        node.tick(agent)
        node.check()


def test_after_the_clock_was_set_back_an_idle_workers_memory_is_lent_as_soon_as_ever(node: Node) -> None:
    agent = node.start()
    node.tick(agent)
    agent.put(document(1, Asked("a", 10, 60, qos=QoS.LOW), Asked("b", 10, 60, qos=QoS.LOW)), node.at)
    node.uses = {"a": (0.3, 5 * GIB), "b": (0.3, 30 * GIB)}
    node.tick(agent)
    assert node.limits() == {"a": 40 * GIB, "b": 40 * GIB}
    node.tick(agent, -3600.0)
    node.uses = {"a": (0.0, 5 * GIB), "b": (0.3, 30 * GIB)}
    for _ in range(12):
        node.tick(agent, 10.0)
        node.check()
    # Idle, it keeps six tenths of its limit, for what its next step may need.
    assert node.limits() == {"a": 36 * GIB, "b": 44 * GIB}


def test_a_driver_that_goes_away_leaves_everything_in_force_and_only_that_error(node: Node) -> None:
    agent = node.start()
    node.tick(agent)
    agent.put(BEFORE, node.at)
    before = node.limits()
    node.unreadable = True
    for _ in range(3):
        with pytest.raises(SourceError):
            node.tick(agent)
    assert node.limits() == before
    assert isinstance(agent.put(AFTER, node.at), QuotaStatus)
    node.unreadable = False
    node.tick(agent)
    assert settled(agent) == WANTED


def spoil_limit(path: Path) -> None:
    with open_state(path) as file:
        slots_of(file)[GPU.lower()].put_u64(MEM_LIMIT, 79 * GIB)


def spoil_share(path: Path) -> None:
    with open_state(path) as file:
        slots_of(file)[GPU.lower()].put_u32(UP_LIMIT, 100)


def spoil_name(path: Path) -> None:
    with open_state(path) as file:
        slots_of(file)[GPU.lower()].put_name(b"GPU-mine".ljust(64, b"\0"))


def spoil_slot(path: Path) -> None:
    with open_state(path) as file:
        slots_of(file)[GPU.lower()].put_u32(IS_ACTIVE, 0)


def spoil_tokens(path: Path) -> None:
    with open_state(path) as file:
        slots_of(file)[GPU.lower()].put_f64(TOKENS, float("nan"))


def add_tokens(path: Path) -> None:
    with open_state(path) as file:
        slots_of(file)[GPU.lower()].put_f64(TOKENS, 1e18)


@pytest.mark.parametrize("spoil", [spoil_limit, spoil_share, spoil_name, spoil_slot, spoil_tokens, add_tokens])
def test_what_a_tenant_writes_into_its_file_is_noticed_told_and_put_right(
    node: Node, logged: list[Any], spoil: Any
) -> None:
    agent = node.start()
    node.tick(agent)
    agent.put(BEFORE, node.at)
    actuator = actuator_of(agent)
    actuator.keep()
    spoil(node.file("a"))
    actuator.keep()
    node.tick(agent)
    assert actuator.restored() >= 1
    assert any(entry["event"] == "limits_restored" for entry in logged)
    assert node.limits() == {"a": 55 * GIB, "b": 25 * GIB}
    with open_state(node.file("a")) as file:
        slot = slots_of(file)[GPU.lower()]
        assert slot.u32(UP_LIMIT) == 16
        assert 0.0 <= slot.f64(TOKENS) <= slot.f64(REFILL_RATE) * 0.5 + 20.0
        del slot


def test_tokens_that_were_forged_far_below_nothing_teach_no_price(node: Node) -> None:
    agent = node.start()
    node.tick(agent)
    agent.put(BEFORE, node.at)
    actuator = actuator_of(agent)
    node.uses = {"a": (0.5, GIB)}
    for _ in range(5):
        actuator.keep()
        with open_state(node.file("a")) as file:
            slots_of(file)[GPU.lower()].put_f64(TOKENS, -1e300)
        actuator.keep()
        node.tick(agent)
    with open_state(node.file("a")) as file:
        slot = slots_of(file)[GPU.lower()]
        # What a dearest launch overdraws, over and over, is the most that can be made to look taken.
        assert slot.f64(REFILL_RATE) < 20_000.0
        del slot


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(0)


def grow(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(SIZE + 1)


def remove(path: Path) -> None:
    path.unlink()


def turn_into_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_elsewhere(path: Path) -> None:
    path.rename(path.with_name("mine"))
    path.symlink_to("mine")


def exchange(path: Path) -> None:
    path.unlink()
    create_state(path, {0: "GPU-other"}, 0.0)


@pytest.mark.parametrize("vandal", [cut, grow, remove, turn_into_a_folder, link_elsewhere, exchange])
def test_a_tenant_that_cuts_or_replaces_its_file_loses_its_own_limits_only(node: Node, vandal: Any) -> None:
    agent = node.start()
    node.tick(agent)
    agent.put(BEFORE, node.at)
    actuator = actuator_of(agent)
    vandal(node.file("a"))
    for _ in range(8):
        actuator.keep()
        node.tick(agent)
        assert node.limits()["b"] == 25 * GIB
        node.check()
    state = {one.pod: one.devices[0] for one in agent.state().workers}
    assert state["b"].applied
    restored = node.limits().get("a") == 55 * GIB
    assert state["a"].applied == restored
    assert restored or state["a"].reason
    assert restored == (vandal in {remove, exchange}) or vandal is exchange
