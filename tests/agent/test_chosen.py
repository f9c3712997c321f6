"""Several actuators as one backend: who serves which part of which worker, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from agent.enforce.actuator import BOTH, Part
from agent.enforce.backend import Capabilities
from agent.enforce.chosen import LOOK_SECONDS, ChosenBackend
from agent.model.applied import Applied
from agent.model.samples import Worker
from autoscaler.contract.keys import Effect
from autoscaler.contract.quota import DeviceQuota, Observed

GPU = "GPU-a"
ONE = Worker("uid-a", "chat", "a", "main", "load")
KEY = ("uid-a", "main", GPU)
QUOTA = DeviceQuota(GPU, 0.0, 30.0, 0, 500)


class Actuator:
    """Reaches what it is told to reach, and remembers what it was asked."""

    def __init__(self, name: str, compute: Effect = Effect.UNSUPPORTED, vram: Effect = Effect.UNSUPPORTED) -> None:
        self.name = name
        self.reached = Capabilities(compute, vram, "" if Effect.UNSUPPORTED not in {compute, vram} else f"no {name}")
        self.asked: list[frozenset[Part]] = []
        self.limits: dict[tuple[str, str, str], int] = {}
        self.turns = 0

    def probe(self) -> Capabilities:
        return self.reached

    def reach(self, worker: Worker, uuid: str) -> Capabilities:
        return self.reached

    def observe(self, worker: Worker, uuid: str) -> Observed:
        return Observed(tflops_limit=1.0, vram_limit_bytes=1)

    def apply(self, worker: Worker, quota: DeviceQuota, parts: frozenset[Part]) -> Applied:
        self.asked.append(parts)
        if Part.VRAM in parts:
            self.limits[KEY] = quota.vram_limit_bytes
        effect = self.reached.vram if Part.VRAM in parts else self.reached.compute
        return Applied(effect, Observed())

    def in_force(self) -> Mapping[tuple[str, str, str], int]:
        return self.limits

    def release(self, key: tuple[str, str, str]) -> None:
        self.limits.pop(key, None)

    def turn(self, now: float) -> None:
        self.turns += 1

    def restored(self) -> int:
        return 1

    def close(self) -> None:
        return


def chosen(compute: list[Actuator], vram: list[Actuator]) -> ChosenBackend:
    return ChosenBackend({Part.COMPUTE: compute, Part.VRAM: vram}, lambda _w, _u: Observed(None, None, 7.0, 70))


def test_one_actuator_that_serves_both_parts_is_asked_once() -> None:
    both = Actuator("both", Effect.IMMEDIATE, Effect.NEXT_ALLOC)
    backend = chosen([both], [both])
    applied = backend.apply(ONE, QUOTA)
    assert both.asked == [BOTH]
    assert (applied.effect, applied.reason, applied.in_force) == (Effect.NEXT_ALLOC, "", True)
    assert backend.serves(KEY) == "both"


def test_each_part_goes_to_the_first_that_reaches_the_worker() -> None:
    kernel, limiter = (
        Actuator("kernel", vram=Effect.NEXT_ALLOC),
        Actuator("limiter", Effect.IMMEDIATE, Effect.NEXT_ALLOC),
    )
    backend = chosen([limiter], [kernel, limiter])
    assert backend.apply(ONE, QUOTA).in_force
    assert (kernel.asked, limiter.asked) == ([frozenset({Part.VRAM})], [frozenset({Part.COMPUTE})])
    assert backend.serves(KEY) == "limiter+kernel"
    assert backend.in_force() == {KEY: 500}


def test_a_part_that_nobody_serves_makes_the_whole_unsupported_and_each_reason_is_told() -> None:
    kernel, limiter = Actuator("kernel", vram=Effect.NEXT_ALLOC), Actuator("limiter")
    applied = chosen([limiter], [kernel]).apply(ONE, QUOTA)
    assert (applied.effect, applied.in_force) == (Effect.UNSUPPORTED, False)
    assert applied.reason == "Unsupported: compute: limiter: no limiter"
    assert kernel.limits == {KEY: 500}


def test_a_worker_without_any_actuator_is_measured_only() -> None:
    backend = chosen([], [])
    applied = backend.apply(ONE, QUOTA)
    assert applied.observed == Observed(None, None, 7.0, 70)
    assert applied.reason.count("no backend is configured") == 2
    assert backend.serves(KEY) == "observe"


def test_the_slower_effect_of_two_actuators_counts() -> None:
    slow, quick = Actuator("mps", Effect.NEXT_PROCESS), Actuator("kernel", vram=Effect.NEXT_ALLOC)
    applied = chosen([slow], [quick]).apply(ONE, QUOTA)
    assert (applied.effect, applied.in_force) == (Effect.NEXT_PROCESS, False)


def test_an_actuator_that_turns_up_later_is_found_and_one_that_was_chosen_stays() -> None:
    first, second = Actuator("first"), Actuator("second", Effect.IMMEDIATE, Effect.NEXT_ALLOC)
    backend = chosen([first, second], [first, second])
    assert backend.serves(KEY) == "observe"
    backend.apply(ONE, QUOTA)
    first.reached = Capabilities(Effect.IMMEDIATE, Effect.NEXT_ALLOC)
    backend.apply(ONE, QUOTA)
    assert (first.asked, len(second.asked)) == ([], 2)
    second.reached = Capabilities(Effect.UNSUPPORTED, Effect.UNSUPPORTED)
    backend.release(KEY)
    backend.apply(ONE, QUOTA)
    assert len(first.asked) == 1


@pytest.mark.parametrize("count", [1, 3])
def test_every_actuator_turns_once_a_tick_however_many_parts_it_serves(count: int) -> None:
    both = Actuator("both", Effect.IMMEDIATE, Effect.NEXT_ALLOC)
    backend = chosen([both], [both])
    for _ in range(count):
        backend.turn(0.0)
    assert both.turns == count
    assert backend.restored() == 1


def test_a_node_can_do_what_its_best_actuator_can() -> None:
    found = chosen([Actuator("a"), Actuator("b", Effect.NEXT_PROCESS)], [Actuator("c", vram=Effect.NEXT_ALLOC)]).probe()
    assert (found.compute, found.vram) == (Effect.NEXT_PROCESS, Effect.NEXT_ALLOC)
    assert found.reason == "a: no a; b: no b; c: no c"


class Failing(Actuator):
    def apply(self, worker: Worker, quota: DeviceQuota, parts: frozenset[Part]) -> Applied:
        raise OSError(28, "No space left on device")

    def turn(self, now: float) -> None:
        raise OSError(5, "Input/output error")


def test_what_one_actuator_cannot_do_keeps_no_other_from_its_part() -> None:
    broken, limiter = Failing("kernel", vram=Effect.NEXT_ALLOC), Actuator("limiter", Effect.IMMEDIATE)
    backend = chosen([limiter], [broken])
    applied = backend.apply(ONE, QUOTA)
    assert limiter.asked == [frozenset({Part.COMPUTE})]
    assert "BackendFailed: kernel: [Errno 28] No space left on device" in applied.reason
    backend.turn(0.0)
    assert limiter.turns == 1


class Counting(Actuator):
    looks = 0

    def reach(self, worker: Worker, uuid: str) -> Capabilities:
        self.looks += 1
        return self.reached


def test_for_a_worker_out_of_reach_is_looked_now_and_then_and_at_once_when_it_is_to_be_limited() -> None:
    absent = Counting("absent")
    backend = chosen([absent], [])
    for tenth in range(int(LOOK_SECONDS * 10)):
        backend.turn(100.0 + tenth / 10)
        backend.observe(ONE, GPU)
    looks = absent.looks
    assert looks <= 2  # one before the clock was known
    backend.turn(100.0 + LOOK_SECONDS)
    backend.observe(ONE, GPU)
    assert absent.looks == looks + 1
    backend.apply(ONE, QUOTA)
    assert absent.looks == looks + 2


def test_an_actuator_that_is_asked_for_both_parts_is_asked_once_a_look() -> None:
    absent = Counting("absent")
    chosen([absent], [absent]).observe(ONE, GPU)
    assert absent.looks == 1


def test_looks_for_many_workers_that_came_at_once_are_spread() -> None:
    absent = Counting("absent")
    backend = chosen([absent], [])
    many = [Worker(f"uid-{number}", "chat", "a", "main", "load") for number in range(160)]
    looks = []
    for second in range(20):
        backend.turn(float(second))
        before = absent.looks
        for one in many:
            backend.observe(one, GPU)
            if second == 10:  # a document for all of them
                backend.apply(one, QUOTA)
        looks.append(absent.looks - before)
    assert looks[0] == 160
    assert looks[10] >= 160
    assert max(looks[1:10] + looks[11:]) <= 160 / 2
    assert sum(looks) - looks[10] <= 160 * 5


def test_an_actuator_that_lost_its_worker_is_looked_for_again_and_no_other_takes_its_place() -> None:
    class Losing(Counting):
        def apply(self, worker: Worker, quota: DeviceQuota, parts: frozenset[Part]) -> Applied:
            if self.reached.vram is Effect.UNSUPPORTED:
                return Applied(Effect.UNSUPPORTED, Observed(), "Unsupported: its file is spoilt")
            return super().apply(worker, quota, parts)

    limiter, other = (
        Losing("limiter", Effect.IMMEDIATE, Effect.NEXT_ALLOC),
        Counting("other", Effect.IMMEDIATE, Effect.NEXT_ALLOC),
    )
    backend = chosen([limiter, other], [limiter, other])
    assert backend.apply(ONE, QUOTA).in_force
    at_hand, limiter.reached = limiter.reached, Capabilities(Effect.UNSUPPORTED, Effect.UNSUPPORTED, "spoilt")
    assert backend.apply(ONE, QUOTA).effect is Effect.UNSUPPORTED
    assert backend.serves(KEY) == "observe"
    limiter.reached = at_hand
    backend.turn(LOOK_SECONDS)
    backend.observe(ONE, GPU)
    assert backend.serves(KEY) == "limiter"
    assert (other.looks, other.asked) == (0, [])


def test_who_is_held_back_is_told_by_those_who_can_tell() -> None:
    class Telling(Actuator):
        def throttled(self) -> Mapping[tuple[str, str, str], bool | None]:
            return {KEY: True}

    order = {Part.COMPUTE: [Telling("telling"), Actuator("silent")]}
    assert ChosenBackend(order, lambda _worker, _uuid: Observed()).throttled() == {KEY: True}
