"""Effective limits: worked numbers, and what must hold for any claims on any device."""

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.govern.pool import Claim, Pool, Room, govern, lay_out, rooms, within_limits
from agent.govern.pool import claims as claims_of
from agent.model.applied import Applied
from agent.model.samples import Attribution, DeviceSample, NodeSample, Worker, WorkerUse
from autoscaler.contract.keys import Effect, QoS
from autoscaler.contract.quota import DeviceQuota, Observed, QuotaDocument, WorkerQuota

GPU = "GPU-a"


def worker(name: str, qos: QoS = QoS.MEDIUM, born: DeviceQuota | None = None, container: str = "main") -> Worker:
    return Worker(name, "ns", f"pod-{name}", container, "load", qos, born)


def claim(name: str, request: int, limit: int, used: int | None = 0, qos: QoS = QoS.MEDIUM) -> Claim:
    return Claim(worker(name, qos), DeviceQuota(GPU, 10.0, 20.0, request, limit), used)


def vram(shares) -> list[int]:
    return [share.effective.vram_limit_bytes for share in shares]


def test_a_device_with_room_gives_everyone_the_limit():
    shares = govern([claim("a", 10, 40), claim("b", 10, 60)], {GPU: Room(100)})
    assert vram(shares) == [40, 60]
    assert [share.reason for share in shares] == ["", ""]


def test_what_is_left_over_the_requests_goes_to_critical_first():
    shares = govern([claim("a", 20, 90, qos=QoS.LOW), claim("b", 20, 90, qos=QoS.CRITICAL)], {GPU: Room(100)})
    assert vram(shares) == [20, 80]


def test_inside_a_level_the_surplus_over_the_request_is_equal():
    # 100 - (10 + 30 + 10) = 50 to lend; a and b rise alike until c's small limit leaves more for both.
    shares = govern([claim("a", 10, 90), claim("b", 30, 90), claim("c", 10, 14)], {GPU: Room(100)})
    assert vram(shares) == [33, 53, 14]


def test_memory_in_use_stays_even_when_the_limit_shrank_below_it():
    shares = govern([claim("a", 10, 20, used=50), claim("b", 10, 60)], {GPU: Room(100)})
    assert vram(shares) == [50, 50]
    assert shares[0].reason.startswith("VRAMInUse: ")


TICKS = st.lists(
    st.tuples(
        st.lists(
            st.tuples(
                st.sampled_from("abc"), st.sampled_from(["GPU-a", "GPU-b"]), st.integers(0, 3), st.integers(3, 9)
            ),
            unique_by=lambda drawn: drawn[:2],
        ),
        st.dictionaries(st.sampled_from(["GPU-a", "GPU-b"]), st.builds(Room, st.integers(10, 12), st.integers(0, 1))),
    ),
    min_size=2,
    max_size=5,
)


@given(TICKS)
def test_what_is_kept_of_devices_where_nothing_moved_is_what_would_be_found_anew(ticks):
    pool = Pool()
    for drawn, room_of in ticks:
        wanted = [
            Claim(worker(name), DeviceQuota(uuid, 1.0, 2.0, used, limit), used) for name, uuid, used, limit in drawn
        ]
        assert pool.govern(wanted, room_of) == govern(wanted, room_of)


def test_a_device_where_nothing_moved_keeps_its_shares():
    other = DeviceQuota("GPU-b", 10.0, 20.0, 5, 9)
    room_of, pool = {GPU: Room(100), "GPU-b": Room(100)}, Pool()
    first = pool.govern([claim("a", 10, 40), Claim(worker("b"), other, 1)], room_of)
    second = pool.govern([claim("a", 10, 40), Claim(worker("b"), other, 2)], room_of)
    assert second[0] is first[0]
    assert second[1] is not first[1]


def held(claim: Claim, in_force: int | None, *, known: bool) -> int | None:
    """Return what counts as held by a worker under a limit that its agent has put into force, or finds there."""
    observed = Observed(vram_limit_bytes=in_force)
    applied = {("a", "main", GPU): Applied(Effect.NEXT_ALLOC, observed)} if known else {}
    (found,) = within_limits((claim,), applied, lambda _worker, _uuid: Observed() if known else observed)
    return found.vram_used_bytes


def test_what_was_taken_past_the_limit_in_force_is_not_held():
    for known in (True, False):
        assert held(claim("a", 10, 20, used=50), 20, known=known) == 20
        # It was lowered below what it let the worker have: that may be kept, and not added to.
        assert held(claim("a", 10, 20, used=50), 50, known=known) == 50
        assert held(claim("a", 10, 20, used=60), 50, known=known) == 50
        # Nothing kept the worker from it.
        assert held(claim("a", 10, 20, used=50), None, known=known) == 50
        assert held(claim("a", 10, 20, used=15), 12, known=known) == 15


