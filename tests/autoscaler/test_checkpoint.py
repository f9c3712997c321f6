"""A checkpoint is the old one or the new one, and anything else is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from autoscaler.errors import StateError
from autoscaler.state.checkpoint import load, save

ARRAYS = {"weights": np.arange(12, dtype=np.float32).reshape(3, 4), "names": np.array(["ns/a", "ns/b"])}
METADATA = {"read_until": 1_700_000_040.25, "labels": ["x", None]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "state"
    save(path, ARRAYS, METADATA)
    return path.read_bytes()


@given(
    arrays_of.arrays(
        st.sampled_from(["f4", "f8", "i8", "?", "U3"]), arrays_of.array_shapes(min_dims=0, min_side=0, max_side=4)
    )
)
@settings(max_examples=40)
def test_what_is_saved_is_loaded(tmp_path_factory, array):
    path = tmp_path_factory.mktemp("any") / "state"
    save(path, {"array": array, **ARRAYS}, METADATA)
    arrays, metadata = load(path)
    assert list(arrays) == ["array", *ARRAYS]
    assert arrays["array"].dtype == array.dtype
    np.testing.assert_array_equal(arrays["array"], array)
    assert metadata == METADATA


def test_nothing_else_is_left_beside_it(tmp_path):
    save(tmp_path / "state", ARRAYS, METADATA)
    save(tmp_path / "state", {}, {})
    assert [file.name for file in tmp_path.iterdir()] == ["state"]
    assert load(tmp_path / "state") == ({}, {})


def test_a_missing_checkpoint_is_said_to_be_missing(tmp_path):
    with pytest.raises(StateError, match="No such file"):
        load(tmp_path / "state")


def test_a_checkpoint_cut_at_any_byte_is_refused(tmp_path, saved):
    path = tmp_path / "state"
    for length in range(len(saved)):
        path.write_bytes(saved[:length])
        with pytest.raises(StateError):
            load(path)


@given(st.data())
@settings(max_examples=60)
def test_a_checkpoint_with_any_byte_changed_is_refused(tmp_path_factory, saved, data):
    place = data.draw(st.integers(0, len(saved) - 1))
    flip = data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("flipped") / "state"
    path.write_bytes(saved[:place] + bytes([saved[place] ^ flip]) + saved[place + 1 :])
    with pytest.raises(StateError):
        load(path)


def test_another_version_is_refused(tmp_path, saved):
    path = tmp_path / "state"
    path.write_bytes(saved.replace(b"checkpoint 1\n", b"checkpoint 2\n", 1))
    with pytest.raises(StateError, match="not a checkpoint of this version"):
        load(path)


@pytest.mark.parametrize(
    ("arrays", "metadata"),
    [
        ({"objects": np.array([object()])}, {}),
        ({}, {"unknown": float("nan")}),
        ({}, {"path": Path()}),
        ({"metadata.json": np.zeros(1)}, {}),
    ],
)
def test_what_cannot_be_kept_is_refused_and_the_old_one_stays(tmp_path, arrays, metadata):
    save(tmp_path / "state", ARRAYS, METADATA)
    with pytest.raises(StateError):
        save(tmp_path / "state", arrays, metadata)
    assert load(tmp_path / "state")[1] == METADATA
    assert [file.name for file in tmp_path.iterdir()] == ["state"]


def test_a_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(StateError, match="gone"):
        save(tmp_path / "gone" / "state", ARRAYS, METADATA)


SAVER = """
import sys, itertools, pathlib, numpy
from autoscaler.state.checkpoint import save
for turn in itertools.count():
    save(pathlib.Path(sys.argv[1]), {"turn": numpy.full(200_000, turn)}, {"turn": turn})
"""


def test_a_kill_while_saving_leaves_the_old_or_the_new_one(tmp_path):
    path = tmp_path / "state"
    partial = path.with_name(".state.partial")
    for kill in range(4):
        child = subprocess.Popen([sys.executable, "-c", SAVER, str(path)], cwd=Path(__file__).parents[2])
        wait_for(lambda size=kill * 400_000: path.exists() and partial.stat().st_size > size)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        arrays, metadata = load(path)
        assert (arrays["turn"] == metadata["turn"]).all()
        path.unlink()
        partial.unlink(missing_ok=True)


def wait_for(is_true, seconds: float = 150.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if is_true():
                return
        except FileNotFoundError:  # renamed between the two looks
            pass
        assert time.monotonic() < deadline, "the child has saved nothing"
