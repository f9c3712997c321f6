"""One workload and resource over time as a small SVG: demand, request, limit, and where it hurt; pure.

Drawn from columns of time, so that its size does not depend on the length of the trace. Colours are the page's CSS
classes. Neighbours: `strip` makes the columns, `page` arranges the panels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Final

import numpy as np

from autoscaler.model.decision import field_of
from autoscaler.model.resources import GIB, Resource, Side
from autoscaler.model.usage import Floats
from autoscaler.replay.printed import number, percent
from autoscaler.replay.strip import DemandStrip, RunStrip
from autoscaler.report.chart import number_ticks, time_ticks

WIDTH, HEIGHT = 600.0, 176.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 6.0, 14.0, 20.0
BANDS: Final = 60
"""Pieces that tell their figures when pointed at."""
EPOCH_SECONDS: Final = 1e8
"""A clock that reads less is the trace's own, not seconds since 1970."""
SCALE: Final = (1.0, GIB)
UNITS: Final = ("TFLOPs", "GiB")
NOUNS: Final = ("compute", "VRAM")


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """What is drawn: a demand, a run on it, and the request that static holds, in the resource's unit."""

    resource: Resource
    demand: DemandStrip
    run: RunStrip
    static_request: float
    label: str


@dataclass(frozen=True, slots=True)
class _Frame:
    columns: int
    most: float

    def across(self, column: float) -> float:
        return LEFT + column / self.columns * (WIDTH - LEFT - RIGHT)

    def down(self, value: float) -> float:
        return HEIGHT - BOTTOM - value / self.most * (HEIGHT - TOP - BOTTOM)


def render(panel: Panel) -> str:
    """Return the panel as an SVG element for a page that has its styles."""
    scale, resource = SCALE[panel.resource], panel.resource
    mean, peak = panel.demand.mean[resource] / scale, panel.demand.most[resource] / scale
    request = _bounds(panel.run, resource, Side.REQUEST)
    limit = _bounds(panel.run, resource, Side.LIMIT)
    static = panel.static_request / scale
    highest = max(static, float(limit[1].max()), float(request[1].max()), float(np.nan_to_num(peak).max()))
    frame = _Frame(len(mean), number_ticks(highest, 4)[-1])
    parts = [
        *_axes(frame, panel),
        f'<path class="peak" d="{_area(frame, peak)}"/>',
        f'<path class="need" d="{_area(frame, mean)}"/>',
        f'<path class="static" d="M{LEFT:g} {frame.down(static):.1f}H{WIDTH - RIGHT:g}"/>',
        f'<path class="limit" d="{_steps(frame, limit)}"/>',
        f'<path class="request" d="{_steps(frame, request)}"/>',
        *(_throttled(frame, panel) if resource is Resource.COMPUTE else _kills(frame, panel)),
        *_bands(frame, panel, (mean, peak, request, limit)),
    ]
    return (
        f'<svg class="panel" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{escape(panel.label)}">'
        f"{''.join(parts)}</svg>"
    )


def moment_text(seconds: float) -> str:
    """Return a moment in UTC, or as days and hours of the trace's own clock."""
    if seconds >= EPOCH_SECONDS:
        return f"{datetime.fromtimestamp(seconds, UTC):%a %Y-%m-%d %H:%M}"
    days, rest = divmod(int(seconds), 86400)
    return f"day {days + 1} {rest // 3600:02d}:{rest % 3600 // 60:02d}"


def _bounds(run: RunStrip, resource: Resource, side: Side) -> tuple[Floats, Floats]:
    field = field_of(resource, side)
    return run.least[field] / SCALE[resource], run.most[field] / SCALE[resource]


def _axes(frame: _Frame, panel: Panel) -> Iterator[str]:
    for value in number_ticks(frame.most, 4):
        y = frame.down(value)
        yield f'<path class="grid" d="M{LEFT:g} {y:.1f}H{WIDTH - RIGHT:g}"/>'
        yield f'<text x="{LEFT - 5:g}" y="{y + 3.5:.1f}" text-anchor="end">{value:.6g}</text>'
    start, width = panel.demand.start, panel.demand.column_seconds
    end = start + width * frame.columns
    for at, text in _ticks(start, end):
        x = frame.across((at - start) / width)
        yield f'<path class="tick" d="M{x:.1f} {HEIGHT - BOTTOM:g}v4"/>'
        anchor = "middle" if LEFT + 30 < x < WIDTH - 40 else "start" if x < WIDTH / 2 else "end"
        yield f'<text x="{x:.1f}" y="{HEIGHT - 5:g}" text-anchor="{anchor}">{text}</text>'


