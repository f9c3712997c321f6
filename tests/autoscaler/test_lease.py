"""Who leads: electors against a Lease that is kept as an API server keeps it, with its ways to fail; short terms."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from autoscaler.errors import LeadershipLostError
from autoscaler.kube.client import StatusError, UnreachableError
from autoscaler.kube.lease import LeaseElector, Terms
from autoscaler.ports import Leadership

DEADLINE_SECONDS = 30.0
TERMS = Terms("gpu-system", "tf-autoscaler", "a", duration_seconds=2, renew_deadline_seconds=1.2, retry_seconds=0.05)


@dataclass
class FixedClock:
    at: float = 1_800_000_000.0

    def now(self) -> float:
        return self.at


@dataclass
class LeaseServer:
    """One Lease behind the calls that an elector makes. `broken` makes every call fail, `requests` are what was asked."""

    lease: dict[str, Any] | None = None
    broken: Exception | None = None
    hanging: bool = False
    version: int = 0
    requests: list[tuple[str, Mapping[str, Any] | None]] = field(default_factory=list)

    async def request_once(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, content_type: str = ""
    ) -> dict[str, Any]:
        await asyncio.sleep(0)
        self.requests.append((method, body))
        if self.hanging:
            await asyncio.Event().wait()
        if self.broken is not None:
            raise self.broken
        if method == "POST":
            if self.lease is not None:
                raise StatusError(409, "already exists")
            assert body is not None
            return self._store({**body["spec"]})
        if self.lease is None:
            raise StatusError(404, "not found")
        if method == "PATCH":
            assert body is not None
            if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
                raise StatusError(409, "the object has been modified")
            merged = {**self.lease["spec"], **body["spec"]}
            return self._store({key: value for key, value in merged.items() if value is not None})
        return dict(self.lease)

    async def close(self) -> None:
        pass

    def _store(self, spec: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        self.lease = {"metadata": {"name": TERMS.name, "resourceVersion": str(self.version)}, "spec": spec}
        return dict(self.lease)

    @property
    def spec(self) -> dict[str, Any]:
        return self.lease["spec"] if self.lease is not None else {}

    def edit(self, **spec: Any) -> None:
        """Write as somebody else would."""
        self._store({**self.spec, **spec})


@dataclass
class Candidate:
    """An elector at work; `terms` are the terms that it led, `leads` whether it does."""

    elector: LeaseElector
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    terms: list[int] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)
    leads: bool = False
    ended: str = ""
    task: asyncio.Task[None] | None = None

    async def _work(self, term: int) -> None:
        self.terms.append(term)
        self.leads = True
        try:
            await self.stop.wait()
        finally:
            self.leads = False

    async def _run(self) -> None:
        try:
            await self.elector.lead(self._work, self.stop, lambda holder, error: self.seen.append((holder, error)))
        except LeadershipLostError as error:
            self.ended = str(error)

    def start(self) -> None:
        self.task = asyncio.create_task(self._run())


@asynccontextmanager
async def candidate(server: Any, name: str = "a", **changes: Any) -> AsyncIterator[Candidate]:
    clock = changes.pop("clock", FixedClock())
    terms = replace(TERMS, identity=name, **changes)
    made = Candidate(LeaseElector(server, terms, clock))
    made.start()
    try:
        yield made
    finally:
        made.stop.set()
        assert made.task is not None
        await asyncio.wait_for(made.task, DEADLINE_SECONDS)


async def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < end, "never came true"
        await asyncio.sleep(0.01)


async def test_the_first_creates_the_lease_and_renews_it() -> None:
    server = LeaseServer()
    async with candidate(server) as one:
        await until(lambda: one.leads and server.version >= 4)
        assert one.terms == [1]
        assert server.spec["holderIdentity"] == "a"
        assert server.spec["leaseTransitions"] == 1


async def test_times_are_written_with_all_six_digits() -> None:
    server = LeaseServer()
    async with candidate(server, clock=FixedClock(1_800_000_000.0)) as one:
        await until(lambda: one.leads)
        for key in ("renewTime", "acquireTime"):
            assert re.fullmatch(r"2027-01-15T08:00:00\.000000Z", server.spec[key])


async def test_one_leads_and_the_other_stands_by_and_says_who_leads() -> None:
    server = LeaseServer()
    async with candidate(server, "a") as first:
        await until(lambda: first.leads)
        async with candidate(server, "b") as second:
            await until(lambda: len(second.seen) > 3)
            assert not second.leads
            assert set(second.seen) == {("a", "")}


async def test_who_stops_gives_the_lease_back_and_the_next_one_does_not_wait_for_its_end() -> None:
    server = LeaseServer()
    async with candidate(server, "b", duration_seconds=3600) as second:
        await until(lambda: second.leads)
        async with candidate(server, "a", duration_seconds=3600) as first:
            await until(lambda: first.seen)
            second.stop.set()
            await until(lambda: first.leads)
            assert (second.terms, first.terms) == ([1], [2])


async def test_a_holder_that_is_silent_is_followed_after_its_own_duration_by_our_clock() -> None:
    server = LeaseServer()
    server.edit(
        holderIdentity="dead", renewTime="2099-01-01T00:00:00.000000Z", leaseDurationSeconds=1, leaseTransitions=7
    )
    began = time.monotonic()
    async with candidate(server) as one:
        await until(lambda: one.leads)
        assert time.monotonic() - began >= 1.0
        assert one.terms == [8]


async def test_a_holder_whose_clock_is_behind_keeps_the_lease_while_it_renews() -> None:
    server = LeaseServer()
    async with candidate(server, "late", clock=FixedClock(0.0), duration_seconds=2) as holder:
        clock = holder.elector._clock
        await until(lambda: holder.leads)
        async with candidate(server, "b") as other:
            end = time.monotonic() + 2 * TERMS.duration_seconds
            while time.monotonic() < end:
                assert isinstance(clock, FixedClock)
                clock.at += 1e-3  # it renews, decades ago
                assert not other.leads
                await asyncio.sleep(0.02)
            assert holder.leads


async def test_a_touch_of_the_lease_that_is_no_renewal_keeps_no_dead_holder_alive() -> None:
    server = LeaseServer()
    server.edit(holderIdentity="dead", renewTime="then", leaseDurationSeconds=1, leaseTransitions=1)
    async with candidate(server) as one:
        end = time.monotonic() + DEADLINE_SECONDS
        while not one.leads:
            assert time.monotonic() < end
            server.edit(comment="touched")
            await asyncio.sleep(0.06)


@pytest.mark.parametrize("how", [UnreachableError("refused"), StatusError(500, "broken"), StatusError(403, "denied")])
async def test_a_leader_that_cannot_renew_stops_before_others_may_lead(how: Exception) -> None:
    server = LeaseServer()
    async with candidate(server) as one:
        await until(lambda: one.leads)
        server.broken = how
        began = time.monotonic()
        await until(lambda: one.ended)
        assert not one.leads
        assert time.monotonic() - began < TERMS.duration_seconds + 2.0
        assert "was not renewed for" in one.ended


async def test_a_leader_whose_server_hangs_stops_too() -> None:
    server = LeaseServer()
    async with candidate(server) as one:
        await until(lambda: one.leads)
        server.hanging = True
        await until(lambda: one.ended)
        assert not one.leads
        server.hanging = False


async def test_a_short_failure_ends_no_term() -> None:
    server = LeaseServer()
    async with candidate(server, renew_deadline_seconds=20.0, duration_seconds=30) as one:
        await until(lambda: one.leads)
        server.broken = UnreachableError("refused")
        asked = len(server.requests)
        await until(lambda: len(server.requests) > asked + 3)
        server.broken, version = None, server.version
        await until(lambda: server.version > version)
        assert (one.leads, one.terms) == (True, [1])


async def test_a_leader_that_finds_another_holder_stops_at_once_and_leaves_it_alone() -> None:
    server = LeaseServer()
    async with candidate(server) as one:
        await until(lambda: one.leads)
        server.edit(holderIdentity="b", leaseTransitions=2)
        await until(lambda: one.ended)
        assert "held by b" in one.ended
        assert server.spec["holderIdentity"] == "b"


async def test_a_lease_that_somebody_touched_is_renewed_all_the_same() -> None:
    server = LeaseServer()
    async with candidate(server) as one:
        await until(lambda: one.leads)
        server.edit(comment="looked at")
        version = server.version
        await until(lambda: server.version > version + 1)
        assert (one.leads, one.terms) == (True, [1])


async def test_a_lease_that_was_deleted_is_made_again_by_its_holder_in_the_same_term() -> None:
    server = LeaseServer()
    async with candidate(server) as one:
        await until(lambda: one.leads)
        server.lease = None
        await until(lambda: server.lease is not None)
        assert (one.leads, one.terms, server.spec["leaseTransitions"]) == (True, [1], 1)


async def test_whoever_stood_by_counts_on_from_a_deleted_lease() -> None:
    server = LeaseServer()
    server.edit(holderIdentity="other", renewTime="then", leaseDurationSeconds=3600, leaseTransitions=41)
    async with candidate(server) as one:
        await until(lambda: one.seen)
        server.lease = None
        await until(lambda: one.leads)
        assert one.terms == [42]


async def test_of_two_who_take_a_free_lease_at_the_same_time_one_leads() -> None:
    server = LeaseServer()
    server.edit(leaseTransitions=3)
    async with candidate(server, "a") as first, candidate(server, "b") as second:
        await until(lambda: first.leads or second.leads)
        await until(lambda: len(server.requests) > 20)
        assert sorted([first.terms, second.terms]) == [[], [4]]


async def test_standing_by_goes_on_while_the_server_is_away_and_says_what_is_wrong() -> None:
    server = LeaseServer(broken=UnreachableError("connection refused"))
    async with candidate(server) as one:
        await until(lambda: one.seen)
        assert one.seen[0] == ("", "connection refused")
        server.broken = None
        await until(lambda: one.leads)


async def test_work_that_fails_gives_the_lease_back_and_raises() -> None:
    server = LeaseServer()

    async def fail(_: int) -> None:
        raise ValueError("broken")

    elector = LeaseElector(server, TERMS, FixedClock())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="broken"):
        await elector.lead(fail, asyncio.Event(), lambda *_: None)
    assert "holderIdentity" not in server.spec


async def test_a_leader_whose_task_is_cancelled_stops_its_work_and_gives_the_lease_back() -> None:
    server = LeaseServer()
    async with candidate(server) as one:
        await until(lambda: one.leads)
        assert one.task is not None
        one.task.cancel()
        await asyncio.wait({one.task})
        assert not one.leads
        assert "holderIdentity" not in server.spec
        one.task = asyncio.create_task(asyncio.sleep(0))


async def test_a_leader_that_was_stopped_for_long_writes_nothing_before_it_knows_that_it_leads() -> None:
    server, skipped = LeaseServer(), 0.0

    def monotonic() -> float:
        return time.monotonic() + skipped

    one = Candidate(LeaseElector(server, TERMS, FixedClock(), monotonic))  # type: ignore[arg-type]
    one.start()
    await until(lambda: one.leads)
    await one.elector.confirm()
    server.hanging = True
    skipped = TERMS.renew_deadline_seconds + 0.1
    write = asyncio.create_task(one.elector.confirm())
    await asyncio.wait({write}, timeout=0.02)
    assert not write.done()
    server.hanging = False
    await asyncio.wait_for(write, DEADLINE_SECONDS)  # it still had the lease
    assert one.leads
    server.edit(holderIdentity="b", leaseTransitions=2)
    skipped *= 2
    with pytest.raises(LeadershipLostError):
        await one.elector.confirm()
    assert one.task is not None
    await one.task


async def test_the_fake_in_the_package_leads_when_granted_and_stops_when_deposed() -> None:
    from autoscaler.gateways.leadership_memory import MemoryLeadership

    fake = MemoryLeadership()
    ports: list[Leadership] = [fake]  # it is one
    one = Candidate(ports[0])  # type: ignore[arg-type]
    one.start()
    await until(lambda: one.seen)
    assert not one.leads
    fake.grant()
    await until(lambda: one.leads)
    await fake.confirm()
    fake.depose()
    await until(lambda: one.ended)
    with pytest.raises(LeadershipLostError):
        await fake.confirm()
    assert (one.leads, one.terms) == (False, [1])
