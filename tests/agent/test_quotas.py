"""The quota document at the door: every refusal names what is wrong, with the numbers."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.quotas.check import HTTP_STATUS, Capacity, Denial, check_document
from autoscaler.contract.keys import QoS
from autoscaler.contract.quota import DeviceQuota, QuotaDocument, WorkerQuota

DEVICES = {"GPU-a": Capacity(1000, 100.0), "GPU-b": Capacity(500, None)}


def device(uuid: str = "GPU-a", **changes) -> DeviceQuota:
    base = {"tflops_request": 10.0, "tflops_limit": 20.0, "vram_request_bytes": 100, "vram_limit_bytes": 200}
    return DeviceQuota(uuid, **{**base, **changes})


def entry(uid: str, *devices: DeviceQuota) -> WorkerQuota:
    return WorkerQuota(uid, "ns", f"pod-{uid}", "load", QoS.MEDIUM, devices or (device(),))


def document(*quotas: WorkerQuota, epoch: int = 1, generation: int = 1, node: str = "n1") -> QuotaDocument:
    return QuotaDocument(epoch, generation, node, quotas)


def check(doc: QuotaDocument, in_force: QuotaDocument | None = None):
    return check_document(doc, "n1", in_force, DEVICES)


def test_a_sound_document_is_taken():
    assert check(document(entry("a"), entry("b", device(), device("GPU-b")))) is None


def test_a_document_for_another_node_is_refused_before_anything_else():
    refusal = check(document(entry("a", device("GPU-zzz")), node="n2"))
    assert refusal.error == Denial.OTHER_NODE
    assert "'n2'" in refusal.message
    assert "'n1'" in refusal.message
    assert "GPU-zzz" not in refusal.message


@pytest.mark.parametrize(("epoch", "generation"), [(4, 9), (5, 6), (0, 100)])
def test_an_older_epoch_or_generation_is_refused_and_told_what_is_in_force(epoch, generation):
    refusal = check(document(epoch=epoch, generation=generation), document(epoch=5, generation=7))
    assert refusal.error == Denial.STALE
    assert (refusal.epoch, refusal.generation) == (5, 7)
    assert HTTP_STATUS[Denial.STALE] == 409


@pytest.mark.parametrize(("epoch", "generation"), [(5, 8), (6, 0)])
def test_a_newer_generation_or_epoch_is_taken(epoch, generation):
    assert check(document(epoch=epoch, generation=generation), document(epoch=5, generation=7)) is None


def test_the_same_generation_is_harmless_with_the_same_content_and_refused_with_other():
    assert check(document(entry("a")), document(entry("a"))) is None
    assert check(document(entry("b")), document(entry("a"))).error == Denial.CONFLICT


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (device(tflops_request=30.0), "tflops_request 30.0 is over tflops_limit 20.0"),
        (device(vram_request_bytes=201), "vram_request_bytes 201 is over vram_limit_bytes 200"),
        (device(vram_request_bytes=-1), "vram_request_bytes is -1"),
        (device(tflops_limit=math.nan), "tflops_limit is nan"),
        (device(tflops_limit=math.inf), "tflops_limit is inf"),
        (device("GPU-zzz"), "no such device"),
        (device(vram_limit_bytes=1001), "vram_limit_bytes 1001 is over the device's 1000"),
        (device(tflops_limit=100.1), "tflops_limit 100.1 is over the device's 100"),
    ],
)
def test_one_bad_figure_is_refused_with_the_worker_the_device_and_the_number(bad, said):
    refusal = check(document(entry("good", device("GPU-b")), entry("a", bad)))
    assert refusal.error == Denial.INVALID
    assert said in refusal.message
    assert f"ns/pod-a on {bad.uuid}" in refusal.message


def test_a_ceiling_at_the_capacity_passes_despite_rounding():
    assert check(document(entry("a", device(tflops_limit=100.0 * (1 + 1e-9))))) is None


def test_a_device_without_known_tflops_takes_any_compute_ceiling():
    assert check(document(entry("a", device("GPU-b", tflops_limit=1e6)))) is None


def test_a_device_that_was_lost_before_its_size_was_read_stops_no_document():
    lost = {"GPU-a": Capacity(None, None)}
    assert check_document(document(entry("a", device(vram_limit_bytes=10**12))), "n1", None, lost) is None


def test_vram_requests_that_pass_the_device_together_are_refused_with_the_sum():
    full = device(vram_request_bytes=501, vram_limit_bytes=600)
    refusal = check(document(entry("a", full), entry("b", full)))
    assert "GPU-a: VRAM requests of 1002 bytes are over the device's 1000" in refusal.message


def test_ceilings_may_overcommit():
    wide = device(vram_request_bytes=500, vram_limit_bytes=1000, tflops_limit=100.0)
    assert check(document(entry("a", wide), entry("b", wide))) is None


def test_a_worker_listed_twice_on_a_device_is_refused():
    assert "listed twice" in check(document(entry("a"), entry("a"))).message
    assert "listed twice" in check(document(entry("a", device(), device()))).message


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "a\nb", "..", "x" * 300])
def test_a_name_that_is_no_name_is_refused(name):
    assert "is not a name" in check(document(entry(name))).message


def test_everything_wrong_is_said_at_once():
    message = check(document(entry("a", device("GPU-zzz")), entry("b", device(vram_request_bytes=-5)))).message
    assert "GPU-zzz" in message
    assert "-5" in message


wild = st.one_of(st.floats(), st.floats(-10, 200))
quotas = st.builds(
    DeviceQuota,
    st.sampled_from(["GPU-a", "GPU-b", "GPU-c"]),
    wild,
    wild,
    st.integers(-10, 1200),
    st.integers(-10, 1200),
)
entries = st.builds(entry, st.sampled_from(["a", "b", "c"]), quotas, quotas)


@given(st.lists(entries, max_size=4))
def test_whatever_is_taken_keeps_every_promise_of_the_contract(found):
    if check(document(*found)) is not None:
        return
    for uuid, capacity in DEVICES.items():
        own = [quota for one in found for quota in one.devices if quota.uuid == uuid]
        assert sum(quota.vram_request_bytes for quota in own) <= capacity.vram_total_bytes
        for quota in own:
            assert 0 <= quota.vram_request_bytes <= quota.vram_limit_bytes <= capacity.vram_total_bytes
            assert 0 <= quota.tflops_request <= quota.tflops_limit < math.inf


@given(st.lists(entries, max_size=4))
def test_an_acceptable_document_survives_its_own_encoding(found):
    if check(document(*found)) is None:
        decoded = msgspec.json.decode(msgspec.json.encode(document(*found)), type=QuotaDocument)
        assert decoded == document(*found)
