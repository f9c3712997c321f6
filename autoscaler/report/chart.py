"""Lines over time as SVG: hand-made, no dependency, readable on light and dark pages and without colour; pure.

Neighbours: `explain` writes one as a file, the backtest's page embeds several. A page may set the colours through the
CSS variables --chart-paper, --chart-ink and --chart-grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from xml.sax.saxutils import escape

Point = tuple[float, float]
TIME: Final = "time"
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#b0609a", "#b58900", "#56a5d6")
"""Told apart by colour-blind readers (after Okabe and Ito) and readable on white and on black."""
DASHES: Final = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 2")
"""Told apart without colour."""
LEFT, RIGHT, TOP, BOTTOM = 62.0, 16.0, 58.0, 30.0
MOST_TICKS: Final = 7
_TIME_STEPS: Final = (
    *(60.0 * minutes for minutes in (1, 2, 5, 10, 15, 30)),
    *(3600.0 * hours for hours in (1, 2, 3, 6, 12)),
    *(86400.0 * days for days in (1, 2, 7, 14, 28, 91, 365)),
)
_STYLE: Final = (
    ".tf-chart{--p:var(--chart-paper,#fff);--i:var(--chart-ink,#333);--g:var(--chart-grid,#ddd)}"
    "@media (prefers-color-scheme:dark){.tf-chart"
    "{--p:var(--chart-paper,#181a1f);--i:var(--chart-ink,#ccc);--g:var(--chart-grid,#3a3d44)}}"
    ".tf-chart text{fill:var(--i);font:11px system-ui,sans-serif}.tf-chart .title{font-weight:600;font-size:13px}"
    ".tf-chart .grid{stroke:var(--g)}.tf-chart .line{fill:none;stroke-width:1.6;stroke-linejoin:round}"
)


@dataclass(frozen=True, slots=True)
class Series:
    """One line: `points` are (x, y) in order of x; a NaN y breaks it. `is_step`: a value holds until the next point."""

    name: str
    points: Sequence[Point]
    is_step: bool = False


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where values come to lie: the least and the most x and y, and the picture's size."""

    x: tuple[float, float]
    y_most: float
    width: float
    height: float

    def across(self, x: float) -> float:
        low, high = self.x
        return LEFT + (x - low) / (high - low) * (self.width - LEFT - RIGHT)

    def down(self, y: float) -> float:
        return self.height - BOTTOM - y / self.y_most * (self.height - TOP - BOTTOM)


def line_chart(
    series: Sequence[Series], *, title: str, unit: str, x_unit: str = TIME, size: tuple[int, int] = (880, 300)
) -> str:
    """Return an SVG element with one line per series, axes from zero, and a legend.

    `unit`: of y, shown at its axis (scale bytes to GiB before). `x_unit`: TIME for seconds since the epoch, shown in
    UTC, else the unit of plain numbers. `size`: width and height in pixels. Negative values are cut at zero; without
    any finite point the picture says that there is nothing to show. The result stands alone as a file, and may be put
    into HTML as it is.
    """
    width, height = size
    body = [
        f'<rect width="{width}" height="{height}" fill="var(--p)"/>',
        f'<text class="title" x="{LEFT:g}" y="20">{escape(title)}</text>',
    ]
    frame = _frame(series, size)
    if frame is None:
        body.append(f'<text x="{width / 2:g}" y="{height / 2:g}" text-anchor="middle">nothing measured yet</text>')
    else:
        body += [*_y_axis(frame, unit), *_x_axis(frame, x_unit), *_legend(series)]
        body += [_line(one, number, frame) for number, one in enumerate(series)]
    content = "\n".join(body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="tf-chart" role="img" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n{content}\n</svg>\n"
    )


def number_ticks(most: float, count: int = MOST_TICKS) -> list[float]:
    """Return round numbers (1, 2 or 5 times a power of ten) from zero to at least `most`, at most `count` steps."""
    if not 0 < most < math.inf:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(most / count))
    step = next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power * count >= most)
    return [round(place * step, 12) for place in range(math.ceil(most / step - 1e-9) + 1)]


