"""Sending what a pass has to tell: many objects at a time, and what the cluster refuses only once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog

from autoscaler.errors import ClusterError, InvalidError, LeadershipLostError
from autoscaler.model.steps import ClusterWrite, Emit, WriteStatus
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import ClusterView, ObjectRef
from autoscaler.report.outbox import CONCURRENT_WRITES, Outbox


def ref(number: int, uid: str = "") -> ObjectRef:
    name = f"load-{number}"
    return ObjectRef("tensor-fusion.ai/v1", "TensorFusionWorkload", "lab", name, uid or f"uid-{number}")


def key(number: int) -> WorkloadKey:
    return WorkloadKey("lab", f"load-{number}")


def status(workers: int, at: str = "2026-01-01T00:00:00Z") -> dict[str, Any]:
    return {"workerCount": workers, "autoscaling": {"lastEvaluationTime": at}}


@dataclass
class SlowCluster:
    """Writes that take a turn of the loop; `judge` may raise."""

    judge: Callable[[ClusterWrite], None] = lambda _: None
    written: list[ClusterWrite] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0

    async def write(self, write: ClusterWrite) -> None:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        for _ in range(3):
            await asyncio.sleep(0)
        self.under_way -= 1
        self.written.append(write)
        self.judge(write)

    async def read(self) -> ClusterView:
        return ClusterView()

    async def close(self) -> None:
        pass


async def send(outbox: Outbox, cluster: SlowCluster, *letters: tuple[int, list[ClusterWrite]]) -> None:
    async with outbox.open(cluster) as put:
        for number, writes in letters:
            await put(key(number), writes)


async def test_many_objects_are_written_at_a_time_and_not_too_many() -> None:
    cluster = SlowCluster()
    await send(Outbox(), cluster, *((number, [WriteStatus(ref(number), status(1))]) for number in range(200)))
    assert len(cluster.written) == 200
    assert cluster.most_under_way == CONCURRENT_WRITES


async def test_what_is_told_about_one_object_keeps_its_order() -> None:
    cluster = SlowCluster()
    story: list[ClusterWrite] = [WriteStatus(ref(1), status(1)), *(Emit(ref(1), "Scaled", str(n)) for n in range(5))]
    await send(Outbox(), cluster, (0, [WriteStatus(ref(0), status(1))]), (1, story))
    assert [write for write in cluster.written if write.ref == ref(1)] == story  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "error", [ClusterError("busy"), InvalidError("no"), LeadershipLostError("another leads"), KeyError()]
)
async def test_a_write_that_fails_stops_nothing_else(error: Exception) -> None:
    def judge(write: ClusterWrite) -> None:
        if write == WriteStatus(ref(3), status(1)):
            raise error

    cluster = SlowCluster(judge)
    event = Emit(ref(3), "Scaled", "1")
    await send(Outbox(), cluster, *((n, [WriteStatus(ref(n), status(1))]) for n in range(10)), (3, [event]))
    assert len(cluster.written) == 11


class Refusing(SlowCluster):
    """Refuses the statuses that tell of `bad` workers."""

    def __init__(self, bad: int = 2) -> None:
        super().__init__(self._refuse)
        self.bad = bad

    def _refuse(self, write: ClusterWrite) -> None:
        if isinstance(write, WriteStatus) and write.status["workerCount"] == self.bad:
            raise InvalidError("the API server answered 422: status.workerCount: Invalid value")


async def test_a_refused_status_is_told_once_and_not_sent_again_while_it_says_the_same() -> None:
    outbox, cluster = Outbox(), Refusing()
    with structlog.testing.capture_logs() as logs:
        for minute in range(5):
            await send(outbox, cluster, (1, [WriteStatus(ref(1), status(2, f"2026-01-01T00:0{minute}:00Z"))]))
    assert len(cluster.written) == 1
    assert [entry["event"] for entry in logs] == ["refused"]
    assert "workerCount" in logs[0]["error"]


async def test_a_refused_status_is_sent_again_once_it_says_another_thing() -> None:
    outbox, cluster = Outbox(), Refusing()
    for workers in (2, 2, 3, 2, 2):
        await send(outbox, cluster, (1, [WriteStatus(ref(1), status(workers))]))
    told = [write.status["workerCount"] for write in cluster.written if isinstance(write, WriteStatus)]
    assert told == [2, 3, 2]


async def test_a_refusal_of_one_object_says_nothing_of_another_or_of_a_namesake() -> None:
    outbox, cluster = Outbox(), Refusing()
    await send(outbox, cluster, (1, [WriteStatus(ref(1), status(2))]))
    await send(outbox, cluster, (2, [WriteStatus(ref(2), status(2))]), (1, [WriteStatus(ref(1, "new"), status(2))]))
    assert len(cluster.written) == 3


async def test_what_only_failed_is_sent_again() -> None:
    outbox, fails = Outbox(), [ClusterError("busy")]

    def judge(_: ClusterWrite) -> None:
        if fails:
            raise fails.pop()

    cluster = SlowCluster(judge)
    for _ in range(2):
        await send(outbox, cluster, (1, [WriteStatus(ref(1), status(1))]))
    assert len(cluster.written) == 2
    assert not outbox.has_refused(ref(1), status(1))
