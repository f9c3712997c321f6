"""Arithmetic over columns of the fleet, one place a workload, or over the numbers of a single workload.

To numpy a column of one costs what a column of a thousand does, so a fleet of one, as a replay has it for every minute
of a month, is worked on as plain numbers. The lines that decide are the same; what they are made of is here. Numbers
are floats and bools, typed as columns; what differs from an array's elements has a function: `~` is `without`, a
division by what may be zero `ratio`, a power `np.power`, whose last bit is its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from types import SimpleNamespace
from typing import cast

import numpy as np

from autoscaler.model.fleet import Fleet
from autoscaler.model.knobs import Knobs
from autoscaler.model.rows import Row
from autoscaler.model.usage import Bools, Floats

Some = Floats | float
Condition = Bools | bool


def where(condition: Condition, yes: Some, no: Some) -> Floats:
    """Return `yes` where the condition holds, else `no`."""
    if condition is True:
        return yes  # type: ignore[return-value]
    if isinstance(condition, np.ndarray):
        return np.where(condition, yes, no)
    return yes if condition else no  # type: ignore[return-value]


def isnan(values: Some) -> Bools:
    """Return what is not known."""
    return values != values  # type: ignore[return-value]  # noqa: PLR0124  quicker than the function, and the same


def without(condition: Condition) -> Bools:
    """Return where the condition does not hold."""
    return ~condition if isinstance(condition, np.ndarray) else not condition  # type: ignore[return-value]


def fmax(one: Some, other: Some) -> Floats:
    """Return the larger one; of two of which one is not known, the other."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.fmax(one, other)
    return one if one >= other or other != other else other  # type: ignore[return-value]  # noqa: PLR0124


def fmin(one: Some, other: Some) -> Floats:
    """Return the smaller one; of two of which one is not known, the other."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.fmin(one, other)
    return one if one <= other or other != other else other  # type: ignore[return-value]  # noqa: PLR0124


def maximum(one: Some, other: Some) -> Floats:
    """Return the larger one; what is not known stays not known."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.maximum(one, other)
    return one if one >= other or one != one else other  # type: ignore[return-value]  # noqa: PLR0124


def minimum(one: Some, other: Some) -> Floats:
    """Return the smaller one; what is not known stays not known."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.minimum(one, other)
    return one if one <= other or one != one else other  # type: ignore[return-value]  # noqa: PLR0124


def ratio(part: Some, whole: Some) -> Floats:
    """Return `part / whole`; what comes of a division by zero is told by no warning."""
    if not isinstance(whole, np.ndarray) and whole:
        return part / whole  # type: ignore[return-value]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(part, whole)


def power(values: Floats, exponent: float) -> Floats:
    """Return a power, the same to the last bit whether of an array's element or of a number."""
    return np.power(values, exponent) if isinstance(values, np.ndarray) else _power(values, exponent)


@lru_cache(maxsize=256)
def _power(value: float, exponent: float) -> Floats:
    """Return a number's power; it is a knob's most of the time."""
    return cast("Floats", float(np.power(value, exponent)))


def largest(known: Floats | Row) -> Floats:
    """Return the largest of each row, (W, N) without NaN to (W,)."""
    if isinstance(known, Row):
        return max(known.values)
    highest: Floats = known.max(axis=1)
    return highest


def beside(columns: Sequence[Some]) -> Floats:
    """Return columns (W,) side by side."""
    if isinstance(columns[0], np.ndarray):
        return np.stack(columns, axis=1)
    return Row(np.array(columns))  # type: ignore[return-value]


def last_known(values: Floats | Row, before: Floats) -> Floats:
    """Return each row's newest known value, (W, T) to (W,), else what was known before."""
    if isinstance(values, Row):
        return next((value for value in reversed(values.values) if not isnan(value)), before)
    latest = values[:, -1]
    if not np.isnan(latest).any():
        return latest
    known = ~np.isnan(values)
    newest = values.shape[1] - 1 - np.argmax(known[:, ::-1], axis=1)
    return np.where(known.any(axis=1), values[np.arange(len(values)), newest], before)


class InColumns(Mapping[str, Floats]):
    """Numbers or columns by name, shown as columns; a number becomes one only where somebody looks."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Floats]) -> None:
        """Hold on to the values."""
        self._values = values

    def __getitem__(self, name: str) -> Floats:
        """Return a column (W,)."""
        return np.atleast_1d(self._values[name])

    def __iter__(self) -> Iterator[str]:
        """Return the names in their order."""
        return iter(self._values)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._values)


def alone(fleet: Fleet) -> Fleet:
    """Return a fleet of one as numbers and `Row`s: what an estimator of amounts reads of it."""
    knobs, orders = numbers_of(fleet.knobs), fleet.orders
    number = SimpleNamespace(
        now=fleet.now,
        current=Row(fleet.current[0]),
        original=Row(fleet.original[0]),
        device=Row(fleet.device[0]),
        demand=Row(fleet.demand[0]),
        prior=knobs.prior,
        knobs=knobs,
        orders=orders,
    )
    if orders.is_any:
        number.ordered = Row(fleet.ordered[0])
        number.orders = SimpleNamespace(is_any=True, figure=Row(orders.figure[0]))
    return cast("Fleet", number)


@lru_cache(maxsize=16)
def numbers_of(knobs: Knobs) -> Knobs:
    """Return the knobs of a fleet of one as numbers and `Row`s; knobs stay the same from pass to pass."""
    rows = {knob.name: getattr(knobs, knob.name) for knob in fields(knobs)}
    numbers = {name: Row(column[0]) if column.ndim > 1 else column.item() for name, column in rows.items()}
    return cast("Knobs", SimpleNamespace(**numbers))