def time_ticks(low: float, high: float, count: int = MOST_TICKS) -> list[tuple[float, str]]:
    """Return round moments of UTC between two moments (seconds since the epoch) with their labels."""
    step = next((step for step in _TIME_STEPS if (high - low) / step <= count), _TIME_STEPS[-1])
    first = math.ceil(low / step)
    moments = [place * step for place in range(first, math.floor(high / step) + 1)]
    return [(moment, _moment_text(moment, step, is_first=not place)) for place, moment in enumerate(moments)]


def _moment_text(moment: float, step: float, *, is_first: bool) -> str:
    at = datetime.fromtimestamp(moment, UTC)
    if step >= 86400:
        return f"{at:%Y-%m-%d}" if is_first else f"{at:%m-%d}"
    return f"{at:%m-%d %H:%M}" if is_first or moment % 86400 == 0 else f"{at:%H:%M}"


def _frame(series: Sequence[Series], size: tuple[int, int]) -> _Frame | None:
    known = [(x, y) for one in series for x, y in one.points if math.isfinite(x) and math.isfinite(y)]
    if not known:
        return None
    low, high = min(x for x, _ in known), max(x for x, _ in known)
    if low == high:
        low, high = low - 30, high + 30
    return _Frame((low, high), number_ticks(max(y for _, y in known), 5)[-1], *size)


def _y_axis(frame: _Frame, unit: str) -> Iterator[str]:
    for value in number_ticks(frame.y_most, 5):
        y = frame.down(value)
        yield f'<line class="grid" x1="{LEFT:g}" x2="{frame.width - RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{LEFT - 6:g}" y="{y + 4:.1f}" text-anchor="end">{value:.6g}</text>'
    yield f'<text x="{LEFT - 6:g}" y="{TOP - 10:g}" text-anchor="end">{escape(unit)}</text>'


def _x_axis(frame: _Frame, x_unit: str) -> Iterator[str]:
    low, high = frame.x
    if x_unit == TIME:
        ticks = time_ticks(low, high)
    else:
        step = number_ticks(high - low)[1]
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        ticks = [(place * step, f"{place * step:.6g} {x_unit}".strip()) for place in range(first, last + 1)]
    bottom = frame.height - BOTTOM
    for value, text in ticks:
        x = frame.across(value)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom:g}" y2="{bottom + 4:g}"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 17:g}" text-anchor="middle">{escape(text)}</text>'


def _legend(series: Sequence[Series]) -> Iterator[str]:
    x = LEFT
    for number, one in enumerate(series):
        yield f'<path class="line" d="M{x:g} 34H{x + 24:g}" {_stroke(number)}/>'
        yield f'<text x="{x + 30:g}" y="38">{escape(one.name)}</text>'
        x += 46 + 6.5 * len(one.name)


def _line(series: Series, number: int, frame: _Frame) -> str:
    path, drawing, level = [], False, 0.0
    for x, y in _thinned(series.points, frame):
        if not (math.isfinite(x) and math.isfinite(y)):
            drawing = False
            continue
        across, down = frame.across(x), frame.down(max(y, 0.0))
        if drawing and series.is_step:
            path.append(f"L{across:.1f} {level:.1f}")
        path.append(f"{'L' if drawing else 'M'}{across:.1f} {down:.1f}")
        drawing, level = True, down
    return f'<path class="line" d="{"".join(path)}" {_stroke(number)}/>'


def _thinned(points: Sequence[Point], frame: _Frame) -> Sequence[Point]:
    """Return at most a few points per pixel: the first, the least, the most and the last of each, so peaks stay."""
    pixels = frame.width - LEFT - RIGHT
    if len(points) <= 2 * pixels:
        return points
    columns: dict[int, list[Point]] = {}
    for point in points:
        if math.isnan(point[0]):
            continue
        columns.setdefault(int(frame.across(point[0])), []).append(point)
    kept: list[Point] = []
    for column in columns.values():
        if any(math.isnan(y) for _, y in column):
            kept += column
            continue
        least, most = min(column, key=lambda point: point[1]), max(column, key=lambda point: point[1])
        kept += sorted({column[0], least, most, column[-1]})
    return kept


def _stroke(number: int) -> str:
    dash = DASHES[number % len(DASHES)]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'stroke="{COLOURS[number % len(COLOURS)]}"{dashes}'
