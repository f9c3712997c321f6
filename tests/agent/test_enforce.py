"""Backends, and the way from the limits in force to the governed ones: no memory is promised twice on it."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.enforce.actuator import Surroundings
from agent.enforce.backend import BackendError, Capabilities
from agent.enforce.observe import ObserveBackend
from agent.enforce.orders import COMPUTE_ORDER, VRAM_ORDER
from agent.enforce.registry import ACTUATORS, candidates
from agent.enforce.simulated import SimulatedBackend
from agent.enforce.transition import Enforcer
from agent.govern.pool import Claim, Room, Share, govern
from agent.model.applied import Applied
from agent.model.samples import Worker
from autoscaler.contract.keys import Effect, QoS
from autoscaler.contract.quota import DeviceQuota, Observed

GPU = "GPU-a"
TOTAL = 100


def worker(name: str, qos: QoS = QoS.MEDIUM) -> Worker:
    return Worker(name, "ns", f"pod-{name}", "main", "load", qos)


def quota(vram_limit: int, tflops_limit: float = 20.0, uuid: str = GPU) -> DeviceQuota:
    return DeviceQuota(uuid, 0.0, tflops_limit, 0, vram_limit)


def share(name: str, vram_limit: int, qos: QoS = QoS.MEDIUM, tflops_limit: float = 20.0) -> Share:
    wanted = quota(vram_limit, tflops_limit)
    return Share(worker(name, qos), wanted, wanted)


class Use:
    """Live use by worker name, steered by the test."""

    def __init__(self, **vram_bytes: int) -> None:
        self.vram_bytes = vram_bytes

    def __call__(self, one: Worker, uuid: str) -> Observed:
        return Observed(vram_used_bytes=self.vram_bytes.get(one.pod_uid))


class Audited(SimulatedBackend):
    """Checks the sum in force after every single call, and can be told to fail for a worker."""

    def __init__(self, live_use=None) -> None:
        super().__init__(live_use or Use())
        self.calls: list[tuple[str, int]] = []
        self.failing: set[str] = set()

    def apply(self, one: Worker, wanted: DeviceQuota) -> Applied:
        if one.pod_uid in self.failing:
            raise OSError(28, "No space left on device")
        applied = super().apply(one, wanted)
        self.calls.append((one.pod_uid, wanted.vram_limit_bytes))
        assert sum(self.in_force().values()) <= TOTAL
        return applied


def enforce(enforcer: Enforcer, *shares: Share):
    present = {(one.worker.pod_uid, one.worker.container) for one in shares}
    results = enforcer.enforce(shares, {GPU: TOTAL}, present)
    return {key[0]: applied for key, applied in results.items()}


def test_donors_shrink_before_receivers_grow():
    backend = Audited()
    enforcer = Enforcer(backend)
    enforce(enforcer, share("a", 70), share("b", 30))
    backend.calls.clear()
    results = enforce(enforcer, share("a", 20), share("b", 80))
    assert backend.calls == [("a", 20), ("b", 80)]
    assert all(applied.in_force for applied in results.values())


def test_grows_are_ordered_by_qos():
    backend = Audited()
    enforce(Enforcer(backend), share("a", 10, QoS.LOW), share("b", 10, QoS.CRITICAL), share("c", 10, QoS.HIGH))
    assert [name for name, _ in backend.calls] == ["b", "c", "a"]


def test_a_grow_is_held_while_its_donor_cannot_shrink_and_follows_when_it_can():
    use = Use(a=60)
    backend = Audited(use)
    enforcer = Enforcer(backend)
    enforce(enforcer, share("a", 70), share("b", 30))
    results = enforce(enforcer, share("a", 20), share("b", 80))
    assert results["a"].reason == "VRAMInUse: a limit of 20 bytes is below the 60 in use"
    assert results["b"].reason == "VRAMHeld: 30 of 80 bytes; other workers still hold 70"
    assert not results["a"].in_force
    assert not results["b"].in_force
    use.vram_bytes["a"] = 10
    results = enforce(enforcer, share("a", 20), share("b", 80))
    assert [applied.reason for applied in results.values()] == ["", ""]
    assert backend.in_force() == {("a", "main", GPU): 20, ("b", "main", GPU): 80}


def test_a_failing_backend_call_is_the_reason_of_its_own_worker_only():
    backend = Audited()
    backend.failing = {"a"}
    results = enforce(Enforcer(backend), share("a", 10), share("b", 10))
    assert results["a"].reason == "BackendFailed: simulated: [Errno 28] No space left on device"
    assert not results["a"].in_force
    assert results["b"].in_force


def test_what_stands_is_not_applied_again_but_what_was_changed_from_outside_is():
    backend = Audited()
    enforcer = Enforcer(backend)
    enforce(enforcer, share("a", 10))
    enforce(enforcer, share("a", 10))
    assert len(backend.calls) == 1
    SimulatedBackend.apply(backend, worker("a"), quota(55))
    enforce(enforcer, share("a", 10))
    assert backend.in_force() == {("a", "main", GPU): 10}


def test_a_device_without_data_is_left_as_it_is():
    backend = Audited()
    enforcer = Enforcer(backend)
    enforce(enforcer, share("a", 10))
    results = enforcer.enforce((share("a", 50),), {}, {("a", "main")})
    assert results["a", "main", GPU].reason.startswith("DeviceUnavailable: ")
    assert backend.in_force() == {("a", "main", GPU): 10}


def test_a_worker_that_runs_on_without_a_share_keeps_its_limit_and_it_counts():
    backend = Audited()
    enforcer = Enforcer(backend)
    enforce(enforcer, share("a", 70), share("b", 30))
    results = enforcer.enforce([share("b", 80)], {GPU: TOTAL}, {("a", "main"), ("b", "main")})
    assert backend.in_force() == {("a", "main", GPU): 70, ("b", "main", GPU): 30}
    assert results["b", "main", GPU].reason.startswith("VRAMHeld")


def test_limits_of_a_vanished_worker_are_released_before_others_grow():
    backend = Audited()
    enforcer = Enforcer(backend)
    enforce(enforcer, share("a", 70), share("b", 30))
    assert enforce(enforcer, share("b", 100))["b"].in_force
    assert backend.in_force() == {("b", "main", GPU): 100}


def test_a_worker_that_runs_on_without_a_share_is_released_when_it_leaves():
    backend = Audited()
    enforcer = Enforcer(backend)
    enforce(enforcer, share("a", 70), share("b", 30))
    both = {("a", "main"), ("b", "main")}
    for present, held in ((both, {"a", "b"}), (both, {"a", "b"}), ({("b", "main")}, {"b"})):
        enforcer.enforce([share("b", 30)], {GPU: TOTAL}, present)
        assert {key[0] for key in backend.in_force()} == held


def test_a_release_that_failed_is_tried_again_although_nothing_changed():
    class Stubborn(Audited):
        refusals = 2

        def release(self, key):
            if self.refusals:
                self.refusals -= 1
                raise OSError(5, "Input/output error")
            super().release(key)

    backend = Stubborn()
    enforcer = Enforcer(backend)
    enforce(enforcer, share("a", 70), share("b", 30))
    for held in ({"a", "b"}, {"a", "b"}, {"b"}):
        enforce(enforcer, share("b", 30))
        assert {key[0] for key in backend.in_force()} == held


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.sampled_from(QoS)), max_size=4), max_size=6),
    st.data(),
)
def test_through_any_sequence_of_quotas_and_uses_the_sum_in_force_never_passes_the_device(steps, data):
    use = Use()
    backend = Audited(use)
    enforcer = Enforcer(backend)
    for step in steps:
        for name in list(use.vram_bytes):
            limit = backend.in_force().get((name, "main", GPU), 0)
            use.vram_bytes[name] = data.draw(st.integers(0, limit))
        wanted = [
            Claim(
                worker(f"w{number}", qos),
                DeviceQuota(GPU, 0.0, 1.0, request, request + more),
                use.vram_bytes.get(f"w{number}"),
            )
            for number, (request, more, qos) in enumerate(step)
        ]
        enforce(enforcer, *govern(wanted, {GPU: Room(TOTAL)}))
        use.vram_bytes = {one.worker.pod_uid: use.vram_bytes.get(one.worker.pod_uid, 0) for one in wanted}
        assert sum(backend.in_force().values()) <= TOTAL


def test_observe_reports_use_and_calls_nothing_applied():
    backend = ObserveBackend(Use(a=7))
    applied = backend.apply(worker("a"), quota(10))
    assert applied.effect is Effect.UNSUPPORTED
    assert not applied.in_force
    assert applied.observed == Observed(vram_used_bytes=7)
    assert backend.observe(worker("a"), GPU).vram_limit_bytes is None


def test_an_unsupported_quota_is_tried_once_not_each_tick():
    enforcer = Enforcer(ObserveBackend(Use()))
    for _ in range(3):
        assert not enforce(enforcer, share("a", 10))["a"].in_force
    assert len(enforcer.take_attempts()) == 1


def test_a_refusal_that_is_tried_again_each_tick_is_told_once():
    use = Use(a=60)
    enforcer = Enforcer(Audited(use))
    enforce(enforcer, share("a", 70))
    for _ in range(3):
        assert enforce(enforcer, share("a", 20))["a"].reason
    assert [applied.reason[:9] for applied in enforcer.take_attempts()] == ["", "VRAMInUse"]
    use.vram_bytes["a"] = 0
    enforce(enforcer, share("a", 20))
    assert [applied.in_force for applied in enforcer.take_attempts()] == [True]


def test_the_files_of_simulated_workers_carry_the_limits_and_outlive_the_agent(tmp_path):
    backend = SimulatedBackend(Use(), tmp_path)
    backend.probe()
    backend.apply(worker("uid-1"), quota(12345, 7.5))
    content = msgspec.json.decode((tmp_path / f"uid-1_main_{GPU}.json").read_bytes())
    assert (content["tflops_limit"], content["vram_limit_bytes"]) == (7.5, 12345)
    again = SimulatedBackend(Use(), tmp_path)
    assert again.probe() == Capabilities(Effect.IMMEDIATE, Effect.IMMEDIATE)
    assert again.observe(worker("uid-1"), GPU) == Observed(7.5, 12345)
    again.release(("uid-1", "main", GPU))
    assert list(tmp_path.iterdir()) == []


def test_limits_left_by_an_earlier_run_count_until_their_worker_is_known_to_be_gone(tmp_path):
    before = SimulatedBackend(Use(), tmp_path)
    before.probe()
    before.apply(worker("old"), quota(70))
    enforcer = Enforcer(SimulatedBackend(Use(), tmp_path))
    held = enforcer.enforce((share("new", 80),), {GPU: TOTAL}, {("old", "main"), ("new", "main")})
    assert held["new", "main", GPU].reason == "VRAMHeld: 30 of 80 bytes; other workers still hold 70"
    free = enforcer.enforce((share("new", 80),), {GPU: TOTAL}, {("new", "main")})
    assert free["new", "main", GPU].in_force


@given(st.text(min_size=1, max_size=6), st.text(max_size=6), st.text(min_size=1, max_size=6))
def test_any_name_makes_one_file_inside_the_directory_and_is_read_back(tmp_path_factory, uid, container, uuid):
    directory = tmp_path_factory.mktemp("limits")
    backend = SimulatedBackend(Use(), directory)
    backend.probe()
    backend.apply(Worker(uid, "ns", "pod", container, "load"), quota(5, uuid=uuid))
    assert len(list(directory.iterdir())) == 1
    again = SimulatedBackend(Use(), directory)
    again.probe()
    assert again.in_force() == {(uid, container, uuid): 5}


def test_a_shrink_below_use_goes_through_only_when_it_is_allowed():
    backend = SimulatedBackend(Use(a=50), shrink_below_use=True)
    assert backend.apply(worker("a"), quota(10)).in_force
    assert backend.limits_of(worker("a"), GPU).vram_limit_bytes == 10


def test_a_refused_vram_shrink_still_changes_the_compute_limit():
    use = Use(a=10)
    backend = SimulatedBackend(use)
    backend.apply(worker("a"), quota(60, 20.0))
    use.vram_bytes["a"] = 50
    applied = backend.apply(worker("a"), quota(40, 5.0))
    assert applied.reason
    assert applied.observed == Observed(5.0, 60, None, 50)


def test_a_directory_that_cannot_be_read_is_said_at_the_start(tmp_path):
    (tmp_path / "a_b_c.json").write_text("{torn")
    with pytest.raises(BackendError, match=str(tmp_path)):
        SimulatedBackend(Use(), tmp_path).probe()


def test_everything_is_made_under_the_name_it_is_chosen_by(tmp_path):
    around = Surroundings(Use(), {}.get, {}.get, tmp_path)
    assert {name: one.name for name, one in candidates(around).items()} == {name: name for name in candidates(around)}
    assert set(COMPUTE_ORDER) | set(VRAM_ORDER) == set(ACTUATORS)