def test_memory_that_was_taken_is_lent_to_nobody():
    wanted = (claim("a", 10, 20, used=50), claim("b", 10, 90))
    standing = {("a", "main", GPU): Applied(Effect.NEXT_ALLOC, Observed(vram_limit_bytes=20))}
    device = DeviceSample(0, GPU, "", 0.0, 100, 50)
    wanted = within_limits(wanted, standing, lambda _worker, _uuid: Observed())
    shares = govern(wanted, rooms(NodeSample(0.0, (device,)), wanted))
    assert vram(shares) == [20, 50]
    assert [share.reason for share in shares] == ["", ""]


def test_a_request_that_others_memory_leaves_no_room_for_is_said_to_be_short():
    shares = govern([claim("a", 10, 90, used=80), claim("b", 50, 60)], {GPU: Room(100)})
    assert vram(shares) == [80, 20]
    assert shares[1].reason.startswith("RequestShort: ")


def test_memory_that_belongs_to_no_claim_is_not_lent_but_requests_stand():
    shares = govern([claim("a", 20, 90), claim("b", 20, 30)], {GPU: Room(100, vram_unattributed_bytes=50)})
    assert vram(shares) == [25, 25]
    crowded = govern([claim("a", 60, 90), claim("b", 40, 40)], {GPU: Room(100, vram_unattributed_bytes=50)})
    assert vram(crowded) == [60, 40]


def test_what_is_too_little_for_the_requests_is_never_lent_on_top_of_them():
    shares = govern([claim("a", 1, 1), claim("b", 1, 2)], {GPU: Room(1)})
    assert sum(vram(shares)) <= 1


def test_compute_ceilings_may_overcommit():
    shares = govern([claim("a", 1, 2), claim("b", 1, 2)], {GPU: Room(100)})
    assert [share.effective.tflops_limit for share in shares] == [20.0, 20.0]


def test_a_device_that_gave_no_sample_has_no_room_and_its_claims_stay():
    lost = DeviceSample(0, GPU, "A100", 0.0, 100, healthy=False, reason="lost")
    shares = govern([claim("a", 10, 90), claim("b", 10, 90)], rooms(NodeSample(0.0, (lost,)), ()))
    assert vram(shares) == [90, 90]


amounts = st.integers(min_value=0, max_value=120)


@st.composite
def claim_lists(draw):
    size = draw(st.integers(min_value=1, max_value=7))
    found = []
    for number in range(size):
        request, more = draw(amounts), draw(amounts)
        used = draw(st.none() | amounts)
        found.append(claim(f"w{number}", request, request + more, used, draw(st.sampled_from(QoS))))
    return found


@settings(max_examples=500)
@given(claim_lists(), st.integers(0, 300), st.integers(0, 100))
def test_effective_limits_never_pass_the_device(wanted, total, unattributed):
    assert sum(vram(govern(wanted, {GPU: Room(total, unattributed)}))) <= total


@given(claim_lists(), st.integers(0, 300), st.integers(0, 100))
def test_no_limit_passes_what_was_asked_unless_it_is_in_use(wanted, total, unattributed):
    for one, given_bytes in zip(wanted, vram(govern(wanted, {GPU: Room(total, unattributed)})), strict=True):
        assert 0 <= given_bytes <= max(one.quota.vram_limit_bytes, one.vram_used_bytes or 0)


@given(claim_lists(), st.integers(0, 300), st.integers(0, 100))
def test_requests_and_use_are_held_whenever_they_fit_together(wanted, total, unattributed):
    needs = [max(one.quota.vram_request_bytes, one.vram_used_bytes or 0) for one in wanted]
    if sum(needs) <= total:
        assert all(map(int.__ge__, vram(govern(wanted, {GPU: Room(total, unattributed)})), needs))


@given(claim_lists(), st.integers(0, 300))
def test_use_is_held_before_any_request(wanted, total):
    used = [one.vram_used_bytes or 0 for one in wanted]
    if sum(used) <= total:
        assert all(map(int.__ge__, vram(govern(wanted, {GPU: Room(total)})), used))


@given(claim_lists(), st.integers(0, 300))
def test_nothing_is_left_lying_while_a_limit_is_not_reached(wanted, total):
    shares = govern(wanted, {GPU: Room(total)})
    if any(share.effective.vram_limit_bytes < share.quota.vram_limit_bytes for share in shares):
        assert total - sum(vram(shares)) < len(wanted)


