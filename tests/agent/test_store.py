"""The stored quotas: torn, corrupt and half-written files, and kills in the middle of writing."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from agent.quotas.store import CURRENT_NAME, PREVIOUS_NAME, QuotaStore, StoreError
from autoscaler.contract.keys import QoS
from autoscaler.contract.quota import DeviceQuota, QuotaDocument, WorkerQuota


def document(generation: int) -> QuotaDocument:
    quota = DeviceQuota("GPU-a", 1.5, 2.5, 100, 200 + generation)
    return QuotaDocument(3, generation, "n1", (WorkerQuota("uid", "ns", "pod", "load", QoS.LOW, (quota,)),))


def test_what_was_saved_is_loaded_by_the_next_agent(tmp_path):
    QuotaStore(tmp_path / "deep" / "state").load()
    QuotaStore(tmp_path / "deep" / "state").save(document(1))
    loaded = QuotaStore(tmp_path / "deep" / "state").load()
    assert loaded.document == document(1)
    assert loaded.problems == ()


def test_an_empty_directory_is_no_problem(tmp_path):
    loaded = QuotaStore(tmp_path).load()
    assert (loaded.document, loaded.problems) == (None, ())


def test_a_file_cut_at_any_byte_gives_the_document_before_it_and_is_kept_aside(tmp_path):
    store = QuotaStore(tmp_path)
    store.save(document(1))
    store.save(document(2))
    whole = (tmp_path / CURRENT_NAME).read_bytes()
    for length in range(len(whole)):
        (tmp_path / CURRENT_NAME).write_bytes(whole[:length])
        loaded = store.load()
        assert loaded.document == document(1), length
        (problem,) = loaded.problems
        aside = tmp_path / problem.rsplit(" ", 1)[1]
        assert aside.read_bytes() == whole[:length]
        aside.unlink()


def test_any_flipped_byte_is_noticed(tmp_path):
    store = QuotaStore(tmp_path)
    store.save(document(1))
    whole = (tmp_path / CURRENT_NAME).read_bytes()
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 0x01
        (tmp_path / CURRENT_NAME).write_bytes(broken)
        loaded = store.load()
        assert loaded.document is None, place
        assert len(loaded.problems) == 1


def test_two_damaged_files_are_both_reported_and_nothing_is_invented(tmp_path):
    (tmp_path / CURRENT_NAME).write_bytes(b"")
    (tmp_path / PREVIOUS_NAME).write_bytes(b"\x00\xff{}")
    loaded = QuotaStore(tmp_path).load()
    assert loaded.document is None
    assert len(loaded.problems) == 2


def test_a_damaged_file_never_replaces_the_good_previous_one(tmp_path):
    store = QuotaStore(tmp_path)
    store.save(document(1))
    store.save(document(2))
    (tmp_path / CURRENT_NAME).write_bytes(b"torn")
    store.save(document(3))
    (tmp_path / CURRENT_NAME).write_bytes(b"torn again")
    assert QuotaStore(tmp_path).load().document == document(1)


def test_a_disk_that_refuses_is_an_error_and_the_stored_document_stays(tmp_path):
    store = QuotaStore(tmp_path)
    store.save(document(1))
    (tmp_path / (CURRENT_NAME + ".tmp")).mkdir()
    with pytest.raises(StoreError, match=CURRENT_NAME):
        store.save(document(2))
    assert store.document == document(1)
    assert QuotaStore(tmp_path).load().document == document(1)


def test_a_state_directory_that_is_a_file_is_said_to_be_unusable(tmp_path):
    (tmp_path / "state").write_text("")
    with pytest.raises(StoreError, match="state directory"):
        QuotaStore(tmp_path / "state").load()


WRITER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from agent.quotas.store import QuotaStore
    from autoscaler.contract.quota import DeviceQuota, QuotaDocument, WorkerQuota
    from autoscaler.contract.keys import QoS
    store, generation = QuotaStore(Path(sys.argv[1])), int(sys.argv[2])
    while True:
        generation += 1
        quotas = tuple(
            WorkerQuota(f"uid-{n}", "ns", "pod", "load", QoS.LOW, (DeviceQuota("GPU-a", 1.0, 2.0, 1, 2),))
            for n in range(200)
        )
        store.save(QuotaDocument(1, generation, "n1", quotas))
        print(generation, flush=True)
    """
)


def test_after_a_kill_at_any_moment_every_acknowledged_document_or_a_newer_one_is_there(tmp_path):
    state, acknowledged = tmp_path / "state", 0
    state.mkdir()
    for round_number in range(12):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(state), str(acknowledged)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert writer.stdout is not None
        # Each round kills after another number of acknowledged writes, so at another byte of the next one.
        for _ in range(1 + round_number * 3):
            acknowledged = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split()
        writer.wait()
        acknowledged = int(rest[-1]) if rest else acknowledged
        loaded = QuotaStore(state).load()
        assert loaded.problems == ()
        assert loaded.document is not None
        assert loaded.document.generation in (acknowledged, acknowledged + 1)
        assert len(loaded.document.quotas) == 200
        acknowledged = loaded.document.generation
