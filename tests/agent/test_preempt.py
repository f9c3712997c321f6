"""Stopping somebody for a moment: who, for whom, how long, and that nobody stays frozen."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.enforce.freeze import Freezer
from agent.govern.pool import Share
from agent.govern.preempt import REST_SECONDS, STOP_SECONDS, Stop, Use, preempt
from agent.model.samples import Worker
from agent.run import tick_until
from autoscaler.contract.keys import QoS
from autoscaler.contract.quota import DeviceQuota

GPU = "GPU-a"
FULL = {GPU: (1.0, 100.0)}


def share(name: str, qos: QoS, request: float = 30.0) -> Share:
    quota = DeviceQuota(GPU, request, 100.0, 0, 0)
    return Share(Worker(name, "ns", name, "main", "load", qos), quota, quota)


def uses(**used: float) -> dict[tuple[str, str, str], Use]:
    return {(name, "main", GPU): Use(value, is_limited=False) for name, value in used.items()}


def stopped(stops: dict[tuple[str, str], Stop]) -> set[str]:
    return {name for (name, _), stop in stops.items() if stop.is_on}


CREW = [share("high", QoS.HIGH), share("low", QoS.LOW), share("medium", QoS.MEDIUM)]


def test_the_lowest_level_above_its_request_is_stopped_for_a_higher_one_below_its_guarantee() -> None:
    assert stopped(preempt({}, CREW, uses(high=10.0, low=40.0, medium=50.0), FULL, 0.0)) == {"low"}


@pytest.mark.parametrize(
    ("used", "busy"),
    [
        ({"high": 29.0, "low": 70.0}, FULL),
        ({"high": 0.0, "low": 90.0}, FULL),
        ({"high": 10.0, "low": 25.0, "medium": 20.0}, FULL),
        ({"high": 10.0, "low": 70.0}, {GPU: (0.8, 100.0)}),
        ({"high": 90.0, "low": 5.0}, FULL),
    ],
    ids=["has its guarantee", "does not work", "nobody is above", "the device has room", "only the lower is short"],
)
def test_otherwise_nobody_is_stopped(used: dict[str, float], busy: dict[str, tuple[float, float]]) -> None:
    assert stopped(preempt({}, CREW, uses(**used), busy, 0.0)) == set()


def test_who_is_held_by_a_limit_is_never_stopped() -> None:
    limited = uses(high=10.0, low=80.0) | {("low", "main", GPU): Use(80.0, is_limited=True)}
    assert preempt({}, CREW, limited, FULL, 0.0) == {}


def test_a_stop_is_short_and_followed_by_a_longer_rest() -> None:
    stops: dict[tuple[str, str], Stop] = {}
    crew, used = CREW[:2], uses(high=10.0, low=80.0)
    on = []
    for second in range(30):
        stops = preempt(stops, crew, used, FULL, float(second))
        on.append("low" in stopped(stops))
    runs = "".join("x" if one else "." for one in on)
    assert max(map(len, runs.split("."))) == STOP_SECONDS
    assert min(len(rest) for rest in runs.strip(".").split("x") if rest) >= REST_SECONDS


@given(
    st.lists(st.tuples(st.sampled_from(QoS), st.floats(0.0, 60.0), st.floats(0.0, 100.0)), max_size=6),
    st.integers(1, 20),
)
def test_high_and_critical_are_never_stopped_and_at_most_one_a_device(
    made: list[tuple[QoS, float, float]], seconds: int
) -> None:
    crew = [share(f"w{number}", qos, request) for number, (qos, request, _) in enumerate(made)]
    used = uses(**{f"w{number}": value for number, (_, _, value) in enumerate(made)})
    stops: dict[tuple[str, str], Stop] = {}
    for second in range(seconds):
        stops = preempt(stops, crew, used, FULL, float(second))
        assert len(stopped(stops)) <= 1
        assert all(one.worker.qos in {QoS.LOW, QoS.MEDIUM} for one in crew if one.worker.pod_uid in stopped(stops))


ONE, TWO = ("uid-a", "main"), ("uid-b", "main")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, _ in (ONE, TWO):
        (tmp_path / "cgroup" / name).mkdir(parents=True)
        (tmp_path / "cgroup" / name / "cgroup.freeze").write_text("0")
    return tmp_path / "cgroup"


def frozen(root: Path) -> set[str]:
    return {path.parent.name for path in root.glob("*/cgroup.freeze") if path.read_text() == "1"}


def test_exactly_the_wanted_are_frozen(root: Path, tmp_path: Path) -> None:
    freezer = Freezer(root, tmp_path / "state", lambda name: f"/{name[0]}")
    for wanted, names in ((frozenset({ONE}), {"uid-a"}), (frozenset({TWO}), {"uid-b"}), (frozenset(), set())):
        freezer.set(wanted)
        assert frozen(root) == names


def test_a_worker_of_unknown_cgroup_or_one_that_is_gone_is_left_running(root: Path, tmp_path: Path) -> None:
    freezer = Freezer(root, tmp_path / "state", lambda name: "" if name == ONE else "/nowhere")
    freezer.set(frozenset({ONE, TWO}))
    assert freezer.frozen == frozenset()
    assert frozen(root) == set()


class Hanging:
    """An agent whose first tick hangs, as in a driver that does not answer, until everybody is let go."""

    is_watching = False

    def __init__(self) -> None:
        self.let = threading.Event()
        self.ticks: list[bool] = []

    def tick(self, _now: float) -> None:
        self.ticks.append(self.let.wait(20.0))

    def let_go(self) -> None:
        self.let.set()

    def overran(self) -> None:
        pass


async def test_while_a_tick_hangs_nobody_stays_frozen() -> None:
    agent, stop = Hanging(), asyncio.Event()
    running = asyncio.create_task(tick_until(stop, agent, 0.05, 0.0, hanging_seconds=0.05))
    deadline = time.monotonic() + 20.0
    while len(agent.ticks) < 2 and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    stop.set()
    await running
    assert agent.ticks[:2] == [True, True]
