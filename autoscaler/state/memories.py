"""Memories to a checkpoint and back: several `Rows` in one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from autoscaler.errors import StateError
from autoscaler.model.rows import Rows
from autoscaler.model.usage import WorkloadKey
from autoscaler.state.checkpoint import load, save


def store(path: Path, memories: Mapping[str, Rows]) -> None:
    """Write memories atomically; raises OSError where the disk doesn't take them."""
    arrays = {f"{name}.{column}": array for name, rows in memories.items() for column, array in rows.arrays.items()}
    metadata = {
        name: {"keys": [list(key) for key in rows.keys], "uids": list(rows.uids), "marks": rows.marks}
        for name, rows in memories.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, arrays, metadata)


def restore(path: Path, memories: Mapping[str, Rows]) -> None:
    """Fill memories from a checkpoint.

    Raises:
        StateError: it is unreadable or of another shape; the memories are then not to be used.

    """
    arrays, metadata = load(path)
    for name, rows in memories.items():
        try:
            described = metadata[name]
            rows.keys = tuple(WorkloadKey(*key) for key in described["keys"])
            rows.uids = tuple(described["uids"])
            rows.marks = {mark: float(value) for mark, value in described["marks"].items()}
            for column, declared in rows.columns.items():
                array = arrays[f"{name}.{column}"]
                if array.shape != (len(rows.keys), *declared.tail) or array.dtype != declared.dtype:
                    raise StateError(f"{path}: {name}.{column} has shape {array.shape}, type {array.dtype}")
                rows.arrays[column] = array
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"{path}: written by another version ({error!r})") from error
