"""Books that were cut, changed or swollen: it is said, and nobody is left frozen, reserved for, or wrongly kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from agent.enforce.actuator import Part, Surroundings
from agent.enforce.book import LARGEST_BYTES, BookError, read_book, write_book
from agent.enforce.dmem import BOOK_NAME as DMEM_NAME
from agent.enforce.dmem import DmemActuator
from agent.enforce.freeze import BOOK_NAME as FROZEN_NAME
from agent.enforce.freeze import FREEZE_FILE
from agent.enforce.heartbeat import OWNED_NAME, Ownership
from agent.nvml.limits import NvmlMemoryLimits
from autoscaler.contract.quota import DeviceQuota, Observed
from tests.agent.faulty import GIB, GPU, TOTAL
from tests.agent.kernel import Kernel
from tests.agent.nvml_standin import Device, NvmlStandIn, State


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as entries:
        yield entries


def damages(whole: bytes) -> Iterator[bytes]:
    """Yield every book that was cut, and every one with another byte in it."""
    for place in range(len(whole)):
        yield whole[:place]
        yield whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    yield whole + b"\n"
    yield whole.partition(b"\n")[2]


def test_a_book_is_what_was_written_or_damaged_and_moved_aside(tmp_path: Path) -> None:
    path, content = tmp_path / "state" / "book", ["a", "b" * 20]
    assert read_book(path, list[str]) is None
    write_book(path, content)
    whole = path.read_bytes()
    assert read_book(path, list[str]) == content
    for damaged in damages(whole):
        path.write_bytes(damaged)
        with pytest.raises(BookError, match="moved to"):
            read_book(path, list[str])
        assert not path.exists()
        assert path.with_name("book.damaged").read_bytes() == damaged


@given(st.binary(max_size=300), st.integers(0, 120))
def test_no_bytes_are_a_book_by_chance(tmp_path_factory: pytest.TempPathFactory, noise: bytes, place: int) -> None:
    path = tmp_path_factory.mktemp("noise") / "book"
    write_book(path, ["a"])
    whole = path.read_bytes()
    path.write_bytes(whole[:place] + noise + whole[place:])
    if not noise:
        assert read_book(path, list[str]) == ["a"]
        return
    with pytest.raises(BookError):
        read_book(path, list[str])


def test_what_is_too_large_to_be_a_book_is_not_read_to_its_end_and_a_folder_is_none(tmp_path: Path) -> None:
    path = tmp_path / "book"
    with path.open("wb") as file:
        file.truncate(LARGEST_BYTES * 1000)
    with pytest.raises(BookError, match="not what was written"):
        read_book(path, list[str])
    path.mkdir()
    with pytest.raises(BookError, match="directory"):
        read_book(path, list[str])


def test_however_the_freezers_book_was_damaged_nobody_stays_frozen(tmp_path: Path, logged: list[Any]) -> None:
    node = Kernel(tmp_path, ("a", "b", "c"))
    both = frozenset({("uid-a", "main"), ("uid-c", "main")})
    node.freezer().set(both)
    book = node.root / "state" / FROZEN_NAME
    whole = book.read_bytes()
    for damaged in damages(whole):
        for name in ("a", "c"):
            (node.leaves[name] / FREEZE_FILE).write_text("1\n")
        book.write_bytes(damaged)
        node.freezer().recover()
        assert [leaf for leaf in node.leaves.values() if (leaf / FREEZE_FILE).read_text().strip() != "0"] == []
        assert logged.pop()["event"] == "frozen_book_damaged"


def test_what_others_froze_outside_of_pods_is_theirs_even_when_the_book_was_damaged(tmp_path: Path) -> None:
    node = Kernel(tmp_path, ("a",))
    theirs = node.cgroups / "system.slice" / "backup.service"
    theirs.mkdir(parents=True)
    (theirs / FREEZE_FILE).write_text("1")
    book = node.root / "state" / FROZEN_NAME
    book.parent.mkdir()
    book.write_bytes(b"torn")
    node.freezer().recover()
    assert (theirs / FREEZE_FILE).read_text() == "1"


def test_however_the_book_of_reservations_was_damaged_none_is_leaked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    standin = NvmlStandIn(tmp_path)
    standin.write(State((Device(GPU, total_bytes=TOTAL),)))
    standin.take_place(monkeypatch)
    node = Kernel(tmp_path, ("a", "b"))
    around = Surroundings(
        lambda _worker, _uuid: Observed(), lambda _uuid: None, lambda _uuid: None, node.root / "state",
        cgroup_of=lambda worker: node.path_of(worker.pod), memory_limits=NvmlMemoryLimits(), cgroup_root=node.cgroups,
    )  # fmt: skip
    book = node.root / "state" / DMEM_NAME

    def reserve() -> None:
        actuator = DmemActuator(around)
        actuator.probe()
        for worker in node.workers():
            quota = DeviceQuota(GPU, 0.0, 0.0, 4 * GIB, 8 * GIB)
            assert actuator.apply(worker, quota, frozenset({Part.VRAM})).reason == ""
        actuator.turn(0.0)

    reserve()
    # Every place is tried in one of its damages: what the book says of them is tried above.
    for number, damaged in enumerate(list(damages(book.read_bytes()))[::9]):
        node.cut("a", pod=True)
        book.write_bytes(damaged)
        after = DmemActuator(around)
        after.probe()
        assert logged.pop()["event"] == "book_damaged"
        assert set(after.in_force()) == {("uid-a", "main", GPU), ("uid-b", "main", GPU)}
        after.turn(0.0)
        assert node.books(node.top)[0] == 4 * GIB, number
        node.grow("a", "first")
        reserve()
        logged.clear()


def test_of_a_damaged_list_of_kept_files_none_is_ours_until_its_heartbeat_was_watched(
    tmp_path: Path, logged: list[Any]
) -> None:
    ours, wall = tmp_path / "shm", 1_700_000_000.0
    before = Ownership(tmp_path, lambda: 0.0, lambda: wall)
    before.own(ours, owned=True)
    before.save()
    whole = (tmp_path / OWNED_NAME).read_bytes()
    again = Ownership(tmp_path, lambda: 0.0, lambda: wall)
    again.load()
    assert again.stranger(ours, int(wall)) == ""
    for damaged in damages(whole):
        (tmp_path / OWNED_NAME).write_bytes(damaged)
        after = Ownership(tmp_path, lambda: 0.0, lambda: wall)
        after.load()
        assert "watched" in after.stranger(ours, int(wall))
        assert logged.pop()["event"] == "owned_files_unreadable"
