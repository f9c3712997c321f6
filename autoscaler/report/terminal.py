"""Use, request and limit over time for a terminal: bars and lines of characters, told apart without colour; pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from autoscaler.model.resources import GIB, SPECS, Resource
from autoscaler.report.account import Lines, Points
from autoscaler.report.chart import number_ticks, time_ticks

BARS: Final = " ▁▂▃▄▅▆▇█"
LIMIT, REQUEST = "═", "─"
SCALES: Final = ((1.0, "TFLOPs"), (float(GIB), "GiB"))
"""What a unit on the axis is worth, and its name, by Resource."""
MARGIN: Final = 8


def terminal_plot(lines: Lines, resource: Resource, width: int = 92, height: int = 9) -> list[str]:
    """Return a picture of `height` rows and `width` columns with a title above and the time (UTC) below.

    Use is a bar of the most in each column, the request `─` and the limit `═`; where nothing was measured there is no
    bar, and a use of zero is the lowest one. Lines lie over bars.
    """
    scale, unit = SCALES[resource]
    known = [(at, y) for points in (lines.use, lines.request, lines.limit) for at, y in points if math.isfinite(y)]
    title = f"{SPECS[resource].noun}, {unit}: {BARS[5]} use  {REQUEST} request  {LIMIT} limit"
    if not known:
        return [title, "  nothing measured yet"]
    low, high = min(at for at, _ in known), max(at for at, _ in known)
    columns = width - MARGIN - 1
    span = (low, high if high > low else low + 60.0)
    top = number_ticks(max(y for _, y in known) / scale, 4)[-1]
    grid = _bars(_most_by_column(lines.use, span, columns), top * scale, height)
    for points, glyph in ((lines.request, REQUEST), (lines.limit, LIMIT)):
        _draw(grid, _held_by_column(points, span, columns), top * scale, glyph)
    labels = {round((1 - tick / top) * (height - 1)): f"{tick:g}" for tick in number_ticks(top, 4)}
    rows = [f"{labels.get(row, ''):>{MARGIN - 1}} │{''.join(cells)}".rstrip() for row, cells in enumerate(grid)]
    return [title, *rows, *_time_axis(span, columns)]


def _column(at: float, span: tuple[float, float], columns: int) -> int:
    low, high = span
    return min(int((at - low) / (high - low) * columns), columns - 1)


def _most_by_column(points: Points, span: tuple[float, float], columns: int) -> list[float]:
    """Return the largest value of each column, NaN where nothing was measured."""
    found = [math.nan] * columns
    for at, value in points:
        column = _column(at, span, columns)
        if math.isfinite(value) and not found[column] >= value:
            found[column] = value
    return _bridged(found, points)


def _bridged(found: list[float], points: Points) -> list[float]:
    """Fill columns between two samples that are no further apart than samples are; there are fewer than columns."""
    if not 1 < len(points) < len(found):
        return found
    reach = math.ceil(len(found) / (len(points) - 1))
    last, filled = -math.inf, list(found)
    for column, value in enumerate(found):
        if not math.isnan(value):
            last = column
        elif column - last <= reach:
            filled[column] = found[int(last)]
    return filled


def _held_by_column(points: Points, span: tuple[float, float], columns: int) -> list[float]:
    """Return the latest value of each column; it holds until the next point."""
    found = [math.nan] * columns
    for at, value in points:
        found[_column(at, span, columns)] = value
    held = math.nan
    for column, value in enumerate(found):
        held = held if math.isnan(value) else value
        found[column] = held
    return found


def _bars(values: Sequence[float], top: float, height: int) -> list[list[str]]:
    grid = [[" "] * len(values) for _ in range(height)]
    for column, value in enumerate(values):
        if math.isnan(value):
            continue
        eighths = max(1, round(max(value, 0.0) / top * height * 8))
        for row in range(height):
            part = min(max(eighths - (height - 1 - row) * 8, 0), 8)
            grid[row][column] = BARS[part]
    return grid


def _draw(grid: list[list[str]], values: Sequence[float], top: float, glyph: str) -> None:
    height = len(grid)
    for column, value in enumerate(values):
        if math.isfinite(value):
            row = round((1 - value / top) * (height - 1))
            grid[min(max(row, 0), height - 1)][column] = glyph


def _time_axis(span: tuple[float, float], columns: int) -> list[str]:
    rule, labels = ["─"] * columns, [" "] * columns
    free = 0
    for at, text in time_ticks(*span, count=6):
        column = _column(at, span, columns)
        rule[column] = "┴"
        start = min(max(column - len(text) // 2, 0), columns - len(text))
        if start >= free:
            labels[start : start + len(text)] = text
            free = start + len(text) + 1
    return [f"{'':>{MARGIN - 1}} └{''.join(rule)}", f"{'':>{MARGIN}} {''.join(labels)}".rstrip()]
