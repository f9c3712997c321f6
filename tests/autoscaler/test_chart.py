"""Line charts: readable as a file and inside a page, true at the edges."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree as ET

import pytest

from autoscaler.report.chart import LEFT, Series, line_chart, number_ticks, time_ticks

SVG = "{http://www.w3.org/2000/svg}"
NOON = 1_700_049_600.0  # 2023-11-15 12:00 UTC


def drawn(svg: str) -> list[str]:
    """The paths of the data lines, behind the legend's."""
    paths = [path.attrib["d"] for path in ET.fromstring(svg).iter(f"{SVG}path")]
    return paths[len(paths) // 2 :]


def texts(svg: str) -> list[str]:
    return [text.text or "" for text in ET.fromstring(svg).iter(f"{SVG}text")]


def test_a_chart_is_one_svg_element_with_title_unit_legend_and_axes():
    svg = line_chart([Series("use", [(NOON, 3.0), (NOON + 7200, 9.0)])], title="a < b & c", unit="TFLOPs")
    assert ET.fromstring(svg).tag == f"{SVG}svg"
    assert texts(svg)[0] == "a < b & c"
    assert {"TFLOPs", "use", "0", "10", "11-15 12:00", "13:00", "14:00"} <= set(texts(svg))


def test_a_chart_needs_nothing_from_outside_and_follows_a_dark_page():
    svg = line_chart([Series("use", [(NOON, 3.0)])], title="t", unit="u")
    assert not re.search(r"(?:href|src|url\()", svg)
    assert "prefers-color-scheme:dark" in svg
    assert 'fill="var(--p)"' in svg


def test_series_are_told_apart_without_colour():
    points = [(NOON, 1.0), (NOON + 60, 2.0)]
    svg = line_chart([Series(name, points) for name in ("use", "request", "limit")], title="t", unit="u")
    dashes = re.findall(r"<path[^>]*?(?:stroke-dasharray=\"([^\"]*)\")?/>", svg)
    assert len(set(dashes)) == 3


def test_what_is_not_known_breaks_the_line_instead_of_being_drawn_as_zero():
    points = [(NOON, 1.0), (NOON + 60, 2.0), (NOON + 120, math.nan), (NOON + 180, 2.0), (NOON + 240, 1.0)]
    (path,) = drawn(line_chart([Series("use", points)], title="t", unit="u"))
    assert (path.count("M"), path.count("L")) == (2, 2)


def test_a_step_holds_its_value_until_the_next_point():
    (path,) = drawn(line_chart([Series("limit", [(0.0, 5.0), (10.0, 10.0)], is_step=True)], title="t", unit="u"))
    corners = re.findall(r"[ML]([\d.]+) ([\d.]+)", path)
    assert len(corners) == 3
    assert corners[1] == (corners[2][0], corners[0][1])


def test_a_chart_without_any_value_says_so():
    assert "nothing measured yet" in texts(line_chart([], title="t", unit="u"))
    assert "nothing measured yet" in texts(line_chart([Series("a", [(NOON, math.nan)])], title="t", unit="u"))


def test_a_long_history_stays_small_and_keeps_its_peak_and_its_gap():
    points = [(NOON + second, 1.0) for second in range(100_000)]
    points[50_000] = (NOON + 50_000, 8.0)
    points[70_000] = (NOON + 70_000, math.nan)
    svg = line_chart([Series("use", points)], title="t", unit="u")
    (path,) = drawn(svg)
    assert len(svg) < 100_000
    assert path.count("M") == 2
    top = min(float(y) for _, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path))
    (alone,) = drawn(line_chart([Series("use", [(NOON, 8.0)])], title="t", unit="u"))
    assert top == float(alone.split()[1])


def test_plain_numbers_carry_their_unit_along_the_bottom():
    svg = line_chart([Series("use", [(0.0, 1.0), (24.0, 2.0)])], title="t", unit="u", x_unit="h")
    assert {"0 h", "10 h", "20 h"} <= set(texts(svg))


def test_every_line_stays_inside_the_frame():
    svg = line_chart([Series("use", [(-5.0, -1.0), (3.0, 17.3)])], title="t", unit="u", x_unit="", size=(400, 200))
    (path,) = drawn(svg)
    corners = [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]
    assert all(LEFT <= x <= 400 and 0 <= y <= 200 for x, y in corners)


@pytest.mark.parametrize(
    ("most", "ticks"),
    [
        (7.0, [0, 1, 2, 3, 4, 5, 6, 7]),
        (0.03, [0, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03]),
        (1234.0, [0, 200, 400, 600, 800, 1000, 1200, 1400]),
        (0.0, [0, 1]),
    ],
)
def test_number_ticks_are_round_and_reach_the_most(most: float, ticks: list[float]):
    assert number_ticks(most) == ticks


def test_time_ticks_are_round_moments_and_name_the_day_once():
    assert [text for _, text in time_ticks(NOON, NOON + 13 * 3600)] == [
        "11-15 12:00",
        "14:00",
        "16:00",
        "18:00",
        "20:00",
        "22:00",
        "11-16 00:00",
    ]
    assert [text for _, text in time_ticks(NOON, NOON + 13 * 86400)] == [
        "2023-11-17",
        "11-19",
        "11-21",
        "11-23",
        "11-25",
        "11-27",
    ]