@given(claim_lists(), st.integers(0, 300), st.randoms(use_true_random=False))
def test_the_order_of_the_claims_changes_nothing(wanted, total, chance):
    shuffled = list(wanted)
    chance.shuffle(shuffled)
    before = {share.worker: share for share in govern(wanted, {GPU: Room(total)})}
    assert {share.worker: share for share in govern(shuffled, {GPU: Room(total)})} == before


@given(claim_lists(), st.integers(0, 300))
def test_a_lower_level_gets_surplus_only_when_the_higher_ones_have_their_limits(wanted, total):
    shares = govern(wanted, {GPU: Room(total)})
    levels = list(QoS)
    # Equal rises in whole bytes leave fewer bytes than there are workers to the next level.
    lent = [levels.index(s.worker.qos) for s in shares if _surplus(s, wanted) >= len(wanted)]
    short = [levels.index(s.worker.qos) for s in shares if s.effective.vram_limit_bytes < s.quota.vram_limit_bytes]
    if lent and short:
        assert max(short) <= min(lent)


def _surplus(share, wanted) -> int:
    own = next(one for one in wanted if one.worker == share.worker)
    return share.effective.vram_limit_bytes - max(share.quota.vram_request_bytes, own.vram_used_bytes or 0)


BORN = DeviceQuota("", 5.0, 10.0, 100, 200)


def attribution(*uses: WorkerUse, seen=()) -> Attribution:
    return Attribution(0.0, uses, (), frozenset(seen))


def document(*quotas: WorkerQuota) -> QuotaDocument:
    return QuotaDocument(1, 1, "n", quotas)


def claims(document: QuotaDocument | None, workers: tuple[Worker, ...], measured: Attribution):
    return claims_of(lay_out(document, workers, measured), measured)


def entry(uid: str, container: str = "") -> WorkerQuota:
    return WorkerQuota(uid, "ns", f"pod-{uid}", "load", QoS.HIGH, (DeviceQuota(GPU, 1.0, 2.0, 3, 4),), container)


def test_until_a_document_names_a_worker_its_born_amounts_count_on_every_device_it_was_seen_on():
    one = worker("a", born=BORN)
    found = claims(None, (one,), attribution(seen=[("a", "main", "GPU-a"), ("a", "main", "GPU-b")]))
    assert [(c.quota.uuid, c.quota.vram_limit_bytes) for c in found] == [("GPU-a", 200), ("GPU-b", 200)]


def test_a_document_replaces_the_born_amounts_and_brings_the_live_use_along():
    one = worker("a", born=BORN)
    found = claims(document(entry("a", "main")), (one,), attribution(WorkerUse(one, GPU, 0.0, 0.5, 77)))
    assert [(c.quota.vram_limit_bytes, c.vram_used_bytes, c.worker.qos) for c in found] == [(4, 77, QoS.HIGH)]


def test_an_entry_without_container_means_the_only_worker_of_its_pod():
    found = claims(document(entry("a")), (worker("a"),), attribution())
    assert [c.worker.container for c in found] == ["main"]
    two = (worker("a"), worker("a", container="side"))
    assert [c.worker.container for c in claims(document(entry("a")), two, attribution())] == [""]


def test_a_worker_that_only_the_document_knows_is_claimed_for():
    assert [c.worker.pod_uid for c in claims(document(entry("ghost")), (), attribution())] == ["ghost"]


def test_a_worker_without_any_amounts_has_no_claim():
    one = worker("a")
    assert claims(None, (one,), attribution(WorkerUse(one, GPU, 0.0, 0.5, 77))) == ()


def test_a_layout_is_made_anew_only_when_what_it_was_made_from_changed():
    one, two = worker("a", born=BORN), worker("b", born=BORN)
    told = document(entry("a", "main"))
    first = lay_out(told, (one,), attribution(WorkerUse(one, GPU, 0.0, 0.5, 77)))
    assert lay_out(told, (one,), attribution(WorkerUse(one, GPU, 9.0, 0.1, 99)), first) is first
    changed = (
        (document(entry("a", "main"), entry("b", "main")), (one,), attribution(WorkerUse(one, GPU, 0.0, 0.5, 77))),
        (None, (one,), attribution(WorkerUse(one, GPU, 0.0, 0.5, 77))),
        (told, (one, two), attribution(WorkerUse(one, GPU, 0.0, 0.5, 77), seen=[("b", "main", GPU)])),
        (told, (one,), attribution(WorkerUse(one, "GPU-9", 0.0, 0.5, 77))),
        (told, (), attribution()),
    )
    for source in changed:
        assert lay_out(*source, first) == lay_out(*source) != first
