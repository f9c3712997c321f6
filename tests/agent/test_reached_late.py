"""Limiters that come later than their quotas, or come back: they are found, and what was asked for is put into force."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from agent.enforce.chosen import LOOK_SECONDS
from agent.enforce.tfshm_layout import create_state
from agent.loop import Agent
from autoscaler.contract.quota import DeviceStatus
from tests.agent.faulty import GIB, GPU, Asked, Node, document

SOON = int(LOOK_SECONDS) + 1


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path, ("a", "b"))
    yield node
    for agent in node.started:
        agent.close()


def told(node: Node) -> Agent:
    agent = node.start()
    node.tick(agent)
    agent.put(document(1, Asked("a", 10, 20), Asked("b", 5, 25)), node.at)
    return agent


def device(agent: Agent, name: str) -> DeviceStatus:
    return next(one.devices[0] for one in agent.state().workers if one.pod == name)


def test_a_limiter_that_comes_later_than_its_quota_is_held_to_it_within_seconds(node: Node) -> None:
    shutil.rmtree(node.file("a").parent)
    agent = told(node)
    node.tick(agent)
    assert not device(agent, "a").applied
    assert "no limiter's folder" in device(agent, "a").reason

    node.file("a").parent.mkdir()
    for _ in range(SOON):
        node.tick(agent)

    assert (device(agent, "a").applied, node.limits()) == (True, {"a": 20 * GIB, "b": 25 * GIB})


def test_a_file_that_was_spoilt_and_made_anew_by_its_limiter_is_held_to_the_quota_again(node: Node) -> None:
    agent = told(node)
    os.truncate(node.file("a"), 0)
    node.tick(agent)
    assert not device(agent, "a").applied
    assert "0 bytes" in device(agent, "a").reason

    node.file("a").unlink()
    create_state(node.file("a"), {0: GPU}, 0.0)
    for _ in range(SOON):
        node.tick(agent)

    assert (device(agent, "a").applied, node.limits()["a"]) == (True, 20 * GIB)


def test_while_a_limiter_stays_away_its_quota_is_refused_once_and_not_at_each_look(node: Node) -> None:
    shutil.rmtree(node.file("a").parent)
    agent = told(node)
    with structlog.testing.capture_logs() as logged:
        for _ in range(4 * SOON):
            node.tick(agent)
    assert not [entry for entry in logged if entry["event"] == "quota_not_in_force"]


def test_a_file_that_was_replaced_is_noticed_in_the_tick_of_the_next_second(node: Node) -> None:
    agent = told(node)
    node.tick(agent)
    path = node.file("a")
    path.rename(path.with_name("old"))
    create_state(path, {0: GPU}, 0.0)
    for _ in range(2):
        node.tick(agent, 0.5)
    assert (device(agent, "a").applied, node.limits()["a"]) == (True, 20 * GIB)
