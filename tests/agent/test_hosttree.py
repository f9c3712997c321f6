"""Paths of cgroups as a container is told them, found in the host's tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.pods.cgroups import container_cgroup
from agent.pods.hosttree import HostTree

UID = "6a1b2c3d_0000_4000_8000_00000000000{}"


def scope(number: int, level: str = "burstable") -> str:
    uid = UID.format(number)
    pods = f"kubepods-{level}"
    return f"kubepods.slice/{pods}.slice/{pods}-pod{uid}.slice/cri-containerd-{str(number) * 64}.scope"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path in (scope(1), scope(2), scope(3, "besteffort"), "system.slice/kubelet.service"):
        (tmp_path / path).mkdir(parents=True)
    return tmp_path


def test_a_path_from_the_root_is_taken_as_it_is(root: Path) -> None:
    assert HostTree(root).path_of(f"/{scope(1)}") == f"/{scope(1)}"
    assert HostTree(root).path_of("") == ""


def test_a_path_relative_to_the_readers_cgroup_is_found_whatever_it_shares_with_it(root: Path) -> None:
    tree = HostTree(root)
    # As an agent in the besteffort slice reads it, and as one in the burstable slice does.
    far = f"/../../../{scope(1).removeprefix('kubepods.slice/')}"
    near = f"/../../{scope(1).removeprefix('kubepods.slice/kubepods-burstable.slice/')}"

    assert container_cgroup(f"0::{far}\n") == far
    assert tree.path_of(far) == f"/{scope(1)}"
    assert tree.path_of(near) == f"/{scope(1)}"


def test_the_tree_is_searched_once_for_each_place_above(root: Path) -> None:
    tree = HostTree(root)
    first, second = (f"/../../../{scope(number).removeprefix('kubepods.slice/')}" for number in (1, 2))
    assert tree.path_of(first) == f"/{scope(1)}"
    # The same names elsewhere: found again only by a search.
    (root / "aaa" / second.removeprefix("/../../../")).mkdir(parents=True)

    assert tree.path_of(second) == f"/{scope(2)}"


def test_what_is_gone_is_not_found(root: Path) -> None:
    tree = HostTree(root)
    gone = f"/../../../{scope(9).removeprefix('kubepods.slice/')}"
    assert tree.path_of(gone) == ""
    assert tree.path_of(f"/../../../{scope(1).removeprefix('kubepods.slice/')}") == f"/{scope(1)}"

    assert tree.path_of(gone) == ""