def _ticks(start: float, end: float) -> list[tuple[float, str]]:
    if start >= EPOCH_SECONDS:
        return time_ticks(start, end, 5)
    hours = number_ticks((end - start) / 3600.0, 5)
    return [(start + 3600.0 * hour, f"{hour:g} h") for hour in hours if 3600.0 * hour <= end - start]


def _area(frame: _Frame, values: Floats) -> str:
    """Return the outline of the area below values, one piece per run of known columns."""
    path, base, drawing = [], frame.down(0.0), False
    for column, value in enumerate(values.tolist()):
        known = value == value  # noqa: PLR0124  NaN is the only value that differs from itself
        if known and not drawing:
            path.append(f"M{frame.across(column):.1f} {base:.1f}")
        if known:
            path.append(f"V{frame.down(value):.1f}H{frame.across(column + 1):.1f}")
        elif drawing:
            path.append(f"V{base:.1f}Z")
        drawing = known
    return "".join(path) + (f"V{base:.1f}Z" if drawing else "")


def _steps(frame: _Frame, bounds: tuple[Floats, Floats]) -> str:
    """Return a line that stands at the highest figure of each column, with a stroke down to the lowest."""
    least, most = bounds
    path, level = [f"M{LEFT:g} {frame.down(float(most[0])):.1f}"], float(most[0])
    for column, (low, high) in enumerate(zip(least.tolist(), most.tolist(), strict=True)):
        if high != level or low != high:
            path.append(f"H{frame.across(column):.1f}")
            path.append(f"V{frame.down(low):.1f}" if low != high else "")
            path.append(f"V{frame.down(high):.1f}")
            level = high
    return "".join(path) + f"H{WIDTH - RIGHT:g}"


def _throttled(frame: _Frame, panel: Panel) -> Iterator[str]:
    width = (WIDTH - LEFT - RIGHT) / frame.columns
    for column in np.flatnonzero(panel.run.lost_share > 0).tolist():
        share = float(panel.run.lost_share[column])
        x = frame.across(column)
        yield (
            f'<rect class="lost" x="{x:.1f}" y="{TOP - 9:g}" width="{max(width, 2.5):.1f}" height="8">'
            f"<title>{moment_text(_at(panel, column))}: {percent(share)} of the demand throttled</title></rect>"
        )


def _kills(frame: _Frame, panel: Panel) -> Iterator[str]:
    for column in np.flatnonzero(panel.run.ooms > 0).tolist():
        count, x = int(panel.run.ooms[column]), frame.across(column + 0.5)
        text = f"{count} out-of-memory kill{'s' if count > 1 else ''}"
        yield (
            f'<g class="oom"><path d="M{x:.1f} {TOP + 2:g}V{HEIGHT - BOTTOM:g}"/>'
            f'<path class="cross" d="M{x - 4:.1f} {TOP - 8:g}l8 8m0 -8l-8 8"/>'
            f"<title>{moment_text(_at(panel, column))}: {text}</title></g>"
        )


def _bands(
    frame: _Frame, panel: Panel, drawn: tuple[Floats, Floats, tuple[Floats, Floats], tuple[Floats, Floats]]
) -> Iterator[str]:
    mean, peak, request, limit = drawn
    edges = np.linspace(0, frame.columns, min(BANDS, frame.columns) + 1).astype(int)
    for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        part = slice(first, last)
        known = not np.isnan(mean[part]).all()
        need = (
            f"{number(float(np.nanmean(mean[part])))} (peak {number(float(np.nanmax(peak[part])))})" if known else "?"
        )
        guess = ", estimated" if panel.demand.censored[panel.resource, part].any() else ""
        x = frame.across(first)
        yield (
            f'<rect class="band" x="{x:.1f}" y="{TOP:g}" width="{frame.across(last) - x:.1f}" '
            f'height="{HEIGHT - TOP - BOTTOM:g}"><title>{moment_text(_at(panel, first))}\n'
            f"demand {need}{guess}\nrequest {_span(request, part)}\nlimit {_span(limit, part)} "
            f"{UNITS[panel.resource]}</title></rect>"
        )


def _span(bounds: tuple[Floats, Floats], part: slice) -> str:
    low, high = number(float(bounds[0][part].min())), number(float(bounds[1][part].max()))
    return low if low == high else f"{low} to {high}"


def _at(panel: Panel, column: int) -> float:
    return panel.demand.start + column * panel.demand.column_seconds
