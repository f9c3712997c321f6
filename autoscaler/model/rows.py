"""Named arrays with one row per workload: what the core remembers between passes, its only mutable thing.

Every array is declared once with its shape and start value, so that growing, shrinking and checkpointing the fleet are
one loop each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from autoscaler.model.usage import Floats, Floats32, WorkloadKey


@dataclass(frozen=True, slots=True)
class Column:
    """Shape behind the workload axis, start value and type of one array."""

    tail: tuple[int, ...] = ()
    fill: float = 0.0
    dtype: type[np.generic] = np.float64

    def rows(self, count: int) -> NDArray[np.generic]:
        """Return an array of fresh rows."""
        return np.full((count, *self.tail), self.fill, dtype=self.dtype)


@dataclass(eq=False)
class Rows:
    """Arrays by name, rows in the order of `keys`; `marks` are the moments that hold for the whole fleet."""

    columns: Mapping[str, Column]
    keys: tuple[WorkloadKey, ...] = ()
    uids: tuple[str, ...] = ()
    arrays: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    marks: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the arrays that were not given."""
        for name, column in self.columns.items():
            self.arrays.setdefault(name, column.rows(len(self.keys)))

    def __getitem__(self, name: str) -> Floats:
        """Return an array of floats by name."""
        array: Floats = self.arrays[name]  # type: ignore[assignment]  # declared float64 in `columns`
        return array

    def __setitem__(self, name: str, values: Floats | float) -> None:
        """Write over an array of floats by name."""
        self.arrays[name][:] = values

    def weights(self, name: str) -> Floats32:
        """Return a histogram's weights (W, buckets)."""
        array: Floats32 = self.arrays[name]  # type: ignore[assignment]  # declared float32 in `columns`
        return array

    def alone(self) -> Self:
        """Return the memory of a fleet of one as numbers and `Row`s; what is written to it goes to these rows."""
        return cast("Self", _One(self))

    def strangers(self, keys: Sequence[WorkloadKey], uids: Sequence[str]) -> list[tuple[WorkloadKey, str]]:
        """Return those that have no row yet, whose rows `align` would start clean."""
        if (tuple(keys), tuple(uids)) == (self.keys, self.uids):
            return []
        known = set(zip(self.keys, self.uids, strict=True))
        return [(key, uid) for key, uid in zip(keys, uids, strict=True) if not known & {(key, uid), (key, "")}]

    def align(self, keys: Sequence[WorkloadKey], uids: Sequence[str]) -> None:
        """Give the rows the fleet's order: known workloads keep theirs, new ones and new UIDs start clean.

        A workload that had no object yet (empty UID) is the same once it has one.
        """
        if (tuple(keys), tuple(uids)) == (self.keys, self.uids):
            return
        row_of = {identity: row for row, identity in enumerate(zip(self.keys, self.uids, strict=True))}
        source = [row_of.get((key, uid), row_of.get((key, ""), -1)) for key, uid in zip(keys, uids, strict=True)]
        kept = np.array([row >= 0 for row in source], dtype=np.bool_)
        rows = np.array([row for row in source if row >= 0], dtype=np.int64)
        for name, column in self.columns.items():
            fresh = column.rows(len(source))
            fresh[kept] = self.arrays[name][rows]
            self.arrays[name] = fresh
        self.keys, self.uids = tuple(keys), tuple(uids)


class Row:
    """One workload's row of an array (W, N) as numbers, which answers to what the array does: `row[:, place]`."""

    __slots__ = ("_array", "values")

    def __init__(self, array: NDArray[Any]) -> None:
        """Hold on to the row (N,), which is written through."""
        self._array, self.values = array, array.tolist()

    def __getitem__(self, place: tuple[slice, Any]) -> Any:
        """Return one place of the row."""
        return self.values[place[1]]

    def __setitem__(self, place: tuple[slice, Any], value: float) -> None:
        """Write one place of the row."""
        self._array[place[1]] = self.values[place[1]] = value


class _One:
    """What `Rows` of one row look like as numbers."""

    def __init__(self, rows: Rows) -> None:
        self._rows, self._arrays = rows, rows.arrays

    def __getattr__(self, name: str) -> Any:
        """Return what concerns all rows."""
        return getattr(self._rows, name)

    def __getitem__(self, name: str) -> Any:
        array = self._arrays[name]
        return array.item() if array.ndim == 1 else Row(array[0])

    def __setitem__(self, name: str, value: Any) -> None:
        self._arrays[name][0] = value

    def weights(self, name: str) -> Any:
        """Return a histogram's weights (buckets,)."""
        return self._arrays[name][0]
